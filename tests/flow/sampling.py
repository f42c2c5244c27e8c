"""Whole samples at once, for tests: all frames of `sample_frames`, and the noisy latents that they stand for."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starflow_world.config.world import DecodeConfig
from starflow_world.flow import Density, Flow, Inverse, Tables, sample_frames
from starflow_world.flow.windows import denoise_spans


@dataclass(frozen=True)
class Sample:
    """T sampled frames u (B, T, n, c); density of their T * n tokens under the unguided model; sweeps, residual,
    converged (B, T)."""

    u: Tensor
    density: Density
    sweeps: Tensor
    residual: Tensor
    converged: Tensor

    @staticmethod
    def of(frames: list[Inverse]) -> "Sample":
        names = ("sweeps", "residual", "converged")
        return Sample(
            torch.stack([f.tokens for f in frames], 1),
            frames[0].density.join([f.density for f in frames[1:]]),
            *(torch.stack([getattr(f, name) for f in frames], 1) for name in names),
        )

    def nats(self) -> Tensor:
        """log p per token (B, T, n) of the deep block."""
        return self.density.nats(self.u.flatten(1, 2)).unflatten(1, self.u.shape[1:3])


def numbers(density: Density) -> dict[str, Tensor]:
    """The tensors that a density is made of."""
    return {name: value for name, value in vars(density).items() if isinstance(value, Tensor)}


def sample_deep(
    flow: Flow, noise: Tensor, text: Tensor | None, tables: Tables, *,
    chunk: int = 0, tolerance: float = 1e-3, max_sweeps: int = 0, **options: Any,
) -> Sample:
    """All frames of `sample_frames`, whose arguments these are."""
    decode = DecodeConfig(tolerance=tolerance, chunk=chunk, max_sweeps=max_sweeps)
    return Sample.of(list(sample_frames(flow, noise, text, tables, decode, **options)))


def sample(
    flow: Flow, noise: Tensor, text: Tensor | None, tables: Tables, **options: Any
) -> tuple[Tensor, Tensor, Sample]:
    """Noisy latents x (B, T, n, c), their nats per token (B, T, n) under the unguided model, and the `Sample`."""
    deep = sample_deep(flow, noise, text, tables, **options)
    with torch.no_grad():
        x, logdet, _ = flow.shallow.inverse(deep.u, tables)
    return x, deep.nats() + logdet.sum(-1), deep


def denoised_in_windows(
    flow: Flow, x: Tensor, text: Tensor | None, tables: Tables, *, window: int, overlap: int
) -> Tensor:
    """Clean latents of a whole clip x (B, T, n, c), window by window."""
    windows = denoise_spans(x.shape[1], window=window, overlap=overlap, look_ahead=sum(flow.denoiser.look_ahead))
    return torch.cat([flow.denoise(x[:, seen], text, tables)[:, kept] for seen, kept in windows], dim=1)
