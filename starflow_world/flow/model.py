"""The normalizing flow (STARFlow-V, section 3): an invertible map of each frame, then a deep block over all frames.

    u, _ = map(x)      each frame, given at most its predecessor (frame_map.py)
    z, _ = deep(u)     causal over [text, all tokens of all frames]

    log p(x_t | x_<t, text, conditions) = log N(u_t; mean, scale) + log|du_t/dx_t|

Shapes: B batch elements, T frames, n tokens per frame, c channels, d deep width, L text length, W window.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from starflow_world.config.world import DecodeConfig, FlowConfig
from starflow_world.flow.block import Affine, Block, Tables
from starflow_world.flow.cache import KVCache, Visible
from starflow_world.flow.denoiser import make_denoiser
from starflow_world.flow.frame_map import HALF, FrameMap, Past, ShallowBlocks
from starflow_world.flow.guidance import Guided, guided
from starflow_world.flow.jacobi import Inverse, solve
from starflow_world.flow.layers import grid_positions, rotary_table, text_positions
from starflow_world.flow.motion import make_carry, make_motion


class Flow(nn.Module):
    """Normalizing flow of noisy latents: computes their log-likelihood, samples and denoises them."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        c, e, count = config.channels, config.head_width, config.shallow_blocks
        self.shallow = ShallowBlocks(
            Block(c, config.shallow_width, config.shallow_layers, e, reverse=(count - k) % 2 == 1) for k in range(count)
        )
        self.deep = Block(c, config.deep_width, config.deep_layers, e, text_width=config.text_width)
        self.motion = make_motion(config)
        self.carry = make_carry(config)
        self.denoiser = make_denoiser(config)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.deep.start.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of latents, tokens and nats."""
        return self.deep.start.dtype

    def products(self) -> AbstractContextManager[object]:
        """Return an autocast context for half-precision weights, and a null context for others."""
        weight = self.deep.project_in.weight
        return torch.autocast(weight.device.type, weight.dtype) if weight.dtype in HALF else nullcontext()

    def tables(self, grid: tuple[int, int], frames: int) -> Tables:
        """Build rotary tables for up to `frames` frames of h x w tokens, in the dtype and on the device of the flow."""
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

    # ---- frames: noisy latents <-> u ------------------------------------------------------------------------------

    def map_clip(
        self, x: Tensor, action: Tensor | None, tables: Tables, carried: Tensor | None = None
    ) -> FrameMap:
        """Return the map of clips x (B, T, n, c) whose first frames have no predecessor; action (B, T, d).

        carried (B, T, K): the memory slots after each frame; None: computed as if nothing preceded the clip.
        """
        return self.motion.clip(self.shallow, self.carry, x, action, tables, carried)

    def map_next(self, past: Past, action: Tensor, tables: Tables) -> FrameMap:
        """Return the map of each batch element's next frame, given its past and its action (B, 1, d)."""
        return self.motion.next(self.shallow, past, action, tables)

    # ---- deep: causal over text and all frames -------------------------------------------------------------------

    def deep_forward(self, u: Tensor, text: Tensor | None, added: Tensor | None, tables: Tables) -> Affine:
        """Predict all tokens of u (B, T, n, c) in one teacher-forced pass without a cache, (B, T * n, ...)."""
        frames = u.shape[1]
        inputs = self.deep.shift(u.flatten(1, 2))
        added = None if added is None else added.flatten(1, 2)
        if text is None:
            return self.deep.predict(inputs, tables.whole(frames, text=False), added=added)
        return self.deep.predict_with_text(inputs, text, tables.whole(frames, text=True), added)

    def start_cache(
        self, text: Tensor | None, rows: int, tables: Tables, *, dtype: torch.dtype | None = None
    ) -> KVCache:
        """Allocate a cache for a window of frames after text (B, L, text width), with the text committed."""
        length = 0 if text is None else text.shape[1]
        cache = self.deep.empty_cache(rows, length + tables.video.shape[1], dtype)
        return cache if text is None else self.deep.write_text(text, tables.text, cache)

    def extend(
        self, cache: KVCache, inputs: Tensor, added: Tensor | None, tables: Tables, *, text: int
    ) -> tuple[KVCache, Affine]:
        """Run the deep block on `inputs` (B, S, c), tokens shifted by one, commit their keys, and predict the tokens.

        `text` is L, the number of text positions in the cache."""
        affine = self.predictor(cache, added, inputs.shape[1], tables, text=text)(inputs)
        return cache.commit(inputs.shape[1]), affine

    def fill(
        self, cache: KVCache, inputs: Tensor, added: Tensor | None, tables: Tables, *, text: int
    ) -> KVCache:
        """Write and commit the keys of `inputs` (B, S, c) as `extend` does, without predicting."""
        predict = self.predictor(cache, added, inputs.shape[1], tables, text=text)
        self.deep.write(inputs, predict.rotary, cache, predict.visible, predict.added)
        return cache.commit(inputs.shape[1])

    def predictor(
        self, cache: KVCache, added: Tensor | None, count: int, tables: Tables, *, text: int
    ) -> "CachedBlock":
        """Return the deep block as a function of inputs (B, count, c) at the `count` positions after `cache`.

        With a cache of k B rows its results have k B rows (see `Attention.forward`).
        """
        added = added.flatten(1, 2) if added is not None and added.ndim == 4 else added
        visible = cache.visible(count, self.deep.project_in.weight.dtype)
        return CachedBlock(self.deep, cache, tables.at(cache.length - text, count), visible, added)

    def decode(
        self, cache: KVCache, before: Tensor, noise: Tensor, guess: Tensor, added: Tensor | None, tables: Tables, *,
        text: int, guidance: float, settings: DecodeConfig,
    ) -> tuple[KVCache, Inverse]:
        """Solve the next frame u from noise (B, n, c), chunk after chunk, and commit it.

        before (B, 1, c): the token before the frame; guess (B, n, c); added (B, n, d) or None. With guidance w > 0 the
        cache has 2B rows, [text; null text]. The result's `affine` is always the unguided model's.
        """
        parts: list[Inverse] = []
        for start in range(0, noise.shape[1], size := settings.chunk or noise.shape[1]):
            part = slice(start, start + size)
            z, here = noise[:, part], None if added is None else added[:, part]
            predict: Callable[[Tensor], Affine] = self.predictor(cache, here, z.shape[1], tables, text=text)
            solved = solve(
                guided(predict, guidance) if guidance else predict, before, z, guess[:, part],
                tolerance=settings.tolerance, max_sweeps=settings.max_sweeps,
            )
            if isinstance(solved.affine, Guided):
                solved = replace(solved, affine=solved.affine.conditional)
            cache, before, parts = cache.commit(z.shape[1]), solved.tokens[:, -1:], [*parts, solved]
        return cache, Inverse.join(parts)

    # ---- denoising -----------------------------------------------------------------------------------------------

    def denoise(self, x: Tensor, text: Tensor | None, tables: Tables, valid: Tensor | None = None) -> Tensor:
        """Denoise latents x (B, T, n, c) by one Tweedie step; without a denoiser return x unchanged."""
        if self.denoiser is None:
            return x
        return x - self.config.denoiser_step * self.denoiser_output(x, text, tables, valid)

    def denoiser_output(self, x: Tensor, text: Tensor | None, tables: Tables, valid: Tensor | None = None) -> Tensor:
        """Estimate sigma**2 / denoiser_step times the gradient of the negative log-probability, (B, T, n, c).

        `valid` (B, T) masks frames that do not exist.
        """
        assert self.denoiser is not None
        return self.denoiser(x, text, tables, valid)

    # ---- likelihood ----------------------------------------------------------------------------------------------

    def nats(
        self, x: Tensor, text: Tensor | None, action: Tensor | None, tables: Tables, carried: Tensor | None = None, *,
        clean: Tensor | None = None, level: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Return log p per token of noisy latents x (B, T, n, c) given the past, (B, T, n), and the deep hidden states.

        action (B, T, d) or None; carried (B, T, K) as for `map_clip`; hidden states (B, T, n, d).

        With `clean` latents (B, T, n, c) and their noise `level`, frames with a closed-form distribution get the
        expectation of log p over their own noise, which removes that noise from the gradient.
        """
        frame_map = self.map_clip(x, action, tables, carried)
        u, logdet = frame_map.forward(x)
        affine, mean, spread = self.deep_forward(u, text, frame_map.added, tables), u, torch.zeros_like(u)
        if clean is not None:
            first = self.first_frames(x.shape[1])
            per_noise = logdet[:, first:].exp()
            mean = torch.cat((u[:, :first], u[:, first:] + (clean - x)[:, first:] * per_noise), dim=1)
            spread = torch.cat((spread[:, :first], level * per_noise), dim=1)
        nats = affine.nats(mean.flatten(1, 2), spread.flatten(1, 2)).unflatten(1, u.shape[1:3]) + logdet
        return nats.sum(-1), affine.hidden.unflatten(1, u.shape[1:3])

    def first_frames(self, frames: int) -> int:
        """Return how many frames at the start of a clip of `frames` pass the shallow blocks (no closed form)."""
        return 1 if self.motion.looks_back else frames


@dataclass(frozen=True)
class CachedBlock:
    """Deep block at fixed positions after a cache, with prepared rotary table and mask; called once per sweep."""

    block: Block
    cache: KVCache
    rotary: Tensor
    visible: Visible | None
    added: Tensor | None

    def __call__(self, inputs: Tensor) -> Affine:
        """Predict the token after each of inputs (B, S, c)."""
        return self.block.predict(inputs, self.rotary, self.cache, self.visible, self.added)
