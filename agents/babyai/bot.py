"""Policies for BabyAI and MiniGrid that read the simulator: expert bot, tinkering policy, and a mixture of both."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from starflow_world.agents.policy import Policy, RandomPolicy, avoid_end
from starflow_world.envs.observation import is_minigrid
from starflow_world.errors import ConfigError

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
LOST = ", then random"


def check_babyai(name: str, env: gymnasium.Env) -> None:
    """Raise ConfigError unless `env` is a BabyAI level, since the bot only solves BabyAI missions."""
    if not any((kind.__name__, kind.__module__.split(".")[0]) == ("RoomGridLevel", "minigrid")
               for kind in type(env.unwrapped).__mro__):
        raise ConfigError(f"policy: expected one that can play {env}, found {name}, which is made for BabyAI; "
                          "choose random, or another environment")


@dataclass
class BotPolicy(Policy):
    """The expert policy of BabyAI. If the bot fails in a state that it cannot handle, the rest of the episode is
    random, and the recorded name says so."""

    name: str = "bot"
    fallback: RandomPolicy = field(default_factory=RandomPolicy, repr=False)

    def check(self, env: gymnasium.Env) -> None:
        check_babyai(self.name, env)

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self.check(env)
        self._env = env
        self._played: Any = None
        self._bot: Any = None
        self.name = self.name.removesuffix(LOST)
        self.fallback.reset(seed, env)

    @property
    def lost(self) -> bool:
        """Return whether the bot failed in this episode."""
        return self.name.endswith(LOST)

    def __call__(self, observation: Any) -> Any:
        if not self.lost:
            try:
                return self._advice()
            except Exception:  # the bot fails with assertions, attribute and key errors
                self.name += LOST
        return self.fallback(observation)

    def recipe(self) -> dict[str, Any]:
        return super().recipe() | {"name": self.name.removesuffix(LOST)}

    def _advice(self) -> int:
        """Return the bot's next action, given the action that was actually taken."""
        from minigrid.utils.baby_ai_bot import BabyAIBot

        if self._bot is None:
            self._bot = BabyAIBot(self._env)
        advice = int(self._bot.replan(self._played))
        self._played = None
        return advice

    def played(self, action: Any) -> None:
        self._played = action


@dataclass
class TinkerPolicy(Policy):
    """Policy that walks to objects of a MiniGrid, picks them up, carries, drops and toggles them."""

    name: str = "tinker"
    fallback: RandomPolicy = field(default_factory=RandomPolicy, repr=False)

    def check(self, env: gymnasium.Env) -> None:
        if not is_minigrid(env) or getattr(env.action_space, "n", 0) <= TOGGLE:
            raise ConfigError(f"policy: expected one that can play {env}, found {self.name}, which is made for "
                              "MiniGrid with all its actions; choose random or careful, or another environment")

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self.check(env)
        self._world: Any = env.unwrapped
        self._rng = np.random.default_rng(seed)
        self._goal: tuple[int, int] | None = None
        self.fallback.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        if self._rng.random() < 0.05:
            return self.fallback(observation)
        front = self._world.grid.get(*self._world.front_pos)
        if self._world.carrying is not None:
            return self._carry(front)
        if front is not None and front.type not in ("wall", "goal", "lava") and self._rng.random() < 0.75:
            self._goal = None
            return TOGGLE if self._rng.random() < (0.8 if front.type == "door" else 0.12) else PICKUP
        return self._walk()

    def _carry(self, front: Any) -> int:
        """Return a random move with the object in hand, or drop it where there is room."""
        if front is None and self._rng.random() < 0.3:
            self._goal = None
            return DROP
        if front is not None:
            return int(self._rng.choice([LEFT, RIGHT, DROP, FORWARD], p=[0.4, 0.4, 0.1, 0.1]))
        return int(self._rng.choice([LEFT, RIGHT, FORWARD], p=[0.15, 0.15, 0.7]))

    def _walk(self) -> int:
        """Return one action on the path to a randomly chosen object, or a random move if there is none."""
        if self._goal is None or self._world.grid.get(*self._goal) is None:
            places = [(x, y) for x in range(self._world.width) for y in range(self._world.height)
                      if getattr(self._world.grid.get(x, y), "type", "wall") not in ("wall", "lava")]
            self._goal = places[self._rng.integers(len(places))] if places else None
        action = None if self._goal is None else towards(self._world, self._goal)
        if action is None:
            self._goal = None
            return int(self._rng.choice([LEFT, RIGHT, FORWARD]))
        return action


@dataclass
class MixedPolicy(Policy):
    """Mixture of policies for diverse BabyAI data; all random choices follow from the episode's seed.

    "random" and "tinker" episodes use one policy (probabilities `random`, `tinker`). "mixed" episodes alternate
    segments: random or tinkering (2 to 48 steps), then the bot (4 to 20), and so on; each step is random with
    probability `noise`. In a share `careful` of the tinker and mixed episodes only the bot reaches the goal: other
    actions that would terminate the episode are resampled, which leaves time to pick up and put down objects.
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

    def check(self, env: gymnasium.Env) -> None:
        check_babyai("mixed", env)

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self.check(env)
        self._env, self._rng = env, np.random.default_rng(seed)
        draw = self._rng.random()
        self.kind = "random" if draw < self.random else "tinker" if draw < self.random + self.tinker else "mixed"
        self._careful = bool(self._rng.random() < self.careful) and self.kind != "random"
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
        """Start a segment: of the bot after any other policy, of another policy after the bot."""
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
    """Return the first action of a shortest path that ends facing `goal` in a MiniGrid; None if there is no path."""
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
    """Return whether an agent can stand at `place` without dying."""
    if not (0 <= place[0] < world.width and 0 <= place[1] < world.height):
        return False
    cell = world.grid.get(*place)
    return cell is None or (cell.type != "lava" and cell.can_overlap())


def _turn(direction: int, heading: int) -> int:
    """Return the action that turns or moves an agent, now facing `direction`, towards `heading`."""
    return {0: FORWARD, 1: RIGHT, 2: RIGHT, 3: LEFT}[(heading - direction) % 4]
