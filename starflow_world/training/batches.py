"""Training batches: windows of episodes, drawn by (seed, step) alone, so a resumed run sees what it would have seen.

A window starts at a true episode start at the promised rate, ends with its episode's last frame at another, and lies
anywhere else. All windows of a batch have one length and lie inside one episode: there is no padding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starflow_world.config.train import TrainConfig
from starflow_world.data.dataset import Windows
from starflow_world.errors import DataError
from starflow_world.training.distributed import ALONE, Processes


@dataclass(frozen=True)
class Batch:
    """frames (B, T, H, W, 3) u8, actions (B, T, 1 + flat), rewards (B, T), ends (B, T), one text per row."""

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    texts: list[str]

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(
            self.frames.to(device), self.actions.to(device), self.rewards.to(device), self.ends.to(device), self.texts
        )


class Sampler:
    """Draws batches from a memory-mapped dataset: the rows of this process, of a batch that all draw alike."""

    def __init__(self, windows: Windows, config: TrainConfig, processes: Processes = ALONE) -> None:
        self.windows, self.config, self.processes = windows, config, processes
        self.lengths = tuple(length for length in config.lengths if (windows.lengths >= length).any())
        if not self.lengths:
            found = f"the longest has {windows.lengths.max()}"
            raise DataError(f"dataset: expected episodes of at least {min(config.lengths)} frames, {found}")
        self.shares = {}
        for length in self.lengths:
            weight = np.where(windows.lengths >= length, windows.lengths, 0).astype(float)
            share = np.cumsum(weight / weight.sum())
            self.shares[length] = share / share[-1]

    def batch(self, step: int) -> Batch:
        """The windows of training step `step`."""
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
        """First frames of episodes, windows of one frame."""
        rng = np.random.default_rng((self.config.seed, step, 1))
        episodes = rng.integers(len(self.windows.lengths), size=self.config.starts)
        return self._gather(rng, episodes, np.zeros(len(episodes), int), 1)

    def _gather(self, rng: np.random.Generator, episodes: np.ndarray, start: np.ndarray, length: int) -> Batch:
        present = np.ones((len(episodes), length, 1), np.float32)
        present[:, 0, 0] = start > 0
        # A window's first action is never dropped: none there means a true start, and text alone must find true starts.
        present[:, 1:] *= rng.random((len(episodes), length - 1, 1)) >= self.config.action_dropout
        dropped = rng.random(len(episodes)) < self.config.text_dropout
        mine = self.processes.part(len(episodes))
        episodes, start, present, dropped = episodes[mine], start[mine], present[mine], dropped[mine]
        parts = [self.windows.window(int(e), int(s), length) for e, s in zip(episodes, start, strict=True)]
        actions = np.stack([part["actions"] for part in parts])
        texts = [self.windows.texts[e] for e in episodes]
        return Batch(
            torch.from_numpy(np.stack([part["frames"] for part in parts])),
            torch.from_numpy(np.concatenate((present, actions * present), axis=-1, dtype=np.float32)),
            torch.from_numpy(np.stack([part["rewards"] for part in parts])),
            torch.from_numpy(np.stack([part["terminated"] for part in parts])),
            ["" if drop else text for text, drop in zip(texts, dropped, strict=True)],
        )
