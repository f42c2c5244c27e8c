"""Tiny worlds of 16 tokens, states whose rows have any age, and what compares them."""

import numpy as np
import torch
from torch import Tensor

from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState
from tests.worlds import tiny_world

F32, F64 = torch.float32, torch.float64
RELATIVE = {F64: 1e-12, F32: 1e-5}


def small_world(dtype: torch.dtype = F64, **changes: object) -> World:
    return tiny_world(dtype=dtype, height=8, width=8, **changes)


def other_world(world: World, **changes: object) -> World:
    """A small world of the same kind with these changes, as random weights have it."""
    same = {"codec": world.config.codec, "flow": world.config.flow}
    return small_world(world.dynamics.dtype, **same | changes)


def pictures(rows: int, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, count, 8, 8, 3), generator=generator, dtype=torch.uint8)


def moves(rows: int, count: int, seed: int = 0) -> list[list[int | None]]:
    """Actions for a clip: none leads to the first frame."""
    found = np.random.default_rng(seed).integers(0, 4, (rows, count)).tolist()
    return [[None, *row[1:]] for row in found]


def aged(world: World, *ages: int, seed: int = 0) -> WorldState:
    """A state whose rows have seen so many frames, each row with a text and key of its own."""
    parts = [
        world.start(pictures(1, age, seed + i), moves(1, age, seed + i), text=f"row {seed + i}", seed=seed + i)[0]
        for i, age in enumerate(ages)
    ]
    return WorldState.stack(parts)


def same(one: Transition | WorldState, other: Transition | WorldState) -> bool:
    """Whether two states or transitions have equal bits."""
    if isinstance(one, WorldState) and isinstance(other, WorldState):
        return one.digest() == other.digest()
    return all(torch.equal(value, getattr(other, name)) for name, value in vars(one).items())


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())
