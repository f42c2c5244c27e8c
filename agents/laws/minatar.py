"""The transition laws of MinAtar's Breakout, Freeway and Space Invaders, by running copies of the game itself.

A picture does not show the timers, the last action (which is repeated with probability 0.1), or what lies beneath other
objects. The law's state is therefore a belief: copies of the game, with probabilities, that agree with all pictures
since the first. A game is deterministic given the action taken, but for the new cars of Freeway after a crossing, whose
speeds and directions the next picture shows.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from starflow_world.agents.environment import Environment
from starflow_world.data.episodes import Episode
from starflow_world.envs.observation import shown
from starflow_world.errors import DataError
from starflow_world.evaluation.law import Frequencies
from starflow_world.evaluation.tiles import nearest_tiles

GAMES = ("Breakout", "Freeway", "SpaceInvaders")
CELLS = 10
RESETS = 64
"""Resets among which those that look alike are looked for."""
KINDS: dict[str, dict[str, tuple[str, ...]]] = {  # game -> channels that show an object of each kind
    "breakout": {"paddle": ("paddle",), "ball": ("ball",), "trail": ("trail",), "brick": ("brick",)},
    "freeway": {
        "chicken": ("chicken",), "car": ("car",), "trail": ("speed1", "speed2", "speed3", "speed4", "speed5"),
    },
    "space_invaders": {
        "cannon": ("cannon",), "alien": ("alien", "alien_left", "alien_right"), "friendly_bullet": ("friendly_bullet",),
        "enemy_bullet": ("enemy_bullet",),
    },
}


@dataclass(frozen=True)
class Possibility:
    """A game that agrees with the pictures, its last action, its probability; `repeated`: the action was the last."""

    game: Any
    last: int
    chance: float
    repeated: bool = False
    drawn: bool = False
    """Whether the game drew random numbers in the last step."""

    def picture(self) -> np.ndarray:
        """Return the symbols (10, 10): 0 for nothing, else 1 + the last channel that a cell shows."""
        channels = self.game.state()
        return np.asarray((channels * np.arange(1, channels.shape[-1] + 1)).max(-1)).astype(np.int8)

    def content(self) -> tuple[Any, ...]:
        """Return all that the future depends on."""
        values = (getattr(self.game, name) for name in sorted(vars(self.game)))
        return self.last, *(value.tobytes() if isinstance(value, np.ndarray) else repr(value) for value in values)


Belief = tuple[Possibility, ...]


class MinAtarLaw:
    """Law of a MinAtar game; its states are beliefs."""

    def __init__(self, env: Any, size: tuple[int, int]) -> None:
        self.env, self.actions = env, env.unwrapped.action_set
        inner = env.unwrapped.game
        self.sticky, channels = float(inner.sticky_action_prob), inner.env.channels
        self.kinds = {
            kind: tuple(1 + channels[name] for name in names) for kind, names in KINDS[inner.env_name].items()
        }
        self.movers = tuple(self.kinds)
        colors = _colors(env, len(channels))
        height, width = (side // CELLS for side in size)
        self.tiles = np.broadcast_to(colors[:, None, None], (len(colors), height, width, 3))

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Return the symbols (B, 10, 10) of frames (B, H, W, 3) u8."""
        return nearest_tiles(frames, self.tiles)

    def begin(self, episode: Episode) -> Belief:
        """Return the belief at an episode's first frame: the game after a reset with the recorded seed, or one that
        looks like it (bricks hide Breakout's first ball), and any last action, since the game keeps that of the episode
        before. Raises DataError if they do not give that frame."""
        seed = episode.info.get("env_seed")
        if seed is not None:
            begun, picture = self._reset(seed), self.read(episode.frames[:1])[0]
            if (begun.picture() == picture).all():
                alike = [begun, *(one for one in self._resets if (one.picture() == picture).all())]
                games = {one.content(): one.game for one in alike}.values()
                chance = 1 / (len(games) * len(self.actions))
                return tuple(Possibility(game, last, chance) for game in games for last in self.actions)
        raise DataError(f"episode: expected one collected in {self.env.spec.id}, found a first frame that "
                        f"a reset with env_seed {seed} does not give; collect it again")

    @cached_property
    def _resets(self) -> list[Possibility]:
        return [self._reset(seed) for seed in range(RESETS)]

    def _reset(self, seed: int) -> Possibility:
        """Return the game after a reset."""
        self.env.reset(seed=seed)
        game = copy.deepcopy(self.env.unwrapped.game.env)
        game.random = None
        return Possibility(game, self.actions[0], 1.0)

    def follow(self, state: Belief, action: int, after: np.ndarray) -> Belief | None:
        """Return the belief once `after` has followed; None if no possible game shows it."""
        merged: dict[tuple[Any, ...], Possibility] = {}
        for one in self._next(state, action, after):
            if (one.picture() == after).all():
                before = merged.setdefault(one.content(), replace(one, chance=0.0))
                merged[one.content()] = replace(before, chance=before.chance + one.chance)
        total = sum(one.chance for one in merged.values())
        return tuple(replace(one, chance=one.chance / total) for one in merged.values()) or None

    def ended(self, state: Belief) -> bool:
        """Return whether the game is over."""
        return all(one.game.terminal for one in state)

    def choices(self, state: Belief) -> Sequence[int]:
        """Return all actions."""
        return range(len(self.actions))

    def nats(self, state: Belief, action: int, after: np.ndarray) -> float:
        """Return the log-probability of the next picture."""
        chance = sum(one.chance for one in self._next(state, action, after) if (one.picture() == after).all())
        return math.log(chance) if chance else -math.inf

    def outcomes(self, state: Belief, action: int) -> dict[bytes, float] | None:
        """Return the probability of each next picture; None after a crossing, for the many ways of new cars."""
        found, coming = defaultdict[bytes, float](float), self._next(state, action)
        for one in coming:
            found[one.picture().tobytes()] += one.chance
        return None if any(one.drawn for one in coming) else dict(found)

    def sample(self, state: Belief, action: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the next picture."""
        before = state[rng.choice(len(state), p=[one.chance for one in state])]
        taken = before.last if rng.random() < self.sticky else self.actions[action]
        return _acted(before, taken, 1.0, None, rng).picture()

    def events(self, state: Belief, action: int) -> Frequencies:
        """Return how often the chosen action is taken and the last one repeated, if a picture shows which it was."""
        coming = self._next(state, action)
        chosen, repeated = ({one.picture().tobytes() for one in coming if one.repeated is r} for r in (False, True))
        return {} if repeated <= chosen else _stickiness(coming)

    def observed(self, state: Belief, action: int, after: np.ndarray) -> Frequencies | None:
        """Return the same given the next picture."""
        possible = [one for one in self._next(state, action, after) if (one.picture() == after).all()]
        return _stickiness(possible) if possible else None

    def lawful(self, state: Belief, action: int) -> Sequence[np.ndarray]:
        """Return the possible next pictures; after a crossing, one with new cars."""
        return [one.picture() for one in self._next(state, action)]

    def _next(self, state: Belief, action: int, after: np.ndarray | None = None) -> list[Possibility]:
        """Return the games after the action, or the last one instead; random numbers are those that `after` shows."""
        coming, rng = [], np.random.default_rng(0)
        for one in state:
            taken = self.actions[action]
            share = 0.0 if taken == one.last else self.sticky
            coming.append(_acted(one, taken, one.chance * (1 - share), after, rng))
            if share:
                coming.append(replace(_acted(one, one.last, one.chance * share, after, rng), repeated=True))
        return coming


class _Numbers:
    """Random numbers for a copy of Freeway, whose probability is counted: those of the cars that a picture shows, or of
    a generator. (The other games draw none in a step.)"""

    def __init__(self, game: Any, after: np.ndarray | None, rng: np.random.Generator) -> None:
        self.game, self.after, self.rng, self.chance = game, after, rng, 1.0

    def randint(self, low: int, high: int, size: int) -> np.ndarray:
        """Return the speeds of the cars."""
        self.chance *= float(high - low) ** -size
        return self.rng.integers(low, high, size) if self.after is None else np.array([s for s, _ in self._cars()])

    def rand(self, size: int) -> np.ndarray:
        """Return numbers above 0.5 for cars that go to the right."""
        self.chance *= 0.5**size
        return self.rng.random(size) if self.after is None else np.array([0.75 if r else 0.25 for _, r in self._cars()])

    def _cars(self) -> list[tuple[int, bool]]:
        """Return speed and direction of each car, by its trail in the picture."""
        assert self.after is not None
        first, found = self.game.channels["speed1"], []
        for column, row in (car[:2] for car in self.game.cars):
            left, right = (int(self.after[row, (column + side) % CELLS]) - first for side in (-1, 1))
            found.append((left, True) if 1 <= left <= 5 else (right, False) if 1 <= right <= 5 else (1, True))
        return found


def _acted(
    before: Possibility, action: int, chance: float, after: np.ndarray | None, rng: np.random.Generator
) -> Possibility:
    """Return a copy of a game after an action."""
    game = copy.deepcopy(before.game)
    game.random = numbers = _Numbers(game, after, rng)
    game.act(action)
    game.random = None
    return Possibility(game, action, chance * numbers.chance, drawn=numbers.chance < 1)


def _stickiness(some: Sequence[Possibility]) -> Frequencies:
    repeated = sum(one.chance for one in some if one.repeated) / sum(one.chance for one in some)
    return {"action": {"chosen": 1 - repeated, "repeated": repeated}}


def minatar_law(environment: Environment) -> MinAtarLaw | None:
    """Return the law of a MinAtar environment; None if its cells are not whole pixels, or it is wrapped."""
    height, width = environment.size
    if height % CELLS or width % CELLS or environment.wrappers:
        return None
    return MinAtarLaw(environment.make(), environment.size)


class _Swatches:
    """A game whose picture shows every symbol once."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def state(self) -> np.ndarray:
        """Return the channels (1, 1 + channels, channels) of a row of cells."""
        return np.eye(1 + self.channels, dtype=bool)[None, :, 1:]


def _colors(env: Any, channels: int) -> np.ndarray:
    """Return the colours (1 + channels, 3) u8 in which an env draws its symbols."""
    inner = env.unwrapped
    game, inner.game = inner.game, _Swatches(channels)
    try:
        return shown(inner.render(), (1, 1 + channels))[0]
    finally:
        inner.game = game
