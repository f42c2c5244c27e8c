"""A codec that reads a stream, for rows that are each at another place of theirs.

A `Stream` is what the Wan codec remembers of one row: a value, never written to, so rows may share one. Rows are
encoded and decoded one by one: what a codec does at a stream's beginning differs from what it does later, and a row's
bits must not depend on its companions.

Shapes: B rows, t latent frames, n tokens per frame, c channels, F pixel frames per latent frame (1 for a stream's
first, then 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from starflow_world.codec.wan import STRIDE, WanCodec, WanMemory
from starflow_world.errors import DataError

PARTS = ("encoder", "decoder")


@dataclass(frozen=True)
class Stream:
    """encoder: None where it has not read all frames, because some were imagined; decoder; shown (F, H, W, 3) u8: the
    newest latent frame as it was decoded or given; None before the first."""

    encoder: WanMemory | None = None
    decoder: WanMemory | None = None
    shown: Tensor | None = None


def encode_rows(
    codec: WanCodec, frames: Tensor, keys: Tensor, streams: Sequence[Stream]
) -> tuple[Tensor, tuple[Stream, ...]]:
    """The next frames (B, T, H, W, 3) u8 of streams as latents (B, t, n, c), their posterior sampled by keys (B,)."""
    found, read = [], []
    for row, stream in enumerate(streams):
        if stream.shown is not None and stream.encoder is None:
            raise DataError("frames: expected them behind frames that were given, found imagined ones; pass latents=")
        one = slice(row, row + 1)
        latents, memory = codec.encode(frames[one], stream.encoder, keys=keys[one])
        found.append(latents)
        read.append(replace(stream, encoder=memory))
    return torch.cat(found), tuple(read)


def decode_rows(
    codec: WanCodec, latents: Sequence[Tensor], grid: tuple[int, int], streams: Sequence[Stream]
) -> tuple[Tensor, tuple[Stream, ...]]:
    """The next clean latents (1, t, n, c) of each row -> the pixel frames (B, F, H, W, 3) u8 of the last one; where a
    row has one and another four, the one is repeated."""
    shown, after = [], []
    for x, stream in zip(latents, streams, strict=True):
        frames, memory = codec.decode(x, grid, stream.decoder)
        last = frames[0, -STRIDE:] if memory.frames > 1 else frames[0]
        shown.append(last)
        after.append(replace(stream, decoder=memory, shown=last))
    most = max(len(last) for last in shown)
    return torch.stack([last.repeat_interleave(most // len(last), dim=0) for last in shown]), tuple(after)


def pack(streams: Sequence[Stream]) -> tuple[dict[str, Tensor], list[dict[str, int]]]:
    """All that streams hold as named tensors, and of every row how many latent frames its parts have seen."""
    tensors: dict[str, Tensor] = {}
    seen: list[dict[str, int]] = [{} for _ in streams]
    for row, stream in enumerate(streams):
        if stream.shown is not None:
            tensors[f"streams.{row}.shown"] = stream.shown
        for part, memory in ((name, getattr(stream, name)) for name in PARTS):
            if memory is not None:
                seen[row][part] = memory.frames
                held = {f"streams.{row}.{part}.{place}": kept for place, kept in enumerate(memory.features)}
                tensors |= {name: kept for name, kept in held.items() if isinstance(kept, Tensor)}
    return tensors, seen


def unpack(
    codec: WanCodec, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int], grid: tuple[int, int]
) -> tuple[Stream, ...]:
    """The streams of `pack`, of rows that have seen `steps` latent frames. ValueError for what cannot be them."""
    left = dict(tensors)

    def take(name: str, like: Tensor) -> Tensor:
        found = left.pop(name, torch.empty(0))
        if found.shape != like.shape or found.is_floating_point() != like.is_floating_point():
            raise ValueError(f"{name}: {tuple(found.shape)} {found.dtype} where {tuple(like.shape)} belongs")
        return found.to(like)

    if not isinstance(seen, list) or len(seen) != len(steps):
        raise ValueError("a codec's memory of other rows")
    streams = []
    for row, (said, step) in enumerate(zip(seen, steps, strict=True)):
        known = [dict.fromkeys(PARTS, step), {"decoder": step}] if step else [{}]
        if type(step) is not int or step < 0 or said not in known:
            raise ValueError(f"{said!r:.80} for a row of {step} latent frames")
        memories = {}
        for part in said:
            blank = codec.blank(part, step, grid)
            kept = [take(f"streams.{row}.{part}.{place}", one) if isinstance(one, Tensor) else one
                    for place, one in enumerate(blank.features)]
            memories[part] = WanMemory(tuple(kept), step)
        size = STRIDE if step > 1 else 1, grid[0] * codec.pixels, grid[1] * codec.pixels, 3
        like = torch.empty(size, dtype=torch.uint8, device=codec.device)
        streams.append(Stream(**memories, shown=take(f"streams.{row}.shown", like) if step else None))
    if left:
        raise ValueError(f"{next(iter(left))}, which nothing reads")
    return tuple(streams)
