"""Linear codecs on patches of pixels.

`patch`: space-to-depth, lossless, without weights; pixels are scaled to [-1, 1], so one grey level is 2 / 255. `pca`:
the leading principal components of the distinct patches of a data set, each scaled to the same variance over them.
Duplicates are dropped so that a rare object weighs as much as a wall; the largest latent is 2, well inside the soft
clip of the flow's means. The basis is saved in the checkpoint, since the signs of singular vectors depend on the
machine.

A frame whose sides are no multiples of a token's is padded at the bottom and right with its edge pixels, and cropped
when it is decoded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from starflow_world.codec.stream import Streams
from starflow_world.config.world import CodecConfig
from starflow_world.errors import DataError

LARGEST_LATENT = 2.0


class PatchCodec(nn.Module):
    """Codec from frames (B, T, H, W, 3) u8 to latents (B, T, n, c) and back; a token is merge x merge patches.

    Buffers (kind pca): `mean` (3 p^2,), `analysis` (3 p^2, k) pixels -> components, `synthesis` (k, 3 p^2).
    """

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor

    def __init__(self, config: CodecConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.size = config, size
        if config.kind == "pca":
            pixels, count = 3 * config.patch**2, config.components
            self.register_buffer("mean", torch.zeros(pixels))
            self.register_buffer("analysis", torch.zeros(pixels, count))
            self.register_buffer("synthesis", torch.zeros(count, pixels))

    stateful, frames_per_latent = False, 1

    @property
    def invertible(self) -> bool:
        """Return whether decoding restores every pixel, up to rounding."""
        return self.config.kind == "patch"

    @property
    def grid(self) -> tuple[int, int]:
        """Return the number of tokens per column and per row of a frame."""
        scale = self.config.patch * self.config.merge
        return -(-self.size[0] // scale), -(-self.size[1] // scale)

    def begin(self, rows: int) -> Streams:
        """Return None for each batch element: this codec has no memory."""
        return (None,) * rows

    def encode(self, frames: Tensor, streams: Streams = (), *, keys: Tensor | None = None) -> tuple[Tensor, Streams]:
        """Encode frames (B, T, H, W, 3) u8 as latents (B, T, n, c) float; return the streams unchanged."""
        with torch.autocast(frames.device.type, enabled=False):
            sites = self.sites(self.patches(frames))
        (h, w), m = self.grid, self.config.merge
        sites = sites.unflatten(2, (h, m, w, m)).transpose(3, 4)
        return sites.reshape(*frames.shape[:2], h * w, -1), streams

    def decode(self, latents: Tensor, streams: Streams = ()) -> tuple[Tensor, Streams]:
        """Decode latents (B, T, n, c) as frames (B, T, H, W, 3) u8; return the streams unchanged."""
        (h, w), m = self.grid, self.config.merge
        sites = latents.unflatten(3, (m, m, -1)).unflatten(2, (h, w)).transpose(3, 4).flatten(2, 5)
        with torch.autocast(latents.device.type, enabled=False):
            patches = self.pixels(sites)
        patches = patches.round().clamp(0, 255).to(torch.uint8)
        p = self.config.patch
        pixels = patches.unflatten(3, (p, p, 3)).unflatten(2, (h * m, w * m)).transpose(3, 4)
        pixels = pixels.reshape(*latents.shape[:2], h * m * p, w * m * p, 3)
        return pixels[:, :, : self.size[0], : self.size[1]], streams

    def sites(self, patches: Tensor) -> Tensor:
        """Return the latents (..., k) of patches (..., 3 p^2) u8."""
        if self.config.kind == "patch":
            return patches.float() / 127.5 - 1
        return (patches.to(self.mean.dtype) - self.mean) @ self.analysis

    def pixels(self, sites: Tensor) -> Tensor:
        """Return the patches (..., 3 p^2), grey levels as floats, of latents (..., k)."""
        if self.config.kind == "patch":
            return (sites + 1) * 127.5
        return sites.to(self.mean.dtype) @ self.synthesis + self.mean

    def unpack(self, tensors: Mapping[str, Tensor], seen: Any, steps: Sequence[int]) -> Streams:
        """Return None for each batch element. Raises ValueError if a stream was stored."""
        if tensors or seen is not None:
            raise ValueError(f"the memory of a codec, {seen!r:.80}, in a world whose codec has none")
        return self.begin(len(steps))

    def patches(self, frames: Tensor) -> Tensor:
        """Return the patches (B, T, N, 3 p^2) u8 of frames (B, T, H, W, 3) u8, row by row."""
        p, (height, width) = self.config.patch, self.size
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != (height, width, 3):
            raise DataError(
                f"frames: expected uint8 (rows, frames, {height}, {width}, 3), found {frames.dtype} "
                f"{tuple(frames.shape)}; resize the frames to the world's size"
            )
        rows, columns = (p * self.config.merge * count for count in self.grid)
        if (rows, columns) != self.size:
            row, column = (torch.arange(count, device=frames.device) for count in (rows, columns))
            frames = frames[:, :, row.clamp(max=height - 1)][:, :, :, column.clamp(max=width - 1)]
        cells = frames.unflatten(3, (columns // p, p)).unflatten(2, (rows // p, p)).transpose(3, 4)
        return cells.flatten(4, 6).flatten(2, 3)

    def distinct(self, frames: Tensor, most: int | None = None) -> Tensor:
        """Return the distinct patches (N, 3 p^2) u8 of frames (N, H, W, 3) u8 in lexicographic order; with `most`, at
        most so many of them, evenly spaced."""
        patches, size = self.patches(frames[None]).cpu().numpy().tobytes(), 3 * self.config.patch**2
        found = sorted({patches[begin : begin + size] for begin in range(0, len(patches), size)})
        if most is not None and len(found) > most:
            found = [found[index] for index in torch.linspace(0, len(found) - 1, most).long().tolist()]
        return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.uint8).view(-1, size).to(frames.device)

    @torch.no_grad()
    def fit(self, frames: Tensor, most: int = 4096) -> None:
        """Fit the basis (kind pca) to at most `most` distinct patches of frames (N, H, W, 3) u8.

        n distinct patches need n - 1 components; components beyond that are zero.
        """
        if self.config.kind != "pca":
            return
        patches = self.distinct(frames, most).double()
        mean, count = patches.mean(0), min(self.config.components, len(patches) - 1)
        self.mean.copy_(mean)
        self.analysis.zero_()
        self.synthesis.zero_()
        if not count:
            return
        _, singular, basis = torch.linalg.svd(patches - mean, full_matrices=False)
        deviation = (singular[:count] / len(patches) ** 0.5).clamp_min(1e-3)
        largest = ((patches - mean) @ basis[:count].T / deviation).abs().max()
        deviation = deviation * largest / LARGEST_LATENT
        self.analysis[:, :count] = basis[:count].T / deviation
        self.synthesis[:count] = basis[:count] * deviation[:, None]
