"""The interface of a law: the transition probabilities of an environment whose source is known.

A law reads a frame as symbols (rows, columns) int8: the index of the known tile in each cell, UNREADABLE where none
fits. Its state is what the next frame depends on: the symbols themselves where they show everything, or a belief about
what they hide. Actions are numbers of a Discrete space.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from starflow_world.data.episodes import Episode

Frequencies = dict[str, dict[str, float]]
"""Probability of each value of each random event: {"ball 0": {"up": 0.5, "down": 0.5}}."""


class Law(Protocol):
    """Known transition law of an environment; it keeps no state between calls."""

    kinds: dict[str, tuple[int, ...]]
    """The symbols that show an object of each kind."""
    movers: tuple[str, ...]
    """The kinds whose positions depend on chance."""

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Return the symbols (B, rows, columns) of frames (B, H, W, 3) u8."""

    def begin(self, episode: Episode) -> Any:
        """Return the state at the first frame of an episode. Raises DataError if the law cannot know it."""

    def follow(self, state: Any, action: int, after: np.ndarray) -> Any | None:
        """Return the state once `after` (rows, columns) has followed; None if the law knows none."""

    def ended(self, state: Any) -> bool:
        """Return whether the episode is over in this state."""

    def choices(self, state: Any) -> Sequence[int]:
        """Return the actions that cannot end the episode, or all actions if that is unknown."""

    def nats(self, state: Any, action: int, after: np.ndarray) -> float:
        """Return the log-probability of the next picture `after`; -inf for an impossible one."""

    def outcomes(self, state: Any, action: int) -> dict[bytes, float] | None:
        """Return the probability of each next picture, by the bytes of its symbols; None if there are too many."""

    def sample(self, state: Any, action: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the next picture (rows, columns)."""

    def events(self, state: Any, action: int) -> Frequencies:
        """Return the frequencies of the random events of a transition."""

    def observed(self, state: Any, action: int, after: np.ndarray) -> Frequencies | None:
        """Return the same given the next picture: certain where it shows the event; None for an impossible one."""

    def lawful(self, state: Any, action: int) -> Sequence[np.ndarray]:
        """Return pictures (rows, columns) that show the objects that the next one may have."""

