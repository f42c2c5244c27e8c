"""Measurements of bench, all in one process, so that every ratio compares runs under the same conditions.

For each number of envs the decoders run alternately, so that a disturbance of the machine affects all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from tqdm import tqdm

from starflow_world.commands.bench import measure
from starflow_world.commands.bench.machine import Watch
from starflow_world.commands.bench.published import BLOCK, THRESHOLD
from starflow_world.commands.bench.settings import BenchSettings
from starflow_world.config.world import DecodeConfig, WorldConfig
from starflow_world.io.memory import resident
from starflow_world.world import World
from starflow_world.world.state import TENSORS, WorldState

LOOSE = DecodeConfig(tolerance=THRESHOLD**0.5)
"""The world's decoder with the tolerance of the published one."""


@dataclass
class Measured:
    """All measurements. Runs by number of envs and decoder: `own` has rows of different ages; `own, one age`, `own,
    loose` and the published `jacobi` and `sequential` have rows of one age, one run per repeat; `errors`: result of
    `decoding_errors`, by decoder; memory in MB."""

    config: WorldConfig
    settings: BenchSettings
    runs: dict[int, dict[str, list[measure.TimedRun]]] = field(default_factory=dict)
    errors: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)
    resident: dict[int, float] = field(default_factory=dict)
    state: float = 0.0
    scoring: list[float] = field(default_factory=list)
    growth: float = float("nan")
    long_run: list[float] = field(default_factory=list)
    machine: dict[str, float] = field(default_factory=dict)

    def own(self, envs: int) -> measure.TimedRun:
        """Return all repeats of the world's decoder with rows of different ages, joined to one run."""
        first, *others = self.runs[envs]["own"]
        return sum(others, first)


def measure_profile(world: World, settings: BenchSettings) -> Measured:
    """Measure only the world's decoder, for the fewest envs and for many."""
    measured, watch = Measured(world.config, settings), Watch()
    for envs in sorted({settings.fewest, settings.many}):
        state, flats = measure.staggered(world, envs), _period(world, envs)
        measure.timed_run(world, state, flats[:2])
        measured.runs[envs] = {"own": [measure.timed_run(world, state, flats) for _ in range(settings.repeats)]}
    measured.machine = watch.finish()
    return measured


def measure_all(world: World, settings: BenchSettings) -> Measured:
    """Measure all decoders, their errors, scoring and the long run."""
    measured, watch = Measured(world.config, settings), Watch()
    progress = tqdm(sorted(set(settings.envs)), desc="bench", unit="width")
    for envs in progress:
        progress.set_postfix_str(f"{envs} envs")
        decoders = _decoders(world, envs, baselines=envs <= settings.many)
        turns = [{name: run() for name, run in decoders.items()} for _ in range(settings.repeats)]
        measured.runs[envs] = {name: [turn[name] for turn in turns] for name in decoders}
        measured.resident[envs] = resident()
        if envs in (settings.fewest, settings.many):
            state, flats = measure.of_one_age(world, envs), measure.random_actions(world, envs, 12 if envs == 1 else 3)
            measured.errors[envs] = measure.decoding_errors(world, LOOSE, state, flats)
            measured.state = _megabytes(state) / envs
    measured.scoring = measure.scoring_seconds(world, settings.many, settings.repeats)
    measured.growth, measured.long_run = measure.long_run(world, settings.long_steps)
    measured.machine = watch.finish()
    return measured


def _decoders(world: World, envs: int, *, baselines: bool) -> dict[str, Callable[[], measure.TimedRun]]:
    """Return the runs to alternate, by decoder. Each lasts one period between slides: one slide per row."""
    mixed, flats = measure.staggered(world, envs), _period(world, envs)
    decoders: dict[str, Callable[[], measure.TimedRun]] = {"own": partial(measure.timed_run, world, mixed, flats)}
    if baselines:
        state = measure.of_one_age(world, envs)
        decoders["own, one age"] = partial(measure.timed_run, world, state, flats)
        decoders["own, loose"] = partial(measure.timed_run, world.decoded(LOOSE), state, flats)
        decoders["jacobi"] = partial(measure.timed_published_run, world, state, flats, block=BLOCK)
        decoders["sequential"] = partial(measure.timed_published_run, world, state, flats, block=1)
    measure.timed_run(world, mixed, flats[:1])
    return decoders


def _period(world: World, envs: int) -> torch.Tensor:
    """Return actions (T, envs, 1 + flat) for one period between two slides of a row."""
    return measure.random_actions(world, envs, world.config.window - world.config.context)


def _megabytes(state: WorldState) -> float:
    tensors = [getattr(state, name) for name in (*TENSORS, "text")]
    if state.cache is not None:
        tensors += [state.cache.keys, state.cache.values]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None) / 2**20
