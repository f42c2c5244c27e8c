"""The bijection between noisy latents x and the deep block's tokens u, frame by frame.

    u_t = f(x_t; x_{t-1}, action_t)        log p(x_t | past) = log N(u_t; mean, scale) + log|du_t/dx_t|

`ShallowMap` transforms every frame on its own by the shallow blocks (STARFlow-V, section 3). `MotionMap` does so only
for frames without a predecessor; all other frames are an affine function of noise given the previous frame (motion.py).
Another density of a frame given its predecessor is one more subclass of `FrameMap`.

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
"""Jacobi tolerance of shallow blocks with half-precision products, in noise units; float32 goes down to rounding."""


class ShallowBlocks(nn.ModuleList):
    """Affine blocks in alternating token order that transform each frame on its own."""

    def blocks(self) -> Iterator[Block]:
        """Iterate over the blocks in the order of `forward`."""
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
        """Map u (B, T, n, c) to noisy latents x, log|du/dx| per dimension, and sweeps over all blocks (B, T).

        All frames are solved at once by whole-frame Jacobi sweeps to `tolerance` in noise units (default: rounding);
        the result is one further iterate and more accurate still. `chunk` 1 decodes token by token.
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
    """What precedes the next frame of B rows.

    tokens (B, n, c): u of the previous frame; latents (B, W', n, c): noisy latents, newest last; carried (B, K);
    alone (k,): the rows that have no previous frame yet, whose other fields are not read.
    """

    tokens: Tensor
    latents: Tensor
    carried: Tensor
    alone: Tensor

    @cached_property
    def present(self) -> Tensor:
        """Mask (B, 1, 1) of the rows that have a previous frame."""
        mask = torch.ones(len(self.tokens), 1, 1, dtype=torch.bool, device=self.alone.device)
        return mask.index_fill(0, self.alone, False)


@dataclass(frozen=True)
class FrameMap(ABC):
    """The map of given frames, T of each of B rows; `added` (B, T, n, d) or None: conditions of the deep block."""

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
        """Return the normal distribution of the last S frames x (B, S, n, c), those that have one in closed form.

        said (B, T * n, ...): the deep block's distribution of u. S is 0 where every frame passes the shallow blocks.
        """


@dataclass(frozen=True)
class ShallowMap(FrameMap):
    """Every frame on its own, by the shallow blocks."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `FrameMap.forward`."""
        return self.shallow(x, self.tables)

    def inverse(self, u: Tensor, *, chunk: int = 0) -> tuple[Tensor, Tensor]:
        """See `FrameMap.inverse`."""
        x, logdet, _ = self.shallow.inverse(u, self.tables, chunk=chunk)
        return x, logdet

    def predictive(self, said: Affine) -> Affine:
        """See `FrameMap.predictive`."""
        none = said.mean.unflatten(1, (-1, self.tables.frame.shape[1]))[:, :0]
        return Affine(none, none, none)


@dataclass(frozen=True)
class MotionMap(FrameMap):
    """The last S of T frames by an affine map; T - S frames, or the rows `alone` (k,) of S = T = 1, by shallow blocks.

    motion (B, S, n, ...): mean and scale of each frame given its predecessor.
    """

    motion: Affine
    alone: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `FrameMap.forward`."""
        first = x.shape[1] - self.motion.mean.shape[1]
        return self._with_first(x, *self.motion.to_noise(x[:, first:]), lambda start: self.shallow(start, self.tables))

    def inverse(self, u: Tensor, *, chunk: int = 0) -> tuple[Tensor, Tensor]:
        """See `FrameMap.inverse`."""
        first = u.shape[1] - self.motion.mean.shape[1]
        x, logdet = self.motion.mean + self.motion.scale * u[:, first:], -self.motion.scale.log()
        return self._with_first(u, x, logdet, lambda u: self.shallow.inverse(u, self.tables, chunk=chunk)[:2])

    def predictive(self, said: Affine) -> Affine:
        """See `FrameMap.predictive`."""
        count, n = self.motion.mean.shape[1:3]
        mean, scale = (part.unflatten(1, (-1, n))[:, -count:] for part in (said.mean, said.scale))
        return Affine(self.motion.mean + self.motion.scale * mean, self.motion.scale * scale, self.motion.hidden)

    def _with_first(
        self, frames: Tensor, later: Tensor, logdet: Tensor, shallow: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Complete what `motion` made of later frames by what the shallow blocks make of frames without predecessor."""
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
