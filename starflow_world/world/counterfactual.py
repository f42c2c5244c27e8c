"""Same luck, other choices: the noise of what really happened, and what it makes of other actions.

The flow is invertible, so a frame that was observed has exactly one noise z that makes the world imagine it behind what
came before. `trace` keeps that noise; `replay` imagines the trajectory again under any actions with it.

Shapes: N rows (alternatives), T steps behind the first frame, n tokens per frame, c channels.
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

TOLERANCE = 1e-5
"""Of decoding, in noise units: what a frame is off by stays in the context of all later ones."""


@dataclass(frozen=True)
class Steps:
    """T steps of N rows. actions (N, T, 1 + flat); noise, latents (N, T, n, c); frames (N, T, H, W, 3) u8, decoded;
    reward, end_probability (N, T): predicted, NaN without an outcome head; nats (N, T)."""

    actions: Tensor
    noise: Tensor
    latents: Tensor
    frames: Tensor
    reward: Tensor
    end_probability: Tensor
    nats: Tensor


@dataclass(frozen=True)
class Traced:
    """What really happened (one row): the world's state behind the first frame, and the steps that followed."""

    start: WorldState
    steps: Steps


@torch.inference_mode()
def trace(world: World, frames: np.ndarray, actions: Tensor, *, text: str = "", seed: int = 0) -> Traced:
    """Observe frames (1 + T, H, W, 3) u8, to which actions (1 + T, 1 + flat) led, and keep the noise of each step.

    The first action is the one before the first frame: absent (all zero) where an episode begins. The frames of the
    steps are those that the world decodes from the noisy latents, to be compared with imagined ones.
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
    """Imagine the trajectory again in `rows` rows with its own noise; choose(t, state) gives the actions of step t < T,
    one per row or (rows, 1 + flat).

    With the actions that were really taken it gives the latents that were really observed, up to TOLERANCE.
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
    """How well a replay gives back what was observed: the largest difference of latents in units of the noise level,
    and the share of pixels within one grey level."""

    latents: float
    pixels: float


def fidelity(world: World, happened: Steps, again: Steps) -> Fidelity:
    """Of a replay under the actions that were really taken (both one row)."""
    apart = (happened.latents - again.latents).abs().max() / world.config.noise_level
    shown = happened.frames.int() - again.frames.int()
    return Fidelity(float(apart), float((shown.abs() <= 1).all(-1).float().mean()))
