"""`starflow-world bench`: everything is measured in one run, so that every ratio is one of equals.

At each number of envs the decoders take turns, and what disturbs the machine disturbs all of them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from starflow_world.commands.bench.plan import LOOSE, Measured, Plan
from starflow_world.commands.bench.published import BLOCK
from starflow_world.world import World
from starflow_world.world.state import TENSORS, WorldState


def bench(name: str | Path, out: Path, plan: Plan, *, profile: bool = False) -> dict[str, Any]:
    """Measure the world `name` (a folder or a shipped world); print the report and write it to `out` as bench.json,
    bench.md and bench.png. `profile`: only measure where a step's time goes, and print that."""
    world = World.load(name, device="cpu")
    found = report.summary(measure_profile(world, plan) if profile else measure(world, plan))
    if not profile:
        report.write(found, out)
    print(report.profile_table(found) if profile else report.markdown(found))
    return found


def measure_profile(world: World, plan: Plan) -> Measured:
    """Only the world's own decoder, with one env and with many."""
    found, watch = Measured(world.config, plan), Watch()
    for rows in sorted({plan.one, plan.many}):
        state, flats = staggered(world, rows), _period(world, rows)
        roll(world, state, flats[:2])
        found.runs[rows] = {"own": [roll(world, state, flats)[1] for _ in range(plan.repeats)]}
    found.machine = watch.finish()
    return found


def measure(world: World, plan: Plan) -> Measured:
    """Everything."""
    found, watch = Measured(world.config, plan), Watch()
    progress = tqdm(sorted(set(plan.envs)), desc="bench", unit="width")
    for rows in progress:
        progress.set_postfix_str(f"{rows} envs")
        runs = _decoders(world, rows, baselines=rows <= plan.many)
        found.runs[rows] = {name: [] for name in runs}
        for _ in range(plan.repeats):
            for decoder, run in runs.items():
                found.runs[rows][decoder].append(run())
        found.resident[rows] = resident()
        if rows in (plan.one, plan.many):
            state, flats = of_one_age(world, rows), random_actions(world, rows, 12 if rows == 1 else 3)
            found.errors[rows], found.state = errors(world, LOOSE, state, flats), _megabytes(state) / rows
    found.scoring = scoring(world, plan.many, plan.repeats)
    found.growth, found.long_run = long_run(world, plan.steps)
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
