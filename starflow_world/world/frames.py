"""What a world is shown and what it shows: frames to noisy latents, and back.

Most codecs see one frame at a time. A stateful one makes a latent frame of several frames, and what it remembers of a
row, its stream, is part of the row's state.

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


class Pictures:
    """Codec, noise and denoiser of one world."""

    def __init__(self, networks: Networks) -> None:
        self.networks, self.config = networks, networks.config
        self.tables = networks.flow.tables(self.config.grid, self.config.window)
        self.tokens = self.config.grid[0] * self.config.grid[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.networks.flow.deep.start.device

    @property
    def dtype(self) -> torch.dtype:
        """Of latents, tokens and nats."""
        return self.networks.flow.deep.start.dtype

    @property
    def look_back(self) -> int:
        """Noisy latent frames before the present one that the denoiser sees."""
        denoiser = self.networks.flow.denoiser
        return 0 if denoiser is None else min(denoiser.memory, self.config.window - 1)

    @property
    def memory(self) -> int:
        """Noisy latent frames that a state keeps, W': those that the denoiser looks back on, or, where frames follow
        each other by a motion, all that a window holds."""
        return self.look_back if self.networks.flow.motion is None else self.config.window

    def noisy(self, frames: Tensor, keys: Tensor, first: Tensor) -> Tensor:
        """Noisy latents (B, T, n, c) of videos (B, F, H, W, 3) from their beginning, whose steps are first (B,), first
        + 1, ..."""
        return self._noisy(frames, keys, first, self.networks.codec.begin(len(frames)))[0]

    def read(self, state: WorldState, frames: Tensor) -> tuple[WorldState, Tensor]:
        """The next frames (B, F, H, W, 3) of every row as noisy latents, and the state whose codec has read them."""
        x, streams = self._noisy(frames, state.key, state.step, state.streams)
        return replace(state, streams=streams), x

    def _noisy(self, frames: Tensor, keys: Tensor, first: Tensor, streams: Streams) -> tuple[Tensor, Streams]:
        latents, streams = self.networks.codec.encode(frames, streams, keys=keys)
        shape = self.tokens, self.config.channels
        noise = torch.stack([normals(keys, first + t, "observation", shape) for t in range(latents.shape[1])], dim=1)
        return latents.to(self.dtype) + self.config.noise_level * noise.to(self.device, self.dtype), streams

    def count(self, frames: int) -> int:
        """Latent frames of a clip from its beginning. Raises DataError."""
        each = self.networks.codec.frames_per_latent
        if (frames - 1) % each:
            raise DataError(f"frames: expected 1 + {each}k, as every latent frame but the first has, found {frames}")
        return 1 + (frames - 1) // each

    def ahead(self, step: int) -> int:
        """Frames of the latent frame after `step` others."""
        return self.networks.codec.frames_per_latent if step else 1

    def frames_of(self, count: int) -> int:
        """Frames of the first `count` latent frames of a clip."""
        return 1 + self.networks.codec.frames_per_latent * (count - 1)

    @torch.inference_mode()
    def picture(self, state: WorldState) -> Tensor:
        """The newest frame of each row, (B, 1, H, W, 3) u8, denoised and decoded anew where the codec can."""
        if self.networks.codec.stateful:
            return torch.stack([stream.shown[-1:] for stream in state.streams if stream and stream.shown is not None])
        latents = state.latents
        if not self.memory:
            u = state.tokens[torch.arange(len(state)), state.length - 1]
            latents, _, _ = self.networks.flow.shallow_inverse(u[:, None], self.tables)
        return self.newest(state, latents)

    def shown(
        self, state: WorldState, seen: Tensor, count: int, given: Tensor | None
    ) -> tuple[WorldState, Tensor]:
        """The pixel frames (B, F, H, W, 3) u8 of the last latent frame: those given, if any, or else denoised and
        decoded; and the state whose codec has decoded it. `seen` (B, T, n, c): noisy latents, the last `count` new."""
        codec = self.networks.codec
        if not codec.stateful:
            return state, self.newest(state, seen) if given is None else given[:, -1:]
        frames, streams = codec.decode(self._clean(state, seen, count), state.streams)
        frames = frames[:, -codec.frames_per_latent :]
        return replace(state, streams=streams), frames if given is None else given[:, -frames.shape[1] :]

    def newest(self, state: WorldState, seen: Tensor) -> Tensor:
        """The last frame, denoised and decoded, (B, 1, H, W, 3) u8; `seen` (B, T, n, c) are noisy latents."""
        flow, latents = self.networks.flow, seen[:, -self.look_back - 1 :]
        if flow.denoiser is not None:
            age = torch.arange(latents.shape[1] - 1, -1, -1)
            valid = (age < state.step[:, None]).to(self.device)
            latents = flow.denoise(latents, state.text, self.tables, valid)
        return self.networks.codec.decode(latents[:, -1:])[0]

    def _clean(self, state: WorldState, seen: Tensor, count: int) -> Tensor:
        """The last `count` latent frames (B, count, n, c), each row denoised as a clip of its own that ends there: the
        denoiser reads text, so the positions of frames count, and they begin at 0."""
        flow, clean = self.networks.flow, []
        for row, step in enumerate(state.step.tolist()):
            part = slice(row, row + 1)
            x = seen[part, -min(step, self.look_back + count) :]
            text = None if state.text is None else state.text[part]
            clean.append((x if flow.denoiser is None else flow.denoise(x, text, self.tables))[:, -count:])
        return torch.cat(clean)
