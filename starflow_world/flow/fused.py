"""Whole networks in one call on a CPU (native/), where torch's kernels, made for many tokens, leave most of it idle.

With the 16 tokens of a frame, rows of all lengths and scattered keys, attention ran at a tenth of what the processor
can do and small products at a fifth. On other devices, in other precisions, under gradients, and where there is no
compiler the layers do the same in torch, to rounding.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from .cache import KVCache
from .native import library

LEFT = ContextVar("networks are left to torch", default=False)


@contextmanager
def left_to_torch() -> Iterator[None]:
    """All in torch while the block runs: what counts or traces operations sees them."""
    token = LEFT.set(True)
    try:
        yield
    finally:
        LEFT.reset(token)


def weights(kinds: tuple[type[nn.Module], ...], *modules: nn.Module) -> list[Tensor | None] | None:
    """Weight and bias of each module; None where one has to be called, as it is of no such kind (it was replaced), or
    is sharded or hooked into."""
    found: list[Tensor | None] = []
    for module in modules:
        own = module._parameters  # not by attributes: those of modules are slow
        if type(module) not in kinds or module._forward_hooks or module._forward_pre_hooks:
            return None
        weight = own["weight"]
        if type(weight) is not nn.Parameter or not weight.is_contiguous():
            return None
        found += weight, own.get("bias")
    return found


def usable(x: Tensor, weight: Tensor, cache: KVCache | None = None) -> bool:
    """Whether a network with weights like this one can run on x here, behind a cache if there is one."""
    if torch.compiler.is_compiling() or LEFT.get() or x.device.type != "cpu":
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or type(weight) not in (Tensor, nn.Parameter):
        return False
    if cache is not None and (cache.keys.dtype != torch.float32 or cache.rows != len(x)):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return not torch.is_autocast_enabled("cpu") and library() is not None


def run_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (.., inner) times weight (outputs, inner), plus bias: (.., outputs). A row has the same bits in any company."""
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], len(weight))
    _call("run_linear", (x, weight, bias), (y,), x.numel() // x.shape[-1], x.shape[-1], len(weight))
    return y


def run_block(
    hidden: Tensor, rotary: Tensor, cache: KVCache | None, layers: Sequence[Sequence[Tensor | None]],
    ends: Sequence[Tensor], heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers on hidden states (B, S, d): normed (B, S, d), and the means and scales (B, S, c) that the head gives.

    New keys and values are stored behind the valid ones of the cache. rotary (1 or B, S, e / 2). `layers`: weight and
    bias of norm, qkv, out, norm, up, down each; `ends`: weight of the norm, weight and bias of the head, or nothing
    where only keys and values are wanted (what is returned then has no numbers).
    """
    rows, count, width = hidden.shape
    if cache is None:
        keys, values = hidden.new_empty(2, len(layers), rows, count, heads, width // heads).unbind(0)
        cache = KVCache(keys, values, torch.zeros(rows, dtype=torch.long))
    if int(cache.length.max()) + count > cache.capacity:
        raise ValueError(f"expected room for {count} in a cache of {cache.capacity}, found {cache.length.tolist()}")
    keys, channels = cache.keys, len(ends[1]) // 2 if ends else 0
    hidden, rotary, length = hidden.contiguous(), rotary.contiguous(), cache.length.contiguous()
    normed, mean, scale = (hidden.new_empty(rows, count, size) for size in (width if ends else 0, channels, channels))
    _call(
        "run_block", (hidden, rotary, keys, cache.values, length, _table(layers), *(ends or (None,) * 3)),
        (normed, mean, scale) if ends else (None,) * 3, rows, count, len(layers), heads, width // heads, cache.capacity,
        2 * rotary.stride(0) if len(rotary) > 1 else 0, keys.stride(1), keys.stride(0), channels,
    )
    return normed, mean, scale


def run_sites(
    tokens: Tensor, condition: Tensor | None, grid: tuple[int, int], side: int, ends: Sequence[Tensor | None],
    layers: Sequence[Sequence[Tensor | None]],
) -> Tensor:
    """A network over sites: tokens (B, n, c), condition (B, d) -> features (B, width, H, W).

    `ends`: weight and bias of stem and first; `layers`: weight and bias of look, mix and condition (or None) each.
    """
    assert ends[0] is not None
    rows, width = len(tokens), len(ends[0])
    tokens, condition = tokens.contiguous(), None if condition is None else condition.contiguous()
    features = tokens.new_empty(rows, width, grid[0] * side, grid[1] * side)
    _call(
        "run_sites", (tokens, condition, _table([ends]), _table(layers)), (features,), rows, *grid, side,
        tokens.shape[2] // side**2, width, len(layers), 0 if condition is None else condition.shape[1],
    )
    return features


def _table(weights: Sequence[Sequence[Tensor | None]]) -> "ctypes.Array[ctypes.c_void_p]":
    pointers = [None if part is None else part.data_ptr() for parts in weights for part in parts]
    return (ctypes.c_void_p * len(pointers))(*pointers)


def _call(name: str, read: Sequence[object], written: Sequence[Tensor | None], *numbers: int) -> None:
    pointers = [part.data_ptr() if isinstance(part, Tensor) else part for part in (*read, *written)]
    if getattr(library(), name)(*pointers, *numbers, torch.get_num_threads()):
        raise MemoryError(f"{name}: no memory for {numbers[0]} rows")
