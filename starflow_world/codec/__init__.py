"""Codecs: frames to latents and back.

Shapes: B batch elements, F pixel frames, T latent frames, n tokens per latent frame, c channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from starflow_world.codec.patch import PatchCodec
from starflow_world.codec.stream import Streams
from starflow_world.config.world import WorldConfig
from starflow_world.errors import ConfigError


class Codec(Protocol):
    """Maps frames (B, F, H, W, 3) u8 to latents (B, T, n, c) and back.

    A latent frame after the first of a video stands for `frames_per_latent` frames; the first stands for one. What a
    codec remembers of a video is its stream, a value; a codec without memory has None for it.
    """

    @property
    def frames_per_latent(self) -> int:
        """Pixel frames per latent frame after the first."""

    @property
    def stateful(self) -> bool:
        """Whether a latent frame depends on the frames before it, so that all frames pass through in order."""

    @property
    def invertible(self) -> bool:
        """Whether latents keep every pixel, so that bits per dimension are defined."""

    def fit(self, frames: Tensor) -> None:
        """Fit what is learned from data to frames (N, H, W, 3) u8."""

    def begin(self, rows: int) -> Streams:
        """Return the streams of videos of which nothing was seen."""

    def encode(self, frames: Tensor, streams: Streams = (), *, keys: Tensor | None = None) -> tuple[Tensor, Streams]:
        """Encode the next frames of each stream. Noise keys (B,) draw from the posterior, where there is one."""

    def decode(self, latents: Tensor, streams: Streams = ()) -> tuple[Tensor, Streams]:
        """Decode the next latent frames of each stream."""

    def unpack(self, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int]) -> Streams:
        """Rebuild the streams that `pack_streams` described, after `steps` latent frames. Raises ValueError."""


class UnloadedCodec:
    """Stands for a codec that is no part of a checkpoint until `Networks.attach` loads it."""

    stateful, invertible, frames_per_latent = True, False, 4

    def fit(self, frames: Tensor) -> None:
        """Refuse."""
        self.encode(frames)

    def begin(self, rows: int) -> Streams:
        """Refuse."""
        raise ConfigError("codec wan: expected a loaded codec, found none; open the folder with World.load")

    def encode(self, frames: Tensor, streams: Streams = (), *, keys: Tensor | None = None) -> tuple[Tensor, Streams]:
        """Refuse."""
        raise ConfigError("codec wan: expected a loaded codec, found none; train such a model by a recipe of a video")

    def decode(self, latents: Tensor, streams: Streams = ()) -> tuple[Tensor, Streams]:
        """Refuse."""
        return self.encode(latents)

    def unpack(self, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int]) -> Streams:
        """Refuse."""
        return self.begin(len(steps))


def make_codec(config: WorldConfig) -> Codec:
    """Return the codec that a world's config names: without weights, until they are loaded or fitted."""
    if config.codec.kind == "wan":
        return UnloadedCodec()
    return PatchCodec(config.codec, (config.height, config.width))


def frame_codec(codec: Codec) -> Codec:
    """Return a codec that encodes each frame on its own. Raises ConfigError for one with memory."""
    if codec.stateful:
        raise ConfigError("codec wan: expected one that encodes each frame on its own, found one with memory; use "
                          "World.start, World.observe, World.log_prob or score --video")
    return codec


__all__ = ["Codec", "PatchCodec", "Streams", "frame_codec", "make_codec"]
