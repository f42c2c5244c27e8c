"""Training batches: windows of episodes, drawn from (seed, step) alone, so that a resumed run sees the same batches.

A window of L frames is placed at random so that it would cover every frame but the first of its episode equally often
if it could reach beyond the episode by L - 2 frames; where it would, it is moved inside. A share of the windows
(`reappearing`) is placed where something is shown again that was gone, which only history tells. A frame's weight is
one over how often it is drawn, so that the loss is that of all frames alike: a loss in which the last frames count less
(as they do in windows that lie inside) or more teaches that episodes end less or more often than they do.

The reward head also learns from batches of events: frames with an end or a reward other than the most frequent one.

At first what is drawn more often counts like any other frame, from which is learned sooner what it looks like, and in
the second half of the training as often as it occurs, from which is learned how likely it is. Events stand in windows
of the shortest length, and weigh less only at the places of a window where they are drawn more often: hidden states
tell how long a window is already, and a head that sees more events in short windows than in long ones learns that none
happen in long ones.

All windows of a batch have the same length; there is no padding, so an episode shorter than a length is drawn in
shorter windows only. The shortest are drawn first, from many episodes a batch, and longer ones join them in stages.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from starflow_world.config.train import TrainConfig
from starflow_world.data.dataset import Windows
from starflow_world.errors import DataError
from starflow_world.training.distributed import ALONE, Processes
from starflow_world.training.reappearances import CONTENTS, NOTHING, Reappearances, reappearances


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
    """Sampler of this process's share of each batch from a memory-mapped dataset; `patch`: side of the patches that may
    reappear. Raises DataError if no episode is as long as the shortest of `config.lengths`."""

    def __init__(self, windows: Windows, config: TrainConfig, processes: Processes = ALONE, *, patch: int = 8) -> None:
        self.windows, self.config, self.processes = windows, config, processes
        self.lengths = tuple(sorted({length for length in config.lengths if (windows.lengths >= length).any()}))
        if not self.lengths:
            longest = f"the longest has {windows.lengths.max()}"
            raise DataError(f"dataset: expected episodes of at least {min(config.lengths)} frames, {longest}; "
                            "lower train.lengths")
        self.episodes = np.repeat(np.arange(len(windows.lengths)), windows.lengths)
        self.index = np.arange(len(self.episodes)) - windows.offsets[self.episodes]
        again = reappearances(windows, patch) if config.reappearing else NOTHING
        self.begins = {length: self._begins(length, again) for length in self.lengths}
        self.sums = {length: begins.cumsum() for length, begins in self.begins.items()}
        later = self.index > 0
        values, counts = np.unique(windows.rewards[later], return_counts=True)
        usual = values[counts.argmax()] if len(values) else 0.0
        self.event_length = max(2, self.lengths[0])
        room = windows.lengths[self.episodes] >= self.event_length
        self.event_frames = np.flatnonzero(room & later & ((windows.rewards != usual) | windows.terminated))
        places = self._event_places(self._even(self.event_length), self.event_length)
        self.event_places = (places / places.sum(-1, keepdims=True)).cumsum(-1)
        self.weights, self.event_shares = list[np.ndarray](), list[np.ndarray]()
        for stage in range(1, len(self.lengths) + 1):
            some = [(self._rows(length) / stage, length) for length in self.lengths[:stage]]
            drawn = np.sum([rows * _covered(self.begins[length], length) for rows, length in some], axis=0)
            judged = sum(rows * (length - 1) for rows, length in some)
            seen = drawn > 0
            weight = np.divide(judged / max(1, seen.sum()), drawn, out=np.zeros(len(drawn)), where=seen)
            self.weights.append(weight.astype(np.float32))
            self.event_shares.append(self._event_shares(places, some))

    def _rows(self, length: int) -> int:
        return max(1, self.config.frames // length)

    def _even(self, length: int) -> np.ndarray:
        """Return the chances (N,) of windows of `length` frames to begin at each frame that let every frame but the
        first of its episode be drawn as often as any other."""
        room = self.windows.lengths[self.episodes] - length
        moved = (length - 2) * ((self.index == 0).astype(float) + (self.index == room)) if length > 1 else 0.0
        chances = np.where(self.index <= room, 1.0 + moved, 0.0)
        return chances / chances.sum()

    def _begins(self, length: int, again: Reappearances) -> np.ndarray:
        """Return the chances (N,) of windows of `length` frames to begin at each frame: even ones, and a share of
        windows in which something reappears."""
        even, chances = self._even(length), np.zeros(len(self.index) + 1)
        fits = (again.gaps < length) & (self.windows.lengths[self.episodes[again.frames]] >= length)
        frames, gaps = again.frames[fits], again.gaps[fits]
        if not len(frames):
            return even
        _, which, counts = np.unique(again.contents[fits], return_inverse=True, return_counts=True)
        first = self.windows.offsets[self.episodes[frames]]
        room = first + self.windows.lengths[self.episodes[frames]] - length
        low, high = np.maximum(frames - length + 1, first), np.minimum(frames - gaps, room)
        low = np.minimum(low, high)
        often = np.maximum(counts, len(frames) / CONTENTS)[which]  # what seldom reappears is drawn as often as the rest
        chance = 1 / often / (high - low + 1)
        np.add.at(chances, low, chance)
        np.add.at(chances, high + 1, -chance)
        chances = np.where(even > 0, np.maximum(chances.cumsum()[:-1], 0.0), 0.0)
        return (1 - self.config.reappearing) * even + self.config.reappearing * chances / chances.sum()

    def _event_places(self, begins: np.ndarray, length: int) -> np.ndarray:
        """Return how often each event stands at each place (E, L - 1) but the first of the L places of a window of
        events, if windows of `length` frames begin as often as `begins` (N,)."""
        places = np.arange(1, self.event_length)
        begin = self.event_frames[:, None] - places
        inside = (self.index[self.event_frames][:, None] >= places) & (places < length)
        return np.where(inside, begins[np.maximum(begin, 0)], 0.0)

    def _event_shares(self, places: np.ndarray, some: list[tuple[float, int]]) -> np.ndarray:
        """Return the share (N, L) of its weight that each frame has at each place of a window if `some` rows of windows
        of each length are drawn, so that events count no more for being drawn with the windows of events too."""
        usual = sum(rows * self._event_places(self.begins[length], length) for rows, length in some)
        own = places / places.sum(-1, keepdims=True)
        more = own * self.config.events / max(1, len(self.event_frames))
        shares = np.ones((len(self.index), self.event_length), np.float32)
        shares[self.event_frames, 1:] = np.divide(usual, usual + more, out=np.ones_like(own), where=more > 0)
        return shares

    def stage(self, step: int) -> int:
        """Return how many of the lengths are drawn in a training step: 1, then 2, ..., each for an equal share."""
        return min(len(self.lengths), 1 + len(self.lengths) * step // self.config.steps)

    def batch(self, step: int) -> Batch:
        """Draw the windows of training step `step`."""
        rng = np.random.default_rng((self.config.seed, step, 0))
        length = int(rng.choice(self.lengths[: self.stage(step)]))
        sums = self.sums[length]
        chosen = np.searchsorted(sums, rng.random(self._rows(length)) * sums[-1], side="right")
        return self._gather(rng, self.episodes[chosen], self.index[chosen], length, step)

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
        batch = self._gather(rng, self.episodes[frames], self.index[frames] - place, self.event_length, step)
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
        stage = self.stage(step) - 1
        strength = min(1.0, 2 * step / self.config.steps)
        weights = self.weights[stage][spans] ** strength
        counted, near = weights.copy(), min(length, self.event_length)
        counted[:, :near] *= self.event_shares[stage][spans[:, :near], np.arange(near)] ** strength
        return Batch(
            torch.from_numpy(frames), torch.from_numpy(actions), torch.from_numpy(rewards), torch.from_numpy(ends),
            torch.from_numpy(weights).float(), torch.from_numpy(counted).float(), texts,
        )


def _covered(begins: np.ndarray, length: int) -> np.ndarray:
    """Return how often each frame (N,) stands behind the first of a window of `length` frames, given how often windows
    begin at each frame, `begins` (N,)."""
    sums = np.concatenate((np.zeros(length), begins.cumsum()))
    return sums[length - 1 : -1] - sums[: len(begins)]
