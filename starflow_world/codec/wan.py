"""The Wan2.2 video VAE through diffusers' AutoencoderKLWan, as the published STARFlow-V uses it.

    latents = (mean - m) / s [+ std * eps], all but a clip's first times `later`

with the m and s of the VAE's config, per channel. The posterior's noise is scaled by its own std, not by std / s: the
order of operations of the published program, kept because the model was trained on it.

Causal in time: the first frame is a latent frame on its own, every later one stands for 4 frames. A stream holds what
the convolutions keep of a video, so videos can be encoded and decoded piece by piece. diffusers keeps it in private
attributes; this module alone touches them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.codec.stream import CodecMemory, StreamReader, Streams, VideoStream
from starflow_world.errors import CheckpointError, DataError
from starflow_world.io.pretrained import check_pretrained, unlogged
from starflow_world.noise import normals

STRIDE, SETTLED = 4, 3
VAE_FILES = ("vae/*", "config.json", "diffusion_pytorch_model*.safetensors")
"""Patterns of the files that are downloaded from a model on the hub."""


class WanCodec:
    """Codec from frames (B, F, H, W, 3) u8 to latents (B, T, n, c); n = h * w in raster order, (h, w) = `grid`.

    Videos are processed one by one: the first frame of a video is encoded differently from later ones, and the bits of
    a batch element must not depend on the others.
    """

    stateful, invertible, frames_per_latent = True, False, STRIDE

    def __init__(self, vae: Any, *, later: float = 0.6, grid: tuple[int, int] = (1, 1)) -> None:
        self.vae, self.later, self.grid = vae, later, grid
        self.device, self.dtype = vae.device, vae.dtype
        self.mean = torch.tensor(vae.config.latents_mean, device=self.device)
        self.std = torch.tensor(vae.config.latents_std, device=self.device)
        if len(self.mean) != vae.config.z_dim or len(self.std) != vae.config.z_dim:
            found = f"{len(self.mean)} means and {len(self.std)} standard deviations"
            raise CheckpointError(f"VAE: expected {vae.config.z_dim} of both in its config, found {found}")

    @staticmethod
    def load(
        folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        later: float = 0.6, grid: tuple[int, int] = (1, 1),
    ) -> "WanCodec":
        """Load the VAE from a local folder or its subfolder vae. Raises CheckpointError, also for tensors that are
        missing, unknown or not finite."""
        from diffusers import AutoencoderKLWan

        folder = Path(folder)
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        try:
            with unlogged("diffusers"):
                vae, loading = AutoencoderKLWan.from_pretrained(
                    str(folder), local_files_only=True, use_safetensors=True, torch_dtype=dtype,
                    output_loading_info=True,
                )
        except Exception as error:  # diffusers raises many kinds of errors
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{folder}: expected an AutoencoderKLWan, found {reason:.200}") from None
        vae = vae.to(device).eval().requires_grad_(False)
        check_pretrained(folder, "an AutoencoderKLWan", vae, loading)
        return WanCodec(vae, later=later, grid=grid)

    def on_grid(self, grid: tuple[int, int]) -> "WanCodec":
        """Return the same codec for frames of h x w tokens."""
        return WanCodec(self.vae, later=self.later, grid=grid)

    def check(self, channels: int, pixels: int) -> None:
        """Raise CheckpointError if the VAE has other sizes than the model expects."""
        if (self.channels, self.pixels) != (channels, pixels):
            expected = f"{channels} channels and {pixels} pixels per token"
            raise CheckpointError(f"VAE: expected {expected}, found {self.channels} and {self.pixels}")

    @property
    def channels(self) -> int:
        """Return the number of channels of a latent, c."""
        return int(self.vae.config.z_dim)

    @property
    def pixels(self) -> int:
        """Return the number of pixels per column and row of a token."""
        return 2 ** (len(self.vae.config.dim_mult) - 1) * (self.vae.config.patch_size or 1)

    def fit(self, frames: Tensor) -> None:
        """Do nothing: the weights are pretrained."""

    def begin(self, rows: int) -> Streams:
        """Return the streams of `rows` new videos."""
        return (VideoStream(),) * rows

    def encode(self, frames: Tensor, streams: Streams = (), *, keys: Tensor | None = None) -> tuple[Tensor, Streams]:
        """Encode the next frames (B, F, H, W, 3) u8 of each stream as latents (B, T, n, c).

        F is 1 + 4k at the start of a stream and 4k later. With noise keys (B,), sample the posterior, as published (B k
        keys: k samples each, (B k, T, n, c)); without, take its mean. Raises DataError.
        """
        latents, after = [], []
        drawn = [None] * len(frames) if keys is None else keys.unflatten(0, (len(frames), -1))
        for video, stream, some in zip(frames.split(1), streams or self.begin(len(frames)), drawn, strict=True):
            assert stream is not None
            if stream.shown is not None and stream.encoder is None:
                raise DataError("frames: expected them after given frames, found imagined ones before; pass latents=")
            x, memory = self._encode(video, stream.encoder, some)
            latents.append(x)
            shown = video[0, -STRIDE if memory.frames > 1 else -1 :].clone()
            after.append(replace(stream, encoder=memory, shown=shown))
        return torch.cat(latents), tuple(after)

    @torch.no_grad()
    def _encode(
        self, frames: Tensor, memory: CodecMemory | None, keys: Tensor | None = None
    ) -> tuple[Tensor, CodecMemory]:
        self._check(frames, memory)
        pixels = (frames.to(self.device, self.dtype) / 127.5 - 1).permute(0, 4, 1, 2, 3)
        if self.vae.config.patch_size is not None:
            pixels = _patchify(pixels, self.vae.config.patch_size)
        features = self._features("encoder") if memory is None else list(memory.features)
        start, parts, end = 0, [], pixels.shape[2]
        while start < end:
            count = 1 if memory is None and start == 0 else STRIDE
            chunk = pixels[:, :, start : start + count]
            parts.append(self.vae.encoder(chunk, feat_cache=features, feat_idx=[0]))
            start += count
        mean, log_variance = self.vae.quant_conv(torch.cat(parts, dim=2)).float().chunk(2, dim=1)
        latents = (mean.movedim(1, -1) - self.mean) / self.std
        done = 0 if memory is None else memory.frames
        if keys is not None:
            steps, shape = torch.arange(done, done + len(parts)), latents.shape[2:]
            noise = torch.stack([normals(keys, t.expand_as(keys), "posterior", shape) for t in steps], dim=1)
            deviation = (0.5 * log_variance.clamp(-30, 20)).exp().movedim(1, -1)
            latents = latents + deviation * noise.to(self.device)
        return self._scale(latents, done).flatten(2, 3), CodecMemory(tuple(features), done + len(parts))

    def decode(self, latents: Tensor, streams: Streams = ()) -> tuple[Tensor, Streams]:
        """Decode the next latents (B, T, n, c) of each stream as frames (B, F, H, W, 3) u8.

        A video at its start has fewer frames than the others: its first frame is repeated. A stream whose encoder has
        not processed these frames is treated as imagined.
        """
        videos, after = [], []
        for x, stream in zip(latents.split(1), streams or self.begin(len(latents)), strict=True):
            assert stream is not None
            frames, memory = self._decode(x, stream.decoder)
            videos.append(frames)
            stream = replace(stream, decoder=memory)
            if stream.encoder is None or stream.encoder.frames < memory.frames:
                stream = replace(stream, encoder=None, shown=frames[0, -STRIDE if memory.frames > 1 else -1 :])
            after.append(stream)
        most = max(video.shape[1] for video in videos)
        padded = [torch.cat((video[:, :1].expand(-1, most - video.shape[1], -1, -1, -1), video), 1) for video in videos]
        return torch.cat(padded), tuple(after)

    @torch.no_grad()
    def _decode(self, latents: Tensor, memory: CodecMemory | None) -> tuple[Tensor, CodecMemory]:
        done = 0 if memory is None else memory.frames
        latents = self._scale(latents.to(self.device).unflatten(2, self.grid), done, back=True) * self.std + self.mean
        z = self.vae.post_quant_conv(latents.movedim(-1, 1).to(self.dtype))
        features = self._features("decoder") if memory is None else list(memory.features)
        parts = []
        for index in range(z.shape[2]):
            first = done + index == 0
            out = self.vae.decoder(z[:, :, index : index + 1], feat_cache=features, feat_idx=[0], first_chunk=first)
            if self.vae.config.patch_size is not None:
                out = _unpatchify(out, self.vae.config.patch_size)
            pixels = (out.float().clamp(-1, 1) + 1) * 127.5
            parts.append(pixels.round().to(torch.uint8).permute(0, 2, 3, 4, 1))
        return torch.cat(parts, dim=1), CodecMemory(tuple(features), done + len(parts))

    def unpack(self, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int]) -> Streams:
        """Rebuild the streams that `pack_streams` stored, after `steps` latent frames. Raises ValueError."""
        reader, streams = StreamReader(tensors, seen, steps), []
        height, width = (side * self.pixels for side in self.grid)
        for row, (parts, step) in enumerate(zip(seen, steps, strict=True)):
            memories = {part: reader.memory(f"streams.{row}.{part}", self._blank(part, step)) for part in parts}
            size = STRIDE if step > 1 else 1, height, width, 3
            like = torch.empty(size, dtype=torch.uint8, device=self.device)
            streams.append(VideoStream(**memories, shown=reader.take(f"streams.{row}.shown", like) if step else None))
        reader.end()
        return tuple(streams)

    def _blank(self, part: str, frames: int) -> CodecMemory:
        """Return the memory of `part` (encoder or decoder) after `frames` latent frames of zeros. Its shapes depend on
        that number only, and are constant from some number on."""
        (h, w), count = self.grid, min(frames, SETTLED)
        if part == "decoder":
            _, memory = self._decode(torch.zeros(1, count, h * w, self.channels), None)
        else:
            size = 1 + STRIDE * (count - 1), h * self.pixels, w * self.pixels, 3
            _, memory = self._encode(torch.zeros(1, *size, dtype=torch.uint8), None)
        return replace(memory, frames=frames)

    def _scale(self, latents: Tensor, done: int, *, back: bool = False) -> Tensor:
        """Multiply all latents of a stream but its first by `later`, or divide them by it."""
        factor = torch.full((latents.shape[1],), 1 / self.later if back else self.later, device=latents.device)
        if done == 0:
            factor[0] = 1.0
        return latents * factor[:, None, None, None]

    def _features(self, part: str) -> list[Any]:
        """Return an empty feature cache with an entry per causal convolution."""
        return [None] * int(self.vae._cached_conv_counts[part])

    def _check(self, frames: Tensor, memory: CodecMemory | None) -> None:
        first, scale = int(memory is None), self.pixels
        whole = frames.ndim == 5 and frames.shape[1] >= 1 and (frames.shape[1] - first) % STRIDE == 0
        if not whole or frames.dtype != torch.uint8 or frames.shape[2] % scale or frames.shape[3] % scale:
            count = f"{first} + {STRIDE}k" if first else f"{STRIDE}k"
            raise DataError(
                f"frames: expected uint8 (rows, {count} frames, multiples of {scale}, multiples of {scale}, 3), found "
                f"{frames.dtype} {tuple(frames.shape)}; cut and resize the clip"
            )


def _patchify(pixels: Tensor, patch: int) -> Tensor:
    """Reshape (B, 3, T, H, W) -> (B, 3 * patch**2, T, H / patch, W / patch), channels ordered colour, column, row."""
    cells = pixels.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return cells.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unpatchify(cells: Tensor, patch: int) -> Tensor:
    """Invert `_patchify`."""
    pixels = cells.unflatten(1, (-1, patch, patch))
    return pixels.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
