"""Fidelity of a world on episodes that it was not trained on.

Three measures: the likelihood of real frames (excess nats over the noise floor on the same noise draw; 0 is a perfect
world), the accuracy of imagined frames, one step ahead and in open loop (baseline: repeat the last frame), and the
accuracy of predicted rewards and terminations.

A cell is a patch of the codec; it is right if its root mean square error is at most `tiles.RIGHT` grey levels. Frames
that depend on events before the world's guaranteed context are identified by the environment's `MemoryRule` and
reported separately.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.codec.candidates import error_on_changes
from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.evaluation.intervals import Share
from starflow_world.evaluation.tiles import RIGHT, tile_figures
from starflow_world.noise import make_key, normals
from starflow_world.world import World

CODED = 1000

MemoryRule = Callable[[Episode, int, int], np.ndarray]
"""Function of (episode, context, begin) that returns a mask (T - begin,) of the frames from `begin` on that depend on
frames more than `context` before them."""


def memoryless(episode: Episode, context: int, begin: int = 0) -> np.ndarray:
    """Return an all-false mask (T - begin,): the memory rule of fully observed environments."""
    return np.zeros(len(episode) - begin, bool)


def codec_figures(world: World, episodes: Sequence[Episode]) -> dict[str, float]:
    """Return what the codec leaves on pixels that change: root mean square and largest error in grey levels, of
    `CODED` frames at most. {} for a codec with memory."""
    codec = world.networks.codec
    if codec.stateful:
        return {}
    room, pairs = CODED, list[tuple[np.ndarray, np.ndarray]]()
    for episode in episodes:
        frames = episode.frames[: room + 1]
        pairs.append((frames[1:], (frames[1:] != frames[:-1]).any(-1)))
        room -= len(pairs[-1][0])
        if room <= 0:
            break
    real, changed = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*pairs, strict=True))
    with torch.inference_mode():
        made = codec.decode(codec.encode(real.to(world.dynamics.device)[None])[0])[0][0].cpu()
    error, worst = error_on_changes(made, real, changed)
    return {"codec_error": error, "codec_worst": worst}


def cells_right(world: World, imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return a mask (..., rows, columns) of the cells in which imagined and real frames (..., H, W, 3) u8 agree."""
    p = world.config.codec.patch
    error = (imagined.astype(np.float32) - real.astype(np.float32)) ** 2
    edges = ((0, 0),) * (error.ndim - 3) + ((0, -error.shape[-3] % p), (0, -error.shape[-2] % p), (0, 0))
    error = np.pad(error, edges, mode="edge")
    height, width = error.shape[-3] // p, error.shape[-2] // p
    cells = error.reshape(*error.shape[:-3], height, p, width, p, 3).mean(axis=(-4, -2, -1))
    return np.sqrt(cells) <= RIGHT


