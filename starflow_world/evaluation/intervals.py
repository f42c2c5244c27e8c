"""Proportions (`hits` of `total` cases), interquartile means of runs, and their confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """Proportion of `total` cases that are hits."""

    hits: float
    total: int

    @property
    def share(self) -> float:
        """Return hits / total, or NaN if there are no cases."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson confidence interval (Wilson 1927) for independent cases; its width is never 0."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.share
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        if not self.total:
            return "no cases"
        low, high = self.interval
        return f"{100 * self.share:.2f} % ({100 * low:.2f} to {100 * high:.2f}) of {self.total}"

    def __add__(self, other: "Share") -> "Share":
        return Share(self.hits + other.hits, self.total + other.total)


def resampled(hits: Sequence[int], totals: Sequence[int], *, seed: int = 0, resamples: int = 400) -> np.ndarray:
    """Return the proportions (R,) in R bootstrap samples of episodes, given hits and totals per episode. Whole episodes
    are resampled, because frames of an episode are not independent."""
    count = len(hits)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray((draws @ np.array(hits)) / (draws @ np.array(totals)))


@dataclass(frozen=True)
class Band:
    """A ratio of sums over episodes at each of T steps, its 95 % interval, and the number of episodes (T,) behind it;
    NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    episodes: np.ndarray


def ratio_band(parts: np.ndarray, wholes: np.ndarray | None = None, *, seed: int = 0, resamples: int = 400) -> Band:
    """Return sum(parts) / sum(wholes) over episodes at each step, both (E, T), and its interval in bootstrap samples of
    episodes. Without `wholes`: the mean of the parts. NaN in `parts`: the episode has no such step."""
    present = ~np.isnan(parts)
    above = np.where(present, parts, 0.0)
    below = present.astype(float) if wholes is None else np.where(present, wholes, 0.0)
    count = len(parts)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        value, samples = above.sum(0) / below.sum(0), (draws @ above) / (draws @ below)
    low, high = zip(*(interval(samples[:, step]) for step in range(parts.shape[1])), strict=True)
    return Band(value, np.array(low), np.array(high), present.sum(0))


def interval(samples: np.ndarray, coverage: float = 0.95) -> tuple[float, float]:
    """Return the central interval with `coverage` of bootstrap samples, or NaN if all samples are NaN."""
    if np.isnan(samples).all():
        return math.nan, math.nan
    low, high = np.nanquantile(samples, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without the lowest and the highest quarter of the values (rounded down)."""
    ordered, cut = np.sort(values, axis=-1), values.shape[-1] // 4
    return np.asarray(ordered[..., cut : values.shape[-1] - cut].mean(-1))


def resampled_iqm(runs: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> np.ndarray:
    """Return the interquartile means (R,) of R bootstrap samples of the runs (seeds) of one task.

    As Agarwal et al. 2021 (Deep Reinforcement Learning at the Edge of the Statistical Precipice) aggregate runs; over
    several tasks, runs are resampled in each task by itself, and the samples of the tasks are joined.
    """
    values = np.asarray(runs, float)
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return interquartile_mean(values[rows])
