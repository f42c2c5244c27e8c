"""Figures against the horizon: rollouts in open loop with the recorded actions, one per episode, judged at every step.

Values are kept per episode and step, so that bands over episodes can be drawn. Beside the world stand two baselines:
the last real frame repeated, and the world with its history cut to one frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.errors import DataError
from starflow_world.evaluation.fidelity import cells_right
from starflow_world.evaluation.law import Law
from starflow_world.evaluation.ledgers import ObjectLedger, make_ledger
from starflow_world.evaluation.positions import Locator
from starflow_world.evaluation.similarity import psnr, ssim
from starflow_world.world import World
from starflow_world.world.state import Transition

HORIZONS = (1, 4, 16, 64, 256, 1000)
WORLD, COPY, ONE_FRAME = "world", "repeat the last frame", "one frame of history"
ROWS, FEW, LONG = 16, 8, 64
"""Most episodes that are rolled out, and that are rolled out further than LONG steps."""
SHOWN, SHOWN_STEPS = 3, 128
"""Episodes whose frames are kept for pictures, and how many steps of them for a video."""

Values = dict[str, dict[str, np.ndarray]]
"""Values (E, T) of each figure and source (the world or a baseline); NaN where an episode has no such step."""


@dataclass(frozen=True)
class Shown:
    """Real and imagined frames (1 + T, H, W, 3) u8 of a rollout by step; step 0 is the last given frame of both."""

    text: str
    real: dict[int, np.ndarray]
    imagined: dict[int, np.ndarray]


@dataclass
class Horizons:
    """Rollouts of E episodes for T steps after `given` real frames. outcomes (E, T): reward, end and end_probability
    that the world predicts, real_reward and real_end that were recorded. frames: imagined and real frames
    (B, H, W, 3) u8 of the episodes that reach a horizon. ledger: what objects are compared with; "" for nothing."""

    given: int
    steps: int
    episodes: int
    ledger: str = ""
    values: Values = field(default_factory=dict)
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    frames: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)

    def put(self, figure: str, source: str, step: int, found: np.ndarray) -> None:
        """Store the values (B,) of the first B episodes at a step."""
        self._array(self.values.setdefault(figure, {}), source)[: len(found), step - 1] = found

    def put_outcome(self, name: str, step: int, found: np.ndarray) -> None:
        """Store a prediction or what was recorded (B,) of the first B episodes at a step."""
        self._array(self.outcomes, name)[: len(found), step - 1] = found

    def _array(self, into: dict[str, np.ndarray], key: str) -> np.ndarray:
        return into.setdefault(key, np.full((self.episodes, self.steps), np.nan))


def horizons_of(steps: int) -> list[int]:
    """Return the horizons up to a number of steps, and that number itself where it is beyond the last by a half."""
    reached = [horizon for horizon in HORIZONS if horizon <= steps]
    return [*reached, steps] if steps >= 1.5 * reached[-1] else reached


def long_enough(world: World, episodes: Sequence[Episode], most: int = ROWS) -> list[Episode]:
    """Return the first episodes that are longer than the world's context, the longest first. Raises DataError."""
    given = world.config.context
    some = [episode for episode in episodes if len(episode) > given][:most]
    if not some:
        longest = max(map(len, episodes), default=0)
        raise DataError(f"episodes: expected one of more than the {given} frames that a rollout is given, found "
                        f"{longest} at most; collect longer ones")
    return sorted(some, key=len, reverse=True)


@torch.inference_mode()
def measure_horizons(
    world: World, episodes: Sequence[Episode], *, law: Law | None = None, locate: Locator | None = None,
    sources: Sequence[str] = (WORLD, COPY, ONE_FRAME), most_steps: int = HORIZONS[-1], seed: int = 0,
) -> Horizons:
    """Imagine the rest of each episode after `context` real frames; return the figures of every step.

    At most ROWS episodes are used, and FEW beyond LONG steps. Figures: psnr, ssim, cells (share of right cells), exact,
    distance of each object that `locate` knows, legal, duplicated, vanished and transmuted objects, nats of imagined
    frames, and action_nats (at the horizons only).
    """
    given, some = world.config.context, long_enough(world, episodes)
    steps = min(most_steps, len(some[0]) - given)
    made = Horizons(given, steps, len(some))
    flat = pad_sequence([flat_actions(episode) for episode in some], batch_first=True)
    dreams = {source: _Dream(world, some, flat, source, seed) for source in sources}
    size = world.config.codec.patch
    ledgers = {name: make_ledger(law, some, given, size) for name in dreams if name != COPY}
    made.ledger = next((one.name for one in ledgers.values() if one is not None), "")
    shuffled = np.random.default_rng(seed).permutation(len(some)).tolist()
    made.shown = [Shown(e.text, {0: e.frames[given - 1]}, {0: e.frames[given - 1]}) for e in some[:SHOWN]]
    for step in tqdm(range(1, steps + 1), desc="open loop", unit="frame"):
        place = given - 1 + step
        rows = sum(len(episode) > place for episode in some[: FEW if step > LONG else ROWS])
        real = np.stack([episode.frames[place] for episode in some[:rows]])
        for source, dream in dreams.items():
            other = flat[shuffled, place][:rows] if source == WORLD and step in horizons_of(steps) else None
            imagined = dream.step(step, rows, flat[:, place], other)
            _judge(made, source, step, imagined, real, world, locate, ledgers.get(source))
            if source == WORLD:
                _keep(made, step, dream, some, imagined, real)
    return made


