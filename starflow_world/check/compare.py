"""Differences between states, transitions or tensors; a difference is NaN if an input contains NaN."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from starflow_world.world.state import Transition, WorldState


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference between two tensors, or infinity if their shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max()) if one.numel() else 0.0


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference, divided by the largest magnitude in `other` if that is above 1."""
    return largest_difference(one, other) / max(1.0, float(other.abs().max()) if other.numel() else 0.0)


def nats_difference(one: Tensor, other: Tensor, dims: int) -> float:
    """Return the largest difference of nats, relative to their magnitude or to `dims`, whichever is larger."""
    return float(((one - other).abs() / other.abs().clamp_min(dims)).max())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bits; equal NaNs count as equal."""
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and one.cpu().contiguous().numpy().tobytes() == other.cpu().contiguous().numpy().tobytes()


def differing_fields(one: Transition, other: Transition, row: int | None = None, other_row: int | None = None) -> int:
    """Count the fields that differ in any bit between two transitions, or between a batch element of each."""
    pairs = [(value, getattr(other, name)) for name, value in vars(one).items()]
    if row is not None:
        pairs = [(mine[row], its[row if other_row is None else other_row]) for mine, its in pairs]
    return sum(not same_bits(mine, its) for mine, its in pairs)


def cached(state: WorldState, row: int) -> Tensor:
    """Return the valid keys and values of a batch element, stacked along axis 0; an empty tensor without a cache."""
    if state.cache is None:
        return state.tokens.new_zeros(0)
    length = int(state.cache.length[row])
    return torch.stack((state.cache.keys[:, row, :, :length], state.cache.values[:, row, :, :length]))


def cache_difference(one: WorldState, other: WorldState) -> float:
    """Return the largest relative difference between the caches of two states, over batch elements."""
    return worst(relative_difference(cached(one, row), cached(other, row)) for row in range(len(one)))


def worst(figures: Iterable[float]) -> float:
    """Return the largest value, NaN if any is NaN, or 0 if there are none."""
    return float(np.max([0.0, *figures]))
