"""How well a world knows its environment, on episodes it was never trained on.

Three questions, one function each: does the world expect what really happens (excess nats over the noise floor, paired
on the same noise draw, so that 0 means the world is known); is the frame it imagines the frame that really follows, one
step ahead and in open loop; do its rewards and ends agree. "Repeat the last frame" stands beside each.

A cell is a patch of the codec; it is right when its pixels are within `RIGHT` grey levels (root mean square) of the
real ones. Frames that need memory beyond the window's context (an object picked up longer ago) are reported apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.evaluation.intervals import Share
from starflow_world.noise import make_key, normals
from starflow_world.world import World

RIGHT = 4.0
HANDS = (3, 4)


def cells_right(world: World, imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Which cells agree: frames (..., H, W, 3) u8 -> (..., rows, columns) bool."""
    p = world.config.codec.patch
    error = (imagined.astype(np.float32) - real.astype(np.float32)) ** 2
    height, width = error.shape[-3] // p, error.shape[-2] // p
    cells = error.reshape(*error.shape[:-3], height, p, width, p, 3).mean(axis=(-4, -2, -1))
    return np.sqrt(cells) <= RIGHT


def frames_right(world: World, imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Which frames (B, H, W, 3) agree in every cell, (B,) bool."""
    return np.asarray(cells_right(world, imagined, real).all((-1, -2)))


def actions_of(episodes: Sequence[Episode], count: int) -> Tensor:
    """Actions (B, count, 1 + flat) of the first `count` frames."""
    return torch.stack([flat_actions(episode)[:count] for episode in episodes])


def needs_memory(episode: Episode, context: int) -> np.ndarray:
    """Frames (T,) whose pick-up or drop (actions 3 and 4) depends on an object that was taken out of sight, and out of
    the `context` frames that a world surely remembers."""
    carrying = episode.info.get("carrying")
    found = np.zeros(len(episode), bool)
    if carrying is None:
        return found
    since = context if carrying[0] is not None else 0
    for t in range(1, len(episode)):
        since = since + 1 if carrying[t - 1] is not None else 0
        found[t] = int(episode.actions[t].argmax()) in HANDS and since > context - 2
    return found


@torch.inference_mode()
def excess_nats(world: World, episodes: Sequence[Episode], seed: int = 0, rows: int = 8) -> dict[str, float]:
    """Excess nats per frame over the noise floor, teacher-forced; frames after the first, first frames apart. The
    error is that of the mean over episodes, whose frames are not independent."""
    sigma, dims = world.config.noise_level, (world.dynamics.tokens, world.config.channels)
    after, first, memory = [], [], []
    alike = sorted(episodes, key=len)
    for some in tqdm(_batches(alike, rows), desc="excess nats", unit="batch"):
        count = len(some[0])
        frames = torch.from_numpy(np.stack([e.frames for e in some]))
        nats = world.log_prob(frames, actions_of(some, count), text=[e.text for e in some], seed=seed)
        keys = torch.tensor([make_key(seed + row) for row in range(len(some))])
        noise = torch.stack([normals(keys, torch.full_like(keys, t), "observation", dims) for t in range(count)], 1)
        floor = (-0.5 * noise.square() - math.log(sigma) - 0.5 * math.log(2 * math.pi)).sum((-1, -2))
        excess = (floor - nats.cpu()).numpy()
        apart = np.stack([needs_memory(e, world.config.context) for e in some])[:, 1:]
        after += [row[~left] for row, left in zip(excess[:, 1:], apart, strict=True)]
        memory.append(excess[:, 1:][apart])
        first.append(excess[:, 0])
    known, starts, carried = (np.concatenate(part) for part in (after, first, memory))
    means = np.array([episode.mean() for episode in after if len(episode)])
    return {
        "excess_nats": float(known.mean()), "excess_nats_error": float(means.std() / len(means) ** 0.5),
        "excess_nats_median": float(np.median(known)), "excess_nats_first": float(starts.mean()),
        "excess_nats_memory": float(carried.mean()) if len(carried) else 0.0, "frames": len(known),
        "frames_memory": len(carried),
    }


def _batches(episodes: Sequence[Episode], rows: int) -> list[list[Episode]]:
    """At most `rows` neighbours of equal length together."""
    found: list[list[Episode]] = []
    for episode in episodes:
        if found and len(found[-1]) < rows and len(found[-1][0]) == len(episode):
            found[-1].append(episode)
        else:
            found.append([episode])
    return found


@torch.inference_mode()
def one_step(world: World, episodes: Sequence[Episode], seed: int = 0) -> dict[str, Share | float]:
    """Imagine each frame behind the real ones before it; compare frames, changed cells, rewards and ends."""
    count = min(len(e) for e in episodes)
    frames = np.stack([e.frames[:count] for e in episodes])
    flat = actions_of(episodes, count)
    apart = np.stack([needs_memory(e, world.config.context)[:count] for e in episodes])
    state, _ = world.start(frames[:, :1], flat[:, :1], text=[e.text for e in episodes], seed=seed)
    exact = copied = changed = memory = Share(0, 0)
    sweeps, nats = [], []
    for t in tqdm(range(1, count), desc="one step ahead", unit="frame"):
        _, imagined = world.step(state, flat[:, t])
        state, _ = world.observe(state, flat[:, t], frames[:, t], reuse=True)
        right = cells_right(world, imagined.frames[:, 0].cpu().numpy(), frames[:, t])
        same = cells_right(world, frames[:, t - 1], frames[:, t])
        fair = ~apart[:, t]
        exact += Share(float(right[fair].all((-1, -2)).sum()), int(fair.sum()))
        memory += Share(float(right[~fair].all((-1, -2)).sum()), int((~fair).sum()))
        copied += Share(float(same[fair].all((-1, -2)).sum()), int(fair.sum()))
        changed += Share(float((right & ~same)[fair].sum()), int((~same)[fair].sum()))
        sweeps.append(imagined.sweeps.float().mean().item())
        nats.append(imagined.nats.mean().item())
    return {
        "exact_frames_1": exact, "exact_frames_1_copy": copied, "changed_cells_1": changed,
        "exact_frames_1_memory": memory, "sweeps": float(np.mean(sweeps)),
    }


@torch.inference_mode()
def open_loop(
    world: World, episodes: Sequence[Episode], horizons: Sequence[int] = (16, 64), begins: Sequence[int] = (0,),
    seed: int = 0,
) -> dict[str, Share]:
    """Imagine from one real frame under the real actions; compare at the horizons. Rollouts that come to need memory
    are reported apart."""
    longest = max(horizons)
    found = {f"exact_frames_{h}{kind}": Share(0, 0) for h in horizons for kind in ("", "_copy", "_memory")}
    for begin in begins:
        some = [e for e in episodes if len(e) > begin + longest]
        if not some:
            continue
        flat = actions_of(some, begin + longest + 1)[:, begin:]
        real = np.stack([e.frames[begin : begin + longest + 1] for e in some])
        apart = np.stack([needs_memory(_from(e, begin), world.config.context)[: longest + 1] for e in some])
        state, _ = world.start(real[:, :1], flat[:, :1], text=[e.text for e in some], seed=seed)
        for t in tqdm(range(1, longest + 1), desc=f"open loop from {begin}", unit="frame"):
            state, imagined = world.step(state, flat[:, t], reuse=True)
            if t in horizons:
                right = frames_right(world, imagined.frames[:, 0].cpu().numpy(), real[:, t])
                same = frames_right(world, real[:, 0], real[:, t])
                fair = ~apart[:, : t + 1].any(1)
                found[f"exact_frames_{t}"] += Share(float(right[fair].sum()), int(fair.sum()))
                found[f"exact_frames_{t}_memory"] += Share(float(right[~fair].sum()), int((~fair).sum()))
                found[f"exact_frames_{t}_copy"] += Share(float(same[fair].sum()), int(fair.sum()))
    return found


def _from(episode: Episode, begin: int) -> Episode:
    """The episode from frame `begin` on; what is carried there has been carried for ever."""
    info = dict(episode.info)
    carrying = info.get("carrying")
    if carrying is not None:
        info["carrying"] = carrying[begin:]
    return replace(
        episode, frames=episode.frames[begin:], actions=episode.actions[begin:], rewards=episode.rewards[begin:],
        terminated=episode.terminated[begin:], truncated=episode.truncated[begin:], info=info,
    )


@dataclass(frozen=True)
class Events:
    """Events that were predicted and that happened."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false + missed)."""
        return 2 * self.hits / max(1, 2 * self.hits + self.false + self.missed)


@torch.inference_mode()
def outcomes(world: World, episodes: Sequence[Episode], seed: int = 0, rows: int = 32) -> dict[str, object]:
    """F1 of reward and end events in imagined next frames under the same actions, and the calibration of p(end)."""
    reward, end = Events(), Events()
    probabilities, happened = [], []
    for begin in tqdm(range(0, len(episodes), rows), desc="outcomes", unit="batch"):
        some = episodes[begin : begin + rows]
        count = max(len(e) for e in some)
        padded = [_padded(e, count) for e in some]
        flat, alive = actions_of(padded, count), np.array([len(e) for e in some])
        first = np.stack([e.frames[:1] for e in some])
        state, _ = world.start(first, flat[:, :1], text=[e.text for e in some], seed=seed)
        for t in range(1, count):
            _, imagined = world.step(state, flat[:, t])
            state, _ = world.observe(state, flat[:, t], np.stack([e.frames[t] for e in padded]), reuse=True)
            here = alive > t
            real = np.array([e.rewards[t] > 0.5 for e in padded])[here]
            ended = np.array([e.terminated[t] for e in padded])[here]
            reward = _count(reward, imagined.reward.cpu().numpy()[here] > 0.5, real)
            end = _count(end, imagined.end.cpu().numpy()[here], ended)
            probabilities.append(imagined.end_probability.cpu().numpy()[here])
            happened.append(ended)
    p, y = np.concatenate(probabilities), np.concatenate(happened)
    figures: dict[str, object] = {"reward_f1": reward.f1, "end_f1": end.f1, "end_ece": _calibration(p, y)}
    return figures | {"reward_events": reward, "end_events": end}


def _padded(episode: Episode, count: int) -> Episode:
    def longer(array: np.ndarray) -> np.ndarray:
        return np.concatenate((array, np.repeat(array[-1:], count - len(array), axis=0)))

    return replace(
        episode, frames=longer(episode.frames), actions=longer(episode.actions), rewards=longer(episode.rewards),
        terminated=longer(episode.terminated), truncated=longer(episode.truncated),
    )


def _count(events: Events, predicted: np.ndarray, real: np.ndarray) -> Events:
    return Events(
        events.hits + int((predicted & real).sum()), events.false + int((predicted & ~real).sum()),
        events.missed + int((~predicted & real).sum()),
    )


def _calibration(p: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |mean p - share of events| over equal bins of p, weighted by cases."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    inside = [place == b for b in range(bins) if (place == b).any()]
    return float(sum(abs(p[cases].mean() - y[cases].mean()) * cases.mean() for cases in inside))
