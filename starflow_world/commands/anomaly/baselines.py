"""Baseline detectors, fitted on the same normal episodes as the scorer; higher is more anomalous.

All except the frame difference score transitions (s, a, s') in a space of principal components. The learned baseline, a
deterministic next-frame predictor, is in predictor.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from starflow_world.data.episodes import Episode

COMPONENTS, FRAMES, MOST = 32, 1200, 6000

Detector = Callable[[Episode], np.ndarray]
"""A function that scores the frames of an episode, (T,); the score of the first frame is not evaluated."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Principal components of frames of P = H * W * 3 pixels, in units of the first component's standard deviation.

    mean (P,), basis (P, k).
    """

    mean: torch.Tensor
    basis: torch.Tensor

    @staticmethod
    def fit(episodes: Sequence[Episode], seed: int, components: int = COMPONENTS) -> "Pixels":
        """Fit the components to frames sampled from all episodes."""
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


class FrameDifference:
    """Mean absolute difference between a frame and its predecessor."""

    def __call__(self, episode: Episode) -> np.ndarray:
        """Return differences in grey levels."""
        frames = episode.frames.astype(np.float32)
        return with_start(np.abs(frames[1:] - frames[:-1]).mean((1, 2, 3)))


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Mean distance to the `nearest` closest normal transitions: KNN on (s, a, s'), as in PEDM's comparison."""

    pixels: Pixels
    known: torch.Tensor
    nearest: int = 5

    def __call__(self, episode: Episode) -> np.ndarray:
        """Return distances in units of the first principal component."""
        distance = torch.cdist(torch.from_numpy(self.pixels.transitions(episode)).float(), self.known)
        return with_start(distance.topk(min(self.nearest, len(self.known)), largest=False).values.mean(1).numpy())


@dataclass(frozen=True, eq=False)
class MeanRBF:
    """DEEDEE (2025): the mean of the last `last` transitions, compared with the means in normal episodes by a radial
    basis function whose width is their median distance."""

    pixels: Pixels
    known: torch.Tensor
    width: float
    last: int = 16

    @staticmethod
    def fit(pixels: Pixels, normal: Sequence[np.ndarray], seed: int, last: int = 16) -> "MeanRBF":
        """Fit the radial basis function to the transitions (T - 1, d) of each normal episode."""
        means = np.concatenate([running_mean(transitions, last) for transitions in normal])
        known = torch.from_numpy(means[np.random.default_rng(seed).permutation(len(means))[:MOST]]).float()
        return MeanRBF(pixels, known, float(torch.cdist(known[:500], known[:500]).median().clamp_min(1e-6)), last)

    def __call__(self, episode: Episode) -> np.ndarray:
        """Return -log of the mean similarity."""
        means = torch.from_numpy(running_mean(self.pixels.transitions(episode), self.last)).float()
        exponent = -torch.cdist(means, self.known).square() / (2 * self.width**2)
        return with_start((np.log(len(self.known)) - torch.logsumexp(exponent, 1)).numpy())


def running_mean(values: np.ndarray, last: int) -> np.ndarray:
    """Return the mean over the last `last` rows, or fewer at the start, (T, d) -> (T, d)."""
    sums = np.cumsum(np.concatenate((np.zeros((1, values.shape[1])), values)), axis=0)
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - last)
    return (sums[ends] - sums[begins]) / (ends - begins)[:, None]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of Gaussians with diagonal covariances over transitions: shares (m,), means and variances (m, d)."""

    pixels: Pixels
    shares: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @staticmethod
    def fit(pixels: Pixels, normal: np.ndarray, seed: int, *, parts: int = 12, rounds: int = 40) -> "GaussianMixture":
        """Fit to transitions (N, d) by expectation maximisation."""
        rng = np.random.default_rng(seed)
        x, floor = normal[rng.permutation(len(normal))[:MOST]], 1e-3 * normal.var(0).max() + 1e-9
        parts = min(parts, len(x))
        mixture = GaussianMixture(
            pixels, np.full(parts, 1 / parts), x[rng.choice(len(x), parts, replace=False)],
            np.tile(x.var(0) + floor, (parts, 1)),
        )
        for _ in range(rounds):
            each = mixture.log_density(x)
            held = np.exp(each - np.logaddexp.reduce(each, axis=1, keepdims=True))
            weight = held.sum(0) + 1e-9
            means = held.T @ x / weight[:, None]
            variances = np.maximum(held.T @ x**2 / weight[:, None] - means**2, 0) + floor
            mixture = GaussianMixture(pixels, weight / weight.sum(), means, variances)
        return mixture

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return the log of share times density of each part, (N, m)."""
        quadratic = (x**2) @ (1 / self.variances).T - 2 * x @ (self.means / self.variances).T
        quadratic += (self.means**2 / self.variances).sum(1)
        return np.log(self.shares) - 0.5 * (quadratic + np.log(2 * np.pi * self.variances).sum(1))

    def __call__(self, episode: Episode) -> np.ndarray:
        """Return -log density of each transition."""
        return with_start(-np.logaddexp.reduce(self.log_density(self.pixels.transitions(episode)), axis=1))


def fit_baselines(normal: Sequence[Episode], seed: int) -> dict[str, Detector]:
    """Fit all baselines but the predictor; return them by their names in the report."""
    pixels = Pixels.fit(normal, seed)
    transitions = [pixels.transitions(episode) for episode in normal]
    every = np.concatenate(transitions)
    some = every[np.random.default_rng(seed).permutation(len(every))[:MOST]]
    return {
        "frame difference": FrameDifference(),
        "pixel KNN (s, a, s')": Neighbours(pixels, torch.from_numpy(some).float()),
        "mean + RBF (DEEDEE)": MeanRBF.fit(pixels, transitions, seed),
        "GMM (s, a, s')": GaussianMixture.fit(pixels, some, seed),
    }
