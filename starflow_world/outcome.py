"""Reward and end of a frame, from what the deep block knows and the frame itself.

A stateless head: each token's hidden state (it has seen text, history and action) and value go through a small
network, are summed over the frame, and become a distribution over reward bins (two-hot over symlog; Hafner et al. 2023)
and p(end).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import OutcomeConfig


@dataclass(frozen=True)
class Outcome:
    """reward_logits (..., bins) and end_logit (...)."""

    reward_logits: Tensor
    end_logit: Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog."""
    return x.sign() * x.abs().expm1()


class OutcomeHead(nn.Module):
    """hidden (..., n, d) and tokens u (..., n, c) -> Outcome of the frame."""

    bins: Tensor

    def __init__(self, config: OutcomeConfig, hidden: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden + channels, config.width)
        self.mix = nn.Linear(config.width, config.width)
        self.read = nn.Linear(config.width, config.bins + 1)
        largest = math.log1p(config.largest_reward)
        bins = torch.linspace(-largest, largest, config.bins, device="cpu")  # numbers even in a network of shapes only
        self.register_buffer("bins", bins, persistent=False)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Outcome:
        """(..., n, d), (..., n, c) -> Outcome (...)."""
        dtype = self.read.weight.dtype
        features = F.gelu(self.project(torch.cat((hidden.to(dtype), tokens.to(dtype)), dim=-1)))
        pooled = F.gelu(self.mix(features)).sum(-2)
        out = self.read(pooled)
        return Outcome(out[..., :-1], out[..., -1])

    def reward(self, outcome: Outcome) -> Tensor:
        """Expected reward (...)."""
        return symexp((outcome.reward_logits.softmax(-1) * self.bins).sum(-1))

    def loss(self, outcome: Outcome, reward: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies (...) of rewards against the two-hot bins, and of ends (0 or 1)."""
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
