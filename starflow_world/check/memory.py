"""Checks of batching, caches and windows: fast paths equal slow paths; imagining equals observing the same frame."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.check.compare import (
    cache_difference,
    cached,
    differing_fields,
    largest_difference,
    nats_difference,
    relative_difference,
    same_bits,
    worst,
)
from starflow_world.check.result import Measurement, promise
from starflow_world.check.subject import F32, F64, NAMES, Subject, some_noise
from starflow_world.world import World
from starflow_world.world.state import WorldState

RELATIVE = {F32: 1e-5, F64: 1e-12}
OPERATIONS = 60
KINDS = (*("step", "observe") * 4, "choose", "clone", "forget", "restart")


@promise("N15", "a row has the same bits whatever the other rows are")
def rows_are_alone(subject: Subject) -> Iterator[Measurement]:
    """Check N15 on an element with a full window, at several batch positions among elements with other history lengths
    and noise scales; also with early stopping, where elements converge in different sweeps."""
    rng, window = np.random.default_rng(subject.seed), subject.config.window
    moves, shown, faults = subject.actions(range(1, 9)), subject.frames(range(1, 9)), 0
    for world in (subject.worlds[F32], subject.decoded(F32, tolerance=0.03)):
        pool = subject.aged(world, [window, 0, 1, window - 1, window, 0, 2, window + 1])
        noise, kept = some_noise(subject, world, len(pool), 0), []
        for _ in range(5):
            chosen = rng.permutation(range(1, 8))[:3].tolist()
            place = int(rng.integers(4))
            chosen.insert(place, 0)
            scale = torch.tensor([1.0 if row == 0 else rng.choice((0, 1, 8)) for row in chosen])[:, None, None]
            state, actions = pool[chosen], [moves[row] for row in chosen]
            stepped = world.step(state, actions, noise=noise[chosen] * scale.to(noise))
            kept.append((place, (stepped, world.observe(state, actions, shown[chosen]))))
            first, before = kept[0]
            for (grown, seen), (old, said) in zip(kept[-1][1], before, strict=True):
                faults += differing_fields(seen, said, place, first) + (grown[place].digest() != old[first].digest())
    yield Measurement("fields changed by other contents and places, width 4", faults)


@promise("N16", "a row's nats are the same at any width")
def widths_agree(subject: Subject) -> Iterator[Measurement]:
    """Observe each batch element alone and in larger batches, and compare the nats."""
    window = subject.config.window
    for dtype, limit in RELATIVE.items():
        world, ages = subject.worlds[dtype], [1, 2, window, window - 1]
        state, steps = subject.aged(world, ages), [age + 1 for age in ages]
        rows = [row % 4 for row in range(32)]
        actions, shown = subject.actions(steps), subject.frames(steps)
        alone = [world.observe(state[row], actions[row : row + 1], shown[row : row + 1])[1].nats for row in range(4)]
        differences = []
        for width in (2, 3, 8, 32):
            some = rows[:width]
            _, seen = world.observe(state[some], [actions[row] for row in some], shown[some])
            differences.append(nats_difference(seen.nats, torch.cat(alone)[some], subject.dims))
        yield Measurement(f"relative, widths 1 to 32, {NAMES[dtype]}", worst(differences), limit)


@promise("N17", "a cache is what recomputing gives")
def caches_are_recomputed(subject: Subject) -> Iterator[Measurement]:
    """Compare the caches of a window encoded in parallel, frame by frame, and recomputed from the state."""
    window = subject.config.window
    frames, actions, texts = subject.clip[:2, :window], subject.clip_actions(2, window), subject.texts[2:]
    for dtype, limit in RELATIVE.items():
        world, differences = subject.worlds[dtype], []
        world.start(frames, actions, text=subject.texts[:2])  # an earlier episode must not affect the next
        whole, last = world.start(frames, actions, text=texts)
        for split in sorted({1, min(3, window - 1), window - 1}):
            state, seen = world.start(frames[:, :split], [row[:split] for row in actions], text=texts)
            for t in range(split, window):
                state, seen = world.observe(state, [row[t] for row in actions], frames[:, t], reuse=True)
                if t in (split, window - 1):
                    differences.append(cache_difference(state, world.with_text(state, state.texts)))
            differences += [cache_difference(state, whole), nats_difference(seen.nats, last.nats, subject.dims)]
        yield Measurement(f"encoded at once, by frames, again, {NAMES[dtype]}", worst(differences), limit)


@promise("N18", "the cache after an imagined frame is that of the frame")
def commit_is_exact(subject: Subject) -> Iterator[Measurement]:
    """Check N18, also with early stopping at a residual of 0.1."""
    window, differences = subject.config.window, []
    for world in (subject.worlds[F32], subject.decoded(F32, tolerance=0.1)):
        state = subject.aged(world, [0, 1, max(1, window - 4)])  # no slide; N20 checks slides
        for t in range(1, min(5, window)):
            state, _ = world.step(state, subject.actions([t] * 3))
            differences.append(cache_difference(state, world.with_text(state, state.texts)))
    yield Measurement("keys and values, float32", worst(differences), 1e-5)


@dataclass
class _Row:
    """Expected content of a batch element of a state, as plain lists."""

    length: int
    step: int
    tokens: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)

    def copy(self) -> "_Row":
        return _Row(self.length, self.step, list(self.tokens), list(self.actions))

    def grow(self, tokens: Tensor, action: Tensor, window: int, context: int) -> None:
        self.length = (context if self.length == window else self.length) + 1
        self.step += 1
        self.tokens.append(tokens)
        self.actions.append(action)

    def faults(self, state: WorldState, row: int, text: int) -> int:
        """Count differences from batch element `row` of a state, except the window's first frame (re-encoded)."""
        held, count = self.length, state.tokens.shape[2]
        lengths = [int(state.length[row]) - held, int(state.step[row]) - self.step]
        if state.cache is not None:
            lengths.append(int(state.cache.length[row]) - text - held * count)
        faults = sum(difference != 0 for difference in lengths)
        if held > 1:
            faults += not same_bits(state.tokens[row, 1:held], torch.stack(self.tokens[1 - held :]))
        return faults + (not same_bits(state.actions[row, :held], torch.stack(self.actions[-held:])))


