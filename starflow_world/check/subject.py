"""What is examined: a world in both precisions, and the clips and states that it is examined on.

Everything follows from a seed. Frames come from the world's start set, or are imagined where it has none; later frames
are imagined by the world itself, so that they are frames it has an opinion about. Actions come from its action space.
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
        """A text for each row of the clip; other rows have them in turn."""
        starts, text = self.worlds[F32].starts, self.config.text
        if text.kind == "none" or text.length < 2:
            return [""] * ROWS
        return list("abcd") if starts is None else [starts.texts[row % len(starts)] for row in range(ROWS)]

    def action(self, row: int, step: int) -> Any:
        """The action that leads to frame `step` of a row: none to the first, and sometimes none to a later one."""
        return self.pool[(5 * row + step) % ACTIONS] if step else None

    def moves(self, steps: Sequence[int]) -> list[Any]:
        """The actions that lead to frame steps[row] of every row."""
        return [self.action(row, step) for row, step in enumerate(steps)]

    def clip_actions(self, rows: int, count: int) -> list[list[Any]]:
        """Those of the first frames of the clip."""
        return [[self.action(row, step) for step in range(count)] for row in range(rows)]

    @cached_property
    def clip(self) -> Tensor:
        """Frames (ROWS, 3 W + 2, H, W, 3) u8: a start and what the world imagined behind it."""
        world, starts = self.worlds[F32], self.worlds[F32].starts
        first = None if starts is None else starts.frames[[row % len(starts) for row in range(ROWS)]][:, None]
        seeds = [self.seed + row for row in range(ROWS)]
        state, seen = world.start(first, text=self.texts, seed=seeds)
        frames = [seen.frames[:, -1]]
        for step in range(1, self.length):
            state, seen = world.step(state, self.moves([step] * ROWS), reuse=True)
            frames.append(seen.frames[:, -1])
        return torch.stack(frames, dim=1)

    def shown(self, steps: Sequence[int]) -> Tensor:
        """Frames (B, H, W, 3): number steps[row] of every row; the clip begins again behind its end."""
        return torch.stack([self.clip[row % ROWS, step % self.length] for row, step in enumerate(steps)])

    def aged(self, world: World, ages: Sequence[int]) -> WorldState:
        """A state whose rows have seen so many frames of the clip; 0: an empty row."""
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
        """The world, decoded to another tolerance."""
        return same_world(self.worlds[dtype], dtype, tolerance=tolerance, max_sweeps=max_sweeps)

    @cached_property
    def jacobians(self) -> tuple[tuple[Tensor, Transition], ...]:
        """d noise / d noisy latents (D, D), float64, of a first frame and of one behind it, with what was said of them.

        D = n c must be small enough for a determinant: the same networks see frames of at most 2 x 2 tokens.
        """
        world = _shrunk(self.worlds[F64])
        state, found = world.empty(self.texts[:1], [make_key(self.seed)]), []
        for step in range(2):
            after, seen = world.step(state, self.moves([step]))
            found.append(_jacobian(world, state, self.action(0, step), seen.latents))
            state = after
        return tuple(found)


def same_world(world: World, dtype: torch.dtype, **decode: Any) -> World:
    """The same kind of world with copied networks, in `dtype` and decoded otherwise; itself where nothing changes."""
    if world.dynamics.dtype == dtype and not decode:
        return world
    other = type(world)(deepcopy(world.networks).to(dtype), world.world_id, world.starts)
    other.dynamics.decode = replace(world.dynamics.decode, **decode)
    return other


def some_noise(subject: Subject, world: World, rows: int, step: int) -> Tensor:
    """Noise z (B, n, c) that no row of the subject has by itself."""
    keys, steps = torch.arange(rows) + 1000 + subject.seed, torch.full((rows,), step)
    noise = normals(keys, steps, "prior", (world.dynamics.tokens, world.config.channels))
    return noise.to(world.dynamics.device, world.dynamics.dtype)


def _shrunk(world: World) -> World:
    """The same networks on frames of 2 x 2 tokens, or fewer, in a window of two frames."""
    config, networks = world.config, deepcopy(world.networks)
    scale, (height, width) = config.codec.patch * config.codec.merge, config.grid
    fits = ((h, w) for h, w in ((2, 2), (1, 2), (2, 1)) if h <= height and w <= width)
    h, w = next((grid for grid in fits if grid[0] * grid[1] * config.channels <= LARGEST_JACOBIAN), (1, 1))
    networks.config = replace(config, height=h * scale, width=w * scale, window=2, context=1)
    assert isinstance(networks.codec, PatchCodec)
    networks.codec.size = networks.config.height, networks.config.width
    return type(world)(networks, world.world_id)


def _jacobian(world: World, state: WorldState, action: Any, latents: Tensor) -> tuple[Tensor, Transition]:
    """By forward differentiation through `observe`: each row is told the same latents, moved along one dimension."""
    count, verb = latents.numel(), inspect.unwrap(type(world).observe)  # without its inference mode
    directions = torch.eye(count).to(latents).unflatten(1, latents.shape[1:])
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        told = forward_ad.make_dual(latents.expand(count, -1, -1).contiguous(), directions)
        _, seen = verb(world, state[[0] * count], [action] * count, latents=told)
        noise = forward_ad.unpack_dual(seen.noise)
        slopes = torch.zeros_like(directions) if noise.tangent is None else noise.tangent
        fields = {name: forward_ad.unpack_dual(value).primal for name, value in vars(seen).items()}
    return slopes.flatten(1).T, Transition(**fields)
