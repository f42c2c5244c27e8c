"""Codecs: frames u8 to latents and back. `make_codec` builds the one that a world's config names."""

from typing import Protocol

from torch import Tensor

from ..config import WorldConfig
from .patch import PatchCodec


class Codec(Protocol):
    """frames (B, T, H, W, 3) u8 <-> latents (B, T, n, c)."""

    def encode(self, frames: Tensor) -> Tensor:
        """Frames to latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to frames."""

    @property
    def invertible(self) -> bool:
        """Whether latents keep every pixel, so that bits per dimension are defined."""


def make_codec(config: WorldConfig) -> PatchCodec:
    """The codec of a world, its basis not fitted yet."""
    return PatchCodec(config.codec, (config.height, config.width))


__all__ = ["Codec", "PatchCodec", "make_codec"]