@promise("N19", "a state holds what was put into it")
def states_are_lists(subject: Subject) -> Iterator[Measurement]:
    """Apply random operations to a state and compare its content with plain lists."""
    world, rng, faults = subject.worlds[F32], np.random.default_rng(subject.seed), 0
    fresh = subject.aged(world, [1, 1])
    empty = world.empty(subject.texts[:1], [0]).cache
    text = 0 if empty is None else int(empty.length[0])
    state, rows = fresh, [_row(fresh, 0), _row(fresh, 1)]
    for t in range(OPERATIONS):
        kind = KINDS[int(rng.integers(len(KINDS)))]
        if kind in ("step", "observe"):
            actions = subject.actions([t] * len(rows))
            if kind == "step":
                state, _ = world.step(state, actions)
            else:
                state, _ = world.observe(state, actions, subject.frames([t] * len(rows)))
            flat = world.flatten(actions)
            for i, row in enumerate(rows):
                place = int(state.length[i]) - 1
                row.grow(state.tokens[i, place].clone(), flat[i], subject.config.window, subject.config.context)
        elif kind == "choose":
            chosen = rng.integers(len(rows), size=int(rng.integers(1, 4))).tolist()
            state, rows = state[chosen], [rows[i].copy() for i in chosen]
        elif kind == "restart":
            i = int(rng.integers(len(rows)))
            state, rows[i] = state.replace_rows(torch.tensor([i]), fresh[0]), _row(fresh, 0)
        else:
            state = state.clone()
            if kind == "forget":
                state.take_cache()
        faults += sum(row.faults(state, i, text) for i, row in enumerate(rows))
    yield Measurement(f"faults in {OPERATIONS} random operations", faults)


