"""Rarity: maps statistics of any unit to a common scale, -log of the share of normal values that are larger.

Below the 90 % quantile the share is empirical. Above it a generalised Pareto tail is fitted (Pickands 1975; probability
weighted moments, Hosking & Wallis 1987), which keeps the order of far outliers; statistics with heavy tails on normal
data get less weight. Each group of frames (by action) is scaled separately, since a surprise that is rare after one
action may be common after another. Differences below `FLOOR` (nats or grey levels) are no evidence.

Shapes: N frames, K statistics, G groups.
"""

from dataclasses import dataclass

import numpy as np

KNOTS, BULK = 181, 0.9
LEVELS = -np.log1p(-np.linspace(0, BULK, KNOTS))
FLOOR = 0.1
HEAVIEST, LIGHTEST, UNSURE = 0.9, 0.1, 0.5
FEWEST_BEYOND = 8
FEWEST = 100
"""Number of frames that a group needs for its own quantiles; smaller groups use the quantiles of all groups."""


@dataclass(frozen=True)
class Tails:
    """Quantiles `knots` (G, K, KNOTS), strictly increasing, and shape and spread (G, K) of the Pareto tails above."""

    knots: np.ndarray
    shape: np.ndarray
    spread: np.ndarray

    @staticmethod
    def fit(values: np.ndarray, group: np.ndarray, groups: int) -> "Tails":
        """Fit quantiles and tails to normal values (N, K) in groups (N,); group 0 never shares those of others."""
        tails = [[_tail(column) for column in part.T] for part in by_group(values, group, groups)]
        return Tails(*(np.array([[tail[i] for tail in row] for row in tails]) for i in range(3)))

    def __call__(self, values: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Return the rarity (N, K), -log of the share of larger normal values, of values (N, K) in groups (N,)."""
        rarity = np.empty(values.shape)
        for number in np.unique(group):
            rows = group == number
            for k in range(values.shape[1]):
                knots, shape, spread = self.knots[number, k], self.shape[number, k], self.spread[number, k]
                beyond = np.maximum(values[rows, k] - knots[-1], 0)
                rarity[rows, k] = np.interp(values[rows, k], knots, LEVELS) + np.log1p(shape * beyond / spread) / shape
        return rarity


def by_group(values: np.ndarray, group: np.ndarray, groups: int) -> list[np.ndarray]:
    """Return the normal values (N, ...) of each group; groups that are too small get those of all groups except 0."""
    later = values[group > 0] if (group > 0).any() else values
    parts = [values[group == number] for number in range(groups)]
    return [own if len(own) >= FEWEST or (number == 0 and len(own)) else later for number, own in enumerate(parts)]


def _tail(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Fit knots, shape and spread of the tail to normal values (N,) of one statistic."""
    knots = np.quantile(values, np.linspace(0, BULK, KNOTS)) + np.linspace(0, FLOOR, KNOTS)
    beyond = np.sort(values[values > knots[-1]] - knots[-1])
    if len(beyond) < FEWEST_BEYOND:  # too few to fit: use the spread of an exponential and a cautious shape
        return knots, UNSURE, max(float(knots[-1] - np.median(values)) / np.log(0.5 / (1 - BULK)), FLOOR)
    mean, rank = beyond.mean(), np.arange(len(beyond) - 1, -1, -1)
    moment = (rank / (len(beyond) - 1) * beyond).mean()
    shape = float(np.clip(2 - mean / (mean - 2 * moment), LIGHTEST, HEAVIEST)) if mean > 2 * moment else LIGHTEST
    return knots, shape, max(float(mean * (1 - shape)), FLOOR)
