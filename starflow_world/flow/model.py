"""The whole flow (STARFlow-V, section 3): shallow blocks inside a frame, one deep block over text and all frames.

    u, _ = shallow(x)     each frame on its own, blocks in alternating token order
    z, _ = deep(u)        causal over [text, all tokens of all frames]

A flow with `motion` (motion.py) has the shallow blocks for frames without a frame before them only; frame t behind
x_{t-1} is u_t = (x_t - mean(x_{t-1}, action)) / scale(x_{t-1}, action) instead; a `carry` (carry.py) adds to both what
earlier frames showed.

    log p(x_t | x_<t, text, conditions) = log N(u_t; mean, scale) + sum log|du_t/dx_t|

Shapes: B rows, T frames, n tokens per frame, c channels, d deep width, L text length.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig
from starflow_world.errors import ConfigError
from starflow_world.flow.block import Affine, Block
from starflow_world.flow.cache import KVCache, Visible
from starflow_world.flow.carry import Carry
from starflow_world.flow.denoiser import Denoiser, make_denoiser
from starflow_world.flow.jacobi import solve
from starflow_world.flow.layers import grid_positions, rotary_table, text_positions
from starflow_world.flow.motion import Motion

MIXED_TOLERANCE = 1e-3
"""Of the shallow blocks where products are in half precision, in noise units; float32 goes down to its rounding."""


@dataclass(frozen=True)
class Tables:
    """Rotary tables for one grid: `frame` (1, n, e/2) at time 0, `video` (1, W * n, e/2), `text` (1, L, e/2)."""

    grid: tuple[int, int]
    frame: Tensor
    video: Tensor
    text: Tensor

    def whole(self, frames: int, *, text: bool) -> Tensor:
        """The table of [text,] `frames` frames in one sequence."""
        video = self.video[:, : frames * self.grid[0] * self.grid[1]]
        return torch.cat((self.text, video), dim=1) if text else video

    def at(self, start: Tensor, count: int) -> Tensor:
        """The table (B, count, e/2) of the positions start, start + 1, ... of each row; start (B,) on the CPU."""
        index = (start[:, None] + torch.arange(count)).to(self.video.device)
        return self.video[0][index]


class Flow(nn.Module):
    """Tensors in, tensors out: knows no pixels, files, environments or strings."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        c, e, count = config.channels, config.head_width, config.shallow_blocks
        self.shallow = nn.ModuleList(
            Block(c, config.shallow_width, config.shallow_layers, e, reverse=(count - k) % 2 == 1) for k in range(count)
        )
        self.deep = Block(c, config.deep_width, config.deep_layers, e, text_width=config.text_width)
        self.motion = Motion(config) if config.motion_width else None
        self.carry = Carry(config) if config.motion_width and config.carry_slots else None
        self.denoiser = make_denoiser(config)

    @property
    def mixed(self) -> bool:
        """Whether products are in half precision, and all else is not."""
        return self.deep.project_in.weight.dtype in (torch.bfloat16, torch.float16)

    def products(self) -> AbstractContextManager[object]:
        """Inside, products are in the dtype of the weights of a flow that was loaded to run in it."""
        weight = self.deep.project_in.weight
        return torch.autocast(weight.device.type, weight.dtype) if self.mixed else nullcontext()

    def tables(self, grid: tuple[int, int], frames: int) -> Tables:
        """Rotary tables for up to `frames` frames of h x w tokens, in the dtype and on the device of the weights."""
        start, scale, e = self.deep.start, self.config.position_scale, self.config.head_width
        dtype = torch.promote_types(start.dtype, torch.float32)

        def table(positions: Tensor) -> Tensor:
            return rotary_table(positions, e, dtype)[None].to(start.device)

        return Tables(
            grid,
            table(grid_positions(1, grid, scale)),
            table(grid_positions(frames, grid, scale)),
            table(text_positions(self.config.text_length, scale)),
        )

    # ---- shallow: every frame on its own -------------------------------------------------------------------------

    def shallow_forward(self, x: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
        """Noisy latents x (B, T, n, c) -> u and log|du/dx| per dimension, both (B, T, n, c)."""
        shape = x.shape
        x, total = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        for block in self._shallow_blocks():
            x = block.in_order(x)
            z, logdet = block.predict(block.shift(x), tables.frame).to_noise(x)
            x, total = block.in_order(z), total + block.in_order(logdet)
        return x.reshape(shape), total.reshape(shape)

    def shallow_inverse(
        self, u: Tensor, tables: Tables, *, tolerance: float | None = None, chunk: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u (B, T, n, c) -> noisy latents x, log|du/dx| per dimension, and sweeps over all blocks (B, T).

        Whole-frame Jacobi sweeps, all frames at once, down to rounding (`tolerance` in noise units); the result is one
        further iterate, so its error is smaller still. `chunk` 1 decodes token by token, as the reference.
        """
        shape = u.shape
        if tolerance is None:
            tolerance = 1e-12 if u.dtype == torch.float64 else MIXED_TOLERANCE if self.mixed else 1e-5
        x, total = u.flatten(0, 1), torch.zeros_like(u).flatten(0, 1)
        sweeps = torch.zeros(len(x), dtype=torch.long, device=u.device)
        for block in reversed(self._shallow_blocks()):
            z = block.in_order(x)
            x, logdet, count = _invert_frame(block, z, tables.frame, tolerance, chunk)
            x, total, sweeps = block.in_order(x), total + block.in_order(logdet), sweeps + count
        return x.reshape(shape), total.reshape(shape), sweeps.reshape(shape[:2])

    def _shallow_blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.shallow]

    # ---- deep: causal over text and all frames -------------------------------------------------------------------

    @property
    def carried(self) -> int:
        """Numbers that are carried from frame to frame, K."""
        return 0 if self.carry is None else self.carry.slots * self.carry.size

    def remember(
        self, x: Tensor, action: Tensor | None, grid: tuple[int, int], previous: Tensor | None = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """What is carried behind each frame of x (B, T, n, c), (B, T, K); action (B, T, d).

        previous (B, n, c) and last (B, K): the frame before x[:, 0] and what was carried behind it, if there is one.
        """
        if self.carry is None:
            return x.new_zeros(*x.shape[:2], 0)
        if action is None:
            action = x.new_zeros(*x.shape[:2], self.config.deep_width)
        if previous is not None and last is not None:
            before = torch.cat((previous[:, None], x[:, :-1]), dim=1)
            return self.carry(last, before, x, action, grid)
        first = self.carry.begin(action[:, 0])
        if x.shape[1] == 1:
            return first[:, None]
        return torch.cat((first[:, None], self.carry(first, x[:, :-1], x[:, 1:], action[:, 1:], grid)), dim=1)

    def condition(
        self, x: Tensor, previous: Tensor | None, action: Tensor | None, grid: tuple[int, int],
        carried: Tensor | None = None,
    ) -> tuple[Affine | None, Tensor | None]:
        """The motion of those frames of x (B, T, n, c) that have one before them, and what is added to the deep block's
        inputs, (B, T, n, d); None for either where there is none.

        previous (B, n, c): the frame before x[:, 0], if there is one; action (B, T, d): one vector per frame; carried
        (B, T or T - 1, K): behind the frames before (None: follows from x, which nothing came before).
        """
        added = None if action is None else action[:, :, None].expand(-1, -1, x.shape[2], -1)
        before = x[:, :-1] if previous is None else torch.cat((previous[:, None], x[:, :-1]), dim=1)
        if self.motion is None or not before.shape[1]:
            return None, added
        count = before.shape[1]
        if action is None:
            action = x.new_zeros(*x.shape[:2], self.config.deep_width)
        slots = None
        if self.carry is not None:
            known = self.remember(x, action, grid)[:, :-1] if carried is None else carried
            slots = known.flatten(0, 1)
        flat = self.motion(before.flatten(0, 1), action[:, -count:].flatten(0, 1), grid, slots)
        motion = Affine(*(part.unflatten(0, before.shape[:2]) for part in (flat.mean, flat.scale, flat.hidden)))
        told = F.pad(motion.hidden, (0, 0, 0, 0, x.shape[1] - count, 0))
        return motion, told if added is None else told + added

    def front(
        self, x: Tensor, previous: Tensor | None, action: Tensor | None, tables: Tables, carried: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All that happens in front of the deep block: u and log|du/dx| (B, T, n, c) of noisy latents x, and what is
        added to the deep block's inputs; arguments as for `condition`."""
        motion, added = self.condition(x, previous, action, tables.grid, carried)
        if motion is None:
            return *self.shallow_forward(x, tables), added
        first = x.shape[1] - motion.mean.shape[1]
        u, logdet = motion.to_noise(x[:, first:])
        if first:
            start, start_logdet = self.shallow_forward(x[:, :first], tables)
            u, logdet = torch.cat((start, u), dim=1), torch.cat((start_logdet, logdet), dim=1)
        return u, logdet, added

    def back(
        self, u: Tensor, motion: Affine | None, tables: Tables, *, chunk: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The inverse of `front` for frames u (B, T, n, c) whose motion is known: x and log|du/dx| (B, T, n, c)."""
        if motion is None:
            x, logdet, _ = self.shallow_inverse(u, tables, chunk=chunk)
            return x, logdet
        return motion.mean + motion.scale * u, -motion.scale.log()

    def deep_forward(self, u: Tensor, text: Tensor | None, added: Tensor | None, tables: Tables) -> Affine:
        """Teacher forcing over u (B, T, n, c) in one pass, without a cache: means, scales, hidden (B, T * n, ...)."""
        frames = u.shape[1]
        inputs = self.deep.shift(u.flatten(1, 2))
        added = None if added is None else added.flatten(1, 2)
        if text is None:
            return self.deep.predict(inputs, tables.whole(frames, text=False), added=added)
        return self.deep.predict_with_text(inputs, text, tables.whole(frames, text=True), added)

    def start_cache(
        self, text: Tensor | None, rows: int, tables: Tables, *, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache for a window of frames behind text (B, L, text width), the text committed."""
        length = 0 if text is None else text.shape[1]
        cache = self.deep.empty_cache(rows, length + tables.video.shape[1], dtype)
        return cache if text is None else self.deep.write_text(text, tables.text, cache)

    def extend(
        self, cache: KVCache, inputs: Tensor, added: Tensor | None, tables: Tables, *, text: int
    ) -> tuple[KVCache, Affine]:
        """Commit the positions of `inputs` (B, S, c), the tokens shifted by one; `text` is L. Teacher forcing."""
        predict, count = self.predictor(cache, added, inputs.shape[1], tables, text=text), inputs.shape[1]
        affine = predict(inputs)
        return cache.commit(count), affine

    def fill(
        self, cache: KVCache, inputs: Tensor, added: Tensor | None, tables: Tables, *, text: int
    ) -> KVCache:
        """As `extend`, where nobody asks what the block says of the tokens."""
        predict, count = self.predictor(cache, added, inputs.shape[1], tables, text=text), inputs.shape[1]
        self.deep.write(inputs, predict.rotary, cache, predict.visible, predict.added)
        return cache.commit(count)

    def predictor(self, cache: KVCache, added: Tensor | None, count: int, tables: Tables, *, text: int) -> "Predictor":
        """The deep block at the next `count` positions behind `cache`, a function of network inputs (B, count, c);
        behind a cache of several times B rows its results have as many (see Attention)."""
        added = added.flatten(1, 2) if added is not None and added.ndim == 4 else added
        visible = cache.visible(count, self.deep.project_in.weight.dtype)
        return Predictor(self.deep, cache, tables.at(cache.length - text, count), visible, added)

    # ---- denoising -----------------------------------------------------------------------------------------------

    def denoise(self, x: Tensor, text: Tensor | None, tables: Tables, valid: Tensor | None = None) -> Tensor:
        """Clean latents for noisy latents x (B, T, n, c): one Tweedie step with the learned denoiser."""
        return x - self.config.denoiser_step * self.denoiser_output(x, text, tables, valid)

    def denoise_clip(self, x: Tensor, text: Tensor | None, tables: Tables, *, window: int, overlap: int) -> Tensor:
        """As `denoise` for x (B, T, n, c) of any length, `window` frames at a time. Windows share `overlap` frames and
        read noisy latents only, as in training (the published program feeds denoised frames to the next window).

        A frame comes from a window that shows its future (up to half the overlap); the rest of the overlap is its past.
        Equals `denoise` of the whole clip where these cover all that the denoiser sees, if it reads no text: in every
        window the text is at other distances from the frames.
        """
        parts = [
            self.denoise(x[:, seen], text, tables)[:, kept]
            for seen, kept in self.denoise_windows(x.shape[1], window=window, overlap=overlap)
        ]
        return torch.cat(parts, dim=1)

    def denoise_windows(self, frames: int, *, window: int, overlap: int) -> Iterator[tuple[slice, slice]]:
        """The windows of `denoise_clip`: the frames of the clip that are shown, and which of them are kept."""
        assert self.denoiser is not None
        if not 0 <= overlap < window:
            raise ConfigError(f"overlap: expected 0 <= overlap < window {window}, found {overlap}")
        later, done = min(sum(self.denoiser.look_ahead), overlap // 2), 0
        while done < frames:
            start = max(min(done - overlap + later, frames - window), 0)
            end = min(start + window, frames)
            until = end if end == frames else end - later
            yield slice(start, end), slice(done - start, until - start)
            done = until

    def denoiser_output(self, x: Tensor, text: Tensor | None, tables: Tables, valid: Tensor | None = None) -> Tensor:
        """d (B, T, n, c), the learned gradient of the negative log-probability in units of sigma**2 / denoiser_step."""
        assert self.denoiser is not None
        if not isinstance(self.denoiser, Denoiser):
            return self.denoiser(x, tables.grid)
        reads_text = self.denoiser.project_text is not None
        rotary = tables.whole(x.shape[1], text=reads_text)
        return self.denoiser(x, text if reads_text else None, rotary, valid)

    # ---- likelihood ----------------------------------------------------------------------------------------------

    def nats(
        self, x: Tensor, text: Tensor | None, action: Tensor | None, tables: Tables, carried: Tensor | None = None, *,
        clean: Tensor | None = None, level: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """log p per token of noisy latents x (B, T, n, c) given the past, (B, T, n), and the deep hidden states
        (B, T, n, d); action (B, T, d) or None; carried (B, T, K): behind each frame, for a clip that begins in the
        middle of what is known.

        With `clean` latents (B, T, n, c) and the noise level, nats of frames that follow by a motion are expected over
        their own noise. Their gradient is free of it: a deep block that knows nothing of them has nothing to learn.
        """
        u, logdet, added = self.front(x, None, action, tables, None if carried is None else carried[:, :-1])
        affine, seen, spread = self.deep_forward(u, text, added, tables), u, torch.zeros_like(u)
        if clean is not None and self.motion is not None:
            per_noise = logdet[:, 1:].exp()
            seen = torch.cat((u[:, :1], u[:, 1:] + (clean - x)[:, 1:] * per_noise), dim=1)
            spread = torch.cat((spread[:, :1], level * per_noise), dim=1)
        nats = affine.nats(seen.flatten(1, 2), spread.flatten(1, 2)).unflatten(1, u.shape[1:3]) + logdet
        return nats.sum(-1), affine.hidden.unflatten(1, u.shape[1:3])


@dataclass(frozen=True)
class Predictor:
    """The deep block at fixed positions behind a cache; called once per sweep, it builds nothing anew."""

    block: Block
    cache: KVCache
    rotary: Tensor
    visible: Visible | None
    added: Tensor | None

    def __call__(self, inputs: Tensor) -> Affine:
        """Means and scales for the tokens that follow inputs (B, S, c)."""
        return self.block.predict(inputs, self.rotary, self.cache, self.visible, self.added)


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
