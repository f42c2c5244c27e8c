"""Inversion of an autoregressive block: Jacobi iteration to the fixed point u = draw(u; noise) (density.py).

The system is triangular, so Jacobi sweeps over a chunk are exact after as many sweeps as tokens (Song et al. 2021;
STARFlow-V, section 3.3); a chunk of one token is sequential decoding. The result is the *input* of the last sweep: the
cache holds its keys, and the density of that sweep gives its exact log-probability. Convergence is decided per
batch element, and converged elements are frozen.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from starflow_world.flow.density import Density


@dataclass(frozen=True)
class Inverse:
    """Solved tokens (B, S, c), their density in the last sweep, sweeps, residual and converged (B,), and the scales
    (B, S, c) of what they were drawn from.

    The residual is the root mean square over S and c of (next iterate - tokens) / scale, in units of the noise.
    """

    tokens: Tensor
    density: Density
    sweeps: Tensor
    residual: Tensor
    converged: Tensor
    scale: Tensor

    @staticmethod
    def join(parts: "list[Inverse]") -> "Inverse":
        """Concatenate the results of consecutive chunks, with the sum of sweeps and the largest residual."""
        if len(parts) == 1:
            return parts[0]
        density = parts[0].density.join([part.density for part in parts[1:]])
        return Inverse(
            torch.cat([p.tokens for p in parts], dim=1),
            density,
            torch.stack([p.sweeps for p in parts]).sum(0),
            torch.stack([p.residual for p in parts]).amax(0),
            torch.stack([p.converged for p in parts]).all(0),
            torch.cat([p.scale for p in parts], dim=1),
        )


def solve(
    predict: Callable[[Tensor], Density], before: Tensor, noise: Tensor, guess: Tensor, *,
    tolerance: float, max_sweeps: int = 0, guided: Callable[[Density], Density] | None = None,
) -> Inverse:
    """Solve one chunk by Jacobi iteration.

    before (B, 1, c): the token before the chunk; noise (B, S, c + g); guess (B, S, c): the initial iterate. `predict`
    maps network inputs (B, S, c) to densities, which `guided` turns into those to draw from. `max_sweeps` 0 allows the
    S + 1 sweeps that always suffice.
    """
    rows, count = noise.shape[:2]
    limit = max_sweeps or count + 1
    tokens = guess
    done = torch.zeros(rows, dtype=torch.bool, device=noise.device)
    sweeps = torch.zeros(rows, dtype=torch.long, device=noise.device)
    for sweep in range(1, limit + 1):
        density = predict(torch.cat((before, tokens[:, :-1]), dim=1))
        update, scale = (density if guided is None else guided(density)).draw(noise)
        # No token of the chunk depends on the last token, so its update is exact for these inputs without a sweep.
        tokens = torch.cat((tokens[:, :-1], update[:, -1:]), dim=1)
        residual = ((update - tokens) / scale).square().mean(dim=(1, 2)).sqrt()
        sweeps = torch.where(done, sweeps, sweep)
        done = done | (residual <= tolerance)
        if sweep == limit or bool(done.all()):
            break
        tokens = torch.where(done[:, None, None], tokens, update)
    return Inverse(tokens, density, sweeps, residual, done, scale)
