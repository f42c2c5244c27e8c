"""The invertible map between noisy latents x and the deep block's tokens u of each frame.

    u_t = f(x_t; x_{t-1}, action_t)        log p(x_t | past) = log N(u_t; mean, scale) + log|du_t/dx_t|

`ShallowMap` transforms each frame alone by the shallow blocks (STARFlow-V, section 3). `MotionMap` does so only for
frames without a predecessor; all later frames are an affine map of u given the previous frame (motion.py). To add
another density of a frame given its predecessor, subclass `FrameMap`.

Shapes: B batch elements, T frames, n tokens per frame, c channels, d deep width, K carried numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from starflow_world.flow.block import Affine, Block, Tables
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
            z, logdet = block.predict(block.shift(x), tables.frame).to_noise(x)
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


@dataclass(frozen=True)
class Past:
    """The history that the map of the next frame reads, for B batch elements.

    tokens (B, n, c): u of the previous frame; latents (B, W', n, c): noisy latents, newest last; carried (B, K): memory
    slots; alone (k,): indices of the elements without a previous frame, whose other fields are ignored.
    """

    tokens: Tensor
    latents: Tensor
    carried: Tensor
    alone: Tensor

    @cached_property
    def present(self) -> Tensor:
        """Return the mask (B, 1, 1) of the batch elements that have a previous frame."""
        mask = torch.ones(len(self.tokens), 1, 1, dtype=torch.bool, device=self.alone.device)
        return mask.index_fill(0, self.alone, False)


@dataclass(frozen=True)
class FrameMap(ABC):
    """Invertible map of T frames of B batch elements; `added` (B, T, n, d) or None conditions the deep block."""

    shallow: ShallowBlocks
    tables: Tables
    added: Tensor | None

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map noisy latents x (B, T, n, c) to u and log|du/dx| per dimension, both (B, T, n, c)."""

    @abstractmethod
    def inverse(self, u: Tensor, *, chunk: int = 0) -> tuple[Tensor, Tensor]:
        """Map u (B, T, n, c) to noisy latents x and log|du/dx|; `chunk` as for `ShallowBlocks.inverse`."""

    @abstractmethod
    def predictive(self, said: Affine) -> Affine:
        """Return the closed-form normal distribution of the last S frames x (B, S, n, c).

        said (B, T * n, ...): the deep block's distribution of u. S counts the frames that skip the shallow blocks.
        """


@dataclass(frozen=True)
class ShallowMap(FrameMap):
    """Map that transforms each frame alone by the shallow blocks."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map noisy latents x (B, T, n, c) to u and log|du/dx| per dimension, both (B, T, n, c)."""
        return self.shallow(x, self.tables)

    def inverse(self, u: Tensor, *, chunk: int = 0) -> tuple[Tensor, Tensor]:
        """Map u (B, T, n, c) to noisy latents x and log|du/dx|; `chunk` as for `ShallowBlocks.inverse`."""
        x, logdet, _ = self.shallow.inverse(u, self.tables, chunk=chunk)
        return x, logdet

    def predictive(self, said: Affine) -> Affine:
        """Return an empty distribution (B, 0, n, c): no frame has a closed form."""
        none = said.mean.unflatten(1, (-1, self.tables.frame.shape[1]))[:, :0]
        return Affine(none, none, none)


@dataclass(frozen=True)
class MotionMap(FrameMap):
    """Map that is affine for the last S of T frames and uses the shallow blocks for the first T - S.

    motion (B, S, n, ...): mean and scale of each frame given its predecessor. alone (k,): batch elements whose frame
    has no predecessor and uses the shallow blocks (only if S = T = 1)."""

    motion: Affine
    alone: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map noisy latents x (B, T, n, c) to u and log|du/dx| per dimension, both (B, T, n, c)."""
        first = x.shape[1] - self.motion.mean.shape[1]
        return self._with_first(x, *self.motion.to_noise(x[:, first:]), lambda start: self.shallow(start, self.tables))

    def inverse(self, u: Tensor, *, chunk: int = 0) -> tuple[Tensor, Tensor]:
        """Map u (B, T, n, c) to noisy latents x and log|du/dx|; `chunk` as for `ShallowBlocks.inverse`."""
        first = u.shape[1] - self.motion.mean.shape[1]
        x, logdet = self.motion.mean + self.motion.scale * u[:, first:], -self.motion.scale.log()
        return self._with_first(u, x, logdet, lambda u: self.shallow.inverse(u, self.tables, chunk=chunk)[:2])

    def predictive(self, said: Affine) -> Affine:
        """Return the normal distribution of the last S frames x (B, S, n, c), given that of u, `said`."""
        count, n = self.motion.mean.shape[1:3]
        mean, scale = (part.unflatten(1, (-1, n))[:, -count:] for part in (said.mean, said.scale))
        return Affine(self.motion.mean + self.motion.scale * mean, self.motion.scale * scale, self.motion.hidden)

    def _with_first(
        self, frames: Tensor, later: Tensor, logdet: Tensor, shallow: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Combine the affine map's results `later` and `logdet` with `shallow` of the frames without a predecessor."""
        first = frames.shape[1] - later.shape[1]
        if first:
            start, start_logdet = shallow(frames[:, :first])
            return torch.cat((start, later), dim=1), torch.cat((start_logdet, logdet), dim=1)
        if len(self.alone):
            start, start_logdet = shallow(frames[self.alone])
            return later.index_copy(0, self.alone, start), logdet.index_copy(0, self.alone, start_logdet)
        return later, logdet


def _invert_frame(
    block: Block, z: Tensor, rotary: Tensor, tolerance: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    start = block.start.to(z.dtype).expand(len(z), 1, -1)
    if chunk != 1:
        solved = solve(lambda inputs: block.predict(inputs, rotary), start, z, z, tolerance=tolerance)
        x = solved.affine.mean + solved.affine.scale * z
        return x, -solved.affine.scale.log(), solved.sweeps
    cache = block.empty_cache(len(z), z.shape[1])
    parts: list[tuple[Tensor, Tensor]] = []
    before = start
    for position in range(z.shape[1]):
        here = rotary[:, position : position + 1]
        affine = block.predict(before, here, cache, cache.visible(1, block.project_in.weight.dtype))
        before = affine.mean + affine.scale * z[:, position : position + 1]
        cache, parts = cache.commit(1), [*parts, (before, -affine.scale.log())]
    return (
        torch.cat([x for x, _ in parts], dim=1),
        torch.cat([logdet for _, logdet in parts], dim=1),
        torch.full((len(z),), z.shape[1], device=z.device),
    )
