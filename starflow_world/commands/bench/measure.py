"""Measurements: steps of the world's decoder and the published ones, scoring of clips, growth of memory.

A run keeps the seconds of each step, so that medians, percentiles and sums come from the same numbers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.commands.bench.published import BLOCK, Published
from starflow_world.config.world import DecodeConfig
from starflow_world.io.memory import resident
from starflow_world.model.actions import space_from_json
from starflow_world.world import World
from starflow_world.world.state import WorldState

PARTS = ("deep sweeps", "shallow sweeps", "features", "heads", "denoiser", "decode", "slides", "noise", "rest")


def random_actions(world: World, rows: int, count: int, seed: int = 0) -> Tensor:
    """Draw actions (count, rows, 1 + flat) from the action space."""
    space = space_from_json(world.config.action_space)
    space.seed(seed)
    return torch.stack([world.flatten([space.sample() for _ in range(rows)]) for _ in range(count)])


def first_state(world: World, rows: int) -> WorldState:
    """Return the state of rows with one frame each, from the start set, or sampled from an empty text without one."""
    seeds = list(range(rows))
    if not world.starts:
        return world.start(text=[""] * rows, seed=seeds)[0]
    index = torch.arange(rows) % len(world.starts)
    texts = [world.starts.texts[i] for i in index.tolist()]
    return world.start(world.starts.frames[index][:, None], text=texts, seed=seeds)[0]


def of_one_age(world: World, rows: int) -> WorldState:
    """Return rows with one frame more than a slide keeps, so that each is one period away from its next slide."""
    state = first_state(world, rows)
    for flat in random_actions(world, rows, world.config.context):
        state, _ = world.step(state, flat, reuse=True)
    return state


def staggered(world: World, rows: int) -> WorldState:
    """Return a state whose rows have evenly spaced window lengths, so that their slides fall on different steps."""
    period = world.config.window - world.config.context
    age = world.config.context + 1 + torch.arange(rows) * period // rows  # frames in the window
    order, parts = torch.arange(rows), []
    state = first_state(world, rows)
    for length in range(1, int(age.max()) + 1):
        ready = age[order] == length
        if bool(ready.any()):
            parts.append(state[ready])
            if bool(ready.all()):
                break
            state, order = state[~ready], order[~ready]
        state, _ = world.step(state, random_actions(world, len(order), 1, length)[0], reuse=True)
    return WorldState.stack(parts)


class Timers:
    """Timers of the parts of a world: seconds and calls; a nested part counts towards the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS[:-1], 0.0)
        self.calls = dict.fromkeys(PARTS[:-1], 0)
        self._inside = False

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with a timer for `part`."""

        def measured(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return function(*arguments, **named)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._inside = False
                self.seconds[part] += time.perf_counter() - begin
                self.calls[part] += 1

        return measured


@contextmanager
def timed(world: World) -> Iterator[Timers]:
    """Time the parts of `world` inside the with block."""
    timers, flow = Timers(), world.networks.flow
    places: list[tuple[object, str, str]] = [
        (flow.deep, "predict", "deep sweeps"), (world.networks.codec, "decode", "decode"),
        (world.dynamics, "slide", "slides"), (world.dynamics, "prior", "noise"),
        *((block, "predict", "shallow sweeps") for block in flow.shallow),
    ]
    modules = {"features": flow.features, "denoiser": flow.denoiser, "heads": world.networks.outcome}
    places += [(module, "forward", part) for part, module in modules.items() if module]
    for place, name, part in places:
        setattr(place, name, timers.around(part, getattr(place, name)))
    try:
        yield timers
    finally:
        for place, name, _ in places:
            delattr(place, name)


@dataclass
class TimedRun:
    """Measured steps of `rows` rows: seconds per step, sweeps (steps, rows), mean frames in the window (steps,), rows
    that slid (steps,); for the world's decoder also seconds and calls of each part in the whole run."""

    rows: int
    seconds: list[float] = field(default_factory=list)
    sweeps: list[list[int]] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    slides: list[int] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "TimedRun") -> "TimedRun":
        parts = {part: self.parts.get(part, 0) + spent for part, spent in other.parts.items()}
        calls = {part: self.calls.get(part, 0) + count for part, count in other.calls.items()}
        return TimedRun(
            self.rows, self.seconds + other.seconds, self.sweeps + other.sweeps, self.lengths + other.lengths,
            self.slides + other.slides, parts, calls,
        )

    @property
    def total(self) -> float:
        """Return the seconds of all steps."""
        return sum(self.seconds)

    @property
    def steps_per_second(self) -> float:
        """Return env steps per second, summed over rows."""
        return self.rows * len(self.seconds) / self.total

    def percentile(self, share: float) -> float:
        """Return a percentile of the seconds per step; `share` in percent."""
        return float(np.percentile(self.seconds, share))


