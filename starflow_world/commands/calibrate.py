"""Fit a scorer on a folder of normal episodes, and count its false alarms on some that it has not seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import DataError
from starflow_world.evaluation.intervals import Share, interval, resampled
from starflow_world.io.files import write_text
from starflow_world.score import Scorer, Scores
from starflow_world.world import World

TEST_SHARE = 0.25
REPORT = "calibration.json"


def calibrate(
    world: str, data: Path, out: Path, *, false_alarms: float = 0.01, run_length: int = 1000, draws: int = 1,
    seed: int = 0, batch: int = 8, skip_bad: bool = False,
) -> dict[str, Any]:
    """Fit on three eighths of the episodes, set thresholds on three eighths, count on a quarter; write all to `out`.

    ScorerError where the frames kept for the thresholds cannot support the rate.
    """
    opened, episodes = World.load(world), EpisodeDataset(data, skip_bad=skip_bad)
    order = np.random.default_rng(seed).permutation(len(episodes)).tolist()
    test = order[: int(len(order) * TEST_SHARE)]
    if not test:
        raise DataError(f"{data}: expected at least {round(1 / TEST_SHARE)} episodes, found {len(order)}; collect more")
    rest = [episodes[index] for index in order[len(test) :]]
    scorer = Scorer.fit(
        opened, rest, false_alarms=false_alarms, run_length=run_length, draws=draws, seed=seed, batch=batch,
        progress=True,
    )
    scored = scorer.score([episodes[index] for index in test], batch=batch)
    held_out = _held_out(scorer, scored, false_alarms)
    report = {
        "world": opened.config.name, "world_id": opened.world_id, "data": Path(data).name,
        "false_alarms": false_alarms, "calibration_frames": len(scorer.fitted.ranks.scores),
        "calibration_episodes": len(scorer.fitted.episodes), "skipped": episodes.bad,
        "run_length": run_length, "held_out": held_out,
    }
    scorer.save(out)
    write_text(Path(out) / REPORT, json.dumps(report, indent=1))
    print(f"scorer: {out}, from {len(rest)} episodes, thresholds from {report['calibration_frames']} frames")
    _tell(report, held_out)
    return report


def _held_out(scorer: Scorer, scored: list[Scores], false_alarms: float) -> dict[str, Any]:
    """What is flagged in episodes that the scorer has not seen; the interval is over episodes."""
    flagged, frames = [int(one.alarm.sum()) for one in scored], [len(one) for one in scored]
    supported = 1 <= false_alarms * (1 + len(scorer.fitted.episodes))  # else no episode's p can be so small
    return {
        "frames": sum(frames), "frames_flagged": sum(flagged), "rate": sum(flagged) / sum(frames),
        "interval": interval(resampled(flagged, frames)), "episodes": len(scored),
        "episodes_flagged": sum(one.episode["p"] <= false_alarms for one in scored) if supported else None,
        "episodes_changed": sum(one.episode["change"] >= 0 for one in scored),
    }


def _tell(report: dict[str, Any], found: dict[str, Any]) -> None:
    low, high = found["interval"]
    print(f"false alarms on held-out normal frames: {found['rate']:.2%} ({low:.2%} to {high:.2%}) of "
          f"{found['frames']}; asked for {report['false_alarms']:.4g}")
    calibrated = report["calibration_episodes"]
    few = f"{calibrated} calibration episodes are too few for p-values of whole episodes at this rate"
    whole, total = found["episodes_flagged"], found["episodes"]
    print(f"held-out normal episodes flagged as a whole: {few if whole is None else Share(whole, total)}")
    print(f"held-out normal episodes with a change reported: {Share(found['episodes_changed'], total)}")
    if report["calibration_frames"] < report["run_length"]:
        print(f"one change report per {report['run_length']} normal frames cannot be shown by "
              f"{report['calibration_frames']} calibration frames: the threshold is the highest they reached")
    if report["skipped"]:
        print(f"left out: {len(report['skipped'])} bad episodes: {', '.join(sorted(report['skipped']))}")
