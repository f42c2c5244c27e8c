"""What a flow carries from frame to frame although no frame shows it: slots that hold the content of single sites.

    slot <- slot + gate (site - slot)          site: read off the last frame, where attention finds that something went

A recurrence of gated copies (the forget gate of Gers et al. 2000; the copy of Vinyals et al. 2015): what was taken off
the picture is kept as it looked, and the motion can put it back as it was. The attention and the gates of all frames
are computed at once, only the sum runs along time. Slots live longer than the window of the deep block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig
from starflow_world.flow.sites import SiteNet, to_sites

EAGER = 20.0
SHUT = -2.0
WIDEST = 5.0


class Carry(nn.Module):
    """Frames and actions -> slots (B, T, K) behind every frame; K = carry_slots * numbers per site."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width, slots = config.carry_width, config.carry_slots
        self.slots, self.side, self.size = slots, config.sites, config.channels // config.sites**2
        self.net = SiteNet(2 * config.channels, width, 1, self.side, config.deep_width)
        self.look = nn.Linear(width + 1, slots)
        self.gate = nn.Linear(width + slots * self.size, slots)
        self.expect, self.correct = nn.Linear(self.size, width), nn.Linear(width, self.size)
        self.start = nn.Parameter(torch.zeros(slots * self.size))
        self.begun = nn.Linear(config.deep_width, slots * self.size, bias=False)
        with torch.no_grad():
            self.look.weight[:, -1] = EAGER
            self.gate.bias.fill_(SHUT)
            for parameter in (self.begun.weight, self.correct.weight, self.correct.bias):
                parameter.zero_()

    def begin(self, action: Tensor) -> Tensor:
        """Slots (B, K) behind a frame that follows none; action (B, d): what led into it, zeros at a true start."""
        return self.start + self.begun(action.to(self.start.dtype))

    def forward(self, last: Tensor, previous: Tensor, x: Tensor, action: Tensor, grid: tuple[int, int]) -> Tensor:
        """Slots (B, T, K) behind frames x (B, T, n, c), each with the frame before it, previous (B, T, n, c), and the
        action (B, T, d) that led to it; last (B, K): slots behind previous[:, 0]."""
        with torch.autocast(x.device.type, enabled=False):
            sites, gate = self._events(previous.flatten(0, 1), x.flatten(0, 1), action.flatten(0, 1), grid)
            sites, gate = sites.unflatten(0, x.shape[:2]), gate.unflatten(0, x.shape[:2])
            slots, found = last.unflatten(1, (self.slots, self.size)), []
            for t in range(x.shape[1]):
                slots = slots + gate[:, t, :, None] * (sites[:, t] - slots)
                found.append(slots)
            return torch.stack(found, dim=1).flatten(2)

    def _events(self, previous: Tensor, x: Tensor, action: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What each slot would take of N frames, (N, slots, size), and how much, (N, slots)."""
        parts = (previous, x - previous)
        both = torch.cat([part.unflatten(2, (self.side**2, -1)) for part in parts], dim=-1).flatten(2)
        features = self.net(both, grid, action.to(x.dtype)).flatten(1, 2)
        features = F.layer_norm(features, features.shape[-1:])
        old, new = (to_sites(part, grid, self.side).flatten(1, 2) for part in parts)
        change = new.square().mean(-1, keepdim=True).clamp_max(0.3)
        share = self.look(torch.cat((features, change), dim=-1)).softmax(1)
        sites = share.mT @ old
        sites = sites + self.correct(F.gelu(self.expect(sites)))  # what was seen in noise need not be kept in noise
        logits = self.gate(torch.cat((features.mean(1), sites.flatten(1)), dim=-1))
        return sites, (WIDEST * torch.tanh(logits / WIDEST)).sigmoid()
