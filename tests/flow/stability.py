"""How well noise determines data: the inverse of an autoregressive flow can amplify errors from token to token.

On the flow's own samples, and on data it was trained on, errors shrink. Far from both the inverse may be chaotic: every
step is right and its log-determinant too, and yet noise -> data does not lead back. This is measured and reported.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from starflow_world.flow import Flow, Tables
from tests.flow.sampling import sample_deep

PROBE = 1e-6
LARGEST_GROWTH = 1.02
LARGEST_ERROR = 1e-3
FAR = 1e4


@dataclass(frozen=True)
class Stability:
    """error (B,): largest |x - decoded(encoded(x))|; growth (B,): factor per token by which a small error grows while
    sampling sequentially; ill (B,): whether either is larger than a row can be trusted with. Never NaN for finite x."""

    error: Tensor
    growth: Tensor
    ill: Tensor


@torch.no_grad()
def stability(
    flow: Flow, x: Tensor, text: Tensor | None, tables: Tables, *, action: Tensor | None = None,
) -> Stability:
    """Send noisy latents x (B, T, n, c) to noise and back token by token, beside a twin whose first token's noise is
    off by 1e-6. Growth: that of the twins' distance up to the token where it is 10,000 times the first, else the last.
    """
    rows, count = len(x), x.shape[1] * x.shape[2]
    u, _ = flow.shallow(x, tables)
    affine = flow.deep_forward(u, text, flow.conditions(u, text, action, tables.grid), tables)
    z, _ = affine.to_noise(u.flatten(1, 2))
    probed = torch.cat((z[:, :1] + PROBE, z[:, 1:]), dim=1)
    noise = torch.cat((z, probed)).unflatten(1, x.shape[1:3])
    twice = [None if value is None else torch.cat((value, value)) for value in (text, action)]
    back = sample_deep(flow, noise, twice[0], tables, action=twice[1], chunk=1).u
    found, _, _ = flow.shallow.inverse(back[:rows], tables)
    error = (found - x).abs().amax((1, 2, 3))
    apart = (back[:rows] - back[rows:]).flatten(1, 2).square().mean(-1).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    grown = apart / apart[:, :1]
    token = torch.arange(count, device=x.device)
    last = torch.where(grown >= FAR, token, count - 1).amin(1).clamp_min(1)
    growth = grown.gather(1, last[:, None].clamp_max(count - 1))[:, 0] ** (1 / last)
    return Stability(error, growth, (error > LARGEST_ERROR) | (growth > LARGEST_GROWTH))
