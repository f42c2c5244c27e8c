"""Policies: observation -> action. All they do follows from the seed given to `reset` and the env's own course.

A policy is a dataclass whose fields are its settings (so `repr` describes it) and whose course through an episode
starts anew at `reset`. Who plays another action than the policy proposed tells it through `played`.
"""

import copy
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np

from starflow_world.agents.cartpole import BalancePolicy
from starflow_world.errors import ActionError, ConfigError, DataError

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


class Policy(Protocol):
    """What `collect` asks of a policy."""

    @property
    def name(self) -> str:
        """What it plays in this episode, for the record."""

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        """Begin an episode in `env`, which has just been reset."""

    def __call__(self, observation: Any) -> Any:
        """Return the next action, one of the env's action space."""

    def played(self, action: Any) -> None:
        """Hear which action was really taken after the last call."""


@dataclass
class RandomPolicy:
    """Samples of the action space; with `weights` (one per action of a Discrete space) not uniform."""

    weights: tuple[float, ...] | None = None
    name: str = "random"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._space: Any = copy.deepcopy(env.action_space)
        self._space.seed(seed)
        self._rng = np.random.default_rng(seed)
        self._sums: np.ndarray | None = None
        if self.weights is not None:
            size = getattr(self._space, "n", None)
            if size != len(self.weights) or min(self.weights) < 0 or sum(self.weights) <= 0:
                raise ActionError(f"expected weights for the actions of {self._space}, found {self.weights}; "
                                  "give one weight >= 0 per action of a Discrete space")
            self._sums = np.cumsum(self.weights) / sum(self.weights)

    def __call__(self, observation: Any) -> Any:
        if self._sums is None:
            return self._space.sample()
        draw = int(np.searchsorted(self._sums, self._rng.random(), side="right"))
        return int(self._space.start) + draw

    def played(self, action: Any) -> None:
        pass


@dataclass
class BotPolicy:
    """The expert of BabyAI. Once the bot fails in a state it does not understand, the rest of the episode is random."""

    name: str = "bot"
    fallback: RandomPolicy = field(default_factory=RandomPolicy, repr=False)

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._env = env
        self._played: Any = None
        self._bot: Any = None
        self.lost = False
        self.fallback.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        if not self.lost:
            try:
                return self._advice()
            except Exception:  # the bot ends in assertions, attribute and key errors alike
                self.lost = True
        return self.fallback(observation)

    def _advice(self) -> int:
        """What the bot proposes after it has heard what was really played."""
        from minigrid.utils.baby_ai_bot import BabyAIBot

        if self._bot is None:
            self._bot = BabyAIBot(self._env)
        advice = int(self._bot.replan(self._played))
        self._played = None
        return advice

    def played(self, action: Any) -> None:
        self._played = action


@dataclass
class TinkerPolicy:
    """Walks up to objects of a MiniGrid, picks them up, carries them about, drops and toggles them.

    Elsewhere than in MiniGrid it is random.
    """

    name: str = "tinker"
    fallback: RandomPolicy = field(default_factory=RandomPolicy, repr=False)

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._world: Any = env.unwrapped
        self._rng = np.random.default_rng(seed)
        self._goal: tuple[int, int] | None = None
        self.fallback.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        if not hasattr(self._world, "front_pos") or self._rng.random() < 0.05:
            return self.fallback(observation)
        front = self._world.grid.get(*self._world.front_pos)
        if self._world.carrying is not None:
            return self._carry(front)
        if front is not None and front.type not in ("wall", "goal", "lava") and self._rng.random() < 0.75:
            self._goal = None
            return TOGGLE if self._rng.random() < (0.8 if front.type == "door" else 0.12) else PICKUP
        return self._walk()

    def _carry(self, front: Any) -> int:
        """Wander with the object in hand, and drop it where there is room."""
        if front is None and self._rng.random() < 0.3:
            self._goal = None
            return DROP
        if front is not None:
            return int(self._rng.choice([LEFT, RIGHT, DROP, FORWARD], p=[0.4, 0.4, 0.1, 0.1]))
        return int(self._rng.choice([LEFT, RIGHT, FORWARD], p=[0.15, 0.15, 0.7]))

    def _walk(self) -> int:
        """One action on the way to an object chosen at random, or a random move when there is none."""
        if self._goal is None or self._world.grid.get(*self._goal) is None:
            places = [(x, y) for x in range(self._world.width) for y in range(self._world.height)
                      if getattr(self._world.grid.get(x, y), "type", "wall") not in ("wall", "lava")]
            self._goal = places[self._rng.integers(len(places))] if places else None
        action = None if self._goal is None else towards(self._world, self._goal)
        if action is None:
            self._goal = None
            return int(self._rng.choice([LEFT, RIGHT, FORWARD]))
        return action

    def played(self, action: Any) -> None:
        pass


def would_end(env: gymnasium.Env, action: Any) -> bool:
    """Whether `action` would terminate the episode: a deep copy of the env is asked (0.5 ms for a MiniGrid)."""
    try:
        return bool(copy.deepcopy(env.unwrapped).step(action)[2])
    except TypeError as error:
        raise DataError(f"{env}: expected an env that can be copied, to ask which action would end the episode, found "
                        f"{error}; let its episodes end") from error


def avoid_end(env: gymnasium.Env, action: Any, other: Policy, observation: Any, *, tries: int = 30) -> Any:
    """`action`, or the first of `tries` proposals of `other` that does not terminate; the last one if they all do."""
    for _ in range(tries):
        if not would_end(env, action):
            return action
        action = other(observation)
    return action


