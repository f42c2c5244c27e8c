"""Sampling of first frames from text by denoising diffusion (Ho et al. 2020; Karras et al. 2022, "EDM").

The layout of a first frame is multimodal, which few affine steps model badly. A first frame can therefore be sampled in
K denoising steps at noise levels s_K > ... > s_0, each an affine map of new noise z:

    x_K = s_K z;    x_k = clean + (s_k / s_{k+1})**2 (x_{k+1} - clean) + s_k sqrt(1 - (s_k / s_{k+1})**2) z

with clean = E[clean | x_{k+1}, text], which a transformer over the sites of the frame learns by regression. s_0 is the
noise level of the world, so x_0 is an ordinary noisy latent whose likelihood the flow computes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig, StartConfig
from starflow_world.flow.layers import FinalNorm, Layer, grid_positions, rotary_table
from starflow_world.flow.sites import SiteHead, pooled_text, to_sites, to_tokens

LARGEST, RHO = 10.0, 7.0
FREQUENCIES = 16


class Diffusion(nn.Module):
    """Transformer that predicts clean latents of first frames from noisy ones, the noise level and the text."""

    def __init__(self, config: StartConfig, flow: FlowConfig) -> None:
        super().__init__()
        self.config, self.side, width = config, flow.sites, config.width
        per_site = flow.channels // flow.sites**2
        self.scale, self.head_width = flow.position_scale, flow.head_width
        self.project_in = nn.Linear(per_site, width)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.GELU(), nn.Linear(width, width))
        self.text = None
        if flow.text_width:
            self.text = nn.Sequential(nn.Linear(flow.text_width, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(Layer(width, flow.head_width) for _ in range(config.layers))
        self.norm = FinalNorm(width)
        self.head = SiteHead(width, per_site, per_site, flow.codes)

    def forward(self, x: Tensor, s: Tensor, text: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Return the expected clean latents (B, n, c) of x (B, n, c) at noise level s (B,); text (B, L, text width)."""
        sites = to_sites(x / (1 + s.square())[:, None, None].sqrt(), grid, self.side)
        shape = (sites.shape[1], sites.shape[2])
        hidden = self.project_in(sites.flatten(1, 2)) + self.level(_fourier(s.log()))[:, None]
        if self.text is not None and text is not None:
            hidden = hidden + self.text(pooled_text(text).to(hidden.dtype))[:, None]
        parts = torch.promote_types(hidden.dtype, torch.float32)
        rotary = rotary_table(grid_positions(1, shape, self.scale), self.head_width, parts)[None].to(x.device)
        everywhere = torch.ones(1, 1, 1, hidden.shape[1], dtype=torch.bool, device=x.device)
        for layer in self.layers:
            hidden = layer(hidden, rotary, everywhere)
        with torch.autocast(x.device.type, enabled=False):
            clean = self.head(self.norm(hidden).unflatten(1, shape))
        return to_tokens(clean, self.side)

    def loss(
        self, clean: Tensor, noise: Tensor, level: Tensor, least: float, text: Tensor | None, grid: tuple[int, int]
    ) -> Tensor:
        """Return the weighted mean squared error of predicting clean latents (B, n, c); noise (B, n, c) is standard
        normal. `level` (B,) in [0, 1] interpolates log noise levels from `least` to the largest."""
        s = (math.log(least) + level * math.log(LARGEST / least)).exp()
        guess = self(clean + s[:, None, None] * noise, s, text, grid)
        weight = (1 + s.square()) / s.square()
        return ((guess - clean).square().mean((1, 2)) * weight).mean()

    def sample(
        self, noise: Callable[[int], Tensor], least: float, text: Tensor | None, grid: tuple[int, int], *,
        null_text: Tensor | None = None, guidance: float = 0.0,
    ) -> Tensor:
        """Sample x_0 (B, n, c) at noise level `least`; noise(k) (B, n, c) is the noise of step k. With `guidance` w > 0
        the prediction is extrapolated from that of the null text by a factor of 1 + w."""
        levels = self.levels(least)
        x = levels[0] * noise(0)
        for k in range(1, len(levels)):
            s, ratio = x.new_full((len(x),), levels[k - 1]), (levels[k] / levels[k - 1]) ** 2
            clean = self(x, s, text, grid)
            if guidance:
                clean = clean + guidance * (clean - self(x, s, null_text, grid))
            x = clean + ratio * (x - clean) + levels[k] * math.sqrt(1 - ratio) * noise(k)
        return x

    def levels(self, least: float) -> list[float]:
        """Return the noise levels s_K > ... > s_0 = least, K = config.steps (Karras et al. 2022, equation 5)."""
        top, bottom, count = LARGEST ** (1 / RHO), least ** (1 / RHO), self.config.steps
        return [(top + k / count * (bottom - top)) ** RHO for k in range(count + 1)]


def _fourier(value: Tensor) -> Tensor:
    """Return the Fourier features (sines and cosines, (B, 2 * FREQUENCIES)) of values (B,)."""
    angles = value[:, None] * 2.0 ** torch.linspace(-2, 4, FREQUENCIES, device=value.device, dtype=value.dtype)
    return torch.cat((angles.sin(), angles.cos()), dim=1)
