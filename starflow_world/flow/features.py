"""Features of the previous frame, the action and the text, which the deep block's inputs are given beside the tokens.

A small convolutional network over sites runs once per frame, not once per Jacobi sweep, and tells the deep block what
was around each token: without it the block would have to look up every neighbour by attention. What was at the token
itself is told as it was, so that later frames can look it up. The sum is normalised: features of a world without chance
grow to 30 times the size of what attention adds, and then what happened before the last frame is never learned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig
from starflow_world.flow.density import AffineHead, MixtureHead
from starflow_world.flow.sites import SiteNet, pooled_text, to_tokens


class NoFeatures(nn.Module):
    """Features of a flow that reads the last frame by attention alone, as published: none."""

    silent = True
    """Whether nothing is ever added."""

    def forward(self, described: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return additions (N, n, d) given N previous frames, described (N, n, ...), and actions (N, d): zeros."""
        return action.new_zeros(len(action), described.shape[1], action.shape[1])

    def with_text(self, added: Tensor, text: Tensor | None) -> Tensor:
        """Return additions `added` (B, ..., d) with those of text (k B, L, text width): `added`."""
        return added


class Features(NoFeatures):
    """Network from the tokens of the previous frame and the action to additions to the deep block's inputs."""

    silent = False

    def __init__(self, config: FlowConfig, head: AffineHead | MixtureHead) -> None:
        super().__init__()
        self.side = config.sites
        described = config.channels + (head.sites * head.codebook.components if isinstance(head, MixtureHead) else 0)
        self.net = SiteNet(described, config.features_width, config.features_layers, self.side, config.deep_width)
        self.tell = nn.Linear(config.features_width * self.side**2 + described, config.deep_width, bias=False)
        self.text = nn.Linear(config.text_width, config.deep_width, bias=False) if config.text_width else None

    def forward(self, described: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return additions (N, n, d) given N previous frames, described (N, n, ...), and actions (N, d)."""
        around = to_tokens(self.net(described, grid, action), self.side)
        told = self.tell(torch.cat((around, described), dim=-1))
        return F.rms_norm(told, told.shape[-1:])

    def with_text(self, added: Tensor, text: Tensor | None) -> Tensor:
        """Return additions (k B, ..., d): `added` (B, ..., d) and the mean of the text (k B, L, text width), from which
        words are learned sooner than by attention alone."""
        if self.text is None or text is None:
            return added
        pooled = pooled_text(text).to(self.text.weight)
        summary = (pooled[:, None] * self.text.weight).sum(-1)  # a matrix product has other bits at other places
        while summary.ndim < added.ndim:
            summary = summary[:, None]
        return added.repeat(len(summary) // len(added), *[1] * (added.ndim - 1)) + summary
