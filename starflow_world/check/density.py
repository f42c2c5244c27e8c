"""Checks of noise (a function of key and step), density (a normalizing flow) and decoding (convergence is reported)."""

import math
import random
from collections.abc import Iterator

import numpy as np
import torch

from starflow_world.check.compare import differing_fields, largest_difference, same_bits, worst
from starflow_world.check.result import Measurement, promise
from starflow_world.check.subject import F32, F64, NAMES, Subject, some_noise
from starflow_world.noise import normals

WIDTHS = (2, 8, 32)


@promise("S6", "noise is a function of key and step, at any width and place")
def noise_is_a_function(subject: Subject) -> Iterator[Measurement]:
    """Check S6 for the noise generator, and for `step` and `observe` at several batch sizes and positions."""
    keys, steps = torch.arange(1, 33), torch.arange(32) % 5
    whole, faults = normals(keys, steps, "prior", (7,)), 0
    order = torch.from_numpy(np.random.default_rng(subject.seed).permutation(32))
    for width in (1, *WIDTHS):
        rows = order[:width]
        faults += not same_bits(normals(keys[rows], steps[rows], "prior", (7,)), whole[rows])
    yield Measurement("widths at which it differs", faults)
    world, faults, differences = subject.worlds[F32], 0, []
    root, action, shown = subject.aged(world, [1]), subject.action(0, 1), subject.frames([1])
    for width in WIDTHS:
        state, actions, frames = root[[0] * width], [action] * width, shown.expand(width, -1, -1, -1)
        imagined, again = (world.step(state, actions)[1] for _ in range(2))
        observed, twice = (world.observe(state, actions, frames)[1] for _ in range(2))
        faults += differing_fields(imagined, again) + differing_fields(observed, twice)
        for latents in (imagined.latents, observed.latents):
            differences.append(largest_difference(latents, latents[:1].expand(width, -1, -1)))
    yield Measurement("fields that differ between equal calls", faults)
    yield Measurement("latents of equal rows, float32", worst(differences), 1e-5)


@promise("E15", "no global random number generator is touched")
def global_generators(subject: Subject) -> Iterator[Measurement]:
    world, state = subject.worlds[F32], subject.aged(subject.worlds[F32], [1, subject.config.window])
    before, shown = _generators(), subject.frames([1, 2])
    world.step(state, subject.actions([1, 2]))
    world.observe(state, subject.actions([1, 2]), shown)
    world.start(text=subject.texts[:2])
    world.log_prob(shown[:, None])
    yield Measurement("generators moved", sum(a != b for a, b in zip(before, _generators(), strict=True)))


def _generators() -> tuple[str, str, str]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 (only read)
    return str(torch.get_rng_state().tolist()), repr(random.getstate()), str(legacy)


@promise("N6", "the log-determinant in the nats is the Jacobian's")
def log_determinants(subject: Subject) -> Iterator[Measurement]:
    """Compare nats minus log p(noise) with the log-determinant of the Jacobian d noise / d latents."""
    if subject.config.flow.components > 1:
        yield Measurement("log-determinant", reason="in a mixture several noises give one frame")
        return
    for name, (matrix, seen) in zip(("first", "later"), subject.jacobians, strict=True):
        log_determinant = seen.nats[0] + 0.5 * (seen.noise[0].square() + math.log(2 * math.pi)).sum()
        error = abs(float(log_determinant - torch.linalg.slogdet(matrix)[1]))
        tokens = seen.noise.shape[1]
        yield Measurement(f"{name} frame, {tokens} tokens, {len(matrix)} dims, float64", error, 1e-9)


@promise("N7", "nothing later and no other row changes a result")
def causality(subject: Subject) -> Iterator[Measurement]:
    """Check N7 for frames, batch elements and, in a world without shallow blocks, tokens."""
    world, count = subject.worlds[F32], subject.config.window
    frames, actions, texts = subject.clip[:2, :count], subject.clip_actions(2, count), subject.texts[:2]
    nats = world.log_prob(frames, actions, text=texts)
    state, _ = world.start(frames, actions, text=texts)
    earlier, others = 0, 0
    for t in sorted({1, count // 2, count - 1}):
        changed, moved = frames.clone(), [[*row] for row in actions]
        changed[0, t:] = 255 - changed[0, t:]
        moved[0][t:] = [None if action is not None else subject.pool[0] for action in moved[0][t:]]
        after = world.log_prob(changed, moved, text=texts)
        grown, _ = world.start(changed, moved, text=texts)
        earlier += not same_bits(after[0, :t], nats[0, :t])
        earlier += not same_bits(grown.tokens[0, :t], state.tokens[0, :t])
        others += not same_bits(after[1], nats[1]) or not same_bits(grown.tokens[1], state.tokens[1])
    yield Measurement("earlier frames changed", earlier)
    yield Measurement("other rows changed", others)
    what = "slope of a token along later ones of its frame"
    if not world.networks.flow.closed_form:
        yield Measurement(what, reason="shallow blocks mix the tokens of a frame in both orders")
        return
    matrix, seen = subject.jacobians[1]
    c = seen.latents.shape[2]
    slopes = matrix.unflatten(0, (-1, c)).unflatten(2, (-1, c)).abs().amax((1, 3))
    yield Measurement(what, float(slopes.triu(1).max()))


@promise("N2", "noise to frame to noise gives the noise, or one that gives the frame")
def round_trip(subject: Subject) -> Iterator[Measurement]:
    """Decode noise to a frame, observe the frame, and decode the noise found in it, in float32 and float64.

    With one normal per channel the noise itself is compared, with a mixture the frames."""
    window, one = subject.config.window, subject.config.flow.components == 1
    for dtype, tolerance, limit in ((F32, 1e-6, 1e-4), (F64, 1e-12, 1e-10)):
        world, differences = subject.decoded(dtype, tolerance=tolerance), []
        state = subject.aged(world, [0, 1, window - 1, window])
        for t in range(1, 3):
            noise = some_noise(subject, world, len(state), t)
            after, said = world.step(state, subject.actions([t] * 4), noise=noise)
            _, heard = world.observe(state, subject.actions([t] * 4), latents=said.latents)
            _, again = world.step(state, subject.actions([t] * 4), noise=heard.noise)
            pairs = (heard.noise, noise) if one else (again.latents, said.latents)
            differences.append(largest_difference(*pairs))
            state = after
        yield Measurement(NAMES[dtype], worst(differences), limit)


@promise("N14", "a row that was not solved is not called converged")
def convergence(subject: Subject) -> Iterator[Measurement]:
    """Compare batch elements reported as converged, also with too few sweeps, with sequential decoding."""
    tolerance, apart = 1e-6, []
    exact = subject.decoded(F64, tolerance=tolerance, chunk=1)
    for sweeps in (1, 2, 0):
        world = subject.decoded(F64, tolerance=tolerance, max_sweeps=sweeps)
        state, actions = subject.aged(world, [0, 1, 2, subject.config.window]), subject.actions([1, 2, 3, 4])
        noise = some_noise(subject, world, len(state), sweeps)
        said, wanted = (one.step(state, actions, noise=noise)[1] for one in (world, exact))
        difference = (said.latents - wanted.latents).abs().amax((1, 2)) / subject.config.noise_level
        apart += difference[said.converged].tolist()
    yield Measurement("largest error, in noise units, that is called converged", worst(apart), 1e3 * tolerance)
