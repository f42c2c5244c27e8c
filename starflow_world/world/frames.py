"""Frames of a world to noisy latents, and back.

Most codecs encode one frame at a time. A stateful codec encodes several frames as one latent frame, and its memory of a
row, the stream, is part of the state of that row.

Shapes: B rows, T latent frames, F frames, n tokens per latent frame, c channels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from starflow_world.codec import Streams
from starflow_world.errors import DataError
from starflow_world.model.networks import Networks
from starflow_world.noise import normals
from starflow_world.world.state import WorldState


class FrameCoder:
    """Codec, observation noise and denoiser of a world."""

    def __init__(self, networks: Networks) -> None:
        self.networks, self.config = networks, networks.config
        self.tables = networks.flow.tables(self.config.grid, self.config.window)
        self.tokens = self.config.grid[0] * self.config.grid[1]

    @property
    def look_back(self) -> int:
        """Number of noisy latent frames before the present one that the denoiser reads."""
        denoiser = self.networks.flow.denoiser
        return 0 if denoiser is None else min(denoiser.memory, self.config.window - 1)

    @property
    def memory(self) -> int:
        """Number W' of noisy latent frames in a state: those that the denoiser or the motion reads."""
        return self.config.window if self.networks.flow.motion.looks_back else self.look_back

    def noisy(self, frames: Tensor, keys: Tensor, first: Tensor) -> Tensor:
        """Encode videos (B, F, H, W, 3) from their beginning, of steps first (B,), first + 1, ..., as noisy latents.

        The latents are (B, T, n, c).
        """
        return self._noisy(frames, keys, first, self.networks.codec.begin(len(frames)))[0]

    def read(self, state: WorldState, frames: Tensor) -> tuple[WorldState, Tensor]:
        """Encode the next frames (B, F, H, W, 3) of every row; return the state whose codec has read them, and latents.

        The noisy latents are (B, T, n, c).
        """
        x, streams = self._noisy(frames, state.key, state.step, state.streams)
        return replace(state, streams=streams), x

    def _noisy(self, frames: Tensor, keys: Tensor, first: Tensor, streams: Streams) -> tuple[Tensor, Streams]:
        latents, streams = self.networks.codec.encode(frames, streams, keys=keys)
        latents, shape = latents.to(self.networks.flow.dtype), (self.tokens, self.config.channels)
        noise = torch.stack([normals(keys, first + t, "observation", shape) for t in range(latents.shape[1])], dim=1)
        return latents + self.config.noise_level * noise.to(latents), streams

    def count(self, frames: int) -> int:
        """Return the number of latent frames of a clip of so many frames. Raises DataError."""
        each = self.networks.codec.frames_per_latent
        if (frames - 1) % each:
            raise DataError(f"frames: expected 1 + {each}k, as every latent frame but the first has, found {frames}")
        return 1 + (frames - 1) // each

    def frames_at(self, step: int) -> int:
        """Return the number of frames of the latent frame after `step` others."""
        return self.networks.codec.frames_per_latent if step else 1

    def frames_of(self, count: int) -> int:
        """Return the number of frames of the first `count` latent frames of a clip."""
        return 1 + self.networks.codec.frames_per_latent * (count - 1)

    @torch.inference_mode()
    def picture(self, state: WorldState) -> Tensor:
        """Return the newest frame of each row, (B, 1, H, W, 3) u8, decoded from latents or the last of a stream."""
        if self.networks.codec.stateful:
            return torch.stack([stream.shown[-1:] for stream in state.streams if stream and stream.shown is not None])
        latents = state.latents
        if not self.memory:
            u = state.tokens[torch.arange(len(state)), state.length - 1]
            latents, _, _ = self.networks.flow.shallow.inverse(u[:, None], self.tables)
        return self.newest(state, latents)

    def shown(
        self, state: WorldState, seen: Tensor, count: int, given: Tensor | None
    ) -> tuple[WorldState, Tensor]:
        """Return the state whose codec has decoded the last latent frame, and its pixel frames (B, F, H, W, 3) u8.

        `given` frames are returned instead of decoded ones. `seen` (B, T, n, c): noisy latents, the last `count` new.
        """
        codec = self.networks.codec
        if not codec.stateful:
            return state, self.newest(state, seen) if given is None else given[:, -1:]
        frames, streams = codec.decode(self._clean(state, seen, count), state.streams)
        frames = frames[:, -codec.frames_per_latent :]
        return replace(state, streams=streams), frames if given is None else given[:, -frames.shape[1] :]

    def newest(self, state: WorldState, seen: Tensor) -> Tensor:
        """Denoise and decode the last of the noisy latents `seen` (B, T, n, c), (B, 1, H, W, 3) u8."""
        latents = seen[:, -self.look_back - 1 :]
        age = torch.arange(latents.shape[1] - 1, -1, -1)
        valid = (age < state.step[:, None]).to(latents.device)
        latents = self.networks.flow.denoise(latents, state.text, self.tables, valid)
        return self.networks.codec.decode(latents[:, -1:])[0]

    def _clean(self, state: WorldState, seen: Tensor, count: int) -> Tensor:
        """Denoise the last `count` latent frames (B, count, n, c), each row as a clip of its own that ends there.

        A denoiser that reads text depends on the positions of frames; they begin at 0.
        """
        flow, clean = self.networks.flow, []
        for row, step in enumerate(state.step.tolist()):
            part = slice(row, row + 1)
            x = seen[part, -min(step, self.look_back + count) :]
            text = None if state.text is None else state.text[part]
            clean.append(flow.denoise(x, text, self.tables)[:, -count:])
        return torch.cat(clean)
