"""Conversion of frames to noisy latents and back.

Most codecs encode each frame independently. A stateful codec encodes several frames as one latent frame, and its memory
of a row, the stream, is part of the state of that row.

Shapes: B rows, T latent frames, F pixel frames, n tokens per latent frame, c channels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from starflow_world.codec import Streams
from starflow_world.errors import DataError
from starflow_world.flow import Density
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
        """Return the number of noisy latent frames before the current one that the denoiser reads."""
        denoiser = self.networks.flow.denoiser
        return 0 if denoiser is None else min(denoiser.memory, self.config.window - 1)

    @property
    def tweedie(self) -> bool:
        """Return whether frames are denoised by the density that they were sampled from, without a denoiser."""
        return self.networks.flow.denoiser is None and self.networks.flow.closed_form

    @property
    def memory(self) -> int:
        """Return the number W' of latent frames kept in a state to show its frame: noisy ones for the denoiser, or the
        newest without its noise."""
        return 1 if self.tweedie else self.look_back

    def kept(self, x: Tensor, density: Density, u: Tensor) -> Tensor:
        """Return what a state keeps of noisy latents x (B, T, n, c), whose tokens u (B, T * n, c) have this density."""
        return density.clean(u, self.config.noise_level).view_as(x) if self.tweedie else x

    def noisy(self, frames: Tensor, keys: Tensor, first: Tensor) -> Tensor:
        """Encode videos (B, F, H, W, 3) from their first frame, and add keyed noise; return noisy latents (B, T, n, c).

        first (B,): world step of the first latent frame; key and step determine the noise.
        """
        return self._noisy(frames, keys, first, self.networks.codec.begin(len(frames)))[0]

    def read(self, state: WorldState, frames: Tensor) -> tuple[WorldState, Tensor]:
        """Encode the next frames (B, F, H, W, 3) of every row, and add keyed noise.

        Return the state with updated codec streams, and the noisy latents (B, T, n, c).
        """
        x, streams = self._noisy(frames, state.key, state.step, state.streams)
        return replace(state, streams=streams), x

    def _noisy(self, frames: Tensor, keys: Tensor, first: Tensor, streams: Streams) -> tuple[Tensor, Streams]:
        latents, streams = self.networks.codec.encode(frames, streams, keys=keys)
        latents, shape = latents.to(self.networks.flow.dtype), (self.tokens, self.config.channels)
        noise = torch.stack([normals(keys, first + t, "observation", shape) for t in range(latents.shape[1])], dim=1)
        return latents + self.config.noise_level * noise.to(latents), streams

    def count(self, frames: int) -> int:
        """Return the number of latent frames of a clip of `frames` pixel frames. Raises DataError."""
        each = self.networks.codec.frames_per_latent
        if (frames - 1) % each:
            raise DataError(f"frames: expected 1 + {each}k, as every latent frame but the first has, found {frames}")
        return 1 + (frames - 1) // each

    def frames_at(self, step: int) -> int:
        """Return the number of pixel frames of the latent frame that follows `step` earlier ones."""
        return self.networks.codec.frames_per_latent if step else 1

    def frames_of(self, count: int) -> int:
        """Return the number of pixel frames of the first `count` latent frames of a clip."""
        return 1 + self.networks.codec.frames_per_latent * (count - 1)

    @torch.inference_mode()
    def picture(self, state: WorldState) -> Tensor:
        """Return the last pixel frame of each row, (B, 1, H, W, 3) u8, decoded from latents or kept in its stream."""
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
        """Decode the last latent frame; return the state with updated codec streams, and frames (B, F, H, W, 3) u8.

        `given` frames are returned instead of decoded ones. `seen` (B, T, n, c): kept latents, the last `count` new.
        """
        codec = self.networks.codec
        if not codec.stateful:
            return state, self.newest(state, seen) if given is None else given[:, -1:]
        frames, streams = codec.decode(self._clean(state, seen, count), state.streams)
        frames = frames[:, -codec.frames_per_latent :]
        return replace(state, streams=streams), frames if given is None else given[:, -frames.shape[1] :]

    def newest(self, state: WorldState, seen: Tensor) -> Tensor:
        """Denoise and decode the last of the latents `seen` (B, T, n, c) to frames (B, 1, H, W, 3) u8."""
        if self.tweedie:
            return self.networks.codec.decode(seen[:, -1:])[0]
        latents = seen[:, -self.look_back - 1 :]
        age = torch.arange(latents.shape[1] - 1, -1, -1)
        valid = (age < state.step[:, None]).to(latents.device)
        latents = self.networks.flow.denoise(latents, state.text, self.tables, valid)
        return self.networks.codec.decode(latents[:, -1:])[0]

    def _clean(self, state: WorldState, seen: Tensor, count: int) -> Tensor:
        """Denoise the last `count` latent frames of each row, (B, count, n, c), as the end of a clip of its own.

        The output of a denoiser that reads text depends on frame positions; they start at 0 in each of these clips.
        """
        flow, clean = self.networks.flow, []
        for row, step in enumerate(state.step.tolist()):
            part = slice(row, row + 1)
            x = seen[part, -min(step, self.look_back + count) :]
            text = None if state.text is None else state.text[part]
            clean.append(flow.denoise(x, text, self.tables)[:, -count:])
        return torch.cat(clean)
