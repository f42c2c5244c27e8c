"""A draft of the next frame: the first guess of Jacobi decoding.

A small network looks at the neighbourhood of each token in the previous frame and at the action, and says what mean and
scale the next token will have. With the frame's own noise that is an iterate near the fixed point, which saves a sweep;
the deep block still verifies it, so the result is the same. Trained by the likelihood of u under the draft alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import UNIT_SCALE, Affine


class Draft(nn.Module):
    """previous u (B, n, c) and action (B, d) -> means and scales (B, n, c) of the next u; starts as a copy."""

    def __init__(self, channels: int, action_width: int, width: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(channels, width, 3, padding=1)
        self.action = nn.Linear(action_width, width, bias=False)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, previous: Tensor, action: Tensor, grid: tuple[int, int]) -> Affine:
        """previous (B, n, c), action (B, d) -> Affine with (B, n, c)."""
        image = previous.transpose(1, 2).unflatten(-1, grid)
        hidden = F.gelu(self.look(image).flatten(2).transpose(1, 2) + self.action(action)[:, None])
        hidden = hidden + F.gelu(self.mix(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            scale, change = self.head(hidden.to(self.head.weight.dtype)).chunk(2, dim=-1)
        return Affine(previous + change, F.softplus(scale + UNIT_SCALE), hidden)
