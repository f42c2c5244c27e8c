"""The affine autoregressive block (STARFlow-V, section 3.1; TARFlow, section 3.1), shallow and deep.

A causal transformer over a start token and tokens < i predicts the density of token i (density.py). With one normal per
channel, as published,

    o_i = 4 tanh(head(...) / 4);   (a, mu) = split(o_i);   sigma = softplus(a + ln(e - 1))
    z_i = (x_i - mu) / sigma;      log|dz/dx| = -log sigma

Densities are computed in float32 or wider, whatever the dtype of the network.
Shapes: B batch elements, S tokens, c channels, d width, e head width, n tokens per frame, W frames, L text length.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from starflow_world.flow.cache import KVCache, Visible
from starflow_world.flow.density import AffineHead, Density, MixtureHead
from starflow_world.flow.layers import FinalNorm, Layer


@dataclass(frozen=True)
class Tables:
    """Rotary tables for one grid: `frame` (1, n, e/2) at time 0, `video` (1, W * n, e/2), `text` (1, L, e/2)."""

    grid: tuple[int, int]
    frame: Tensor
    video: Tensor
    text: Tensor

    def whole(self, frames: int, *, text: bool) -> Tensor:
        """Return the rotary table of a sequence of `frames` frames, preceded by the text if `text`."""
        video = self.video[:, : frames * self.grid[0] * self.grid[1]]
        return torch.cat((self.text, video), dim=1) if text else video

    def at(self, start: Tensor, count: int) -> Tensor:
        """Return the table (B, count, e/2) of positions start, start + 1, ... per element; start (B,) on the CPU."""
        index = (start[:, None] + torch.arange(count)).to(self.video.device)
        return self.video[0][index]


class Block(nn.Module):
    """Transformer with a start token, an input projection and a head that gives the density of the next token.

    With `text_width` > 0 every token attends to a text prefix. `reverse` processes the tokens of a frame in reverse.
    Behind a `MixtureHead` the inputs are read with the posteriors of their sites, which are free of noise.
    """

    def __init__(
        self, channels: int, width: int, layers: int, head_width: int, *, reverse: bool = False, text_width: int = 0,
        head: MixtureHead | None = None,
    ) -> None:
        super().__init__()
        self.reverse = reverse
        self.heads, self.head_width = width // head_width, head_width
        self.start = nn.Parameter(torch.randn(channels) * 0.02)
        described = 0 if head is None else head.sites * head.codebook.components
        self.project_in = nn.Linear(channels + described, width)
        self.project_text = nn.Linear(text_width, width) if text_width else None
        self.layers = nn.ModuleList(Layer(width, head_width) for _ in range(layers))
        self.norm = FinalNorm(width)
        self.head = AffineHead(width, channels) if head is None else head

    def look_back(self) -> None:
        """Let half of the heads of each layer begin by attending to the same place in earlier frames: from heads that
        begin anywhere, what happened before the last frame is learned too late to be of use."""
        for layer in self.layers:
            cast(Layer, layer).attention.look_back()

    def shift(self, x: Tensor) -> Tensor:
        """Return the network's inputs for tokens x (B, S, c): the start token, then all tokens but the last."""
        return torch.cat((self.start.to(x.dtype).expand(len(x), 1, -1), x[:, :-1]), dim=1)

    def predict(
        self, inputs: Tensor, rotary: Tensor, cache: KVCache | None = None, visible: Visible | None = None,
        added: Tensor | None = None,
    ) -> Density:
        """Predict the token after each of `inputs` (B, S, c); write the inputs' keys after the valid ones of `cache`.

        `added` (B, S, d) is a condition added to the projected inputs. `visible` is the mask `cache.visible(S, ...)`.
        """
        return self._run(self.projected(inputs, added), rotary, cache, visible)

    def predict_with_text(self, inputs: Tensor, text: Tensor, rotary: Tensor, added: Tensor | None = None) -> Density:
        """Predict a whole sequence after `text` (B, L, text width), without a cache; rotary covers L + S positions."""
        assert self.project_text is not None
        hidden = torch.cat((self.project_text(text), self.projected(inputs, added)), dim=1)
        return self._run(hidden, rotary, None, None, text.shape[1])

    def write(
        self, inputs: Tensor, rotary: Tensor, cache: KVCache, visible: Visible | None, added: Tensor | None = None
    ) -> None:
        """Write the keys and values of `inputs` to the cache as `predict` does, without computing a prediction."""
        self._write(self.projected(inputs, added), rotary, cache, visible)

    def write_text(self, text: Tensor, rotary: Tensor, cache: KVCache) -> KVCache:
        """Return `cache`, which must be empty, with the keys of text (B, L, text width) committed."""
        assert self.project_text is not None
        visible = cache.visible(text.shape[1], self.project_in.weight.dtype)
        self._write(self.project_text(text), rotary, cache, visible)
        return cache.commit(text.shape[1])

    def projected(self, inputs: Tensor, added: Tensor | None) -> Tensor:
        """Return the first layer's input (k B, S, d) from tokens (B, S, c) and conditions (k B, S, d)."""
        described = self.head.codebook.describe(inputs) if isinstance(self.head, MixtureHead) else inputs
        hidden = self.project_in(described).to(self.norm.weight.dtype)  # residuals at full precision
        if added is not None and len(added) > len(hidden):
            hidden = hidden.repeat(len(added) // len(hidden), 1, 1)
        return hidden if added is None else hidden + added

    def _run(
        self, hidden: Tensor, rotary: Tensor, cache: KVCache | None, visible: Visible | None, first: int = 0
    ) -> Density:
        """Run all layers and predict from the positions `first`, first + 1, ..."""
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, rotary, visible, cache, index)
        return self.head(self.norm(hidden[:, first:]))

    def _write(self, hidden: Tensor, rotary: Tensor, cache: KVCache, visible: Visible | None) -> None:
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index < last:
                hidden = layer(hidden, rotary, visible, cache, index)
            else:
                cast(Layer, layer).attention.write(hidden, rotary, cache, index)

    def empty_cache(self, rows: int, capacity: int, dtype: torch.dtype | None = None) -> KVCache:
        """Allocate an empty cache of `rows` batch elements and `capacity` positions for this block's layers."""
        weight = self.project_in.weight
        dtype = weight.dtype if dtype is None else dtype
        return KVCache.empty(
            len(self.layers), rows, capacity, self.heads, self.head_width, dtype=dtype, device=weight.device
        )

    def in_order(self, x: Tensor) -> Tensor:
        """Return x (..., n, c) in the block's token order, or in the original order if x is in the block's order."""
        return x.flip(-2) if self.reverse else x
