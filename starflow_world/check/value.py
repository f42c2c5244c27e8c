"""Checks that conditions affect the right frames, and that states can be cloned, saved and branched as values."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from starflow_world.check.compare import differing_fields, largest_difference, same_bits, worst
from starflow_world.check.result import Measurement, promise
from starflow_world.check.subject import F32, F64, Subject
from starflow_world.world import World
from starflow_world.world.state import TENSORS, Transition, WorldState

STEPS, LATER, BRANCHES = 105, 10, 64


@promise("N23", "an action counts from its own frame on, a text in every frame")
def conditions_count(subject: Subject) -> Iterator[Measurement]:
    world, count = subject.worlds[F64], min(subject.config.window, 6)
    frames, actions, text = subject.clip[:1, :count], subject.clip_actions(1, count), subject.texts[0]
    nats, place = world.log_prob(frames, actions, text=text)[0], count // 2
    other = [[*actions[0]]]
    other[0][place] = None if actions[0][place] is not None else subject.pool[0]
    changed = world.log_prob(frames, other, text=text)[0] != nats
    what = "frames that an action changes or leaves wrongly"
    if bool(changed.any()):
        yield Measurement(what, int(changed[:place].sum()) + int(~changed[place]))
    else:
        yield Measurement(what, reason="this world has not learned to heed actions")
    what, texts = "frames that another text leaves unchanged", [t for t in subject.texts if t != text]
    if not texts:
        why = "all texts are the same" if any(subject.texts) else "this world takes no text"
        yield Measurement(what, reason=why)
        return
    changed = world.log_prob(frames, actions, text=texts[0])[0] != nats
    if bool(changed.any()):
        yield Measurement(what, int((~changed).sum()))
    else:
        yield Measurement(what, reason="this world has not learned to heed its text")


@promise("N24", "a guided frame has the unguided model's nats")
def guidance_keeps_the_density(subject: Subject) -> Iterator[Measurement]:
    if not any(subject.texts):
        why = "guidance leads from no text to a text, and this world takes none"
        yield Measurement("difference of nats", reason=why)
        return
    world, texts = subject.worlds[F64], subject.texts[:2]
    state, guided = world.start(text=texts, guidance=1.5)
    _, heard = world.observe(world.empty(texts, state.key.tolist()), [None, None], latents=guided.latents)
    yield Measurement("difference of nats, float64", largest_difference(guided.nats, heard.nats), 1e-9)


@promise("S1", "a clone continues bit-identically, in finite numbers")
def clones_continue(subject: Subject) -> Iterator[Measurement]:
    world, faults, wrong = subject.worlds[F32], 0, 0
    state = subject.aged(world, [1, subject.config.window])
    twin = state.clone()
    for t in range(1, STEPS + 1):
        state, said = world.step(state, subject.actions([t, t]), reuse=t > 1)
        twin, again = world.step(twin, subject.actions([t, t]), reuse=t > 1)
        faults += differing_fields(said, again)
        wrong += sum(int((~value.isfinite()).sum()) for value in (said.latents, said.nats, said.noise))
    yield Measurement(f"fields that differ in {STEPS} steps", faults + (state.digest() != twin.digest()))
    yield Measurement(f"numbers not finite in {STEPS} steps", wrong)


@promise("S2", "a copy of a state shares nothing with it")
def clones_share_nothing(subject: Subject) -> Iterator[Measurement]:
    world, window = subject.worlds[F32], subject.config.window
    state = subject.aged(world, [1, window])
    before, copies = state.digest(), (state.clone(), state[[0, 1]], state.with_keys([1, 2]))
    yield Measurement("storages shared", sum(len(_storages(state) & _storages(copy)) for copy in copies))
    moved = copies[0]
    for t in range(window + 1):
        moved, _ = world.step(moved, subject.actions([t, t]), reuse=True)
    yield Measurement("states changed by stepping their clone", int(state.digest() != before))


def _storages(state: WorldState) -> set[int]:
    tensors = [getattr(state, name) for name in (*TENSORS, "text")]
    if state.cache is not None:
        tensors += [state.cache.keys, state.cache.values, state.cache.length]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None and tensor.numel()}


@promise("S3", "a snapshot continues what was saved")
def snapshots_continue(subject: Subject) -> Iterator[Measurement]:
    """Check S3 within a process, on a state whose batch elements have six different history lengths."""
    world, window = subject.worlds[F32], subject.config.window
    ages = [0, 1, window - 1, window, window + 1, 3 * window + 2]
    state = subject.aged(world, ages)
    with tempfile.TemporaryDirectory() as folder:
        loaded = []
        for exact in (True, False):
            path = Path(folder, f"{exact}.safetensors")
            state.save(path, exact=exact)
            loaded.append(WorldState.load(path, world))
    real, exact_one, compact = (_continued(subject, world, one) for one in (state, *loaded))
    faults = sum(differing_fields(one, other) for one, other in zip(real, exact_one, strict=True))
    yield Measurement(f"exact: fields that differ in {LATER} steps", faults)
    latents = worst(largest_difference(one.latents, other.latents) for one, other in zip(real, compact, strict=True))
    yield Measurement(f"compact: latents, {LATER} steps", latents, 1e-4)
    pixels = worst(_far_pixels(one.frames, other.frames) for one, other in zip(real, compact, strict=True))
    yield Measurement("compact: share of pixels off by a level (all, if by more)", pixels, 1e-3)


def _continued(subject: Subject, world: World, state: WorldState) -> list[Transition]:
    transitions = []
    for t in range(1, LATER + 1):
        state, seen = world.step(state, subject.actions([t] * len(state)))
        transitions.append(seen)
    return transitions


def _far_pixels(one: Tensor, other: Tensor) -> float:
    levels = (one.int() - other.int()).abs()
    return 1.0 if int(levels.max()) > 1 else float((levels > 0).float().mean())


@promise("S4", "branches of a state differ by their keys only")
def branches_are_rows(subject: Subject) -> Iterator[Measurement]:
    world, pick = subject.worlds[F32], 37
    root, keys = subject.aged(world, [2]), list(range(100, 100 + BRANCHES))
    twins, branches = root[[0] * BRANCHES], root[[0] * BRANCHES].with_keys(keys)
    alone = root.with_keys(keys[pick : pick + 1])
    action = subject.action(0, 3)
    _, same = world.step(twins, [action] * BRANCHES, reuse=True)
    _, many = world.step(branches, [action] * BRANCHES, reuse=True)
    _, one = world.step(alone, [action], reuse=True)
    equal = sum(not same_bits(same.latents[row], same.latents[0]) for row in range(BRANCHES))
    yield Measurement(f"branches of one key unlike the first, of {BRANCHES}", equal)
    distinct = len(torch.unique(many.latents, dim=0))
    yield Measurement(f"branches of other keys not distinct, of {BRANCHES}", BRANCHES - distinct)
    difference = largest_difference(many.latents[pick], one.latents[0])
    yield Measurement("a branch in company and alone, float32", difference, 1e-5)