def _row(state: WorldState, row: int) -> _Row:
    return _Row(1, 1, [state.tokens[row, 0].clone()], [state.actions[row, 0].clone()])


@promise("N20", "after a slide only the kept frames count")
def slides_leave_nothing(subject: Subject) -> Iterator[Measurement]:
    """Compare a state after a slide with a new state that observes only the kept frames; batch elements slide at
    different times."""
    for dtype, limit in RELATIVE.items():
        world, differences = subject.worlds[dtype], []
        texts, keys = subject.texts[:2], [1, 2]
        state = world.empty(texts, keys)
        tapes: tuple[list[tuple[Tensor, list[Any]]], ...] = [], []
        for t in range(subject.length):
            if t == 2:
                state = state.replace_rows(torch.tensor([1]), world.empty(texts[1:], keys[1:]))
                tapes[1].clear()
            actions, slid = subject.actions([t, t]), state.length == subject.config.window
            state, seen = world.observe(state, actions, subject.frames([t, t]))
            for row, tape in enumerate(tapes):
                tape.append((seen.latents[row : row + 1], actions[row : row + 1]))
            for row in slid.nonzero()[:, 0].tolist():
                kept, one = tapes[row][-int(state.length[row]) :], slice(row, row + 1)
                fresh, nats = _replayed(world, world.empty(texts[one], [0]), kept)
                differences.append(nats_difference(seen.nats[row : row + 1], nats, subject.dims))
                differences.append(relative_difference(state.tokens[row], fresh.tokens[0]))
                differences.append(relative_difference(cached(state, row), cached(fresh, 0)))
        yield Measurement(f"against the kept frames alone, {NAMES[dtype]}", worst(differences), limit)


def _replayed(
    world: World, state: WorldState, tape: list[tuple[Tensor, list[Any]]]
) -> tuple[WorldState, Tensor]:
    """Observe noisy latents with actions; return the state and the last nats."""
    for latents, action in tape:
        state, seen = world.observe(state, action, latents=latents, reuse=True)
    return state, seen.nats


@promise("N21", "what was imagined, when observed, gives the same state and nats")
def imagined_is_observed(subject: Subject) -> Iterator[Measurement]:
    window = subject.config.window
    for dtype, limit in ((F32, 0.05 * subject.dims / 1024), (F64, 1e-9)):
        world, nats, held = subject.worlds[dtype], [], []
        state = subject.aged(world, [0, 1, window - 1, window])
        for t in range(1, 5):
            actions = subject.actions([t] * 4)
            imagined, said = world.step(state, actions)
            observed, heard = world.observe(state, actions, latents=said.latents)
            nats.append(largest_difference(said.nats, heard.nats))
            names = ("tokens", "latents", "actions", "length", "step")
            pairs = [(getattr(imagined, name).double(), getattr(observed, name).double()) for name in names]
            held += [largest_difference(*pair) for pair in pairs]
            held.append(cache_difference(imagined, observed))
            state = imagined
        yield Measurement(f"nats per frame of {subject.dims} dims, {NAMES[dtype]}", worst(nats), limit)
        if dtype == F64:
            yield Measurement("states, float64", worst(held), 1e-5)


@promise("N22", "nats frame by frame are those of all frames at once")
def streamed_is_parallel(subject: Subject) -> Iterator[Measurement]:
    """Check N22 on clips long enough for the window to slide."""
    count, texts = subject.config.window + 2, subject.texts[:2]
    frames, actions = subject.clip[:2, :count], subject.clip_actions(2, count)
    for dtype, limit in RELATIVE.items():
        world = subject.worlds[dtype]
        parallel = world.log_prob(frames, actions, text=texts)
        state, seen = world.start(frames[:, :1], text=texts)
        nats = [seen.nats]
        for t in range(1, count):
            state, seen = world.observe(state, [row[t] for row in actions], frames[:, t], reuse=True)
            nats.append(seen.nats)
        error = nats_difference(torch.stack(nats, 1), parallel, subject.dims)
        yield Measurement(f"relative, {NAMES[dtype]}", error, limit)
