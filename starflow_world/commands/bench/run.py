"""`starflow-world bench`: everything is measured in one run, so that every ratio is one of equals.

At each number of envs the decoders take turns, and what disturbs the machine disturbs all of them.
"""

from collections.abc import Callable

import torch
from tqdm import tqdm

from starflow_world.commands.bench import report
from starflow_world.commands.bench.machine import Watch, resident
from starflow_world.commands.bench.measure import (
    Rolled,
    errors,
    long_run,
    of_one_age,
    random_actions,
    roll,
    roll_published,
    scoring,
    staggered,
)
from starflow_world.commands.bench.measured import LOOSE, Measured
from starflow_world.commands.bench.published import BLOCK
from starflow_world.commands.bench.settings import BenchSettings
from starflow_world.world import World
from starflow_world.world.state import TENSORS, WorldState


def run_bench(settings: BenchSettings) -> None:
    """Measure a world; print the report and write it as bench.json, bench.md and bench.png, or only print a profile."""
    world = World.load(settings.world, device="cpu")
    if settings.profile:
        print(report.profile_table(report.summary(measure_profile(world, settings))))
        return
    figures = report.summary(measure(world, settings))
    report.write(figures, settings.out)
    print(report.markdown(figures))


def measure_profile(world: World, settings: BenchSettings) -> Measured:
    """Only the world's own decoder, with one env and with many."""
    found, watch = Measured(world.config, settings), Watch()
    for rows in sorted({settings.fewest, settings.many}):
        state, flats = staggered(world, rows), _period(world, rows)
        roll(world, state, flats[:2])
        found.runs[rows] = {"own": [roll(world, state, flats)[1] for _ in range(settings.repeats)]}
    found.machine = watch.finish()
    return found


def measure(world: World, settings: BenchSettings) -> Measured:
    """Everything."""
    found, watch = Measured(world.config, settings), Watch()
    progress = tqdm(sorted(set(settings.envs)), desc="bench", unit="width")
    for rows in progress:
        progress.set_postfix_str(f"{rows} envs")
        runs = _decoders(world, rows, baselines=rows <= settings.many)
        found.runs[rows] = {name: [] for name in runs}
        for _ in range(settings.repeats):
            for decoder, run in runs.items():
                found.runs[rows][decoder].append(run())
        found.resident[rows] = resident()
        if rows in (settings.fewest, settings.many):
            state, flats = of_one_age(world, rows), random_actions(world, rows, 12 if rows == 1 else 3)
            found.errors[rows], found.state = errors(world, LOOSE, state, flats), _megabytes(state) / rows
    found.scoring = scoring(world, settings.many, settings.repeats)
    found.growth, found.long_run = long_run(world, settings.long_steps)
    found.machine = watch.finish()
    return found


def _decoders(world: World, rows: int, *, baselines: bool) -> dict[str, Callable[[], Rolled]]:
    """What takes turns with `rows` envs. Each goes through one period of slides, so it pays for one slide per row."""
    mixed, flats = staggered(world, rows), _period(world, rows)
    found: dict[str, Callable[[], Rolled]] = {"own": lambda: roll(world, mixed, flats)[1]}
    if baselines:
        equal = of_one_age(world, rows)
        loose = world.decoded(LOOSE)
        found["own, one age"] = lambda: roll(world, equal, flats)[1]
        found["own, loose"] = lambda: roll(loose, equal, flats)[1]
        found["jacobi"] = lambda: roll_published(world, equal, flats, block=BLOCK)
        found["sequential"] = lambda: roll_published(world, equal, flats, block=1)
    roll(world, mixed, flats[:1])
    return found


def _period(world: World, rows: int) -> torch.Tensor:
    """Actions (T, rows, 1 + flat) for the steps between two slides of a row."""
    return random_actions(world, rows, world.config.window - world.config.context)


def _megabytes(state: WorldState) -> float:
    """Size of all that a state holds, in MB."""
    tensors = [getattr(state, name) for name in (*TENSORS, "text")]
    if state.cache is not None:
        tensors += [state.cache.keys, state.cache.values]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None) / 2**20
