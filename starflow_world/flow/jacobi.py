"""Noise to tokens: the fixed point x = mean(x) + scale(x) * z of an affine autoregressive block.

The system is triangular, so Jacobi sweeps over a chunk reach it exactly after as many rounds as tokens (Song et al.
2021; STARFlow-V, section 3.3); a chunk of one token is sequential decoding. The result are the *inputs* of the last
sweep: the cache holds their keys, and the means and scales of that sweep give their exact log-probability.
Convergence is decided row by row, and converged rows are frozen.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from starflow_world.flow.block import Affine


@dataclass(frozen=True)
class Inverse:
    """Solved tokens (B, S, c); affine: means and scales of the last sweep; sweeps, residual and converged (B,).

    The residual is the root mean square over a row of (next iterate - tokens) / scale: its unit is the noise.
    """

    tokens: Tensor
    affine: Affine
    sweeps: Tensor
    residual: Tensor
    converged: Tensor

    @staticmethod
    def join(parts: "list[Inverse]") -> "Inverse":
        """Join the results of consecutive chunks: sweeps add up, the largest residual counts."""
        if len(parts) == 1:
            return parts[0]
        affine = Affine(*(torch.cat([getattr(p.affine, k) for p in parts], 1) for k in ("mean", "scale", "hidden")))
        return Inverse(
            torch.cat([p.tokens for p in parts], dim=1),
            affine,
            torch.stack([p.sweeps for p in parts]).sum(0),
            torch.stack([p.residual for p in parts]).amax(0),
            torch.stack([p.converged for p in parts]).all(0),
        )


def solve(
    predict: Callable[[Tensor], Affine], before: Tensor, noise: Tensor, guess: Tensor, *,
    tolerance: float, max_sweeps: int = 0,
) -> Inverse:
    """Solve one chunk by Jacobi iteration.

    before (B, 1, c): the token before the chunk; noise, guess (B, S, c). `predict` maps network inputs (B, S, c) to
    means and scales. `max_sweeps` 0 allows the S + 1 sweeps that always suffice; with fewer a row may not converge.
    """
    rows, count = noise.shape[:2]
    limit = max_sweeps or count + 1
    tokens = guess
    done = torch.zeros(rows, dtype=torch.bool, device=noise.device)
    sweeps = torch.zeros(rows, dtype=torch.long, device=noise.device)
    for sweep in range(1, limit + 1):
        affine = predict(torch.cat((before, tokens[:, :-1]), dim=1))
        update = affine.mean + affine.scale * noise
        # No token reads the last one: its update is exact for these inputs and costs no further sweep.
        tokens = torch.cat((tokens[:, :-1], update[:, -1:]), dim=1)
        residual = ((update - tokens) / affine.scale).square().mean(dim=(1, 2)).sqrt()
        sweeps = torch.where(done, sweeps, sweep)
        done = done | (residual <= tolerance)
        if sweep == limit or bool(done.all()):
            break
        tokens = torch.where(done[:, None, None], tokens, update)
    return Inverse(tokens, affine, sweeps, residual, done)