@torch.inference_mode()
def timed_run(world: World, state: WorldState, flats: Tensor) -> TimedRun:
    """Step a copy of `state` under actions (T, B, 1 + flat)."""
    run, state, window = TimedRun(len(state)), state.clone(), world.config.window
    with timed(world) as timers:
        for flat in flats:
            full = state.length >= window
            run.lengths.append(float(torch.where(full, world.config.context, state.length).float().mean()))
            run.slides.append(int(full.sum()))
            begin = time.perf_counter()
            state, transition = world.step(state, flat, reuse=True)
            run.seconds.append(time.perf_counter() - begin)
            run.sweeps.append(transition.sweeps.tolist())
    run.parts = timers.seconds | {"rest": run.total - sum(timers.seconds.values())}
    run.calls = timers.calls
    return run


def timed_published_run(world: World, state: WorldState, flats: Tensor, *, block: int) -> TimedRun:
    """Step as `timed_run` does, with the published decoder; `sweeps` are rounds of the batch."""
    baseline, run = Published(world, state, block=block), TimedRun(len(state))
    for flat in flats:
        begin, rounds = time.perf_counter(), baseline.rounds
        baseline.step(flat)
        run.seconds.append(time.perf_counter() - begin)
        run.sweeps.append([baseline.rounds - rounds])
    return run


@torch.inference_mode()
def decoding_errors(
    world: World, loose: DecodeConfig, state: WorldState, flats: Tensor
) -> dict[str, tuple[float, float]]:
    """Return RMS and largest error of u of each decoder against sequential decoding, after equal frames."""
    exact, other = world.decoded(DecodeConfig(chunk=1)), world.decoded(loose)
    errors: dict[str, list[Tensor]] = {"own": [], "own, loose": [], "jacobi": [], "sequential": []}
    for flat in flats:
        wanted = _newest(exact.step(state, flat)[0])
        for name, block in (("jacobi", BLOCK), ("sequential", 1)):
            baseline = Published(world, state, block=block)
            baseline.step(flat)
            errors[name].append(baseline.u - wanted)
        errors["own, loose"].append(_newest(other.step(state, flat)[0]) - wanted)
        state, _ = world.step(state, flat)
        errors["own"].append(_newest(state) - wanted)
    stacked = {name: torch.stack(parts) for name, parts in errors.items()}
    return {name: (float(e.square().mean().sqrt()), float(e.abs().max())) for name, e in stacked.items()}


def _newest(state: WorldState) -> Tensor:
    return state.tokens[torch.arange(len(state)), state.length - 1]


def scoring_seconds(world: World, rows: int, repeats: int) -> list[float]:
    """Return the seconds of scoring a window of `rows` rows in parallel, for each of `repeats` runs."""
    count, size = world.config.window, (world.config.height, world.config.width, 3)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (rows, count, *size), dtype=torch.uint8, generator=generator)
    flats = random_actions(world, rows, count).transpose(0, 1)
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        world.log_prob(frames, flats)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


@torch.inference_mode()
def long_run(world: World, steps: int) -> tuple[float, list[float]]:
    """Step one env `steps` times; return the growth of memory in MB per 1,000 steps after the first 1,000 (or after
    half of fewer steps), and the seconds of each step."""
    state, flats = of_one_age(world, 1), random_actions(world, 1, steps)
    seconds, warm, before = np.ones(steps), min(1000, steps // 2), 0.0  # allocated before memory is measured
    for index, flat in enumerate(tqdm(flats, desc="long run", unit="step")):
        if index == warm:
            before = resident()
        begin = time.perf_counter()
        state, _ = world.step(state, flat, reuse=True)
        seconds[index] = time.perf_counter() - begin
    return (resident() - before) / (steps - warm) * 1000, seconds.tolist()
