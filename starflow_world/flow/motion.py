"""How frames follow each other: an affine step from one frame to the next, in front of the deep block.

    v_t = (x_t - mean(x_{t-1}, action_t)) / scale(x_{t-1}, action_t)          log|dv/dx| = -log scale

An autoregressive flow across time (Marino et al. 2020, "Improving sequential latent variable models with autoregressive
flows"): what the last frame and the action settle is settled here, by one pass of a small convolutional network, and
inverted without iteration. What is left, v, is near white noise; the deep block, which sees the whole history, shifts
and scales it further. Frames with nothing before them go through the shallow blocks instead.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig
from starflow_world.flow.block import SOFT_CLIP, UNIT_SCALE, Affine
from starflow_world.flow.sites import SiteConv, SiteHead, SiteNet, to_tokens


class Motion(nn.Module):
    """previous x (B, n, c), action (B, d) and carried slots (B, K) -> mean and scale of the next x, (B, n, c), and
    conditions (B, n, d)."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width, side = config.motion_width, config.sites
        per_site = config.channels // side**2
        self.net = SiteNet(config.channels, width, config.motion_layers, side, config.deep_width)
        self.head = SiteHead(width, 2 * per_site, per_site, config.codes)
        self.tell = nn.Linear(width * side**2, config.deep_width, bias=False)
        nn.init.zeros_(self.tell.weight)
        if config.carry_slots:
            self.recall = nn.Linear(config.carry_slots * per_site, config.deep_width, bias=False)
            self.place = SiteConv(width, config.carry_slots)
            for parameter in (self.recall.weight, self.place.weight, self.place.bias):
                nn.init.zeros_(parameter)

    def forward(self, previous: Tensor, action: Tensor, grid: tuple[int, int], carried: Tensor | None = None) -> Affine:
        """previous (B, n, c), action (B, d), carried (B, K) -> Affine; `hidden` is what the deep block is told of the
        last frame."""
        side, condition = self.net.side, action.to(previous.dtype)
        with torch.autocast(previous.device.type, enabled=False):
            features = self.net(previous, grid, condition if carried is None else condition + self.recall(carried))
            out = self.head(features)
            if carried is not None:  # a site may be shown what is carried, as it looked
                placed = self.place(features)
                shown = placed @ carried.unflatten(1, (1, placed.shape[-1], -1))
                out = out + F.pad(shown, (out.shape[-1] - shown.shape[-1], 0))
            out = SOFT_CLIP * torch.tanh(out / SOFT_CLIP)
            scale, mean = out.chunk(2, dim=-1)
            told = self.tell(to_tokens(features, side))
        return Affine(to_tokens(mean, side), F.softplus(to_tokens(scale, side) + UNIT_SCALE), told)
