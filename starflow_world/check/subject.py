"""The subject of an examination: a world in both precisions, with clips and states.

Everything follows from a seed. First frames come from the world's start set, or are imagined without one; the world
imagines later frames itself, so that it finds them likely. Actions come from its action space.
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
    """A world under examination."""

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
        """Texts of the rows of the clip."""
        starts, text = self.worlds[F32].starts, self.config.text
        if text.kind == "none" or text.length < 2:
            return [""] * ROWS
        return list("abcd") if starts is None else [starts.texts[row % len(starts)] for row in range(ROWS)]

    def action(self, row: int, step: int) -> Any:
        """Return the action that leads to frame `step` of a row; None for the first, and sometimes for later ones."""
        return self.pool[(5 * row + step) % ACTIONS] if step else None

    def actions(self, steps: Sequence[int]) -> list[Any]:
        """Return the actions that lead to frame steps[row] of each row."""
        return [self.action(row, step) for row, step in enumerate(steps)]

    def clip_actions(self, rows: int, count: int) -> list[list[Any]]:
        """Return the actions of the first `count` frames of the clip, for `rows` rows."""
        return [[self.action(row, step) for step in range(count)] for row in range(rows)]

    @cached_property
    def clip(self) -> Tensor:
        """Frames (ROWS, 3 W + 2, H, W, 3) u8: starts and the frames that the world imagined after them."""
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
        """Return frames (B, H, W, 3): number steps[row] of each row, modulo the length of the clip."""
        return torch.stack([self.clip[row % ROWS, step % self.length] for row, step in enumerate(steps)])

    def aged(self, world: World, ages: Sequence[int]) -> WorldState:
        """Return a state whose rows have seen `ages` frames of the clip; 0: an empty row."""
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

    def decoded(self, dtype: torch.dtype, *, tolerance: float, max_sweeps: int = 0) -> World:
        """Return the world with another decoding tolerance."""
        return same_world(self.worlds[dtype], dtype, tolerance=tolerance, max_sweeps=max_sweeps)

    @cached_property
    def jacobians(self) -> tuple[tuple[Tensor, Transition], ...]:
        """d noise / d noisy latents (D, D), float64, of a first and a second frame, with their transitions.

        D = n c must be small enough for a determinant, so the networks see frames of at most 2 x 2 tokens.
        """
        world = _shrunk(self.worlds[F64])
        state, jacobians = world.empty(self.texts[:1], [make_key(self.seed)]), []
        for step in range(2):
            after, seen = world.step(state, self.actions([step]))
            jacobians.append(_jacobian(world, state, self.action(0, step), seen.latents))
            state = after
        return tuple(jacobians)


def same_world(world: World, dtype: torch.dtype, **decode: Any) -> World:
    """Copy a world with networks in `dtype` and other decoding settings; return the world itself if nothing changes."""
    if world.dynamics.dtype == dtype and not decode:
        return world
    other = type(world)(deepcopy(world.networks).to(dtype), world.world_id, world.starts)
    other.dynamics.decode = replace(world.dynamics.decode, **decode)
    return other


def some_noise(subject: Subject, world: World, rows: int, step: int) -> Tensor:
    """Return noise z (B, n, c) that differs from the noise of all rows of the subject."""
    keys, steps = torch.arange(rows) + 1000 + subject.seed, torch.full((rows,), step)
    noise = normals(keys, steps, "prior", (world.dynamics.tokens, world.config.channels))
    return noise.to(world.dynamics.device, world.dynamics.dtype)


def _shrunk(world: World) -> World:
    """Return the same networks on frames of at most 2 x 2 tokens in a window of two frames."""
    config, networks = world.config, deepcopy(world.networks)
    scale, (height, width) = config.codec.patch * config.codec.merge, config.grid
    fits = ((h, w) for h, w in ((2, 2), (1, 2), (2, 1)) if h <= height and w <= width)
    h, w = next((grid for grid in fits if grid[0] * grid[1] * config.channels <= LARGEST_JACOBIAN), (1, 1))
    networks.config = replace(config, height=h * scale, width=w * scale, window=2, context=1)
    assert isinstance(networks.codec, PatchCodec)
    networks.codec.size = networks.config.height, networks.config.width
    return type(world)(networks, world.world_id)


def _jacobian(world: World, state: WorldState, action: Any, latents: Tensor) -> tuple[Tensor, Transition]:
    """Differentiate `observe` forwards; each row observes the same latents with a tangent along one dimension."""
    count, verb = latents.numel(), inspect.unwrap(type(world).observe)  # without its inference mode
    directions = torch.eye(count).to(latents).unflatten(1, latents.shape[1:])
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        dual = forward_ad.make_dual(latents.expand(count, -1, -1).contiguous(), directions)
        _, seen = verb(world, state[[0] * count], [action] * count, latents=dual)
        noise = forward_ad.unpack_dual(seen.noise)
        slopes = torch.zeros_like(directions) if noise.tangent is None else noise.tangent
        fields = {name: forward_ad.unpack_dual(value).primal for name, value in vars(seen).items()}
    return slopes.flatten(1).T, Transition(**fields)
