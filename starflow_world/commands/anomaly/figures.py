"""Figures computed from the scores of every frame, per kind of anomaly and per detector, averaged over the seeds.

Positives are the positive frames of a kind's own episodes; negatives are their other frames and those of the nominal
test episodes, so that both classes contain late frames. First frames are excluded, since no action led to them.
"""

import math
from collections.abc import Sequence
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
    ScoredGroup,
    SeedResult,
)
from starflow_world.commands.anomaly.twins import NOMINAL, SHIFT, Scenario
from starflow_world.evaluation.intervals import interval, resampled
from starflow_world.io.reports import Goal

BASELINES = (
    NATS, PREDICTOR, "frame difference", "pixel KNN (s, a, s')", "mean + RBF (DEEDEE)", "GMM (s, a, s')",
)
RUN_LENGTH, RATE = 1000.0, 0.01


def anomaly_figures(scenario: Scenario, seeds: Sequence[SeedResult]) -> dict[str, Any]:
    """Return all figures of a part as plain data."""
    parts = [name for name in seeds[0].groups[NOMINAL].scores if name.startswith("part: ")]
    kinds = [kind for group in scenario.groups.values() for kind in group]
    compared = (OWN, *BASELINES)
    detectors = [OWN, WINDOWED, *BASELINES, BLIND, INFORMED]
    tests = {name: [_page_test(seed, name) for seed in seeds] for name in detectors if name != INFORMED}
    cells = {
        k: {name: _cell(seeds, tests.get(name, []), k, name, lasting=scenario.lasting) for name in detectors}
        for k in kinds
    }
    groups = {k: [seed.groups[k] for seed in seeds] for k in (*kinds, NOMINAL)}
    return {
        "format": FORMAT, "part": scenario.name, "seeds": len(seeds), "facts": [s.facts for s in seeds], "kinds": cells,
        "groups": {name: list(kinds) for name, kinds in scenario.groups.items()},
        "parts": {k: {name: mean(_aurocs(seeds, k, name)) for name in parts} for k in kinds},
        "positives": {k: sum(int(group.positive.sum()) for group in groups[k]) for k in kinds},
        "alarms": {name: {kind: _false_alarms(seeds, name, kind) for kind in (NOMINAL, SHIFT)} for name in compared},
        "shift": _alarms_by_policy(seeds),
        "episodes": {k: {name: _episode_auroc(seeds, k, name) for name in compared} for k in kinds},
        "change": {k: _change(groups[k]) for k in kinds},
        "in_time": {k: _in_time(groups[k]) for k in kinds},
        "flagged": {k: mean([later(g, g.alarm)[later(g, g.positive)].mean() for g in groups[k]]) for k in kinds},
        "nats": {k: mean([-np.median(later(g, g.scores[NATS])[later(g, g.positive)]) for g in groups[k]])
                 for k in kinds},
        "nats_normal": mean([-np.median(later(g, g.scores[NATS])) for g in groups[NOMINAL]]),
        "curves": {k: {name: _roc_curve(seeds, k, name) for name in (OWN, NATS, PREDICTOR, BLIND)} for k in kinds},
    }


def mean(values: Sequence[Any]) -> float:
    """Return the mean of the values that are not None or NaN; NaN without any."""
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def average(figures: dict[str, Any], group: str, name: str, key: str = "auroc") -> float:
    """Return the mean of a detector's figure over the kinds of a group."""
    return mean([figures["kinds"][kind][name][key] for kind in figures["groups"][group]])


def better(figures: dict[str, Any]) -> dict[str, list[str]]:
    """Return, for each kind, the baselines whose AUROC is above the scorer's, the best first."""
    wins = {}
    for kind, cells in figures["kinds"].items():
        above = [name for name in BASELINES if cells[name]["auroc"] > cells[OWN]["auroc"]]
        if above:
            wins[kind] = sorted(above, key=lambda name: -cells[name]["auroc"])
    return wins


