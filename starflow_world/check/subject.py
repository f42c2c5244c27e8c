"""Inputs of the checks: the examined world in float32 and float64, with clips, actions and states.

All inputs are a function of the seed. First frames come from the world's start set or, without one, are sampled. Later
frames are imagined by the world itself, so that they are likely under it. Actions are sampled from its action space.
"""

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from starflow_world.codec import PatchCodec
from starflow_world.noise import make_key, normals
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState

F32, F64 = torch.float32, torch.float64
NAMES = {F32: "float32", F64: "float64"}
ROWS, ACTIONS, LARGEST_JACOBIAN = 4, 16, 256


class Subject:
    """The world under examination, in float32 and float64, and the inputs of its checks."""

    def __init__(self, world: World, seed: int = 0) -> None:
        self.config, self.seed = world.config, seed
        self.worlds = {dtype: same_world(world, dtype) for dtype in (F32, F64)}
        space = deepcopy(world.action_space)
        space.seed(seed)
        self.pool = [space.sample() for _ in range(ACTIONS)]
        self.pool[ACTIONS // 2] = None
        self.dims = self.config.channels * self.config.grid[0] * self.config.grid[1]
        self.length = 3 * self.config.window + 2

    @property
    def texts(self) -> list[str]:
        """Return the text of each of the ROWS episodes of the clip."""
        starts, text = self.worlds[F32].starts, self.config.text
        if text.kind == "none" or text.length < 2:
            return [""] * ROWS
        return list("abcd") if starts is None else [starts.texts[row % len(starts)] for row in range(ROWS)]

    def action(self, row: int, step: int) -> Any:
        """Return the action that leads to frame `step` of episode `row`; None for frame 0 and for some later frames."""
        return self.pool[(5 * row + step) % ACTIONS] if step else None

    def actions(self, steps: Sequence[int]) -> list[Any]:
        """Return, for each episode `row`, the action that leads to frame steps[row]."""
        return [self.action(row, step) for row, step in enumerate(steps)]

    def clip_actions(self, rows: int, count: int) -> list[list[Any]]:
        """Return the actions of the first `count` frames of the first `rows` episodes of the clip."""
        return [[self.action(row, step) for step in range(count)] for row in range(rows)]

    @cached_property
    def clip(self) -> Tensor:
        """Return ROWS episodes (ROWS, length, H, W, 3) u8: first frames, then frames imagined by the world."""
        world, starts = self.worlds[F32], self.worlds[F32].starts
        first = None if starts is None else starts.frames[[row % len(starts) for row in range(ROWS)]][:, None]
        seeds = [self.seed + row for row in range(ROWS)]
        state, seen = world.start(first, text=self.texts, seed=seeds)
        frames = [seen.frames[:, -1]]
        for step in range(1, self.length):
            state, seen = world.step(state, self.actions([step] * ROWS), reuse=True)
            frames.append(seen.frames[:, -1])
        return torch.stack(frames, dim=1)

    def frames(self, steps: Sequence[int]) -> Tensor:
        """Return frames (B, H, W, 3): frame steps[row] of each episode `row`, modulo the length of the clip."""
        return torch.stack([self.clip[row % ROWS, step % self.length] for row, step in enumerate(steps)])

    def aged(self, world: World, ages: Sequence[int]) -> WorldState:
        """Return a state whose batch elements have observed `ages` frames of the clip each (0: none)."""
        parts = []
        for row, age in enumerate(ages):
            text, seed = self.texts[row % ROWS], self.seed + row
            if age:
                actions = [[self.action(row, step) for step in range(age)]]
                frames = self.clip[row % ROWS, :age][None]
                parts.append(world.start(frames, actions, text=text, seed=seed)[0])
            else:
                parts.append(world.empty([text], [make_key(seed)]))
        return WorldState.stack(parts)

    def decoded(self, dtype: torch.dtype, *, tolerance: float, max_sweeps: int = 0, chunk: int = 0) -> World:
        """Return a copy of the world with the given decoding tolerance, limit of Jacobi sweeps and tokens at once."""
        return same_world(self.worlds[dtype], dtype, tolerance=tolerance, max_sweeps=max_sweeps, chunk=chunk)

    @cached_property
    def jacobians(self) -> tuple[tuple[Tensor, Transition], ...]:
        """Return the Jacobians d noise / d latents (D, D), float64, of the first two frames, and their transitions.

        Frames are reduced to at most 2 x 2 tokens, so that D = n c is small enough for a determinant.
        """
        world = _shrunk(self.worlds[F64])
        state, jacobians = world.empty(self.texts[:1], [make_key(self.seed)]), []
        for step in range(2):
            after, seen = world.step(state, self.actions([step]))
            jacobians.append(_jacobian(world, state, self.action(0, step), seen.latents))
            state = after
        return tuple(jacobians)


def same_world(world: World, dtype: torch.dtype, **decode: Any) -> World:
    """Return a copy of a world in `dtype` with decoding settings `decode`, or the world itself if nothing changes."""
    if world.dynamics.dtype == dtype and not decode:
        return world
    other = type(world)(deepcopy(world.networks).to(dtype), world.world_id, world.starts)
    other.dynamics.decode = replace(world.dynamics.decode, **decode)
    return other


def some_noise(subject: Subject, world: World, rows: int, step: int) -> Tensor:
    """Return noise (B, n, c + g) with keys that no episode of the subject uses."""
    keys, steps = torch.arange(rows) + 1000 + subject.seed, torch.full((rows,), step)
    noise = normals(keys, steps, "prior", world.dynamics.noise_shape)
    return noise.to(world.dynamics.device, world.dynamics.dtype)


def _shrunk(world: World) -> World:
    """Return a world with the same networks, frames of at most 2 x 2 tokens and a window of two frames."""
    config, networks = world.config, deepcopy(world.networks)
    scale, (height, width) = config.codec.patch * config.codec.merge, config.grid
    fits = ((h, w) for h, w in ((2, 2), (1, 2), (2, 1)) if h <= height and w <= width)
    h, w = next((grid for grid in fits if grid[0] * grid[1] * config.channels <= LARGEST_JACOBIAN), (1, 1))
    networks.config = replace(config, height=h * scale, width=w * scale, window=2, context=1)
    assert isinstance(networks.codec, PatchCodec)
    networks.codec.size = networks.config.height, networks.config.width
    return type(world)(networks, world.world_id)


def _jacobian(world: World, state: WorldState, action: Any, latents: Tensor) -> tuple[Tensor, Transition]:
    """Differentiate `observe` by forward-mode AD; each batch element has a tangent along one dimension of latents."""
    count, verb = latents.numel(), inspect.unwrap(type(world).observe)  # without its inference mode
    directions = torch.eye(count).to(latents).unflatten(1, latents.shape[1:])
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        dual = forward_ad.make_dual(latents.expand(count, -1, -1).contiguous(), directions)
        _, seen = verb(world, state[[0] * count], [action] * count, latents=dual)
        noise = forward_ad.unpack_dual(seen.noise[..., : latents.shape[-1]])
        slopes = torch.zeros_like(directions) if noise.tangent is None else noise.tangent
        fields = {name: forward_ad.unpack_dual(value).primal for name, value in vars(seen).items()}
    return slopes.flatten(1).T, Transition(**fields)
