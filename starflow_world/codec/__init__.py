"""Codecs: frames to latents and back.

Shapes: B batch elements, F pixel frames, T latent frames, n tokens per latent frame, c channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from starflow_world.codec.conv import ConvCodec
from starflow_world.codec.patch import PatchCodec
from starflow_world.codec.stream import Streams
from starflow_world.config.world import WorldConfig
from starflow_world.errors import ConfigError


class Codec(Protocol):
    """Interface of a codec: maps frames (B, F, H, W, 3) u8 to latents (B, T, n, c) and back.

    The first latent frame of a video encodes one pixel frame, each later one `frames_per_latent`. A stream is the
    immutable memory of a codec for one video; it is None for a codec without memory.
    """

    @property
    def frames_per_latent(self) -> int:
        """Return the number of pixel frames per latent frame after the first."""

    @property
    def stateful(self) -> bool:
        """Return whether a latent frame depends on earlier frames, so that frames must be encoded in order."""

    @property
    def invertible(self) -> bool:
        """Return whether decoding restores every pixel, so that bits per dimension are defined."""

    def fit(self, frames: Tensor) -> None:
        """Fit the learned parameters, if any, to frames (N, H, W, 3) u8."""

    def begin(self, rows: int) -> Streams:
        """Return the streams of `rows` new videos."""

    def encode(self, frames: Tensor, streams: Streams = (), *, keys: Tensor | None = None) -> tuple[Tensor, Streams]:
        """Encode the next frames of each stream. Noise keys (B,): sample the posterior, if the codec has one."""

    def decode(self, latents: Tensor, streams: Streams = ()) -> tuple[Tensor, Streams]:
        """Decode the next latent frames of each stream."""

    def unpack(self, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int]) -> Streams:
        """Rebuild the streams that `pack_streams` stored, after `steps` latent frames. Raises ValueError."""


class UnloadedCodec:
    """Placeholder for a codec that is not stored in the checkpoint, until `Networks.attach` loads it."""

    stateful, invertible, frames_per_latent = True, False, 4

    def fit(self, frames: Tensor) -> None:
        """Raise ConfigError: this codec is not loaded."""
        self.encode(frames)

    def begin(self, rows: int) -> Streams:
        """Raise ConfigError: this codec is not loaded."""
        raise ConfigError("codec wan: expected a loaded codec, found none; open the folder with World.load")

    def encode(self, frames: Tensor, streams: Streams = (), *, keys: Tensor | None = None) -> tuple[Tensor, Streams]:
        """Raise ConfigError: this codec is not loaded."""
        raise ConfigError("codec wan: expected a loaded codec, found none; train such a model by a recipe of a video")

    def decode(self, latents: Tensor, streams: Streams = ()) -> tuple[Tensor, Streams]:
        """Raise ConfigError: this codec is not loaded."""
        return self.encode(latents)

    def unpack(self, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int]) -> Streams:
        """Raise ConfigError: this codec is not loaded."""
        return self.begin(len(steps))


def make_codec(config: WorldConfig) -> Codec:
    """Return the codec that a world's config names, before its weights are loaded or fitted."""
    if config.codec.kind == "wan":
        return UnloadedCodec()
    size = config.height, config.width
    return ConvCodec(config.codec, size, config.noise_level) if config.codec.kind == "conv" else PatchCodec(
        config.codec, size)


def frame_codec(codec: Codec) -> Codec:
    """Return the codec if it encodes each frame independently. Raises ConfigError for a stateful codec."""
    if codec.stateful:
        raise ConfigError("codec wan: expected one that encodes each frame on its own, found one with memory; use "
                          "World.start, World.observe, World.log_prob or score --video")
    return codec


__all__ = ["Codec", "ConvCodec", "PatchCodec", "Streams", "frame_codec", "make_codec"]
