"""Networks over the sites of a frame: small convolutions that see every site with what is around it.

A token of c channels is a square of m x m sites of c / m**2 numbers each, in raster order; a frame of h x w tokens is
an image of hm x wm sites. Site networks run once per frame, not once per sweep, and share their weights over all sites.
Weights are kept as matrices (out, in * k * k), the shape that Muon orthogonalises.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARPNESS = 4.0


def to_sites(tokens: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Tokens (B, n, c) of h x w = n squares -> (B, c / side**2, h * side, w * side)."""
    sites = tokens.unflatten(1, grid).unflatten(3, (side, side, -1))
    return sites.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def to_tokens(sites: Tensor, side: int) -> Tensor:
    """(B, k, h * side, w * side) -> tokens (B, h * w, k * side**2), the inverse of `to_sites`."""
    squares = sites.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return squares.permute(0, 2, 4, 3, 5, 1).flatten(3, 5).flatten(1, 2)


def pooled_text(text: Tensor) -> Tensor:
    """States (B, L, width) of texts as one vector each, (B, width), as large as the states themselves."""
    return text.sum(1) / text.shape[1] ** 0.5


class SiteConv(nn.Linear):
    """A convolution over `size` x `size` sites, zero outside the frame."""

    def __init__(self, width: int, out: int, size: int = 1) -> None:
        super().__init__(width * size**2, out)
        self.size = size

    def forward(self, sites: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, out, H, W)."""
        if self.size == 1:
            return product(self.weight, sites, self.bias)
        weight = self.weight.unflatten(1, (-1, self.size, self.size))
        return F.conv2d(sites, weight, self.bias, padding=self.size // 2)


def product(weight: Tensor, sites: Tensor, bias: Tensor | None = None) -> Tensor:
    """One matrix (out, in), or one of each frame, (B, out, in), at every site: (B, in, H, W) -> (B, out, H, W). As a
    product of each frame; a convolution takes two to five times as long on a CPU."""
    flat, weight = sites.flatten(2), weight.expand(len(sites), -1, -1)
    found = torch.bmm(weight, flat) if bias is None else torch.baddbmm(bias[:, None], weight, flat)
    return found.unflatten(2, sites.shape[2:])


class SiteLayer(nn.Module):
    """Look at the 3 x 3 sites around, scaled and shifted by the frame's condition, and mix; residual."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.look, self.mix = SiteConv(width, width, 3), SiteConv(width, width)
        self.condition = nn.Linear(condition, 2 * width) if condition else None

    def forward(self, sites: Tensor, condition: Tensor | None) -> Tensor:
        """sites (B, width, H, W), condition (B, d) or None."""
        around = self.look(F.gelu(sites))
        if self.condition is not None:
            assert condition is not None
            scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
            around = around * (1 + scale) + shift
        return sites + self.mix(F.gelu(around))


class SiteNet(nn.Module):
    """Tokens (B, n, c) -> features (B, width, H, W) of every site, given a condition per frame; float32 at least."""

    def __init__(self, channels: int, width: int, layers: int, side: int, condition: int = 0) -> None:
        super().__init__()
        self.side = side
        self.stem, self.first = SiteConv(channels // side**2, width), SiteConv(width, width)
        self.layers = nn.ModuleList(SiteLayer(width, condition) for _ in range(layers))

    def forward(self, tokens: Tensor, grid: tuple[int, int], condition: Tensor | None = None) -> Tensor:
        """tokens (B, n, c), condition (B, d) -> (B, width, H, W)."""
        sites = self.first(F.gelu(self.stem(to_sites(tokens, grid, self.side))))
        for layer in self.layers:
            sites = layer(sites, condition)
        return F.gelu(sites)


class SiteHead(nn.Module):
    """Numbers per site. With `codes` > 0 the last `mean` of them may be read off a learned table: a softmax over its
    entries is added to them, and a saturated softmax is free of the noise that a sum of features keeps."""

    def __init__(self, width: int, out: int, mean: int, codes: int) -> None:
        super().__init__()
        self.numbers = SiteConv(width, out)
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)
        self.choice = SiteConv(width, codes) if codes else None
        self.codes = nn.Parameter(0.5 * torch.randn(codes, mean)) if codes else None

    def forward(self, sites: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, out, H, W)."""
        numbers = self.numbers(sites)
        if self.choice is None or self.codes is None:
            return numbers
        share = (SHARPNESS * self.choice(sites)).softmax(1)
        read = product(self.codes.T, share)
        return numbers + F.pad(read, (0, 0, 0, 0, numbers.shape[1] - read.shape[1], 0))