def frames_right(world: World, imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return a mask (B,) of the imagined frames (B, H, W, 3) u8 that agree with the real frames in every cell."""
    return np.asarray(cells_right(world, imagined, real).all((-1, -2)))


def actions_of(episodes: Sequence[Episode], count: int) -> Tensor:
    """Return the actions (B, count, 1 + flat) of the first `count` frames of each episode."""
    return torch.stack([flat_actions(episode)[:count] for episode in episodes])


@torch.inference_mode()
def excess_nats(
    world: World, episodes: Sequence[Episode], seed: int = 0, rows: int = 8, needs_memory: MemoryRule = memoryless
) -> dict[str, float]:
    """Return the teacher-forced excess nats per frame over the noise floor; first frames and frames that need memory
    are reported separately. The standard error is over episodes, because frames of an episode are not independent."""
    after, first, memory = [], [], []
    for episode, excess in zip(episodes, frame_excess(world, episodes, seed=seed, rows=rows), strict=True):
        needed = needs_memory(episode, world.config.context, 0)[1:]
        after.append(excess[1:][~needed])
        memory.append(excess[1:][needed])
        first.append(excess[:1])
    known, starts, remembered = (np.concatenate(part) for part in (after, first, memory))
    return {
        "excess_nats": float(known.mean()), "excess_nats_error": standard_error(after),
        "excess_nats_median": float(np.median(known)), "excess_nats_first": float(starts.mean()),
        "excess_nats_memory": float(remembered.mean()) if len(remembered) else 0.0, "frames": len(known),
        "frames_memory": len(remembered),
    }


@torch.inference_mode()
def frame_excess(
    world: World, episodes: Sequence[Episode], *, seed: int = 0, rows: int = 8, actions: bool = True, text: bool = True
) -> list[np.ndarray]:
    """Return the teacher-forced excess nats (T,) of each episode's frames, with its actions and text or without."""
    found: dict[int, np.ndarray] = {}
    for batch in tqdm(list(_batches(episodes, rows)), desc="excess nats", unit="batch", leave=False):
        some = [episodes[index] for index in batch]
        flat = actions_of(some, len(some[0]))
        texts = [episode.text if text else "" for episode in some]
        frames = np.stack([episode.frames for episode in some])
        excess = clip_excess(world, frames, flat if actions else torch.zeros_like(flat), texts, seed)
        found |= dict(zip(batch, excess, strict=True))
    return [found[index] for index in range(len(episodes))]


def clip_excess(world: World, frames: np.ndarray, flat: Tensor, texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """Return the excess nats (B, T) of clips (B, T, H, W, 3) u8: log p of a frame's noise minus log p of the frame."""
    sigma, dims = world.config.noise_level, (world.dynamics.tokens, world.config.channels)
    nats = world.log_prob(torch.from_numpy(frames), flat, text=world.texts_for(texts), seed=seed)
    keys = torch.tensor([make_key(seed + row) for row in range(len(frames))])
    steps = [torch.full_like(keys, t) for t in range(frames.shape[1])]
    noise = torch.stack([normals(keys, step, "observation", dims) for step in steps], 1)
    floor = (-0.5 * noise.square() - math.log(sigma) - 0.5 * math.log(2 * math.pi)).sum((-1, -2))
    return np.asarray((floor - nats.cpu()).numpy())


def standard_error(episodes: Sequence[np.ndarray]) -> float:
    """Return the standard error of a mean over frames, given the values (T,) of the frames of each episode."""
    means = np.array([episode.mean() for episode in episodes if len(episode)])
    return float(means.std() / len(means) ** 0.5) if len(means) else math.nan


def _batches(episodes: Sequence[Episode], rows: int) -> Iterator[list[int]]:
    """Yield the indices of at most `rows` episodes of equal length at a time, shortest first."""
    for _, equal in groupby(sorted(range(len(episodes)), key=lambda index: len(episodes[index])),
                            key=lambda index: len(episodes[index])):
        group = list(equal)
        yield from (group[begin : begin + rows] for begin in range(0, len(group), rows))


def _counted(right: Any, chosen: Any) -> Share:
    """Return the share of the cases in the mask `chosen` (B,) for which `right` (B,) is true."""
    return Share(float(right[chosen].sum()), int(chosen.sum()))


@torch.inference_mode()
def one_step(
    world: World, episodes: Sequence[Episode], seed: int = 0, needs_memory: MemoryRule = memoryless
) -> dict[str, Any]:
    """Imagine each frame given the real history; return the shares of exact frames and of right changed cells, with the
    "repeat the last frame" baseline, the mean number of Jacobi sweeps and how many frames took how many, and in grid
    worlds what comes into view."""
    count = min(len(e) for e in episodes)
    frames = np.stack([e.frames[:count] for e in episodes])
    flat = actions_of(episodes, count)
    fair = ~np.stack([needs_memory(e, world.config.context, 0)[:count] for e in episodes])
    state, _ = world.start(frames[:, :1], flat[:, :1], text=world.texts_for([e.text for e in episodes]), seed=seed)
    exact = copied = changed = memory = Share(0, 0)
    sweeps, made = [], []
    for t in tqdm(range(1, count), desc="one step ahead", unit="frame"):
        _, imagined = world.step(state, flat[:, t])
        state, _ = world.observe(state, flat[:, t], frames[:, t], reuse=True)
        made.append(imagined.frames[:, 0].cpu().numpy())
        right = cells_right(world, made[-1], frames[:, t])
        same = cells_right(world, frames[:, t - 1], frames[:, t])
        exact += _counted(right.all((-1, -2)), fair[:, t])
        memory += _counted(right.all((-1, -2)), ~fair[:, t])
        copied += _counted(same.all((-1, -2)), fair[:, t])
        changed += _counted(right[fair[:, t]], ~same[fair[:, t]])
        sweeps += imagined.sweeps.tolist()
    figures: dict[str, Any] = {
        "exact_frames_1": exact, "exact_frames_1_copy": copied, "changed_cells_1": changed,
        "exact_frames_1_memory": memory, "sweeps": float(np.mean(sweeps)),
        "sweep_counts": {str(number): sweeps.count(number) for number in sorted(set(sweeps))},
    }
    return figures | tile_figures(world.config.codec.patch, frames, np.stack(made, 1))


@torch.inference_mode()
def open_loop(
    world: World, episodes: Sequence[Episode], horizons: Sequence[int] = (16, 64), begins: Sequence[int] = (0,),
    seed: int = 0, needs_memory: MemoryRule = memoryless,
) -> dict[str, Share]:
    """Imagine from a real frame with the real actions; return the share of exact frames at each horizon. Rollouts in
    which any frame up to the horizon needs memory are reported separately."""
    longest = max(horizons)
    shares = {f"exact_frames_{h}{kind}": Share(0, 0) for h in horizons for kind in ("", "_copy", "_memory")}
    for begin in begins:
        some = [e for e in episodes if len(e) > begin + longest]
        if not some:
            continue
        needed = np.stack([needs_memory(e, world.config.context, begin)[: longest + 1] for e in some])
        first = np.stack([e.frames[begin] for e in some])
        for t, imagined, real in rolled(world, some, begin, longest, seed=seed):
            if t in horizons:
                right, fair = frames_right(world, imagined, real), ~needed[:, : t + 1].any(1)
                shares[f"exact_frames_{t}"] += _counted(right, fair)
                shares[f"exact_frames_{t}_memory"] += _counted(right, ~fair)
                shares[f"exact_frames_{t}_copy"] += _counted(frames_right(world, first, real), fair)
    return shares


def rolled(
    world: World, episodes: Sequence[Episode], begin: int, steps: int, *, given: int = 1, seed: int = 0
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield step, imagined and real frames (B, H, W, 3) of rollouts in open loop with the real actions, after the frame
    at `begin` and the given - 1 before it. Every episode must be longer than `begin` + `steps`."""
    flat = actions_of(episodes, begin + steps + 1)
    known = np.stack([e.frames[begin + 1 - given : begin + 1] for e in episodes])
    texts = world.texts_for([e.text for e in episodes])
    state, _ = world.start(known, flat[:, begin + 1 - given : begin + 1], text=texts, seed=seed)
    for t in tqdm(range(1, steps + 1), desc=f"open loop from {begin}", unit="frame"):
        state, imagined = world.step(state, flat[:, begin + t], reuse=True)
        yield t, imagined.frames[:, 0].cpu().numpy(), np.stack([e.frames[begin + t] for e in episodes])


@dataclass(frozen=True)
class Events:
    """Counts of predicted and real events."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    @property
    def f1(self) -> float:
        """Return the F1 score, 2 hits / (2 hits + false + missed)."""
        return 2 * self.hits / max(1, 2 * self.hits + self.false + self.missed)

    def count(self, predicted: np.ndarray, real: np.ndarray) -> "Events":
        """Return the counts after adding N cases with predicted and real events (N,) bool."""
        return Events(
            self.hits + int((predicted & real).sum()), self.false + int((predicted & ~real).sum()),
            self.missed + int((~predicted & real).sum()),
        )


@dataclass(frozen=True)
class RewardLevels:
    """The most frequent reward, and half of the smallest difference from it: a reward that differs by more is an event.
    """

    usual: float
    apart: float

    @staticmethod
    def of(episodes: Sequence[Episode]) -> "RewardLevels":
        """Return the levels of the rewards of episodes."""
        levels, times = np.unique(np.concatenate([e.rewards[1:] for e in episodes]), return_counts=True)
        usual = levels[times.argmax()] if len(levels) else 0.0
        return RewardLevels(float(usual), float(np.abs(levels - usual)[levels != usual].min(initial=np.inf) / 2))

    def events(self, rewards: np.ndarray) -> np.ndarray:
        """Return 1 for a reward above the usual one, -1 for one below it, else 0, in the shape of `rewards`."""
        return np.sign(rewards - self.usual) * (np.abs(rewards - self.usual) > self.apart)


@dataclass(frozen=True)
class Predictions:
    """What a world predicts for N real frames and what came: rewards, and probabilities and presence of an end (N,)."""

    reward: np.ndarray
    real_reward: np.ndarray
    end: np.ndarray
    end_probability: np.ndarray
    real_end: np.ndarray


@torch.inference_mode()
def predict_outcomes(world: World, episodes: Sequence[Episode], seed: int = 0, rows: int = 32) -> Predictions:
    """Return the rewards and terminations that the world gives to real frames, given what led to them."""
    found: list[tuple[np.ndarray, ...]] = []
    for begin in tqdm(range(0, len(episodes), rows), desc="outcomes", unit="batch"):
        some = episodes[begin : begin + rows]
        count = max(len(e) for e in some)
        padded = [_padded(e, count) for e in some]
        flat, lengths = actions_of(padded, count), np.array([len(e) for e in some])
        first = np.stack([e.frames[:1] for e in some])
        state, _ = world.start(first, flat[:, :1], text=world.texts_for([e.text for e in some]), seed=seed)
        for t in range(1, count):
            state, seen = world.observe(state, flat[:, t], np.stack([e.frames[t] for e in padded]), reuse=True)
            real = [np.array([getattr(e, name)[t] for e in padded]) for name in ("rewards", "terminated")]
            said = [part.cpu().numpy() for part in (seen.reward, seen.end, seen.end_probability)]
            found.append(tuple(part[lengths > t] for part in (said[0], real[0], said[1], said[2], real[1])))
    return Predictions(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def outcomes(world: World, episodes: Sequence[Episode], seed: int = 0, rows: int = 32) -> dict[str, object]:
    """Return F1 scores of rewards and terminations that the world gives to real frames, given what led to them, and the
    expected calibration error of p(end)."""
    return outcome_figures(predict_outcomes(world, episodes, seed, rows), RewardLevels.of(episodes))


def outcome_figures(made: Predictions, levels: RewardLevels) -> dict[str, object]:
    """Return the figures of `outcomes`; higher and lower rewards than the usual one are different events."""
    said, real = levels.events(made.reward), levels.events(made.real_reward)
    reward, end = Events(), Events().count(made.end, made.real_end)
    for sign in (1, -1):
        reward = reward.count(said == sign, real == sign)
    error = _calibration_error(made.end_probability, made.real_end)
    return {"reward_f1": reward.f1, "end_f1": end.f1, "end_ece": error, "reward_events": reward, "end_events": end}


def _padded(episode: Episode, count: int) -> Episode:
    """Pad an episode to `count` frames by repeating its last frame."""

    def longer(array: np.ndarray) -> np.ndarray:
        return np.concatenate((array, np.repeat(array[-1:], count - len(array), axis=0)))

    names = ("frames", "actions", "rewards", "terminated", "truncated")
    changes: dict[str, Any] = {name: longer(getattr(episode, name)) for name in names}
    return replace(episode, **changes)


def _calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error of probabilities p (N,) for events y (N,), over equal-width bins of p."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    inside = [place == b for b in range(bins) if (place == b).any()]
    return float(sum(abs(p[cases].mean() - y[cases].mean()) * cases.mean() for cases in inside))
