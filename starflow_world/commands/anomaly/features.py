"""Features of the simple baselines: transitions (s, a, s') in a small space of principal components of the pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from starflow_world.data.episodes import Episode

COMPONENTS, FRAMES = 32, 1200


@dataclass(frozen=True, eq=False)
class Pixels:
    """Principal components of frames of P = H * W * 3 pixels, in units of the deviation of the first.

    mean (P,), basis (P, k).
    """

    mean: torch.Tensor
    basis: torch.Tensor

    @staticmethod
    def fit(episodes: Sequence[Episode], seed: int, components: int = COMPONENTS) -> "Pixels":
        """Fit the components to frames drawn from all episodes."""
        frames = np.concatenate([episode.frames for episode in episodes])
        chosen = np.random.default_rng(seed).permutation(len(frames))[:FRAMES]
        pixels = torch.from_numpy(frames[np.sort(chosen)]).flatten(1).float()
        mean = pixels.mean(0)
        values, vectors = torch.linalg.eigh((pixels - mean) @ (pixels - mean).T)
        kept = min(components, len(chosen))
        values, vectors = values.flip(0)[:kept].clamp_min(1e-6), vectors.flip(1)[:, :kept]
        basis = (pixels - mean).T @ vectors / values.sqrt()
        return Pixels(mean, basis / (values[0] / len(chosen)).sqrt())

    def transitions(self, episode: Episode) -> np.ndarray:
        """Return (s, a, s') of each frame after the first, (T - 1, 2 k + actions)."""
        parts = ((torch.from_numpy(episode.frames).flatten(1).float() - self.mean) @ self.basis).numpy()
        return np.concatenate((parts[:-1], episode.actions[1:], parts[1:]), axis=1)


def with_start(scores: np.ndarray) -> np.ndarray:
    """Prepend the lowest score for the first frame, which is never evaluated: (T - 1,) -> (T,)."""
    return np.append(scores.min(initial=np.inf) if len(scores) else 0.0, scores)
