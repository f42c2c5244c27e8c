"""Counterfactual replay: recover the noise of observed frames and step the world with it under other actions.

The flow is invertible: for each observed frame there is noise from which the world samples this frame given its history
(with one normal per channel exactly one; of a mixture keyed luck chooses one of many). `trace` recovers such noise,
`replay` steps the world with it under any actions.

Shapes: N rows (alternatives), T steps after the first frame, n tokens per frame, c channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.errors import DataError
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState

TOLERANCE = 1e-6
"""Decoding tolerance of a replay, in noise units. The error of a frame stays in the context of all later frames."""


@dataclass(frozen=True)
class Steps:
    """T steps of N rows. actions (N, T, 1 + flat); noise (N, T, n, c + g); latents (N, T, n, c); frames (N, T, H, W, 3)
    u8, decoded; reward, end_probability (N, T): predicted, NaN without an outcome head; nats (N, T)."""

    actions: Tensor
    noise: Tensor
    latents: Tensor
    frames: Tensor
    reward: Tensor
    end_probability: Tensor
    nats: Tensor


@dataclass(frozen=True)
class Traced:
    """An observed episode (one row): the world's state after its first frame, and its steps."""

    start: WorldState
    steps: Steps


@torch.inference_mode()
def trace(world: World, frames: np.ndarray, actions: Tensor, *, text: str = "", seed: int = 0) -> Traced:
    """Recover the noise of each step of an episode: frames (1 + T, H, W, 3) u8, actions (1 + T, 1 + flat).

    actions[t] led to frames[t]; actions[0] is all zeros if an episode begins there. The returned frames are decoded
    from the noisy latents, so that they can be compared with imagined frames.
    """
    if len(frames) < 2:
        raise DataError(f"frames: expected a first frame and at least one that follows it, found {len(frames)}")
    state, _ = world.start(frames[None, :1], actions[None, :1], text=text, seed=[seed])
    start, found = state, []
    for t in range(1, len(frames)):
        state, transition = world.observe(state, actions[t : t + 1], frames[None, t])
        found.append(replace(transition, frames=world.dynamics.frames.picture(state)))
    return Traced(start, _joined(found, actions[None, 1:]))


@torch.inference_mode()
def replay(
    world: World, traced: Traced, choose: Callable[[int, WorldState], Sequence[Any] | Tensor], *, rows: int = 1
) -> Steps:
    """Step `rows` rows with the noise of an observed episode; choose(t, state) returns the actions of step t < T, one
    per row or (rows, 1 + flat).

    Under the original actions the latents equal the observed ones up to TOLERANCE.
    """
    exact = world.decoded(replace(world.dynamics.decode, tolerance=TOLERANCE))
    state, found, taken = traced.start[[0] * rows], [], []
    for t in range(traced.steps.noise.shape[1]):
        flat = world.flatten(choose(t, state), rows)
        noise = traced.steps.noise[:, t].expand(rows, -1, -1)
        state, transition = exact.step(state, flat, noise=noise)
        found.append(transition)
        taken.append(flat)
    return _joined(found, torch.stack(taken, dim=1))


def _joined(found: Sequence[Transition], actions: Tensor) -> Steps:
    def over_time(read: Callable[[Transition], Tensor]) -> Tensor:
        return torch.stack([read(transition) for transition in found], dim=1)

    return Steps(
        actions, over_time(lambda t: t.noise), over_time(lambda t: t.latents), over_time(lambda t: t.frames[:, -1]),
        over_time(lambda t: t.reward), over_time(lambda t: t.end_probability), over_time(lambda t: t.nats),
    )


@dataclass(frozen=True)
class Fidelity:
    """Reconstruction error of a replay: the largest difference of latents in units of the noise level, and the share of
    pixels within one grey level."""

    latents: float
    pixels: float


def fidelity(world: World, happened: Steps, again: Steps) -> Fidelity:
    """Compare an observed episode with its replay under the original actions (one row each)."""
    apart = (happened.latents - again.latents).abs().max() / world.config.noise_level
    shown = happened.frames.int() - again.frames.int()
    return Fidelity(float(apart), float((shown.abs() <= 1).all(-1).float().mean()))