def common_goals(figures: dict[str, Any]) -> list[Goal]:
    """Return the common goals: false alarms, margin over the best baseline, timely detection, and scoring speed."""
    normal, shifted = (figures["alarms"][OWN][kind] for kind in (NOMINAL, SHIFT))
    margins = {}
    for group in figures["groups"]:
        rival = max(BASELINES, key=lambda name: average(figures, group, name))
        margins[group] = average(figures, group, OWN) - average(figures, group, rival), rival
    tightest = min(margins, key=lambda group: margins[group][0])
    speeds = [facts["frames_per_second"] / facts["generated_per_second"] for facts in figures["facts"]]
    main = next(iter(figures["groups"]))
    times = [figures["in_time"][kind] for kind in figures["groups"][main]]
    near, first, count = (mean([time[key] for time in times]) for key in ("near", "first", "episodes"))
    return [
        Goal("false alarms on held-out normal frames, %", 100 * normal["share"], 0.5, 2,
             note=f"target 1; {100 * normal['low']:.2f} to {100 * normal['high']:.2f}"),
        Goal("false alarms under another policy, %", 100 * shifted["share"], most=3,
             note=f"{100 * shifted['low']:.2f} to {100 * shifted['high']:.2f}"),
        Goal("AUROC above the best baseline's, mean over kinds", margins[tightest][0], least=0,
             note=f"{tightest}: {margins[tightest][1]}"),
        Goal("episodes flagged within 1 frame of the event, %", 100 * near, least=90,
             note=f"{main}; and nowhere before it {100 * first:.0f}; {count:.0f} episodes of each kind"),
        Goal("frames scored per frame generated (16 rows)", mean(speeds), least=2.5,
             note=f"{mean([f['frames_per_second'] for f in figures['facts']]):.0f} scored per second"),
    ]


def later(group: ScoredGroup, values: np.ndarray) -> np.ndarray:
    """Return values (N,) without those of the first frames of the episodes."""
    return np.delete(values, np.cumsum(group.lengths) - group.lengths)


def _judged(seed: SeedResult, kind: str, name: str) -> list[ScoredGroup]:
    """Return the groups of a comparison; the oracle that knows the anomaly has no scores for nominal episodes."""
    return [seed.groups[kind]] if name == INFORMED else [seed.groups[kind], seed.groups[NOMINAL]]


