"""How far apart two states, transitions or tensors are; NaN, not silence, where one of them has NaN."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from starflow_world.world.state import Transition, WorldState


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference between two tensors, NaN where one has NaN."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max()) if one.numel() else 0.0


def apart_in_size(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest number where that is above 1."""
    return apart(one, other) / max(1.0, float(other.abs().max()) if other.numel() else 0.0)


def apart_in_nats(one: Tensor, other: Tensor, dims: int) -> float:
    """The largest difference of nats, relative to them, or to the number of dimensions where that is larger."""
    return float(((one - other).abs() / other.abs().clamp_min(dims)).max())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the bit; NaN equals itself."""
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and one.cpu().contiguous().numpy().tobytes() == other.cpu().contiguous().numpy().tobytes()


def fields_apart(one: Transition, other: Transition, row: int | None = None, other_row: int | None = None) -> int:
    """How many fields of two transitions, or of a row of each, differ in a bit."""
    pairs = [(value, getattr(other, name)) for name, value in vars(one).items()]
    if row is not None:
        pairs = [(mine[row], its[row if other_row is None else other_row]) for mine, its in pairs]
    return sum(not same_bits(mine, its) for mine, its in pairs)


def cached(state: WorldState, row: int) -> Tensor:
    """The valid keys and values of a row, (2, layers, positions, H, e); nothing where there is no cache."""
    if state.cache is None:
        return state.tokens.new_zeros(0)
    length = int(state.cache.length[row])
    return torch.stack((state.cache.keys[:, row, :length], state.cache.values[:, row, :length]))


def caches_apart(one: WorldState, other: WorldState) -> float:
    """The largest difference between the caches of two states, over rows."""
    return worst(apart_in_size(cached(one, row), cached(other, row)) for row in range(len(one)))


def worst(figures: Iterable[float]) -> float:
    """The largest, NaN where one of them is; 0 of none."""
    return float(np.max([0.0, *figures]))
