"""Metrics of anomaly scores: exact, one-sided (higher is more anomalous), ties count half.

AUROC is the probability that a positive outscores a negative (Hanley & McNeil 1982); AUPR is average precision;
intervals come from resampling whole episodes, since the frames of an episode are not independent. Delays are those of
Page's cumulative sum (1954), whose threshold is set for an average run length on normal frames.

Shapes: N frames; labels (N,) bool, True for positive; episodes are lists of arrays (T,).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve; NaN without both classes."""
    return float(_areas(scores, labels, np.ones((1, len(scores))))[0])


def _areas(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUROC (R,) under R weightings (R, N) of the frames; NaN if a class has no weight."""
    order = np.argsort(scores, kind="stable")
    ordered, labels, weights = scores[order], labels[order], weights[:, order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last of each group of ties
    positive = np.diff(np.cumsum(weights * labels, axis=1)[:, ends], axis=1, prepend=0)
    negative = np.diff(np.cumsum(weights * ~labels, axis=1)[:, ends], axis=1, prepend=0)
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    pairs = positive.sum(1) * negative.sum(1)
    return np.where(pairs > 0, (positive * below).sum(1) / np.where(pairs > 0, pairs, 1), np.nan)


def _counts(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count positives and all frames at or above each distinct score, from the highest score on."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(labels[order])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return hits[ends], ends + 1


def aupr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the average precision: precision at each threshold weighted by the recall gained; ties enter together."""
    if not labels.any():
        return math.nan
    hits, counts = _counts(scores, labels)
    return float((np.diff(hits, prepend=0) * hits / counts).sum() / labels.sum())


def fpr_at(scores: np.ndarray, labels: np.ndarray, recall: float = 0.95) -> float:
    """Return the share of negatives at or above the highest threshold with this recall."""
    if not labels.any() or labels.all():
        return math.nan
    positive = np.sort(scores[labels])[::-1]
    threshold = positive[math.ceil(recall * len(positive) - 1e-9) - 1]
    return float((scores[~labels] >= threshold).mean())


def roc(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    hits, counts = _counts(scores, labels)
    true, false = hits / max(1, labels.sum()), (counts - hits) / max(1, (~labels).sum())
    return np.append(0.0, false), np.append(0.0, true)


def bootstrap_auroc(
    scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, seed: int = 0, resamples: int = 200
) -> np.ndarray:
    """Return the AUROC (R,) of R bootstrap samples of whole episodes; NaN if a sample lacks a class."""
    rng, count = np.random.default_rng(seed), len(scores)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = np.repeat(draws, [len(episode) for episode in scores], axis=1).astype(float)
    return _areas(np.concatenate(scores), np.concatenate(labels), weights)


@dataclass(frozen=True)
class PageTest:
    """Page's one-sided cumulative sum of scores: it grows by (score - middle) / deviation - slack, never below 0.

    It raises an alarm and restarts at 0 when it reaches `threshold`.
    """

    middle: float
    deviation: float
    threshold: float
    slack: float = 0.5

    def alarms(self, scores: np.ndarray) -> np.ndarray:
        """Return the frames at which alarms are raised, (T,) bool."""
        raised, total = np.zeros(len(scores), bool), 0.0
        steps = (scores - self.middle) / self.deviation - self.slack
        for t, step in enumerate(steps):
            total = max(0.0, total + float(step))
            if total >= self.threshold:
                raised[t], total = True, 0.0
        return raised


def run_length(test: PageTest, episodes: Sequence[np.ndarray]) -> float:
    """Return the average number of frames per alarm; infinity without alarms."""
    alarms = sum(int(test.alarms(scores).sum()) for scores in episodes)
    frames = sum(len(scores) for scores in episodes)
    return frames / alarms if alarms else math.inf


def page_test(normal: Sequence[np.ndarray], length: float = 1000.0) -> PageTest:
    """Return the most sensitive test, among thresholds 1 % apart, with this average run length on normal episodes.
    Middle and deviation are the median and its distance to the 84th percentile (1 deviation of a normal)."""
    every = np.concatenate(normal).astype(float)
    middle, above = np.quantile(every, (0.5, 0.8413))
    middle, spread = float(middle), max(float(above - middle), 1e-9)
    low, high = 0.0, math.log(1e9)
    while high - low > 0.01:
        between = (low + high) / 2
        fits = run_length(PageTest(middle, spread, math.exp(between) - 1 + 1e-9), normal) >= length
        low, high = (low, between) if fits else (between, high)
    return PageTest(middle, spread, math.exp(high) - 1 + 1e-9)


def delay(test: PageTest, scores: np.ndarray, event: int) -> float:
    """Return the frames from the event to the first alarm at or after it; infinity without one."""
    later = np.flatnonzero(test.alarms(scores)[event:])
    return float(later[0]) if len(later) else math.inf
