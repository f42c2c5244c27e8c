"""Measurements: stepping rows with the world's own decoder and the published ones, scoring clips, growth of memory.

A run of steps gives the seconds of each, so medians, percentiles and sums all come from the same numbers.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.commands.bench.machine import resident
from starflow_world.commands.bench.profile import timed
from starflow_world.commands.bench.published import BLOCK, Published
from starflow_world.config.world import DecodeConfig
from starflow_world.model.actions import space_from_json
from starflow_world.world import World
from starflow_world.world.state import WorldState

# ---- states and actions ----------------------------------------------------------------------------------------------


def random_actions(world: World, rows: int, count: int, seed: int = 0) -> Tensor:
    """Actions (count, rows, 1 + flat) drawn from the action space."""
    space = space_from_json(world.config.action_space)
    space.seed(seed)
    return torch.stack([world.flatten([space.sample() for _ in range(rows)]) for _ in range(count)])


def young(world: World, rows: int) -> WorldState:
    """Rows with one frame: from the start set, or from text alone where there is none."""
    seeds = list(range(rows))
    if world.starts is None or not len(world.starts):
        return world.start(text=[""] * rows, seed=seeds)[0]
    index = torch.arange(rows) % len(world.starts)
    texts = [world.starts.texts[i] for i in index.tolist()]
    return world.start(world.starts.frames[index][:, None], text=texts, seed=seeds)[0]


def of_one_age(world: World, rows: int) -> WorldState:
    """Rows that have as many frames as a slide keeps: one period of slides lies before each."""
    state = young(world, rows)
    for flat in random_actions(world, rows, world.config.context):
        state, _ = world.step(state, flat, reuse=True)
    return state


def staggered(world: World, rows: int) -> WorldState:
    """Rows whose slides are spread evenly over time."""
    period = world.config.window - world.config.context
    age = world.config.context + 1 + torch.arange(rows) * period // rows  # frames in the window
    order, parts = torch.arange(rows), []
    state = young(world, rows)
    for length in range(1, int(age.max()) + 1):
        ready = age[order] == length
        if bool(ready.any()):
            parts.append(state[ready])
        if not bool((~ready).any()):
            break
        state, order = (state[~ready], order[~ready]) if bool(ready.any()) else (state, order)
        state, _ = world.step(state, random_actions(world, len(order), 1, length)[0], reuse=True)
    return WorldState.stack(parts)


# ---- stepping --------------------------------------------------------------------------------------------------------


@dataclass
class Rolled:
    """A run of steps of `rows` rows: seconds of each step; sweeps (steps, rows), lengths (steps,) mean frames in the
    window, slides (steps,) rows that slid; seconds and calls of each part over the whole run (world's own decoder)."""

    rows: int
    seconds: list[float] = field(default_factory=list)
    sweeps: list[list[int]] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    slides: list[int] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Rolled") -> "Rolled":
        parts = {part: self.parts.get(part, 0) + spent for part, spent in other.parts.items()}
        calls = {part: self.calls.get(part, 0) + count for part, count in other.calls.items()}
        return Rolled(
            self.rows, self.seconds + other.seconds, self.sweeps + other.sweeps, self.lengths + other.lengths,
            self.slides + other.slides, parts, calls,
        )

    @property
    def steps_per_second(self) -> float:
        """Env steps of all rows together."""
        return self.rows * len(self.seconds) / sum(self.seconds)

    def percentile(self, share: float) -> float:
        """Seconds that this share (in percent) of the steps stayed below."""
        return float(np.percentile(self.seconds, share))


@torch.inference_mode()
def roll(world: World, state: WorldState, flats: Tensor) -> tuple[WorldState, Rolled]:
    """Step an own copy of `state` under actions (T, B, 1 + flat); returns where that led and what it took."""
    found, state, window = Rolled(len(state)), state.clone(), world.config.window
    with timed(world) as timers:
        for flat in flats:
            full = state.length >= window
            length = torch.where(full, world.config.context, state.length).float().mean()
            begin = time.perf_counter()
            state, transition = world.step(state, flat, reuse=True)
            found.seconds.append(time.perf_counter() - begin)
            found.sweeps.append(transition.sweeps.tolist())
            found.lengths.append(float(length))
            found.slides.append(int(full.sum()))
    shares = timers.shares(sum(found.seconds))
    found.parts = {part: share * sum(found.seconds) for part, share in shares.items()}
    found.calls = timers.calls
    return state, found


def roll_published(world: World, state: WorldState, flats: Tensor, *, block: int) -> Rolled:
    """As `roll`, decoded in the published way; `sweeps` are rounds of the batch."""
    baseline, found = Published(world, state, block=block), Rolled(len(state))
    for flat in flats:
        begin, rounds = time.perf_counter(), baseline.rounds
        baseline.step(flat)
        found.seconds.append(time.perf_counter() - begin)
        found.sweeps.append([baseline.rounds - rounds])
    return found


@torch.inference_mode()
def errors(world: World, loose: DecodeConfig, state: WorldState, flats: Tensor) -> dict[str, tuple[float, float]]:
    """How far each decoder's u is from token-by-token decoding behind equal frames: root mean square and largest."""
    exact, other = world.decoded(DecodeConfig(chunk=1)), world.decoded(loose)
    apart: dict[str, list[Tensor]] = {"own": [], "own, loose": [], "jacobi": [], "sequential": []}
    for flat in flats:
        found: dict[str, Tensor] = {}
        for name, block in (("jacobi", BLOCK), ("sequential", 1)):
            baseline = Published(world, state, block=block)
            baseline.step(flat)
            found[name] = baseline.u
        wanted, _ = exact.step(state, flat)
        found["own, loose"] = _newest(other.step(state, flat)[0])
        state, _ = world.step(state, flat)
        found["own"] = _newest(state)
        for name, u in found.items():
            apart[name].append(u - _newest(wanted))
    return {name: _size(torch.stack(differences)) for name, differences in apart.items()}


def _newest(state: WorldState) -> Tensor:
    return state.tokens[torch.arange(len(state)), state.length - 1]


def _size(difference: Tensor) -> tuple[float, float]:
    return float(difference.square().mean().sqrt()), float(difference.abs().max())


def scoring(world: World, rows: int, repeats: int) -> list[float]:
    """Seconds of scoring a window of frames for each of `rows` rows, in parallel, once per repeat."""
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
    """Step one env `steps` times: growth of memory in MB per 1,000 steps after the first 1,000 (or after half of fewer
    steps), and the seconds of each step."""
    state, flats = of_one_age(world, 1), random_actions(world, 1, steps)
    seconds, warm, before = np.ones(steps), min(1000, steps // 2), 0.0  # written before it is measured
    for index, flat in enumerate(tqdm(flats, desc="long run", unit="step")):
        if index == warm:
            before = resident()
        begin = time.perf_counter()
        state, _ = world.step(state, flat, reuse=True)
        seconds[index] = time.perf_counter() - begin
    return (resident() - before) / (steps - warm) * 1000, seconds.tolist()