@dataclass
class NoEnd:
    """Another policy whose actions are drawn again (at random) while they would terminate the episode."""

    policy: Policy

    @property
    def name(self) -> str:
        return f"{self.policy.name}, no end"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._env = env
        self._other = RandomPolicy()
        self._other.reset(seed, env)
        self.policy.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        action = avoid_end(self._env, self.policy(observation), self._other, observation)
        self.policy.played(action)
        return action

    def played(self, action: Any) -> None:
        self.policy.played(action)


@dataclass
class Held:
    """Another policy, each of whose actions is taken `steps` times in a row: video models see several frames at a time
    and follow one action through all of them."""

    policy: Policy
    steps: int

    @property
    def name(self) -> str:
        return f"{self.policy.name}, held"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._count, self._action = 0, None
        self.policy.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        if self._count % self.steps == 0:
            self._action = self.policy(observation)
        self._count += 1
        return self._action

    def played(self, action: Any) -> None:
        self.policy.played(action)


@dataclass
class MixedPolicy:
    """A mixture over episodes that shows a world from many sides; everything is drawn from the episode's seed.

    "random" and "tinker" episodes are pure (probabilities `random`, `tinker`). A "mixed" one alternates
    segments: random or tinkering (2 to 48 steps), then the bot (4 to 20), and so on, each step random with
    probability `noise`.
    A share `careful` of the tinker and mixed episodes of a MiniGrid reaches the goal by the bot only: other actions
    that would end the episode are drawn again, so that there is time to pick things up and put them down.
    """

    noise: float = 0.08
    random: float = 0.15
    tinker: float = 0.3
    careful: float = 0.6
    weights: tuple[float, ...] | None = (2.0, 2.0, 4.0, 0.6, 0.6, 0.5, 0.1)
    kind: str = field(default="mixed", init=False, repr=False)

    @property
    def name(self) -> str:
        return self.kind

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._env, self._rng = env, np.random.default_rng(seed)
        draw = self._rng.random()
        self.kind = "random" if draw < self.random else "tinker" if draw < self.random + self.tinker else "mixed"
        careful = bool(self._rng.random() < self.careful)
        self._careful = careful and self.kind != "random" and hasattr(env.unwrapped, "front_pos")
        fits = self.weights is not None and getattr(env.action_space, "n", None) == len(self.weights)
        self._random = RandomPolicy(self.weights if fits else None)
        self._tinker, self._bot = TinkerPolicy(), BotPolicy()
        for policy in (self._random, self._tinker, self._bot):
            policy.reset(self._draw_seed(), env)
        self._active: Policy = self._random if self.kind == "random" else self._tinker
        self._left, self._begun = 0, False

    def _draw_seed(self) -> int:
        return int(self._rng.integers(2**32))

    def _next_segment(self) -> None:
        """The bot after anything else, anything else after the bot."""
        if self._begun and self._active is not self._bot:
            self._active, self._left = self._bot, int(self._rng.integers(4, 21))
            self._bot.reset(self._draw_seed(), self._env)
        else:
            self._active = self._random if self._rng.random() < 0.3 else self._tinker
            self._left = int(self._rng.integers(2, 49))
        self._begun = True

    def __call__(self, observation: Any) -> Any:
        if self.kind == "mixed" and self._left == 0:
            self._next_segment()
        self._left -= 1
        action = self._active(observation)
        if self.kind == "mixed" and self._rng.random() < self.noise:
            action = self._random(observation)
        if self._careful and self._active is not self._bot:
            action = avoid_end(self._env, action, self._random, observation)
        self.played(action)
        return action

    def played(self, action: Any) -> None:
        self._active.played(action)


def towards(world: Any, goal: tuple[int, int]) -> int | None:
    """The first action of a shortest walk that ends facing `goal` in a MiniGrid; None when there is no way."""
    start = int(world.agent_pos[0]), int(world.agent_pos[1])
    first: dict[tuple[int, int], int] = {start: -1}
    queue = deque([start])
    while queue:
        x, y = here = queue.popleft()
        for direction, (dx, dy) in enumerate(STEPS):
            there = (x + dx, y + dy)
            heading = direction if here == start else first[here]
            if there == goal:
                return _turn(world.agent_dir, heading)
            if there not in first and _walkable(world, there):
                first[there] = heading
                queue.append(there)
    return None


def _walkable(world: Any, place: tuple[int, int]) -> bool:
    """Whether an agent may stand at `place` and live."""
    if not (0 <= place[0] < world.width and 0 <= place[1] < world.height):
        return False
    cell = world.grid.get(*place)
    return cell is None or (cell.type != "lava" and cell.can_overlap())


def _turn(direction: int, heading: int) -> int:
    """The action that brings an agent looking in `direction` on its way in `heading`."""
    return {0: FORWARD, 1: RIGHT, 2: RIGHT, 3: LEFT}[(heading - direction) % 4]


POLICIES = {
    "random": RandomPolicy, "bot": BotPolicy, "tinker": TinkerPolicy, "mixed": MixedPolicy, "balance": BalancePolicy,
}


def make_policy(name: str) -> Policy:
    """A policy with its default settings, by name."""
    if name not in POLICIES:
        raise ConfigError(f"policy: expected one of {', '.join(POLICIES)}, found {name!r}")
    return POLICIES[name]()
