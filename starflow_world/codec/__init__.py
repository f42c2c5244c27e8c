"""Codecs: frames u8 to latents and back. `make_codec` builds the one that a world's config names."""

from typing import Protocol

from torch import Tensor

from starflow_world.codec.patch import PatchCodec
from starflow_world.config.world import WorldConfig
from starflow_world.errors import ConfigError


class Codec(Protocol):
    """frames (B, T, H, W, 3) u8 <-> latents (B, T, n, c)."""

    def encode(self, frames: Tensor) -> Tensor:
        """Frames to latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to frames."""

    @property
    def invertible(self) -> bool:
        """Whether latents keep every pixel, so that bits per dimension are defined."""


class StreamedCodec(PatchCodec):
    """Stands where a world has its codec for one that reads a stream (stream.py): knows its sizes, refuses frames."""

    def encode(self, frames: Tensor) -> Tensor:
        """Refused."""
        raise ConfigError(f"codec {self.config.kind}: expected one that reads frames one by one, found one that reads "
                          "a stream; use World.start, World.observe, World.log_prob or score --video")

    def decode(self, latents: Tensor) -> Tensor:
        """Refused."""
        return self.encode(latents)


def make_codec(config: WorldConfig) -> PatchCodec:
    """The codec of a world, its basis not fitted yet."""
    kind = StreamedCodec if config.codec.kind == "wan" else PatchCodec
    return kind(config.codec, (config.height, config.width))


__all__ = ["Codec", "PatchCodec", "make_codec"]
