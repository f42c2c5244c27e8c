"""Training batches: windows of episodes, drawn from (seed, step) alone, so that a resumed run sees the same batches.

A window of L frames is placed at random so that it would cover every frame but the first of its episode equally often
if it could reach beyond the episode by L - 2 frames; where it would, it is moved inside. A frame's weight is one over
how often it is drawn, so that the loss is that of all frames alike: a loss in which the last frames count less (as they
do in windows that lie inside) or more teaches that episodes end less or more often than they do.

The reward head also learns from batches of events: frames with an end or a reward other than the most frequent one. At
first these count like any other frame, from which it learns sooner what they look like, and in the second half of the
training as often as they occur, from which it learns how likely they are.

All windows of a batch have the same length; there is no padding, so an episode shorter than a length is drawn in
shorter windows only.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from starflow_world.config.train import TrainConfig
from starflow_world.data.dataset import Windows
from starflow_world.errors import DataError
from starflow_world.training.distributed import ALONE, Processes


@dataclass(frozen=True)
class Batch:
    """Training batch: frames (B, T, H, W, 3) u8, actions (B, T, 1 + flat), rewards and `ends` (terminations) (B, T),
    and B texts. weights (B, T): of frames in the flow's loss; outcome_weights (B, T): in that of the reward head.
    Both have mean 1 over the frames that are drawn; the first frame of a window does not count."""

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    weights: Tensor
    outcome_weights: Tensor
    texts: list[str]

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return replace(self, **{key: value.to(device) for key, value in vars(self).items() if key != "texts"})


class Sampler:
    """Sampler of this process's share of each batch from a memory-mapped dataset. Raises DataError if no episode is as
    long as the shortest of `config.lengths`."""

    def __init__(self, windows: Windows, config: TrainConfig, processes: Processes = ALONE) -> None:
        self.windows, self.config, self.processes = windows, config, processes
        self.lengths = tuple(length for length in config.lengths if (windows.lengths >= length).any())
        if not self.lengths:
            longest = f"the longest has {windows.lengths.max()}"
            raise DataError(f"dataset: expected episodes of at least {min(config.lengths)} frames, {longest}; "
                            "lower train.lengths")
        self.shares = {}
        drawn, judged = np.zeros(len(windows.rewards)), 0.0
        for length in self.lengths:
            more = length - 3 if length > 1 else 0
            places = np.where(windows.lengths >= length, windows.lengths + more, 0).astype(float)
            share = np.cumsum(places / places.sum())
            self.shares[length] = share / share[-1]
            rows = max(1, config.frames // length) / len(self.lengths)
            drawn += rows / places.sum() * np.concatenate([_covered(int(n), length) for n in windows.lengths])
            judged += rows * (length - 1)
        later = np.ones(len(drawn), bool)
        later[windows.offsets] = False
        values, counts = np.unique(windows.rewards[later], return_counts=True)
        usual = values[counts.argmax()] if len(values) else 0.0
        self.event_frames = np.flatnonzero(later & ((windows.rewards != usual) | windows.terminated))
        self.weights = _inverse(drawn, judged)
        drawn[self.event_frames] += config.events / max(1, len(self.event_frames))
        self.outcome_weights = _inverse(drawn, judged)

    def batch(self, step: int) -> Batch:
        """Draw the windows of training step `step`."""
        rng = np.random.default_rng((self.config.seed, step, 0))
        length = int(rng.choice(self.lengths))
        rows = max(1, self.config.frames // length)
        episodes = np.searchsorted(self.shares[length], rng.random(rows), side="right")
        room, beyond = self.windows.lengths[episodes] - length, max(length - 2, 0)
        last = room + max(length - 2, 0)
        start = np.floor(rng.random(rows) * (last + beyond + 1)).astype(int) - beyond
        return self._gather(rng, episodes, np.clip(start, 0, room), length, step)

    def starts(self, step: int) -> Batch:
        """Draw first frames of episodes, as windows of length 1, for training step `step`."""
        rng = np.random.default_rng((self.config.seed, step, 1))
        episodes = rng.integers(len(self.windows.lengths), size=self.config.starts)
        return self._gather(rng, episodes, np.zeros(len(episodes), int), 1, step)

    def events(self, step: int) -> Batch | None:
        """Draw windows of length 2 whose last frame is an event, for training step `step`; None without any event."""
        if not self.config.events or not len(self.event_frames):
            return None
        rng = np.random.default_rng((self.config.seed, step, 2))
        frames = rng.choice(self.event_frames, self.config.events)
        episodes = np.searchsorted(self.windows.offsets, frames, side="right") - 1
        return self._gather(rng, episodes, frames - self.windows.offsets[episodes] - 1, 2, step)

    def _gather(
        self, rng: np.random.Generator, episodes: np.ndarray, start: np.ndarray, length: int, step: int
    ) -> Batch:
        present = np.ones((len(episodes), length, 1), np.float32)
        present[:, 0, 0] = start > 0
        # Never drop a window's first action: a missing one marks the start of an episode, predicted from text alone.
        present[:, 1:] *= rng.random((len(episodes), length - 1, 1)) >= self.config.action_dropout
        dropped = rng.random(len(episodes)) < self.config.text_dropout
        mine = self.processes.part(len(episodes))
        episodes, start, present, dropped = episodes[mine], start[mine], present[mine], dropped[mine]
        parts = [self.windows.window(int(e), int(s), length) for e, s in zip(episodes, start, strict=True)]
        frames, actions, rewards, ends = (
            np.stack([part[key] for part in parts]) for key in ("frames", "actions", "rewards", "terminated")
        )
        actions = np.concatenate((present, actions * present), axis=-1, dtype=np.float32)
        texts = ["" if drop else self.windows.texts[e] for e, drop in zip(episodes, dropped, strict=True)]
        spans = (self.windows.offsets[episodes] + start)[:, None] + np.arange(length)
        weights, counted = self.weights[spans], self.outcome_weights[spans] ** min(1.0, 2 * step / self.config.steps)
        return Batch(
            torch.from_numpy(frames), torch.from_numpy(actions), torch.from_numpy(rewards), torch.from_numpy(ends),
            torch.from_numpy(weights), torch.from_numpy(counted), texts,
        )


def _covered(frames: int, length: int) -> np.ndarray:
    """Return how many of the places of a window of `length` frames cover each frame of an episode (frames,) behind the
    window's first."""
    if frames < length:
        return np.zeros(frames)
    index, room = np.arange(frames), frames - length
    low, high = np.maximum(index - length + 1, 0), np.minimum(index - 1, room)
    inside = np.maximum(high - low + 1, 0)
    return inside + (length - 2) * ((inside > 0) * ((low == 0).astype(int) + (high == room)))


def _inverse(drawn: np.ndarray, judged: float) -> np.ndarray:
    """Return the weights (N,) float32 of frames that are `drawn` (N,) times in a step, 0 for those that never are; of
    the `judged` frames of a step they add up to as many."""
    seen = drawn > 0
    return np.divide(judged / max(1, seen.sum()), drawn, out=np.zeros(len(drawn)), where=seen).astype(np.float32)
