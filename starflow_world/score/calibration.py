"""Calibration of scores: p-values of frames and episodes, and a change detector with a chosen run length.

p-values are split-conformal (Vovk et al. 2005; Angelopoulos & Bates 2023): the rank of a score among those of held-out
normal frames, valid for any score. Frames are ranked among frames of the same age in their episode (the first frames
are harder to predict), in bins that double in length and hold enough frames for the chosen rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from starflow_world.errors import ScorerError
from starflow_world.score.tails import FLOOR, by_group

FRAMES_PER_RATE = 5
"""Minimum of calibration frames times false-alarm rate for a threshold: 500 frames for 1 %."""
CAP, SLACK = 6.0, 0.5


def check_support(frames: int, false_alarms: float) -> None:
    """Raise ScorerError unless `frames` calibration frames support a threshold at this rate."""
    if not 0 < false_alarms < 1:
        raise ScorerError(f"false alarms: expected a rate between 0 and 1, found {false_alarms}")
    needed = int(np.ceil(FRAMES_PER_RATE / false_alarms - 1e-9))
    if frames < needed:
        raise ScorerError(
            f"calibration: expected at least {needed} normal frames for a false-alarm rate of {false_alarms:g}, found "
            f"{frames}; give more episodes or allow more false alarms"
        )


@dataclass(frozen=True)
class Ranks:
    """Scores (N,) of normal frames, sorted within bins of age; bin b is starts[b] : starts[b + 1], from age ages[b]."""

    scores: np.ndarray
    starts: np.ndarray
    ages: np.ndarray

    @staticmethod
    def fit(episodes: Sequence[np.ndarray], fewest: int) -> "Ranks":
        """Sort the scores (T,) of normal episodes into age bins; a bin with fewer than `fewest` frames is merged."""
        age = np.concatenate([np.arange(len(scores)) for scores in episodes])
        score = np.concatenate(episodes)
        edges = np.concatenate(([0, 1], 2 ** np.arange(1, 31)))
        bins: list[tuple[int, np.ndarray]] = []
        for low, high in pairwise(edges.tolist()):
            inside = score[(age >= low) & (age < high)]
            if bins and (len(bins[-1][1]) < fewest or len(score[age >= low]) < fewest):
                bins[-1] = (bins[-1][0], np.concatenate((bins[-1][1], inside)))
            else:
                bins.append((low, inside))
        starts = np.cumsum([0, *(len(scores) for _, scores in bins)])
        return Ranks(np.concatenate([np.sort(s) for _, s in bins]), starts, np.array([age for age, _ in bins]))

    def __call__(self, score: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Return p-values (T,): the share of normal frames of that age, plus the frame itself, that score as high."""
        place, p = np.searchsorted(self.ages, age, side="right") - 1, np.empty(len(score))
        for index in np.unique(place):
            normal, here = self.scores[self.starts[index] : self.starts[index + 1]], place == index
            higher = len(normal) - np.searchsorted(normal, score[here], side="left")
            p[here] = (1 + higher) / (1 + len(normal))
        return p


@dataclass(frozen=True)
class Memory:
    """State of an episode's online statistics: standardised surprises of the last frames, and the cumulative sum."""

    recent: tuple[float, ...] = ()
    cusum: float = 0.0


@dataclass(frozen=True)
class Change:
    """Detector of weak, lasting changes: the mean log surprise over `window` frames, standardised by group (`mean`,
    `deviation` (G,)), and a CUSUM test (Page 1954) with a threshold for the chosen run length."""

    mean: np.ndarray
    deviation: np.ndarray
    window: int
    calm: float = 0.0
    spread: float = 1.0
    threshold: float = np.inf

    @staticmethod
    def fit(surprise: np.ndarray, group: np.ndarray, groups: int, window: int) -> "Change":
        """Fit to surprises (N,) of normal frames in groups (N,); group 0, the first frames, is always separate."""
        parts = by_group(_log(surprise), group, groups)
        mean, deviation = np.array([(part.mean(), max(part.std(), 1e-3)) for part in parts]).T
        return Change(mean, deviation, window)

    def standardised(self, surprise: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Return log surprise (T,) standardised by the mean and deviation of the frame's group."""
        return np.asarray((_log(surprise) - self.mean[group]) / self.deviation[group])

    def step(self, memory: Memory, drift: float, score: float) -> tuple[Memory, float]:
        """Update with a frame's standardised surprise `drift` and `score`; return the memory and the windowed mean,
        in standard deviations."""
        recent = (*memory.recent, drift)[-self.window :]
        gain = (float(change_evidence(np.array(drift), np.array(score))) - self.calm) / self.spread - SLACK
        return Memory(recent, max(0.0, memory.cusum + gain)), sum(recent) / len(recent) ** 0.5

    def fitted(self, drifts: Sequence[np.ndarray], scores: Sequence[np.ndarray], run_length: int) -> "Change":
        """Return the detector with the lowest threshold that normal episodes cross once per `run_length` frames."""
        raw = [change_evidence(drift, score) for drift, score in zip(drifts, scores, strict=True)]
        pooled = np.concatenate(raw)
        calm, spread = float(pooled.mean()), max(float(pooled.std()), 1e-6)
        gains = [(one - calm) / spread - SLACK for one in raw]
        low, high, allowed = 0.0, 1.0, len(pooled) / run_length
        while _alarms(high, gains) > allowed:
            low, high = high, 2 * high
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if _alarms(middle, gains) > allowed else (low, middle)
        return Change(self.mean, self.deviation, self.window, calm, spread, high)


def _alarms(threshold: float, gains: Sequence[np.ndarray]) -> int:
    """Count the CUSUM alarms at a threshold, given the gains of each episode; the sum is reset after each alarm."""
    alarms = 0
    for episode in gains:
        total = 0.0
        for gain in episode.tolist():
            total = max(0.0, total + gain)
            if total > threshold:
                alarms, total = alarms + 1, 0.0
    return alarms


def _log(surprise: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(surprise, 0) + FLOOR)


def change_evidence(drift: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the evidence for a change (T,): the clipped drift plus half the clipped score."""
    return np.clip(drift, -CAP / 2, CAP / 2) + np.clip(score, 0, CAP) / 2
