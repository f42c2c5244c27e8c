"""Differences between states, transitions or tensors; NaN if one of them contains NaN."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from starflow_world.world.state import Transition, WorldState


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two tensors, infinity for different shapes."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max()) if one.numel() else 0.0


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest number if that is above 1."""
    return largest_difference(one, other) / max(1.0, float(other.abs().max()) if other.numel() else 0.0)


def nats_difference(one: Tensor, other: Tensor, dims: int) -> float:
    """Return the largest difference of nats, relative to them, or to the number of dimensions if that is larger."""
    return float(((one - other).abs() / other.abs().clamp_min(dims)).max())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal to the bit; NaN equals itself."""
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and one.cpu().contiguous().numpy().tobytes() == other.cpu().contiguous().numpy().tobytes()


def differing_fields(one: Transition, other: Transition, row: int | None = None, other_row: int | None = None) -> int:
    """Count the fields of two transitions, or of one row of each, that differ in a bit."""
    pairs = [(value, getattr(other, name)) for name, value in vars(one).items()]
    if row is not None:
        pairs = [(mine[row], its[row if other_row is None else other_row]) for mine, its in pairs]
    return sum(not same_bits(mine, its) for mine, its in pairs)


def cached(state: WorldState, row: int) -> Tensor:
    """Return the valid keys and values of a row, (2, layers, positions, H, e); an empty tensor without a cache."""
    if state.cache is None:
        return state.tokens.new_zeros(0)
    length = int(state.cache.length[row])
    return torch.stack((state.cache.keys[:, row, :, :length], state.cache.values[:, row, :, :length]))


def cache_difference(one: WorldState, other: WorldState) -> float:
    """Return the largest relative difference between the caches of two states, over rows."""
    return worst(relative_difference(cached(one, row), cached(other, row)) for row in range(len(one)))


def worst(figures: Iterable[float]) -> float:
    """Return the largest value; NaN if one is NaN, 0 without values."""
    return float(np.max([0.0, *figures]))
