"""Ledgers of objects in rollouts: how many came from nowhere, went, or became others, frame by frame.

Where the law of the environment is known, an imagined frame is compared with the nearest one that could have followed;
in other grid worlds with the real frame of the same step.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from starflow_world.data.episodes import Episode
from starflow_world.evaluation.chance import action_numbers, ledger, object_losses
from starflow_world.evaluation.law import Law
from starflow_world.evaluation.tiles import count_tiles, nearest_tiles, tile_kinds

LOSSES = ("duplicated", "vanished", "transmuted")


class ObjectLedger(Protocol):
    """Judge of one rollout per episode. It is given every step of a rollout in order, and judges a row as often as it
    is given its frames."""

    name: str

    def judge(self, step: int, imagined: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
        """Return figures (B,) of the first B episodes' imagined frames (B, H, W, 3) u8; NaN where nothing is known."""


class LawLedger:
    """Ledger by the law, for rollouts that follow the first `given` real frames of episodes with their actions."""

    name = "by the law"

    def __init__(self, law: Law, episodes: Sequence[Episode], given: int) -> None:
        self.law, self.given = law, given
        self.actions = [action_numbers(episode) for episode in episodes]
        self.states = [self._state(episode, taken) for episode, taken in zip(episodes, self.actions, strict=True)]

    def _state(self, episode: Episode, taken: Sequence[int]) -> Any | None:
        state, pictures = self.law.begin(episode), self.law.read(episode.frames[: self.given])
        for t in range(1, self.given):
            state = None if state is None else self.law.follow(state, taken[t], pictures[t])
        return state

    def judge(self, step: int, imagined: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
        """Return whether each transition is possible, and the objects that were lost in it."""
        figures = np.full((1 + len(LOSSES), len(imagined)), math.nan)
        for row, picture in enumerate(self.law.read(imagined)):
            state, place = self.states[row], self.given - 1 + step
            if state is None or place >= len(self.actions[row]) or self.law.ended(state):
                continue
            action = self.actions[row][place]
            possible = self.law.nats(state, action, picture) > -math.inf
            figures[:, row] = [possible, *ledger(self.law, picture, self.law.lawful(state, action))]
            self.states[row] = self.law.follow(state, action, picture)
        return dict(zip(("legal", *LOSSES), figures, strict=True))


class TileLedger:
    """Ledger of a grid world by the kinds of tile in the real frames of episodes.

    The ground, which is no object, is the kind that most often comes or goes where a cell changes.
    """

    name = "beside the real frame"

    def __init__(self, kinds: np.ndarray, episodes: Sequence[Episode]) -> None:
        self.kinds, counts = kinds, np.zeros(len(kinds), int)
        for episode in episodes:
            index = nearest_tiles(episode.frames, kinds)
            changed = index[1:] != index[:-1]
            counts += np.bincount(np.concatenate([index[1:][changed], index[:-1][changed]]), minlength=len(kinds))
        self.objects = np.arange(len(kinds)) != counts.argmax()

    def judge(self, step: int, imagined: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
        """Return the objects that were lost beside the real frames. A cell without a known tile is an object."""
        counts = []
        for frames in (imagined, real):
            index = nearest_tiles(frames, self.kinds)
            known = count_tiles(index, len(self.kinds))
            counts.append(np.column_stack([known[:, self.objects], index[0].size - known.sum(1)]))
        lost = np.array([object_losses(gap) for gap in counts[0] - counts[1]], float)
        return dict(zip(LOSSES, lost.T, strict=True))


def make_ledger(law: Law | None, episodes: Sequence[Episode], given: int, size: int) -> ObjectLedger | None:
    """Return a ledger by the law, or by tiles of `size` pixels where no law is known; None where frames have no tiles.
    """
    if law is not None:
        return LawLedger(law, episodes, given)
    kinds = tile_kinds(size, np.concatenate([episode.frames for episode in episodes]))
    return TileLedger(kinds, episodes) if len(kinds) > 1 else None
