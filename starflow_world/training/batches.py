"""Training batches: windows of episodes, drawn from (seed, step) alone, so that a resumed run sees the same batches.

With probability `start_rate` a window begins at its episode's start, with `end_rate` it ends at the last frame, and
otherwise its position is uniform. All windows of a batch have the same length; there is no padding.
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
    and B texts."""

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
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
        for length in self.lengths:
            weight = np.where(windows.lengths >= length, windows.lengths, 0).astype(float)
            share = np.cumsum(weight / weight.sum())
            self.shares[length] = share / share[-1]

    def batch(self, step: int) -> Batch:
        """Draw the windows of training step `step`."""
        rng = np.random.default_rng((self.config.seed, step, 0))
        length = int(rng.choice(self.lengths))
        rows = max(1, self.config.frames // length)
        episodes = np.searchsorted(self.shares[length], rng.random(rows), side="right")
        room = self.windows.lengths[episodes] - length
        place = rng.random(rows)
        start = np.floor(rng.random(rows) * (room + 1)).astype(int)
        start = np.where(place < self.config.start_rate, 0, start)
        start = np.where(place > 1 - self.config.end_rate, room, start)
        return self._gather(rng, episodes, start, length)

    def starts(self, step: int) -> Batch:
        """Draw first frames of episodes, as windows of length 1, for training step `step`."""
        rng = np.random.default_rng((self.config.seed, step, 1))
        episodes = rng.integers(len(self.windows.lengths), size=self.config.starts)
        return self._gather(rng, episodes, np.zeros(len(episodes), int), 1)

    def _gather(self, rng: np.random.Generator, episodes: np.ndarray, start: np.ndarray, length: int) -> Batch:
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
        return Batch(
            torch.from_numpy(frames), torch.from_numpy(actions), torch.from_numpy(rewards), torch.from_numpy(ends),
            texts,
        )
