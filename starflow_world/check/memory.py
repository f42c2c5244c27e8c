"""Rows, caches and windows: fast ways equal the slow way, and what was imagined, when observed, is the same."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.check.compare import (
    apart,
    apart_in_nats,
    apart_in_size,
    cached,
    caches_apart,
    fields_apart,
    same_bits,
    worst,
)
from starflow_world.check.result import Check, Figure
from starflow_world.check.subject import F32, F64, NAMES, Subject, some_noise
from starflow_world.world import World
from starflow_world.world.state import WorldState

RELATIVE = {F32: 1e-5, F64: 1e-12}
OPERATIONS = 60
KINDS = (*("step", "observe") * 4, "choose", "clone", "forget", "restart")


def rows_are_alone(subject: Subject) -> Iterator[Figure]:
    """N15: a row whose window is full, among rows at other places, of other ages and of easy or difficult noise; also
    where decoding stops early, as rows then stop at different sweeps."""
    rng, window = np.random.default_rng(subject.seed), subject.config.window
    moves, shown, faults = subject.moves(range(1, 9)), subject.shown(range(1, 9)), 0
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
                faults += fields_apart(seen, said, place, first) + (grown[place].digest() != old[first].digest())
    yield Figure("fields changed by other contents and places, width 4", faults)


def widths_agree(subject: Subject) -> Iterator[Figure]:
    """N16: what a row is told, alone and in company."""
    window = subject.config.window
    for dtype, limit in RELATIVE.items():
        world, ages = subject.worlds[dtype], [1, 2, window, window - 1]
        state, steps = subject.aged(world, ages), [age + 1 for age in ages]
        rows = [row % 4 for row in range(32)]
        moves, shown = subject.moves(steps), subject.shown(steps)
        alone = [world.observe(state[row], moves[row : row + 1], shown[row : row + 1])[1].nats for row in range(4)]
        found = []
        for width in (2, 3, 8, 32):
            some = rows[:width]
            _, seen = world.observe(state[some], [moves[row] for row in some], shown[some])
            found.append(apart_in_nats(seen.nats, torch.cat(alone)[some], subject.dims))
        yield Figure(f"relative, widths 1 to 32, {NAMES[dtype]}", worst(found), limit)


def caches_are_recomputed(subject: Subject) -> Iterator[Figure]:
    """N17: a window that is encoded at once, frame by frame, and anew."""
    window = subject.config.window
    frames, actions, texts = subject.clip[:2, :window], subject.clip_actions(2, window), subject.texts[2:]
    for dtype, limit in RELATIVE.items():
        world, found = subject.worlds[dtype], []
        world.start(frames, actions, text=subject.texts[:2])  # another episode: nothing of it may be left
        whole, last = world.start(frames, actions, text=texts)
        for split in sorted({1, min(3, window - 1), window - 1}):
            state, seen = world.start(frames[:, :split], [row[:split] for row in actions], text=texts)
            for t in range(split, window):
                state, seen = world.observe(state, [row[t] for row in actions], frames[:, t], reuse=True)
                if t in (split, window - 1):
                    found.append(caches_apart(state, world.with_text(state, state.texts)))
            found += [caches_apart(state, whole), apart_in_nats(seen.nats, last.nats, subject.dims)]
        yield Figure(f"encoded at once, by frames, anew, {NAMES[dtype]}", worst(found), limit)


def commit_is_exact(subject: Subject) -> Iterator[Figure]:
    """N18: also where decoding stops early, at a residual of 0.1."""
    window, found = subject.config.window, []
    for world in (subject.worlds[F32], subject.decoded(F32, tolerance=0.1)):
        state = subject.aged(world, [0, 1, max(1, window - 4)])  # no slide: that is another promise
        for t in range(1, min(5, window)):
            state, _ = world.step(state, subject.moves([t] * 3))
            found.append(caches_apart(state, world.with_text(state, state.texts)))
    yield Figure("keys and values, float32", worst(found), 1e-5)


@dataclass
class _Row:
    """What a row must hold, as plain lists."""

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
        """Differences to row `row` of a state. The first frame of a window is encoded anew when the window slides."""
        held, count = self.length, state.tokens.shape[2]
        lengths = [int(state.length[row]) - held, int(state.step[row]) - self.step]
        if state.cache is not None:
            lengths.append(int(state.cache.length[row]) - text - held * count)
        found = sum(difference != 0 for difference in lengths)
        if held > 1:
            found += not same_bits(state.tokens[row, 1:held], torch.stack(self.tokens[1 - held :]))
        return found + (not same_bits(state.actions[row, :held], torch.stack(self.actions[-held:])))


def states_are_lists(subject: Subject) -> Iterator[Figure]:
    """N19: random verbs and methods against plain lists."""
    world, rng, faults = subject.worlds[F32], np.random.default_rng(subject.seed), 0
    fresh = subject.aged(world, [1, 1])
    empty = world.empty(subject.texts[:1], [0]).cache
    text = 0 if empty is None else int(empty.length[0])
    state, rows = fresh, [_row(fresh, 0), _row(fresh, 1)]
    for t in range(OPERATIONS):
        kind = KINDS[int(rng.integers(len(KINDS)))]
        if kind in ("step", "observe"):
            actions = subject.moves([t] * len(rows))
            if kind == "step":
                state, _ = world.step(state, actions)
            else:
                state, _ = world.observe(state, actions, subject.shown([t] * len(rows)))
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
    yield Figure(f"faults in {OPERATIONS} random operations", faults)


def _row(state: WorldState, row: int) -> _Row:
    return _Row(1, 1, [state.tokens[row, 0].clone()], [state.actions[row, 0].clone()])


def slides_leave_nothing(subject: Subject) -> Iterator[Figure]:
    """N20: a state behind a slide, and a new one that is told only the frames that the slide kept, and what was carried
    behind the first of them; rows slide at other times."""
    for dtype, limit in RELATIVE.items():
        world, found = subject.worlds[dtype], []
        texts, keys = subject.texts[:2], [1, 2]
        state, tapes = world.empty(texts, keys), _tapes()
        for t in range(subject.length):
            if t == 2:
                state = state.replace_rows(torch.tensor([1]), world.empty(texts[1:], keys[1:]))
                tapes[1].clear()
            moves, slid = subject.moves([t, t]), state.length == subject.config.window
            state, seen = world.observe(state, moves, subject.shown([t, t]))
            for row, tape in enumerate(tapes):
                tape.append((seen.latents[row : row + 1], moves[row : row + 1]))
            for row in slid.nonzero()[:, 0].tolist():
                kept, one = tapes[row][-int(state.length[row]) :], slice(row, row + 1)
                fresh, nats = _told(world, world.empty(texts[one], [0]), kept, state.carried[one, :1])
                found.append(apart_in_nats(seen.nats[row : row + 1], nats, subject.dims))
                held = [(state.tokens[row], fresh.tokens[0]), (state.carried[row], fresh.carried[0])]
                found += [apart_in_size(mine, its) for mine, its in held]
                found.append(apart_in_size(cached(state, row), cached(fresh, 0)))
        yield Figure(f"against the kept frames alone, {NAMES[dtype]}", worst(found), limit)


def _tapes() -> tuple[list[tuple[Tensor, list[Any]]], ...]:
    return [], []


def _told(
    world: World, state: WorldState, tape: list[tuple[Tensor, list[Any]]], carried: Tensor
) -> tuple[WorldState, Tensor]:
    """The state behind the noisy latents and actions of a tape, with what is carried behind its first frame, and the
    nats of the last."""
    for t, (latents, action) in enumerate(tape):
        state, seen = world.observe(state, action, latents=latents, reuse=True)
        if t == 0:
            state = replace(state, carried=torch.cat((carried, state.carried[:, 1:]), dim=1))
    return state, seen.nats


def imagined_is_observed(subject: Subject) -> Iterator[Figure]:
    """N21."""
    window = subject.config.window
    for dtype, limit in ((F32, 0.05 * subject.dims / 1024), (F64, 1e-9)):
        world, nats, held = subject.worlds[dtype], [], []
        state = subject.aged(world, [0, 1, window - 1, window])
        for t in range(1, 5):
            moves = subject.moves([t] * 4)
            imagined, said = world.step(state, moves)
            observed, heard = world.observe(state, moves, latents=said.latents)
            nats.append(apart(said.nats, heard.nats))
            names = ("tokens", "latents", "carried", "actions", "length", "step")
            held += [apart(getattr(imagined, name).double(), getattr(observed, name).double()) for name in names]
            held.append(caches_apart(imagined, observed))
            state = imagined
        yield Figure(f"nats per frame of {subject.dims} dims, {NAMES[dtype]}", worst(nats), limit)
        if dtype == F64:
            yield Figure("states, float64", worst(held), 1e-5)


def streamed_is_parallel(subject: Subject) -> Iterator[Figure]:
    """N22: frame by frame and all at once, over the first slide."""
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
        error = apart_in_nats(torch.stack(nats, 1), parallel, subject.dims)
        yield Figure(f"relative, {NAMES[dtype]}", error, limit)


ROWS = (
    Check("N15", "a row has the same bits whatever the other rows are", rows_are_alone),
    Check("N16", "a row's nats are the same at any width", widths_agree),
)
CACHES = (
    Check("N17", "a cache is what recomputing gives", caches_are_recomputed),
    Check("N18", "the cache behind an imagined frame is that of the frame", commit_is_exact),
    Check("N19", "a state holds what was put into it", states_are_lists),
    Check("N20", "behind a slide only the kept frames count", slides_leave_nothing),
)
TOGETHER = (
    Check("N21", "what was imagined, when observed, gives the same state and nats", imagined_is_observed),
    Check("N22", "nats frame by frame are those of all frames at once", streamed_is_parallel),
)
