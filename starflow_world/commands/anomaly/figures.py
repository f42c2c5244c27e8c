"""From what the detectors said of every frame to figures, per kind and per detector. All are means over the seeds.

Positives are the positive frames of a kind's own episodes; negatives are their other frames and those of the nominal
test episodes, so that late frames stand on both sides. The first frame of an episode is left out: no action led to it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from starflow_world.commands.anomaly import metrics
from starflow_world.commands.anomaly.run import (
    BLIND,
    CALIBRATION,
    FORMAT,
    INFORMED,
    NATS,
    OWN,
    PREDICTOR,
    WINDOW,
    WINDOWED,
    Evaluated,
    Group,
)
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT, Stage
from starflow_world.evaluation.intervals import interval, resampled

BASELINES = (
    NATS, PREDICTOR, "frame difference", "pixel KNN (s, a, s')", "mean + RBF (DEEDEE)", "GMM (s, a, s')",
)
RUN_LENGTH, RATE = 1000.0, 0.01


@dataclass(frozen=True)
class Cell:
    """One detector on one kind. `prevalence`: the AUPR of guessing; `fpr`: at 95 % of the positives; `windowed`: AUROC
    of means over WINDOW frames; `delay`: median frames to the first alarm, `missed`: share of episodes without one."""

    auroc: float
    low: float
    high: float
    aupr: float
    prevalence: float
    fpr: float
    windowed: float
    delay: float
    missed: float


def summary(stage: Stage, seeds: Sequence[Evaluated]) -> dict[str, Any]:
    """All figures of a part, as plain data."""
    parts = [name for name in seeds[0].groups[NOMINAL].scores if name.startswith("part: ")]
    detectors, kinds = [OWN, WINDOWED, *BASELINES, BLIND, INFORMED], [k for some in stage.groups.values() for k in some]
    tests = {name: [page_of(seed, name) for seed in seeds] for name in detectors if name != INFORMED}
    cells = {
        k: {name: asdict(cell(seeds, tests.get(name, []), k, name, lasting=stage.lasting)) for name in detectors}
        for k in kinds
    }
    return {
        "format": FORMAT, "part": stage.name, "seeds": len(seeds), "facts": [s.facts for s in seeds], "kinds": cells,
        "groups": {name: list(some) for name, some in stage.groups.items()},
        "parts": {k: {name: mean(areas(seeds, k, name)) for name in parts} for k in kinds},
        "positives": {k: sum(int(s.groups[k].positive.sum()) for s in seeds) for k in kinds},
        "alarms": {name: {kind: alarms(seeds, name, kind) for kind in (NOMINAL, SHIFT)} for name in (OWN, *BASELINES)},
        "shift": by_policy(seeds),
        "episodes": {k: {name: episodes(seeds, k, name) for name in (OWN, *BASELINES)} for k in kinds},
        "change": {k: change(seeds, k) for k in kinds},
        "in_time": {k: in_time(seeds, k) for k in kinds},
        "flagged": {k: mean([later(g, g.alarm)[later(g, g.positive)].mean() for g in of(seeds, k)]) for k in kinds},
        "nats": {k: mean([-np.median(later(g, g.scores[NATS])[later(g, g.positive)]) for g in of(seeds, k)])
                 for k in kinds},
        "nats_normal": mean([-np.median(later(g, g.scores[NATS])) for g in of(seeds, NOMINAL)]),
        "curves": {k: {name: curve(seeds, k, name) for name in (OWN, NATS, PREDICTOR, BLIND)} for k in kinds},
    }


def of(seeds: Sequence[Evaluated], kind: str) -> list[Group]:
    """The group of a kind in every seed."""
    return [seed.groups[kind] for seed in seeds]


def mean(values: Sequence[Any]) -> float:
    """The mean of what is a number; NaN where nothing is."""
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def later(group: Group, values: np.ndarray) -> np.ndarray:
    """Values (N,) without the first frames of the episodes."""
    return np.delete(values, np.cumsum(group.lengths) - group.lengths)


def frames(seed: Evaluated, kind: str, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores and labels by episode. The oracle that knows what goes wrong has nothing to say of nominal episodes."""
    groups = [seed.groups[kind]] if name == INFORMED else [seed.groups[kind], seed.groups[NOMINAL]]
    scores = [episode[1:] for group in groups for episode in group.episodes(group.scores[name])]
    return scores, [episode[1:] for group in groups for episode in group.episodes(group.positive)]


