"""Predict reward and end of a frame from the deep block's hidden states and the frame itself.

A stateless head: a site network reads the noisy latent frame, described by the codebook (flow/density.py), the text,
and the hidden state of each token, which depends on text, history and action. The features are summed over the frame
and give a distribution over reward bins (two-hot over symlog; Hafner et al. 2023) and p(end).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig, OutcomeConfig
from starflow_world.flow.sites import SiteConv, SiteNet, pooled_text, to_sites


@dataclass(frozen=True)
class Outcome:
    """Output of the head: reward_logits (..., bins) and end_logit (...)."""

    reward_logits: Tensor
    end_logit: Tensor


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Invert symlog."""
    return x.sign() * x.abs().expm1()


class OutcomeHead(nn.Module):
    """Head that maps hidden states, described tokens and text to an Outcome."""

    bins: Tensor

    def __init__(self, config: OutcomeConfig, flow: FlowConfig) -> None:
        super().__init__()
        width = config.width
        self.project = nn.Linear(flow.deep_width, width * flow.sites**2, bias=False)
        nn.init.zeros_(self.project.weight)  # before training the hidden states only add noise
        codes = flow.sites**2 * flow.components if flow.components > 1 else 0
        self.net = SiteNet(flow.channels + codes, width, config.layers, flow.sites, flow.text_width)
        self.mix = SiteConv(width, width)
        self.read = nn.Linear(width, config.bins + 1)
        largest = math.log1p(config.largest_reward)
        bins = torch.linspace(-largest, largest, config.bins, device="cpu")  # real values even on the meta device
        self.register_buffer("bins", bins, persistent=False)

    def forward(self, hidden: Tensor, x: Tensor, text: Tensor | None, grid: tuple[int, int]) -> Outcome:
        """Map hidden (B, n, d), tokens x (B, n, ...) as `Flow.describe` gives, and text (B, L, text width) to (B,)."""
        dtype = self.read.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            sites = self.net(x.to(dtype), grid, None if text is None else pooled_text(text).to(dtype))
            sites = sites + to_sites(self.project(hidden.to(dtype)), grid, self.net.side)
            pooled = F.gelu(self.mix(F.gelu(sites))).sum((1, 2))
            out = self.read(pooled)
        return Outcome(out[..., :-1], out[..., -1])

    def reward(self, outcome: Outcome) -> Tensor:
        """Return the expected reward (...)."""
        return symexp((outcome.reward_logits.softmax(-1) * self.bins).sum(-1))

    def loss(self, outcome: Outcome, reward: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies (...) of rewards with two-hot targets, and of ends (0 or 1)."""
        place = symlog(reward).clamp(self.bins[0], self.bins[-1])
        step = self.bins[1] - self.bins[0]
        position = (place - self.bins[0]) / step
        low = position.floor().long().clamp(max=len(self.bins) - 2)
        share = (position - low).clamp(0, 1)
        logs = outcome.reward_logits.log_softmax(-1)
        below, above = logs.gather(-1, low[..., None])[..., 0], logs.gather(-1, low[..., None] + 1)[..., 0]
        reward_loss = -((1 - share) * below + share * above)
        target = end.to(outcome.end_logit.dtype)
        return reward_loss, F.binary_cross_entropy_with_logits(outcome.end_logit, target, reduction="none")
