"""What a world is shown and what it shows: frames to noisy latents, and back.

Most codecs see one frame at a time. One that reads a stream (codec/stream.py) makes a latent frame of several frames,
and what it remembers of a row is part of the row's state.

Shapes: B rows, T latent frames, F frames, n tokens per latent frame, c channels.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from starflow_world.codec.stream import Stream, decode_rows, encode_rows
from starflow_world.codec.wan import STRIDE
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
        """Noisy latents (B, T, n, c) of frames (B, F, H, W, 3) whose steps are first (B,), first + 1, ...; where the
        codec reads a stream, it begins with them."""
        return self._noisy(frames, keys, first, [Stream()] * len(frames))[0]

    def read(self, state: WorldState, frames: Tensor) -> tuple[WorldState, Tensor]:
        """The next frames (B, F, H, W, 3) of every row as noisy latents, and the state whose codec has read them."""
        x, streams = self._noisy(frames, state.key, state.step, state.streams or ())
        return state if state.streams is None else replace(state, streams=streams), x

    def _noisy(
        self, frames: Tensor, keys: Tensor, first: Tensor, streams: Sequence[Stream]
    ) -> tuple[Tensor, tuple[Stream, ...]]:
        video, shape, read = self.networks.video, (self.tokens, self.config.channels), tuple(streams)
        if video is None:
            latents = self.networks.codec.encode(frames).to(self.dtype)
        else:
            latents, read = encode_rows(video, frames, keys, streams)
        count = latents.shape[1]
        noise = torch.stack([normals(keys, first + t, "observation", shape) for t in range(count)], dim=1)
        return latents + self.config.noise_level * noise.to(self.device, self.dtype), read

    def count(self, frames: int) -> int:
        """Latent frames of a clip from its beginning. Raises DataError."""
        if self.networks.video is None:
            return frames
        if frames % STRIDE != 1:
            raise DataError(f"frames: expected 1 + {STRIDE}k, as a latent frame behind the first has, found {frames}")
        return 1 + frames // STRIDE

    def ahead(self, step: int) -> int:
        """Frames of the latent frame behind `step` others."""
        return STRIDE if step and self.networks.video is not None else 1

    def frames_of(self, count: int) -> int:
        """Frames of the first `count` latent frames of a clip."""
        return count if self.networks.video is None else 1 + STRIDE * (count - 1)

    @torch.inference_mode()
    def picture(self, state: WorldState) -> Tensor:
        """The newest frame of each row, (B, 1, H, W, 3) u8, denoised and decoded anew where the codec can."""
        if state.streams is not None:
            return torch.stack([stream.shown[-1:] for stream in state.streams if stream.shown is not None])
        latents = state.latents
        if not self.memory:
            u = state.tokens[torch.arange(len(state)), state.length - 1]
            latents, _, _ = self.networks.flow.shallow_inverse(u[:, None], self.tables)
        return self.newest(state, latents)

    def newest(self, state: WorldState, seen: Tensor) -> Tensor:
        """The last frame, denoised and decoded, (B, 1, H, W, 3) u8; `seen` (B, T, n, c) are noisy latents."""
        flow = self.networks.flow
        latents = seen[:, -self.look_back - 1 :]
        if flow.denoiser is not None:
            age = torch.arange(latents.shape[1] - 1, -1, -1)
            valid = (age < state.step[:, None]).to(self.device)
            latents = flow.denoise(latents, state.text, self.tables, valid)
        return self.networks.codec.decode(latents[:, -1:])

    def film(
        self, state: WorldState, seen: Tensor, count: int, given: Tensor | None
    ) -> tuple[WorldState, Tensor]:
        """The last `count` latent frames, denoised with what each row has before them and decoded: the pixel frames of
        the last one, (B, F, H, W, 3) u8, the given ones if there are any; `seen` (B, T, n, c) are noisy latents."""
        flow, video, clean = self.networks.flow, self.networks.video, []
        assert video is not None
        assert state.streams is not None
        for row, step in enumerate(state.step.tolist()):
            one = slice(row, row + 1)
            x = seen[one, -min(step, self.look_back + count) :]  # as in a clip that ends here: positions from 0
            text = None if state.text is None else state.text[one]
            clean.append((flow.denoise(x, text, self.tables) if flow.denoiser else x)[:, -count:])
        frames, streams = decode_rows(video, clean, self.tables.grid, state.streams)
        if given is None:
            streams = tuple(replace(stream, encoder=None) for stream in streams)
        else:
            frames = given[:, -frames.shape[1] :]
            streams = tuple(replace(s, shown=shown.clone()) for s, shown in zip(streams, frames, strict=True))
        return replace(state, streams=streams), frames
