"""What is known of every row's next frame before it is there, and the ways between it and what the deep block says.

Rows may have no frame before them yet: those go through the shallow blocks, the others follow a motion if there is one.

Shapes: B rows, n tokens per frame, c channels, d deep width, K carried numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from starflow_world.flow import Affine, Flow, Tables
from starflow_world.world.state import WorldState


@dataclass(frozen=True)
class Ahead:
    """The next frame of B rows.

    present (B, 1, 1): rows that have a frame before it, `alone` the indices of those that have not; previous (B, n, c):
    u of the frame before; before (B, 1, c): the deep block's token before; action (B, 1, d); last (B, n, c) and carried
    (B, K): noisy latents of the frame before and what is carried behind it; motion (B, 1, n, ...): how it follows the
    frame before, None where no row has one; added (B, n, d): the deep block's conditions.
    """

    flow: Flow
    tables: Tables
    present: Tensor
    alone: Tensor
    previous: Tensor
    before: Tensor
    action: Tensor
    last: Tensor | None
    carried: Tensor
    motion: Affine | None
    added: Tensor

    @staticmethod
    def of(state: WorldState, action: Tensor, flow: Flow, tables: Tables) -> "Ahead":
        """Behind `state`, under an encoded action (B, d)."""
        action, device, n = action[:, None], state.tokens.device, state.tokens.shape[2]
        alone = (state.length == 0).nonzero()[:, 0].to(device)
        newest = torch.arange(len(state)), (state.length - 1).clamp_min(0)
        previous, carried = state.tokens[newest], state.carried[newest]
        last = state.latents[:, -1] if flow.motion is not None and len(alone) < len(state) else None
        motion, added = flow.condition(previous[:, None], last, action, tables.grid, carried[:, None])
        assert added is not None
        if motion is not None and len(alone):
            added = added.index_copy(0, alone, action[alone, :, None].expand(-1, -1, n, -1))
        present = torch.ones(len(state), 1, 1, dtype=torch.bool, device=device).index_fill(0, alone, False)
        before = torch.where(present, previous[:, -1:], flow.deep.start)
        return Ahead(flow, tables, present, alone, previous, before, action, last, carried, motion, added[:, 0])

    def remember(self, x: Tensor) -> Tensor:
        """What is carried behind the frame x (B, 1, n, c), (B, 1, K)."""
        flow, grid = self.flow, self.tables.grid
        if self.last is None or not flow.carried:
            return flow.remember(x, self.action, grid)
        carried = flow.remember(x, self.action, grid, self.last, self.carried)
        if not len(self.alone):
            return carried
        return carried.index_copy(0, self.alone, flow.remember(x[self.alone], self.action[self.alone], grid))

    def forth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u and log|du/dx| of the frame x (B, 1, n, c): by its motion, or the shallow blocks where there is none."""
        flow = self.flow
        if self.motion is None:
            return flow.shallow_forward(x, self.tables)
        return self._but_alone(*self.motion.to_noise(x), lambda rows: flow.shallow_forward(x[rows], self.tables))

    def back(self, u: Tensor, *, chunk: int = 0) -> tuple[Tensor, Tensor]:
        """x and log|du/dx| of the frame u (B, 1, n, c): the inverse of `forth`."""
        flow = self.flow
        if self.motion is None:
            return flow.back(u, None, self.tables, chunk=chunk)
        moved = flow.back(u, self.motion, self.tables)
        return self._but_alone(*moved, lambda rows: flow.back(u[rows], None, self.tables, chunk=chunk))

    def _but_alone(
        self, moved: Tensor, logdet: Tensor, shallow: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What was moved, but by the shallow blocks in the rows that have no frame before them."""
        if not len(self.alone):
            return moved, logdet
        start, start_logdet = shallow(self.alone)
        return moved.index_copy(0, self.alone, start), logdet.index_copy(0, self.alone, start_logdet)