def _judge(
    made: Horizons, source: str, step: int, imagined: np.ndarray, real: np.ndarray, world: World,
    locate: Locator | None, ledger: ObjectLedger | None,
) -> None:
    """Compare the imagined frames of a step with the real ones."""
    right = cells_right(world, imagined, real)
    found = {"psnr": psnr(imagined, real), "ssim": ssim(imagined, real), "cells": right.mean((-1, -2)),
             "exact": right.all((-1, -2)).astype(float)}
    if locate is not None:
        there, here = locate(real), locate(imagined)
        found |= {f"distance of {name}": np.linalg.norm(here[name] - there[name], axis=1) for name in there}
    if ledger is not None:
        found |= ledger.judge(step, imagined, real)
    for figure, values in found.items():
        made.put(figure, source, step, values)


def _keep(
    made: Horizons, step: int, dream: "_Dream", some: Sequence[Episode], imagined: np.ndarray, real: np.ndarray
) -> None:
    """Keep what only the world's own rollouts have: nats, outcomes, frames at horizons and of the shown episodes."""
    rows, place, last = len(real), made.given - 1 + step, dream.last
    assert last is not None
    for figure, values in dream.nats.items():
        made.put(figure, WORLD, step, values)
    said = {"reward": last.reward, "end": last.end, "end_probability": last.end_probability}
    for name, part in said.items():
        made.put_outcome(name, step, part[:rows].float().cpu().numpy())
    made.put_outcome("real_reward", step, np.array([episode.rewards[place] for episode in some[:rows]]))
    made.put_outcome("real_end", step, np.array([episode.terminated[place] for episode in some[:rows]]))
    if step in (reached := horizons_of(made.steps)):
        made.frames[step] = imagined, real
    for row, shown in enumerate(made.shown[:rows]):
        if step <= SHOWN_STEPS or step in reached:
            shown.real[step], shown.imagined[step] = real[row], imagined[row]


class _Dream:
    """One rollout per episode: with the whole history, or from the last frame alone, or a picture that stays."""

    def __init__(self, world: World, some: Sequence[Episode], flat: Tensor, source: str, seed: int) -> None:
        self.world, self.source, self.seed, given = world, source, seed, world.config.context
        self.texts = world.texts_for([episode.text for episode in some])
        known = np.stack([episode.frames[:given] for episode in some])
        self.frames, self.flat = known[:, -1], flat[:, given - 1]
        self.last: Transition | None = None
        self.nats: dict[str, np.ndarray] = {}
        if source == WORLD:
            self.state, _ = world.start(known, flat[:, :given], text=self.texts, seed=seed)

    def step(self, step: int, rows: int, flat: Tensor, other: Tensor | None) -> np.ndarray:
        """Return the next frames (rows, H, W, 3) of the first rows, given the actions that lead to them (E, 1 + A).

        `other`: other actions (rows, 1 + A), under which the world's imagined frame is evaluated too.
        """
        if self.source == COPY:
            return self.frames[:rows]
        if self.source == WORLD:
            if rows <= 0.75 * len(self.state):  # else rows that are over go on unseen: copying a cache takes longer
                self.state = self.state[list(range(rows))]
            before, taken = self.state, flat[: len(self.state)]
            self.state, made = self.world.step(before, taken, reuse=other is None)
            self.nats = {"nats": made.nats[:rows].cpu().numpy()}
            if other is not None:
                self.nats["action_nats"] = self._worth(before, made, other, rows)
        else:
            seeds = [self.seed + ROWS * step + row for row in range(rows)]
            begin, _ = self.world.start(self.frames[:rows, None], self.flat[:rows, None], text=self.texts[:rows],
                                        seed=seeds)
            _, made = self.world.step(begin, flat[:rows], reuse=True)
        self.last, self.flat, self.frames = made, flat, made.frames[:, -1].cpu().numpy()
        return self.frames[:rows]

    def _worth(self, before: Any, made: Transition, other: Tensor, rows: int) -> np.ndarray:
        """Return the nats (rows,) that the imagined frame loses under other actions."""
        _, seen = self.world.observe(before[list(range(rows))], other, latents=made.latents[:rows], reuse=True)
        return np.asarray((made.nats[:rows] - seen.nats).cpu().numpy())
