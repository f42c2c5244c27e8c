"""Shallow blocks: an invertible map of each frame alone, between noisy latents x and the deep block's tokens u.

STARFlow-V, section 3: affine autoregressive blocks in alternating token order. Without any, u = x.
Shapes: B batch elements, T frames, n tokens per frame, c channels.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from starflow_world.flow.block import Block, Tables
from starflow_world.flow.density import Affine, Density
from starflow_world.flow.jacobi import solve

HALF = (torch.bfloat16, torch.float16)
MIXED_TOLERANCE = 1e-3
"""Jacobi tolerance of shallow blocks with half-precision matrix products, in units of the noise."""


class ShallowBlocks(nn.ModuleList):
    """Affine autoregressive blocks in alternating token order that transform each frame alone."""

    def blocks(self) -> Iterator[Block]:
        """Return an iterator over the blocks in the order of `forward`."""
        return (cast(Block, block) for block in self)

    def forward(self, x: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
        """Map noisy latents x (B, T, n, c) to u and log|du/dx| per dimension, both (B, T, n, c)."""
        shape = x.shape
        x, total = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        for block in self.blocks():
            x = block.in_order(x)
            z, logdet = _affine(block.predict(block.shift(x), tables.frame)).to_noise(x)
            x, total = block.in_order(z), total + block.in_order(logdet)
        return x.reshape(shape), total.reshape(shape)

    def inverse(
        self, u: Tensor, tables: Tables, *, tolerance: float | None = None, chunk: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map u (B, T, n, c) to noisy latents x, log|du/dx| per dimension, and Jacobi sweeps summed over blocks (B, T).

        All frames are solved together by whole-frame Jacobi sweeps to `tolerance` in units of the noise (None: by
        dtype); the result is the next iterate, which is more accurate. `chunk` 1 decodes token by token instead.
        """
        shape = u.shape
        if tolerance is None:
            half = any(block.project_in.weight.dtype in HALF for block in self.blocks())
            tolerance = 1e-12 if u.dtype == torch.float64 else MIXED_TOLERANCE if half else 1e-5
        x, total = u.flatten(0, 1), torch.zeros_like(u).flatten(0, 1)
        sweeps = torch.zeros(len(x), dtype=torch.long, device=u.device)
        for block in reversed(list(self.blocks())):
            z = block.in_order(x)
            x, logdet, count = _invert_frame(block, z, tables.frame, tolerance, chunk)
            x, total, sweeps = block.in_order(x), total + block.in_order(logdet), sweeps + count
        return x.reshape(shape), total.reshape(shape), sweeps.reshape(shape[:2])


def _affine(density: Density) -> Affine:
    assert isinstance(density, Affine)
    return density


def _invert_frame(
    block: Block, z: Tensor, rotary: Tensor, tolerance: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    start = block.start.to(z.dtype).expand(len(z), 1, -1)
    if chunk != 1:
        solved = solve(lambda inputs: block.predict(inputs, rotary), start, z, z, tolerance=tolerance)
        affine = _affine(solved.density)
        return affine.mean + affine.scale * z, -affine.scale.log(), solved.sweeps
    cache = block.empty_cache(len(z), z.shape[1])
    parts: list[tuple[Tensor, Tensor]] = []
    before = start
    for position in range(z.shape[1]):
        here = rotary[:, position : position + 1]
        affine = _affine(block.predict(before, here, cache, cache.visible(1, block.project_in.weight.dtype)))
        before = affine.mean + affine.scale * z[:, position : position + 1]
        cache, parts = cache.commit(1), [*parts, (before, -affine.scale.log())]
    return (
        torch.cat([x for x, _ in parts], dim=1),
        torch.cat([logdet for _, logdet in parts], dim=1),
        torch.full((len(z),), z.shape[1], device=z.device),
    )
