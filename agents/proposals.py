"""Proposal distributions over action sequences, refitted to the best samples (cross-entropy method).

Shapes: N sequences of T actions, A choices, d numbers of a Box.
"""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from starflow_world.errors import ActionError

KEPT = 0.3
"""Weight of the old distribution when a proposal is refitted."""


class Proposal(Protocol):
    """Interface of a distribution over sequences of T actions."""

    def draw(self, count: int) -> list[list[Any]]:
        """Sample and return `count` sequences."""

    def refit(self, best: np.ndarray) -> None:
        """Refit to the sequences with these indices in the last sample."""


def choices(space: spaces.Space, given: Sequence[Any], count: int, rng: np.random.Generator) -> list[Any]:
    """Return the candidate actions: `given`, else all of a Discrete space, else `count` samples of the space."""
    for action in given:
        if not space.contains(action):
            raise ActionError(f"actions: expected elements of {space}, found {action!r:.60}")
    if given:
        return list(given)
    if isinstance(space, spaces.Discrete):
        return [int(space.start) + i for i in range(int(space.n))]
    own = copy.deepcopy(space)  # a sample moves the generator of a space
    own.seed(int(rng.integers(2**31)))
    return [own.sample() for _ in range(count)]


def proposal(
    space: spaces.Space, given: Sequence[Any], horizon: int, count: int, rng: np.random.Generator
) -> Proposal:
    """Return a Gaussian for a Box of floats, and a categorical distribution over `choices` for everything else."""
    if isinstance(space, spaces.Box) and not given and np.issubdtype(space.dtype, np.floating):
        return Gaussian(space, horizon, rng)
    return Categorical(choices(space, given, count, rng), horizon, rng)


class Categorical:
    """An independent categorical distribution over A choices at every step, uniform at first."""

    def __init__(self, moves: Sequence[Any], horizon: int, rng: np.random.Generator) -> None:
        self._moves, self._rng = list(moves), rng
        self.shares = np.full((horizon, len(moves)), 1 / len(moves))
        self._drawn = np.zeros((0, horizon), int)

    def draw(self, count: int) -> list[list[Any]]:
        below = self.shares.cumsum(1)[:, :-1]
        self._drawn = (self._rng.random((count, len(below), 1)) >= below).sum(-1)
        return [[self._moves[place] for place in sequence] for sequence in self._drawn]

    def refit(self, best: np.ndarray) -> None:
        best_shares = np.eye(len(self._moves))[self._drawn[best]].mean(0)
        self.shares = KEPT * self.shares + (1 - KEPT) * best_shares


class Gaussian:
    """Independent normal distributions of d numbers at every step, initially over the whole Box (unbounded: mean 0,
    deviation 1)."""

    def __init__(self, space: spaces.Box, horizon: int, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        closed = np.isfinite(space.low) & np.isfinite(space.high)
        low, high = np.where(closed, space.low, -1.0), np.where(closed, space.high, 1.0)
        self.mean = np.stack([((low + high) / 2).clip(space.low, space.high)] * horizon)
        self.deviation = np.stack([(high - low) / 2] * horizon)
        self._drawn = np.zeros((0, *self.mean.shape))

    def draw(self, count: int) -> list[list[Any]]:
        noise = self._rng.standard_normal((count, *self.mean.shape))
        self._drawn = (self.mean + self.deviation * noise).clip(self._space.low, self._space.high)
        return [list(sequence) for sequence in self._drawn.astype(self._space.dtype)]

    def refit(self, best: np.ndarray) -> None:
        self.mean = KEPT * self.mean + (1 - KEPT) * self._drawn[best].mean(0)
        self.deviation = KEPT * self.deviation + (1 - KEPT) * self._drawn[best].std(0)
