"""Reliability diagrams: what came of predictions, by what was predicted."""

from typing import Any

import numpy as np

from starflow_world.evaluation.intervals import Share

BINS = 10


def end_bins(probability: np.ndarray, happened: np.ndarray) -> list[dict[str, float]]:
    """Return bins of equal width of predicted probabilities (N,) in [0, 1]: mean prediction, share of the cases that
    happened (N,) with its 95 % interval, and number of cases. Empty bins are left out."""
    bins = []
    for cases in _cases(probability, 0.0, 1.0):
        share = Share(float(happened[cases].sum()), int(cases.sum()))
        bins.append(_bin(probability[cases], share.share, *share.interval))
    return bins


def reward_bins(predicted: np.ndarray, real: np.ndarray) -> list[dict[str, float]]:
    """Return the same for expected rewards (N,): the mean real reward (N,) with its interval of 1.96 standard errors.
    Bins span the real rewards; [] where all of these are equal."""
    if not len(real) or real.min() == real.max():
        return []
    bins = []
    for cases in _cases(predicted, float(real.min()), float(real.max())):
        mean, error = float(real[cases].mean()), 1.96 * float(real[cases].std()) / int(cases.sum()) ** 0.5
        bins.append(_bin(predicted[cases], mean, mean - error, mean + error))
    return bins


def _cases(predicted: np.ndarray, low: float, high: float) -> list[np.ndarray]:
    place = np.clip(((predicted - low) / (high - low) * BINS).astype(int), 0, BINS - 1)
    return [place == number for number in range(BINS) if (place == number).any()]


def _bin(predicted: np.ndarray, observed: float, low: float, high: float) -> dict[str, Any]:
    return {"predicted": float(predicted.mean()), "observed": observed, "low": low, "high": high,
            "count": len(predicted)}