def _by_episode(seed: SeedResult, kind: str, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the scores and the labels of each episode."""
    groups = _judged(seed, kind, name)
    scores = [episode[1:] for group in groups for episode in group.episodes(group.scores[name])]
    return scores, [episode[1:] for group in groups for episode in group.episodes(group.positive)]


def _pooled(seed: SeedResult, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and the labels of all frames."""
    scores, labels = _by_episode(seed, kind, name)
    return np.concatenate(scores), np.concatenate(labels)


def _aurocs(seeds: Sequence[SeedResult], kind: str, name: str) -> list[float]:
    return [metrics.auroc(*_pooled(seed, kind, name)) for seed in seeds]


def _cell(
    seeds: Sequence[SeedResult], tests: Sequence[metrics.PageTest], kind: str, name: str, *, lasting: bool
) -> dict[str, float]:
    """Return the figures of a detector on a kind; `tests`: Page's test of each seed, or none.

    `prevalence` is the AUPR of guessing, `fpr` is taken at 95 % recall, `windowed` is the AUROC of means over WINDOW
    frames, `delay` the median number of frames to the first alarm, `missed` the share of episodes without one.
    """
    pooled = [_pooled(seed, kind, name) for seed in seeds]
    samples = [metrics.bootstrap_auroc(*_by_episode(seed, kind, name), seed=n) for n, seed in enumerate(seeds)]
    low, high = interval(np.mean(samples, axis=0))
    delays = np.array([d for seed, test in zip(seeds, tests, strict=False) for d in _delays(seed, test, kind, name)])
    return {
        "auroc": mean(_aurocs(seeds, kind, name)), "low": low, "high": high,
        "aupr": mean([metrics.aupr(*pair) for pair in pooled]),
        "prevalence": mean([labels.mean() for _, labels in pooled]),
        "fpr": mean([metrics.fpr_at(*pair) for pair in pooled]),
        "windowed": mean([_windowed_auroc(seed, kind, name) for seed in seeds]) if lasting else math.nan,
        "delay": float(np.median(delays)) if len(delays) else math.nan,
        "missed": float(np.isinf(delays).mean()) if len(delays) else math.nan,
    }


def _page_test(seed: SeedResult, name: str) -> metrics.PageTest:
    """Fit Page's test of a detector to the calibration episodes."""
    held = seed.groups[CALIBRATION]
    return metrics.page_test([episode[1:] for episode in held.episodes(held.scores[name])], RUN_LENGTH)


def _delays(seed: SeedResult, test: metrics.PageTest, kind: str, name: str) -> list[float]:
    """Return the frames from the event to the alarm of each episode."""
    group = seed.groups[kind]
    pairs = zip(group.episodes(group.scores[name]), group.episodes(group.positive), strict=True)
    return [metrics.delay(test, scores[1:], int(positive[1:].argmax())) for scores, positive in pairs]


def _windowed_auroc(seed: SeedResult, kind: str, name: str) -> float:
    """Return the AUROC of means over WINDOW frames. Positive windows lie after the switch, negative ones before; a
    window is positive even if a weak disturbance leaves some of its frames unchanged."""
    scores: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for group in _judged(seed, kind, name):
        for values, begin in zip(group.episodes(group.scores[name]), group.begins, strict=True):
            if len(values) <= WINDOW:
                continue
            ends = np.arange(WINDOW, len(values))
            means = np.convolve(values[1:].astype(float), np.full(WINDOW, 1 / WINDOW), mode="valid")
            pure = (ends < begin) | (ends - WINDOW + 1 >= begin)
            scores.append((values[ends] if name == WINDOWED else means)[pure])
            labels.append((ends >= begin)[pure])
    return metrics.auroc(np.concatenate(scores), np.concatenate(labels)) if scores else math.nan


def _false_alarms(seeds: Sequence[SeedResult], name: str, kind: str) -> dict[str, float]:
    """Return the share of flagged frames in normal episodes, with an interval over episodes; thresholds of baselines
    are set on the same calibration episodes."""
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


def _alarms_by_policy(seeds: Sequence[SeedResult]) -> dict[str, float]:
    """Return the share of flagged frames under each of the other policies."""
    flags: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        episodes = seed.groups[SHIFT].episodes(seed.groups[SHIFT].alarm)
        for policy, episode in zip(seed.facts["policies"], episodes, strict=True):
            flags.setdefault(policy, []).append(episode[1:])
    return {policy: float(np.concatenate(episodes).mean()) for policy, episodes in flags.items()}


def _in_time(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return `near`, the share of episodes flagged at the event or one frame later, and `first`, the share of those
    without an earlier flag."""
    near, first, count = 0, 0, 0
    for group in groups:
        for flags, positive in zip(group.episodes(group.alarm), group.episodes(group.positive), strict=True):
            event, where = int(positive.argmax()), np.flatnonzero(flags[1:]) + 1
            near += int(np.isin(where - event, (0, 1)).any())
            first += int(len(where) > 0 and where[0] - event in (0, 1))
            count += 1
    return {"near": near / count, "first": first / count, "episodes": count}


def _episode_auroc(seeds: Sequence[SeedResult], kind: str, name: str) -> float:
    """Return the AUROC of whole episodes of a kind against nominal ones; a baseline scores an episode by its highest
    frame."""
    areas = []
    for seed in seeds:
        both = [seed.groups[kind], seed.groups[NOMINAL]]
        each = [[e[1:].max() for e in g.episodes(g.scores[name])] if name != OWN else g.whole for g in both]
        labels = np.arange(len(each[0]) + len(each[1])) < len(each[0])
        areas.append(metrics.auroc(np.concatenate(each), labels))
    return mean(areas)


def _change(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return the figures of the scorer's own change detector: `early`, the share of episodes with a report before the
    event; of the other episodes `delay`, the median delay in frames, and `missed`, the share without a report."""
    delays, early, count = [], 0, 0
    for group in groups:
        for flags, positive in zip(group.episodes(group.change), group.episodes(group.positive), strict=True):
            event, first = int(positive.argmax()), int(flags[1:].argmax()) + 1 if flags[1:].any() else math.inf
            count, early = count + 1, early + (first < event)
            delays += [first - event] if first >= event else []
    missed = float(np.isinf(delays).mean()) if delays else math.nan
    return {"delay": float(np.median(delays)) if delays else math.nan, "missed": missed, "early": early / count}


def _roc_curve(seeds: Sequence[SeedResult], kind: str, name: str, points: int = 101) -> list[float]:
    """Return true positive rates at false positive rates spaced evenly on [0, 1], averaged over the seeds."""
    grid = np.linspace(0, 1, points)
    return np.mean([np.interp(grid, *metrics.roc(*_pooled(seed, kind, name))) for seed in seeds], axis=0).tolist()