def joined(seed: Evaluated, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of all frames."""
    scores, labels = frames(seed, kind, name)
    return np.concatenate(scores), np.concatenate(labels)


def areas(seeds: Sequence[Evaluated], kind: str, name: str) -> list[float]:
    """AUROC in every seed."""
    return [metrics.auroc(*joined(seed, kind, name)) for seed in seeds]


def cell(seeds: Sequence[Evaluated], tests: Sequence[metrics.PageTest], kind: str, name: str, *, lasting: bool) -> Cell:
    """All figures of a detector on a kind; `tests`: one for every seed, or none at all."""
    every = [joined(seed, kind, name) for seed in seeds]
    samples = [metrics.resampled(*frames(seed, kind, name), seed=number) for number, seed in enumerate(seeds)]
    low, high = interval(np.mean(samples, axis=0))
    found = [delays_of(seed, test, kind, name) for seed, test in zip(seeds, tests, strict=False)]
    delays = np.array([delay for some in found for delay in some])
    return Cell(
        mean(areas(seeds, kind, name)), low, high, mean([metrics.aupr(*pair) for pair in every]),
        mean([labels.mean() for _, labels in every]), mean([metrics.fpr_at(*pair) for pair in every]),
        mean([windowed(seed, kind, name) for seed in seeds]) if lasting else math.nan,
        *((float(np.median(delays)), float(np.isinf(delays).mean())) if len(delays) else (math.nan, math.nan)),
    )


def page_of(seed: Evaluated, name: str) -> metrics.PageTest:
    """Page's test of a detector, set on the calibration episodes."""
    held = seed.groups[CALIBRATION]
    return metrics.page_test([episode[1:] for episode in held.episodes(held.scores[name])], RUN_LENGTH)


def delays_of(seed: Evaluated, test: metrics.PageTest, kind: str, name: str) -> list[float]:
    """Frames from the event to the alarm, by episode."""
    group = seed.groups[kind]
    pairs = zip(group.episodes(group.scores[name]), group.episodes(group.positive), strict=True)
    return [metrics.delay(test, scores[1:], int(positive[1:].argmax())) for scores, positive in pairs]


def windowed(seed: Evaluated, kind: str, name: str) -> float:
    """AUROC of means over WINDOW frames: windows all of whose frames come after the switch against those of which none
    does. A weak disturbance leaves a frame as it was now and then, which is no reason to drop the window."""
    scores: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for group in [seed.groups[kind]] if name == INFORMED else [seed.groups[kind], seed.groups[NOMINAL]]:
        for values, begin in zip(group.episodes(group.scores[name]), group.begins, strict=True):
            if len(values) <= WINDOW:
                continue
            ends = np.arange(WINDOW, len(values))
            means = np.convolve(values[1:].astype(float), np.full(WINDOW, 1 / WINDOW), mode="valid")
            pure = (ends < begin) | (ends - WINDOW + 1 >= begin)
            scores.append((values[ends] if name == WINDOWED else means)[pure])
            labels.append((ends >= begin)[pure])
    return metrics.auroc(np.concatenate(scores), np.concatenate(labels)) if scores else math.nan


def alarms(seeds: Sequence[Evaluated], name: str, kind: str) -> dict[str, float]:
    """Share of flagged frames in normal episodes, with its interval over episodes; baselines get their threshold from
    the same calibration episodes."""
    shares, samples = [], []
    for number, seed in enumerate(seeds):
        group, held = seed.groups[kind], seed.groups[CALIBRATION]
        flags = group.alarm
        if name != OWN:
            flags = group.scores[name] > np.quantile(later(held, held.scores[name]), 1 - RATE)
        hits, counts = zip(*((int(e[1:].sum()), len(e) - 1) for e in group.episodes(flags)), strict=True)
        shares.append(sum(hits) / sum(counts))
        samples.append(resampled(hits, counts, seed=number))
    low, high = interval(np.mean(samples, axis=0))
    return {"share": mean(shares), "low": low, "high": high}


def by_policy(seeds: Sequence[Evaluated]) -> dict[str, float]:
    """Share of frames flagged under each of the other policies."""
    flags: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        each = seed.groups[SHIFT].episodes(seed.groups[SHIFT].alarm)
        for policy, episode in zip(seed.facts["policies"], each, strict=True):
            flags.setdefault(policy, []).append(episode[1:])
    return {policy: float(np.concatenate(episodes).mean()) for policy, episodes in flags.items()}


def in_time(seeds: Sequence[Evaluated], kind: str) -> dict[str, float]:
    """Share of episodes flagged at the event or a frame after it; `first`: and nowhere before."""
    near, first, count = 0, 0, 0
    for group in of(seeds, kind):
        for flags, positive in zip(group.episodes(group.alarm), group.episodes(group.positive), strict=True):
            event, where = int(positive.argmax()), np.flatnonzero(flags[1:]) + 1
            near += int(np.isin(where - event, (0, 1)).any())
            first += int(len(where) > 0 and where[0] - event in (0, 1))
            count += 1
    return {"near": near / count, "first": first / count, "episodes": count}


def episodes(seeds: Sequence[Evaluated], kind: str, name: str) -> float:
    """AUROC of whole episodes of a kind against nominal ones; a baseline's episode is as strange as its worst frame."""
    found = []
    for seed in seeds:
        both = [seed.groups[kind], seed.groups[NOMINAL]]
        each = [[e[1:].max() for e in g.episodes(g.scores[name])] if name != OWN else g.whole for g in both]
        labels = np.arange(len(each[0]) + len(each[1])) < len(each[0])
        found.append(metrics.auroc(np.concatenate(each), labels))
    return mean(found)


def change(seeds: Sequence[Evaluated], kind: str) -> dict[str, float]:
    """The scorer's own change detector: median delay in frames, share of episodes where it never speaks, and where it
    spoke before the event (which are in neither of the others)."""
    delays, early, count = [], 0, 0
    for group in of(seeds, kind):
        for flags, positive in zip(group.episodes(group.change), group.episodes(group.positive), strict=True):
            event, first = int(positive.argmax()), int(flags[1:].argmax()) + 1 if flags[1:].any() else math.inf
            count, early = count + 1, early + (first < event)
            delays += [first - event] if first >= event else []
    missed = float(np.isinf(delays).mean()) if delays else math.nan
    return {"delay": float(np.median(delays)) if delays else math.nan, "missed": missed, "early": early / count}


def curve(seeds: Sequence[Evaluated], kind: str, name: str, points: int = 101) -> list[float]:
    """True positive rates at false positive rates spaced evenly on [0, 1], mean over the seeds."""
    grid = np.linspace(0, 1, points)
    return np.mean([np.interp(grid, *metrics.roc(*joined(seed, kind, name))) for seed in seeds], axis=0).tolist()
