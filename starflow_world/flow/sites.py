"""Small convolutional networks over the sites of a frame.

A token of c channels is a square of m x m sites with c / m**2 channels each, in raster order; a frame of h x w tokens
is an image of hm x wm sites. Site networks run once per frame, not once per Jacobi sweep. Convolution weights are
stored as matrices (out, in * k * k), the shape that the Muon optimizer orthogonalises.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def to_sites(tokens: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Rearrange tokens (B, n, c), a grid of h x w = n, into sites (B, h * side, w * side, c / side**2)."""
    sites = tokens.unflatten(1, grid).unflatten(3, (side, side, -1))
    return sites.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def to_tokens(sites: Tensor, side: int) -> Tensor:
    """Rearrange sites (B, h * side, w * side, k) into tokens (B, h * w, k * side**2): the inverse of `to_sites`."""
    squares = sites.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return squares.transpose(2, 3).flatten(3, 5).flatten(1, 2)


def pooled_text(text: Tensor) -> Tensor:
    """Return the sum of text states (B, L, width) over L, divided by sqrt(L) to keep their scale: (B, width)."""
    return text.sum(1) / text.shape[1] ** 0.5


class SiteConv(nn.Linear):
    """Zero-padded convolution with a kernel of `size` x `size` sites and a weight matrix (out, width * size**2)."""

    def __init__(self, width: int, out: int, size: int = 1) -> None:
        super().__init__(width * size**2, out)
        self.size = size

    def forward(self, sites: Tensor) -> Tensor:
        """Map sites (B, H, W, width) to (B, H, W, out)."""
        if self.size == 1:
            return super().forward(sites)
        weight = self.weight.unflatten(1, (-1, self.size, self.size))
        return F.conv2d(sites.permute(0, 3, 1, 2), weight, self.bias, padding=self.size // 2).permute(0, 2, 3, 1)


class SiteLayer(nn.Module):
    """Residual layer: 3 x 3 convolution, scale and shift by the frame's condition (as in FiLM), 1 x 1 convolution."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.look, self.mix = SiteConv(width, width, 3), SiteConv(width, width)
        self.condition = nn.Linear(condition, 2 * width) if condition else None

    def forward(self, sites: Tensor, condition: Tensor | None) -> Tensor:
        """Map sites (B, H, W, width) to the same shape, given a condition (B, d); None only if built without one."""
        around = self.look(F.gelu(sites))
        if self.condition is not None:
            assert condition is not None
            scale, shift = self.condition(condition)[:, None, None].chunk(2, dim=-1)
            around = around * (1 + scale) + shift
        return sites + self.mix(F.gelu(around))


class SiteNet(nn.Module):
    """Convolutional network from tokens to features of every site, with a condition per frame; in float32 or wider."""

    def __init__(self, channels: int, width: int, layers: int, side: int, condition: int = 0) -> None:
        super().__init__()
        self.side = side
        self.stem, self.first = SiteConv(channels // side**2, width), SiteConv(width, width)
        self.layers = nn.ModuleList(SiteLayer(width, condition) for _ in range(layers))

    def forward(self, tokens: Tensor, grid: tuple[int, int], condition: Tensor | None = None) -> Tensor:
        """Map tokens (B, n, c) and condition (B, d) to features (B, H, W, width)."""
        sites = self.first(F.gelu(self.stem(to_sites(tokens, grid, self.side))))
        for layer in self.layers:
            sites = layer(sites, condition)
        return F.gelu(sites)
