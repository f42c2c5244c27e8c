"""Streams: the memory of a video codec for one video. A stream is immutable, so batch elements may share one.

Shapes: B batch elements, F pixel frames per latent frame (1 for the first of a video, then 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

PARTS = ("encoder", "decoder")


@dataclass(frozen=True)
class CodecMemory:
    """Cached features of the causal convolutions of an encoder or decoder after `frames` latent frames."""

    features: tuple[Any, ...]
    frames: int


@dataclass(frozen=True)
class VideoStream:
    """Position of a codec in one video. `encoder` is None after imagined frames, which were not encoded; `shown` (F, H,
    W, 3) u8: pixel frames of the newest latent frame, given or decoded; None before the first."""

    encoder: CodecMemory | None = None
    decoder: CodecMemory | None = None
    shown: Tensor | None = None


Streams = tuple[VideoStream | None, ...]
"""One stream per batch element; None for a codec without memory."""


def pack_streams(streams: Streams) -> tuple[dict[str, Tensor], list[dict[str, int]] | None]:
    """Return all tensors of the streams by name, and the number of latent frames that encoder and decoder of each
    stream have processed; for a codec without memory no tensors and None."""
    tensors: dict[str, Tensor] = {}
    seen: list[dict[str, int]] = []
    for row, stream in enumerate(streams):
        if stream is None:
            return {}, None
        seen.append({})
        if stream.shown is not None:
            tensors[f"streams.{row}.shown"] = stream.shown
        for part, memory in ((name, getattr(stream, name)) for name in PARTS):
            if memory is not None:
                seen[row][part] = memory.frames
                held = {f"streams.{row}.{part}.{place}": kept for place, kept in enumerate(memory.features)}
                tensors |= {name: kept for name, kept in held.items() if isinstance(kept, Tensor)}
    return tensors, seen


class StreamReader:
    """Reads the tensors that `pack_streams` named, each once, and checks their shapes. Raises ValueError."""

    def __init__(self, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int]) -> None:
        self.left = dict(tensors)
        if not isinstance(seen, list) or len(seen) != len(steps):
            raise ValueError(f"{seen!r:.80} for the codec's memory of {len(steps)} batch elements")
        for parts, step in zip(seen, steps, strict=True):
            if type(step) is not int or step < 0 or parts not in _possible(step):
                raise ValueError(f"{parts!r:.80} for a batch element of {step} latent frames")

    def take(self, name: str, like: Tensor) -> Tensor:
        """Return the tensor `name`, on the device and in the dtype of `like`."""
        if name not in self.left:
            raise ValueError(f"{name} is missing")
        tensor = self.left.pop(name)
        if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
            raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype} where {tuple(like.shape)} belongs")
        return tensor.to(like)

    def memory(self, prefix: str, like: CodecMemory) -> CodecMemory:
        """Return the memory stored under `prefix`, with the shapes of `like`."""
        places = enumerate(like.features)
        kept = (self.take(f"{prefix}.{place}", x) if isinstance(x, Tensor) else x for place, x in places)
        return CodecMemory(tuple(kept), like.frames)

    def end(self) -> None:
        """Raise ValueError if a tensor was not read."""
        if self.left:
            raise ValueError(f"{next(iter(self.left))}, which nothing reads")


def _possible(step: int) -> list[dict[str, int]]:
    """Return the parts a stream may have after `step` latent frames: no encoder if some were imagined."""
    return [dict.fromkeys(PARTS, step), {"decoder": step}] if step else [{}]
