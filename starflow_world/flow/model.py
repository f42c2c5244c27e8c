"""The normalizing flow (STARFlow-V, section 3): an invertible map of each frame, then a deep block over all frames.

    u, _ = shallow(x)     each frame alone (shallow.py); u = x without shallow blocks
    z, _ = deep(u)        causal over [text, all tokens of all frames], told the action and features of the last frame

    log p(x_t | x_<t, text, actions) = log p(u_t | u_<t, ...) (density.py) + log|du_t/dx_t|

Shapes: B batch elements, T frames, n tokens per frame, c channels, d deep width, L text length, W window.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.world import DecodeConfig, FlowConfig
from starflow_world.flow.block import Block, Tables
from starflow_world.flow.cache import KVCache, Visible
from starflow_world.flow.denoiser import Denoiser
from starflow_world.flow.density import Density, MixtureHead
from starflow_world.flow.features import Features, NoFeatures
from starflow_world.flow.guidance import guided
from starflow_world.flow.jacobi import Inverse, solve
from starflow_world.flow.layers import grid_positions, rotary_table, text_positions
from starflow_world.flow.shallow import HALF, ShallowBlocks


class Flow(nn.Module):
    """Normalizing flow of noisy latents: computes their log-likelihood, samples and denoises them."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        c, e, count = config.channels, config.head_width, config.shallow_blocks
        self.shallow = ShallowBlocks(
            Block(c, config.shallow_width, layers, e, reverse=(count - k) % 2 == 1)
            for k, layers in enumerate(config.shallow_depths)
        )
        head = None
        if config.components > 1:
            head = MixtureHead(config.deep_width, c, config.sites**2, config.components, config.head_inner)
        self.deep = Block(c, config.deep_width, config.deep_layers, e, text_width=config.text_width, head=head)
        self.features = Features(config, self.deep.head) if config.features_width else NoFeatures()
        if config.features_width:
            self.deep.look_back()
        self.denoiser = Denoiser(config) if config.denoiser_layers else None

    @property
    def noise_channels(self) -> int:
        """Return c + g, the noise numbers of a token (density.py)."""
        return self.config.channels + self.deep.head.sites

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

    # ---- conditions ----------------------------------------------------------------------------------------------

    def describe(self, u: Tensor) -> Tensor:
        """Return tokens u (..., c) with what the codebook knows of their sites, if there is one (density.py)."""
        head = self.deep.head
        return head.codebook.describe(u) if isinstance(head, MixtureHead) else u

    def conditions(
        self, u: Tensor, text: Tensor | None, action: Tensor | None, grid: tuple[int, int]
    ) -> Tensor | None:
        """Return what is added to the deep block's inputs for clips u (B, T, n, c): (k B, T, n, d).

        text (k B, L, text width), action (B, T, d). The first frames are taken to have no predecessor. None without
        actions and features.
        """
        if self.features.silent and action is None:
            return None
        if action is None:
            action = u.new_zeros(*u.shape[:2], self.config.deep_width)
        added = action[:, :, None].expand(-1, -1, u.shape[2], -1)
        if u.shape[1] > 1:
            told = self.told(u[:, :-1].flatten(0, 1), action[:, 1:].flatten(0, 1), grid)
            added = added + F.pad(told.unflatten(0, (len(u), -1)), (0, 0, 0, 0, 1, 0))
        return self.features.with_text(added, text)

    def next_conditions(
        self, last: Tensor, present: Tensor, text: Tensor | None, action: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Return the conditions (k B, n, d) of a next frame after last (B, n, c).

        present (B, 1, 1): whether last exists; text (k B, L, text width), action (B, d).
        """
        added = action[:, None] + self.told(last, action, grid) * present
        return self.features.with_text(added, text)

    def told(self, last: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the features (N, n, d) of frames last (N, n, c) and actions (N, d), in float32 or wider."""
        with torch.autocast(last.device.type, enabled=False):
            described = last if self.features.silent else self.describe(last)
            return self.features(described, action.to(last.dtype), grid)

    def guess(self, last: Tensor, present: Tensor, noise: Tensor) -> Tensor:
        """Return the initial Jacobi iterate (B, n, c) of a frame: the last one, and for first frames the noise, or the
        codebook's most frequent entry."""
        head, first = self.deep.head, noise[..., : last.shape[-1]]
        if isinstance(head, MixtureHead):
            code = head.codebook.code[head.codebook.chance.argmax()]
            first = code.repeat(head.sites).expand_as(last)
        return torch.where(present, last, first)

    # ---- deep: causal over text and all frames -------------------------------------------------------------------

    def deep_forward(self, u: Tensor, text: Tensor | None, added: Tensor | None, tables: Tables) -> Density:
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
    ) -> tuple[KVCache, Density]:
        """Run the deep block on `inputs` (B, S, c), tokens shifted by one, commit their keys, and predict the tokens.

        `text` is L, the number of text positions in the cache."""
        density = self.predictor(cache, added, inputs.shape[1], tables, text=text)(inputs)
        return cache.commit(inputs.shape[1]), density

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
        """Solve the next frame u from noise (B, n, c + g), chunk after chunk, and commit it.

        before (B, 1, c): the token before the frame; guess (B, n, c); added (B, n, d) or None. With guidance w > 0 the
        cache has 2B rows, [text; null text]. The result's density is always the unguided model's.
        """
        parts: list[Inverse] = []
        rows = len(noise)
        for start in range(0, noise.shape[1], size := settings.chunk or noise.shape[1]):
            part = slice(start, start + size)
            z, here = noise[:, part], None if added is None else added[:, part]
            predict = self.predictor(cache, here, z.shape[1], tables, text=text)
            solved = solve(
                predict, before, z, guess[:, part], tolerance=settings.tolerance, max_sweeps=settings.max_sweeps,
                guided=(lambda both: guided(both, rows, guidance)) if guidance else None,
            )
            solved = replace(solved, density=solved.density.rows(slice(rows)))
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
        self, x: Tensor, text: Tensor | None, action: Tensor | None, tables: Tables, *, clean: Tensor | None = None,
        level: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Return log p per token of noisy latents x (B, T, n, c) given the past, (B, T, n), and the deep hidden states.

        action (B, T, d) or None; hidden states (B, T, n, d). With `clean` latents (B, T, n, c) and their noise `level`
        it is the expectation over that noise (see `Density.nats`), which removes it from the gradient; only without
        shallow blocks.
        """
        u, logdet = self.shallow(x, tables)
        density = self.deep_forward(u, text, self.conditions(u, text, action, tables.grid), tables)
        if clean is not None and self.closed_form:
            nats = density.nats(u.flatten(1, 2), around=clean.flatten(1, 2), spread=level)
        else:
            nats = density.nats(u.flatten(1, 2))
        return nats.unflatten(1, u.shape[1:3]) + logdet.sum(-1), density.hidden.unflatten(1, u.shape[1:3])

    @property
    def closed_form(self) -> bool:
        """Return whether the density of a frame's noisy latents is that of the deep block: no shallow blocks."""
        return len(self.shallow) == 0


@dataclass(frozen=True)
class CachedBlock:
    """Deep block at fixed positions after a cache, with prepared rotary table and mask; called once per sweep."""

    block: Block
    cache: KVCache
    rotary: Tensor
    visible: Visible | None
    added: Tensor | None

    def __call__(self, inputs: Tensor) -> Density:
        """Predict the token after each of inputs (B, S, c)."""
        return self.block.predict(inputs, self.rotary, self.cache, self.visible, self.added)
