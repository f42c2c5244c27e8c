"""The baseline: a world's own weights, decoded as in the public STARFlow-V program, on the same torch kernels.

Written from a description of that program. As published: keys are cached unrotated, and the whole cache is rotated in
every layer of every pass with newly computed cosines and sines; every layer of every pass builds a dense mask; blocks
of 32 tokens are iterated until the mean square change over the *batch* is below a thousandth of the mean square value,
for at most 32 rounds, and the first change is measured against the noise; the returned tokens are one round newer than
the keys in the cache; a slide re-encodes everything, text included. `block` 1 decodes token by token.

Different: blocks end with their frame, since the next frame's action is not known yet; features, the head's density,
outcome head, denoiser and codec are the world's own. The first guess is the previous frame, as published.

Shapes: B rows of one age, n tokens per frame, c channels, S new tokens, d width.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from starflow_world.flow import Block, Density
from starflow_world.flow.layers import Layer
from starflow_world.noise import normals
from starflow_world.world import World
from starflow_world.world.state import WorldState

THRESHOLD, ROUNDS, BLOCK = 1e-3, 32, 32


class PublishedCache:
    """Cache of unrotated keys and values (layers, B, capacity, H, e), and the rotation angles of their positions."""

    def __init__(self, block: Block, rows: int, angles: Tensor) -> None:
        shape = (len(block.layers), rows, len(angles), block.heads, block.head_width)
        self.keys, self.values = block.start.new_zeros(shape), block.start.new_zeros(shape)
        self.block, self.angles, self.length = block, angles, 0

    def attend(self, layer: Layer, index: int, hidden: Tensor) -> Tensor:
        """Apply one layer to hidden states (B, S, d) at the positions after the cached ones."""
        attention, begin, end = layer.attention, self.length, self.length + hidden.shape[1]
        query, key, value = attention.qkv(attention.norm(hidden)).unflatten(-1, (3, attention.heads, -1)).unbind(2)
        self.keys[index, :, begin:end], self.values[index, :, begin:end] = key, value
        keys, values = self.keys[index, :, :end], self.values[index, :, :end]
        query, keys = _rotated(query, self.angles[begin:end]), _rotated(keys, self.angles[:end])
        mask = torch.arange(begin, end)[:, None] >= torch.arange(end)
        query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        hidden = hidden + attention.out(attended.transpose(1, 2).flatten(-2))
        return hidden + layer.feed_forward(hidden)

    def run(self, hidden: Tensor) -> Tensor:
        """Apply all layers to hidden states (B, S, d) without extending the cached positions."""
        for index, layer in enumerate(self.block.layers):
            hidden = self.attend(cast(Layer, layer), index, hidden)
        return hidden

    def predict(self, inputs: Tensor, added: Tensor | None) -> Density:
        """Return the density of the tokens after inputs (B, S, c)."""
        return self.block.head(self.block.norm(self.run(self.block.projected(inputs, added))))


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate adjacent pairs of x (B, S, H, e) by angles (S, e / 2). Duplicated here, so that a faster rotation in the
    world does not speed up the baseline."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Published:
    """Published decoder for rows of one age, started at a world's state; `u` (B, n, c): the last decoded frame."""

    def __init__(self, world: World, state: WorldState, *, block: int = BLOCK) -> None:
        if int(state.length.min()) != int(state.length.max()) or not int(state.length[0]):
            raise ValueError(f"published: expected rows of one age, at least 1, found ages {state.length.tolist()}")
        self.world, self.networks, self.block, count = world, world.networks, block, int(state.length[0])
        self.tables, self.dynamics = world.dynamics.tables, world.dynamics
        self.text, self.key, self.age = state.text, state.key, state.step.clone()
        self.frames, self.actions, self.latents = state.tokens[:, :count], state.actions[:, :count], state.latents
        self.rounds, self.u = 0, self.frames[:, -1]
        self.cache = self._encode()

    @torch.inference_mode()
    def step(self, flat: Tensor) -> Tensor:
        """Decode the next frame under actions (B, 1 + flat) and return its pixels (B, 1, H, W, 3) u8."""
        flow = self.networks.flow
        if self.frames.shape[1] == self.world.config.window:
            self._slide()
        noise = normals(self.key, self.age, "prior", self.dynamics.noise_shape).to(self.u.dtype)
        present = torch.ones(len(self.u), 1, 1, dtype=torch.bool, device=flow.device)
        added = flow.next_conditions(self.u, present, self.text, self.networks.action(flat), self.tables.grid)
        self.u, density = self._decode(self.cache, self.u[:, -1:], noise, self.u, added, self.block)
        x = self._shallow(self.u)
        self.frames = torch.cat((self.frames, self.u[:, None]), dim=1)
        self.actions, self.age = torch.cat((self.actions, flat[:, None]), dim=1), self.age + 1
        return self._finish(density, x)

    def _decode(
        self, cache: PublishedCache, before: Tensor, noise: Tensor, guess: Tensor, added: Tensor | None, block: int
    ) -> tuple[Tensor, Density]:
        """Decode all blocks in sequence; return tokens (B, n, c) and their density in each block's last pass."""
        parts, densities = [], []
        for begin in range(0, noise.shape[1], block):
            part = slice(begin, begin + block)
            predict = partial(cache.predict, added=None if added is None else added[:, part])
            tokens, density = self._iterate(predict, before, noise[:, part], guess[:, part])
            cache.length += tokens.shape[1]
            before = tokens[:, -1:]
            parts.append(tokens)
            densities.append(density)
        return torch.cat(parts, dim=1), densities[0].join(densities[1:])

    def _iterate(
        self, predict: Callable[[Tensor], Density], before: Tensor, noise: Tensor, guess: Tensor
    ) -> tuple[Tensor, Density]:
        """Iterate one block until the mean change over the batch is below the threshold."""
        old, inputs = noise[..., : guess.shape[-1]], guess
        for _ in range(ROUNDS):
            density = predict(torch.cat((before, inputs[:, :-1]), dim=1))
            new, _ = density.draw(noise)
            self.rounds += 1
            if noise.shape[1] == 1 or float((new - old).square().mean() / new.square().mean()) < THRESHOLD:
                break  # a single token is exact after one round
            old = inputs = new
        return new, density

    def _shallow(self, u: Tensor) -> Tensor:
        """Invert the shallow blocks of a frame u, each by the same iteration; return noisy latents (B, n, c)."""
        for block in reversed([cast(Block, block) for block in self.networks.flow.shallow]):
            z = block.in_order(u)
            cache = PublishedCache(block, len(u), self.tables.frame[0].angle())
            start = block.start.expand(len(u), 1, -1)
            u = block.in_order(self._decode(cache, start, z, z, None, self.block)[0])
        return u

    def _finish(self, density: Density, x: Tensor) -> Tensor:
        """Apply the world's own outcome head, denoiser and codec to noisy latents x; return pixels."""
        networks, moves = self.networks, self.dynamics
        kept = moves.frames.kept(x[:, None], density, self.u)
        seen = torch.cat((self.latents, kept), dim=1)
        self.latents = seen[:, seen.shape[1] - self.latents.shape[1] :]
        if networks.outcome is not None:
            described = networks.flow.describe(x)
            networks.outcome.reward(networks.outcome(density.hidden, described, self.text, self.tables.grid))
        latents = seen[:, -moves.frames.look_back - 1 :]
        if networks.flow.denoiser is not None:
            back = torch.arange(latents.shape[1] - 1, -1, -1)
            latents = networks.flow.denoise(latents, self.text, self.tables, back < self.age[:, None])
        return networks.codec.decode(latents[:, -1:])[0]

    def _slide(self) -> None:
        keep = self.world.config.context
        self.frames, self.actions = self.frames[:, -keep:], self.actions[:, -keep:]
        self.u, self.cache = self.frames[:, -1], self._encode()

    @torch.inference_mode()
    def _encode(self) -> PublishedCache:
        """Encode the text and the frames of the window into a new cache."""
        flow, count, tables = self.networks.flow, self.frames.shape[1], self.tables
        video = tables.video[0].angle()
        angles = video if self.text is None else torch.cat((tables.text[0].angle(), video))
        cache = PublishedCache(flow.deep, len(self.frames), angles)
        if self.text is not None:
            assert flow.deep.project_text is not None
            cache.run(flow.deep.project_text(self.text))
            cache.length = self.text.shape[1]
        added = flow.conditions(self.frames, self.text, self.networks.action(self.actions), tables.grid)
        assert added is not None
        cache.predict(flow.deep.shift(self.frames.flatten(1, 2)), added.flatten(1, 2))
        cache.length += count * self.frames.shape[2]
        return cache
