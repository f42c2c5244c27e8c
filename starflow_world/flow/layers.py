"""Transformer layers of STARFlow-V: pre-norm attention with rotary positions on three axes, GELU feed-forward.

Shapes: B batch elements, S sequence length, d width, H heads of width e = d / H. A rotary table holds exp(i angle),
(1 or B, S, e / 2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.flow.cache import KVCache, Visible

TIME_PAIRS = 8
SHARPNESS = 5.0
"""By how much the logit of the place that a head begins to look at exceeds the mean over places, per rotary pair."""
MASKED = 512
"""Most positions of a cache of several rows to which a CPU attends as a whole, through a mask; else row by row."""


def rotary_table(positions: Tensor, head_width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return exp(i angle) of positions (..., S, 3) (row, column, time): complex (..., S, e / 2) with parts in `dtype`.

    Of the e / 2 rotary pairs, 8 encode time; row and column share the rest (STARFlow-V, appendix: 12, 12, 8 at e = 64).
    """
    spatial = head_width // 2 - TIME_PAIRS
    if spatial < 2 or spatial % 2:
        raise ValueError(f"head width: expected 20 + 4k (rotary pairs: rows, columns, 8 for time), found {head_width}")
    row_column, time = rotary_frequencies(spatial // 2), rotary_frequencies(TIME_PAIRS)
    row, column, frame = positions.double().unbind(-1)
    angles = torch.cat(
        (row[..., None] * row_column, column[..., None] * row_column, frame[..., None] * time), dim=-1
    )
    return torch.complex(angles.cos().to(dtype), angles.sin().to(dtype))


def rotary_frequencies(pairs: int) -> Tensor:
    """Return the radians per unit of position (pairs,) f64 of the rotary pairs of one axis, from 1 down to 1e-4."""
    return 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


def grid_positions(frames: int, grid: tuple[int, int], scale: float) -> Tensor:
    """Return positions (frames * h * w, 3) of the tokens of `frames` frames in raster order. Rows and columns are
    scaled so that the geometric mean of a frame's height and width is `scale` at every resolution."""
    h, w = grid
    step = scale / (h * w) ** 0.5
    time, row, column = torch.meshgrid(
        torch.arange(frames, dtype=torch.float64),
        torch.arange(h, dtype=torch.float64) * step,
        torch.arange(w, dtype=torch.float64) * step,
        indexing="ij",
    )
    return torch.stack((row, column, time), dim=-1).reshape(-1, 3)


def text_positions(length: int, scale: float) -> Tensor:
    """Return positions (length, 3) of text tokens, spread over the time axis from 0 to below `scale`."""
    time = torch.arange(length, dtype=torch.float64) * (scale / max(length, 1))
    return torch.stack((torch.zeros_like(time), torch.zeros_like(time), time), dim=-1)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate adjacent pairs of the last axis of x (B, S, K, H, e) by the angles of `rotary`, as one complex product, or
    in real arithmetic under torch.compile."""
    if torch.compiler.is_compiling():
        cos, sin = torch.view_as_real(rotary[:, :, None, None, :]).unbind(-1)
        even, odd = x[..., 0::2].to(cos.dtype), x[..., 1::2].to(cos.dtype)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.to(rotary.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary[:, :, None, None, :]).flatten(-2).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | Visible | None, *, causal: bool) -> Tensor:
    """Return the scaled dot-product attention (B, H, S, e) of query (B, H, S, e) to key and value (B, H, keys, e).

    If gradients are recorded on a CPU, it is computed by two matrix products, because the backward pass of the fused
    kernel is 2 to 8 times slower there (torch 2.13, 16 to 536 keys).
    """
    if isinstance(mask, Visible):
        if query.device.type == "cpu" and (len(query) == 1 or mask.capacity > MASKED):
            return _row_by_row(query, key, value, mask)
        mask = mask.whole
    if query.device.type != "cpu" or not (torch.is_grad_enabled() and query.requires_grad):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ value


def _row_by_row(query: Tensor, key: Tensor, value: Tensor, visible: Visible) -> Tensor:
    """Compute attention per batch element over its valid keys only, which is faster on a CPU than masking the
    whole of a large cache."""
    masks = {end: visible.own[..., -end:] if visible.count > 1 else None for end in set(visible.ends)}
    rows = [
        attend(q, k.narrow(2, 0, end), v.narrow(2, 0, end), masks[end], causal=False)
        for q, k, v, end in zip(query.split(1), key.split(1), value.split(1), visible.ends, strict=True)
    ]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


class Attention(nn.Module):
    """Multi-head self-attention; with a cache the queries also attend to the cached keys."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rotary: Tensor, mask: Tensor | Visible | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """Map x (B, S, d) to (B, S, d). `mask`, broadcast to (B, 1, S, keys), is boolean (True: may attend) or additive
        (0 or -inf). None means causal without a cache, all keys with one. With a cache of k B rows (k = 2 under
        guidance) the projections of x are computed once and repeated; returns (k B, S, d)."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key = rotate(qkv[:, :, :2], rotary[: len(x)]).unbind(2)
        value = qkv[:, :, 2]
        if cache is not None and cache.rows > len(x):
            query, key, value = (part.repeat(cache.rows // len(x), 1, 1, 1) for part in (query, key, value))
        query = query.transpose(1, 2)
        if cache is None:
            key, value = key.transpose(1, 2), value.transpose(1, 2)
        else:
            key, value = cache.write(layer, key, value)
        causal = mask is None and cache is None
        attended = attend(query, key.to(query.dtype), value.to(query.dtype), mask, causal=causal)
        return self.out(attended.transpose(1, 2).flatten(-2))

    @torch.no_grad()
    def look_back(self) -> None:
        """Let half of the heads begin by attending to the token at the same place 1, 2, ... frames before, by the
        biases of their queries and keys: at the fastest rotary pairs of rows, columns and time keys lag so far in time.
        """
        query, key, _ = self.qkv.bias.view(3, self.heads, -1, 2)
        half, spatial = self.heads // 2, query.shape[1] - TIME_PAIRS
        lags = torch.arange(1, half + 1)[:, None] * rotary_frequencies(TIME_PAIRS)[:2]
        angle = torch.cat((torch.zeros(half, 2), lags), dim=1)
        size = (SHARPNESS * (2 * query.shape[1]) ** 0.5) ** 0.5
        pairs = [0, spatial // 2, spatial, spatial + 1]
        query[:half, pairs] = torch.tensor((size, 0.0)).to(query)
        key[:half, pairs] = size * torch.stack((angle.cos(), angle.sin()), dim=-1).to(key)

    def write(self, x: Tensor, rotary: Tensor, cache: KVCache, layer: int) -> None:
        """Store the keys and values of x (B, S, d) in the cache, as `forward` does, without computing attention."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        key, value = rotate(qkv[:, :, 1:2], rotary[: len(x)])[:, :, 0], qkv[:, :, 2]
        cache.write(layer, *(part.repeat(cache.rows // len(x), 1, 1, 1) for part in (key, value)))


class FeedForward(nn.Module):
    """Feed-forward network: LayerNorm, projection to width 4 d, GELU, projection back to d."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d) to (..., d)."""
        return self.down(F.gelu(self.up(self.norm(x))))


class Layer(nn.Module):
    """One transformer layer: attention, then feed-forward, each with a residual connection."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.attention = Attention(width, head_width)
        self.feed_forward = FeedForward(width)

    def forward(
        self, x: Tensor, rotary: Tensor, mask: Tensor | Visible | None = None, cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Map x (B, S, d) to (B, S, d), or to (k B, S, d) with a cache of k B rows (see `Attention.forward`)."""
        attended = self.attention(x, rotary, mask, cache, layer)
        x = attended + (x if len(x) == len(attended) else x.repeat(len(attended) // len(x), 1, 1))
        return x + self.feed_forward(x)


class FinalNorm(nn.Module):
    """Root-mean-square norm in float32 or wider; its scale is stored as `weight` = scale - 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., d) in the dtype of the weight."""
        weight = 1 + self.weight
        return F.rms_norm(x.to(weight.dtype), x.shape[-1:], weight, 1e-6)
