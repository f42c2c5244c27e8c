"""Training batches: windows of episodes, drawn from (seed, step) alone, so that a resumed run sees the same batches.

A window of L frames is placed at random so that it would cover every frame but the first of its episode equally often
if it could reach beyond the episode by L - 2 frames; where it would, it is moved inside. A frame's weight is one over
how often it is drawn, so that the loss is that of all frames alike: a loss in which the last frames count less (as they
do in windows that lie inside) or more teaches that episodes end less or more often than they do.

The reward head also learns from batches of events: frames with an end or a reward other than the most frequent one. At
first these count like any other frame, from which it learns sooner what they look like, and in the second half of the
training as often as they occur, from which it learns how likely they are. They stand in windows of the shortest length,
and weigh less only at the places of a window where they are drawn more often: hidden states tell how long a window is
already, and a head that sees more events in short windows than in long ones learns that none happen in long ones.

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
        self.shares, self.rates = dict[int, np.ndarray](), dict[int, float]()
        drawn, judged = np.zeros(len(windows.rewards)), 0.0
        for length in self.lengths:
            more = length - 3 if length > 1 else 0
            places = np.where(windows.lengths >= length, windows.lengths + more, 0).astype(float)
            share = np.cumsum(places / places.sum())
            self.shares[length] = share / share[-1]
            rows = max(1, config.frames // length) / len(self.lengths)
            self.rates[length] = rows / places.sum()
            drawn += rows / places.sum() * np.concatenate([_covered(int(n), length) for n in windows.lengths])
            judged += rows * (length - 1)
        later = np.ones(len(drawn), bool)
        later[windows.offsets] = False
        values, counts = np.unique(windows.rewards[later], return_counts=True)
        usual = values[counts.argmax()] if len(values) else 0.0
        self.event_length = max(2, min(self.lengths))
        room = np.repeat(windows.lengths, windows.lengths) >= self.event_length
        self.event_frames = np.flatnonzero(room & later & ((windows.rewards != usual) | windows.terminated))
        seen = drawn > 0
        self.weights = np.divide(judged / max(1, seen.sum()), drawn, out=np.zeros(len(drawn)), where=seen)
        self.event_places, self.event_shares = self._event_places()

    def _event_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return at which place of its window each event stands in batches of events, as cumulated probabilities (E,
        L - 1) of the places 1, 2, ..., and the share (N, L) of its weight that it has at each place of a window."""
        events, count = self.event_frames, self.event_length
        shares = np.ones((len(self.windows.rewards), count))
        episodes = np.searchsorted(self.windows.offsets, events, side="right") - 1
        index, frames = events - self.windows.offsets[episodes], self.windows.lengths[episodes]

        def placed(place: int, length: int) -> np.ndarray:
            begin, room = index - place, frames - length
            moved = (length - 2) * ((begin == 0).astype(int) + (begin == room)) if length > 1 else 0
            return ((begin >= 0) & (begin <= room)) * (1.0 + moved)

        own = np.stack([placed(place, count) for place in range(1, count)], axis=-1)
        own /= own.sum(-1, keepdims=True)
        for place in range(1, count):
            longer = [length for length in self.lengths if length > place]
            usual = sum(self.rates[length] * placed(place, length) for length in longer)
            more = own[:, place - 1] * self.config.events / max(1, len(events))
            shares[events, place] = np.divide(usual, usual + more, out=np.ones(len(events)), where=more > 0)
        return own.cumsum(-1), shares

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
        """Draw windows that hold an event, of which it alone counts, for training step `step`; None without events."""
        if not self.config.events or not len(self.event_frames):
            return None
        rng = np.random.default_rng((self.config.seed, step, 2))
        chosen = rng.integers(len(self.event_frames), size=self.config.events)
        frames = self.event_frames[chosen]
        place = 1 + (rng.random(len(chosen))[:, None] > self.event_places[chosen][:, :-1]).sum(-1)
        episodes = np.searchsorted(self.windows.offsets, frames, side="right") - 1
        begin = frames - self.windows.offsets[episodes] - place
        batch = self._gather(rng, episodes, begin, self.event_length, step)
        alone = torch.from_numpy(place)[self.processes.part(len(place))][:, None] == torch.arange(self.event_length)
        return replace(batch, outcome_weights=batch.outcome_weights * alone)

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
        weights = self.weights[spans]
        counted, near = weights.copy(), min(length, self.event_length)
        counted[:, :near] *= self.event_shares[spans[:, :near], np.arange(near)]
        counted **= min(1.0, 2 * step / self.config.steps)
        return Batch(
            torch.from_numpy(frames), torch.from_numpy(actions), torch.from_numpy(rewards), torch.from_numpy(ends),
            torch.from_numpy(weights).float(), torch.from_numpy(counted).float(), texts,
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
