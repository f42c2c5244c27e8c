"""`starflow-world calibrate`: fit a scorer on normal episodes, and count its false alarms on held-out ones."""

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from starflow_world.score import Scorer, Scores

TEST_SHARE = 0.25
REPORT = "calibration.json"


@dataclass(frozen=True)
class Calibrate:
    """Fit an anomaly scorer on normal episodes and count its false alarms on held-out ones."""

    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    _: KW_ONLY
    data: Path
    """Folder of normal episodes."""
    out: Path
    """Folder for the scorer."""
    false_alarms: float = 0.01
    """Share of normal frames that may be flagged; the data must support it (500 frames for 1 %)."""
    run_length: int = 1000
    """Normal frames between two false reports of a change."""
    draws: int = 1
    """Draws of noise that are averaged."""
    seed: int = 0
    """Seed of the noise, and of the split into episodes to fit, calibrate and test on."""
    skip_bad: bool = False
    """Leave bad episodes out, and print their names."""

    def run(self) -> None:
        """Fit, calibrate, test and write the scorer."""
        calibrate(self)


def calibrate(settings: Calibrate) -> dict[str, Any]:
    """Fit on three eighths of the episodes, set thresholds on three eighths, count false alarms on a quarter.

    Writes the scorer and calibration.json, and returns the content of that file. Raises ScorerError if there are too
    few calibration frames for the requested rate.
    """
    import numpy as np

    from starflow_world.data.dataset import EpisodeDataset
    from starflow_world.errors import DataError
    from starflow_world.io.files import write_text
    from starflow_world.score import Scorer
    from starflow_world.world import World

    world, episodes = World.load(settings.world), EpisodeDataset(settings.data, skip_bad=settings.skip_bad)
    order = np.random.default_rng(settings.seed).permutation(len(episodes)).tolist()
    test = order[: int(len(order) * TEST_SHARE)]
    if not test:
        raise DataError(f"{settings.data}: expected at least {round(1 / TEST_SHARE)} episodes, found {len(order)}; "
                        "collect more")
    rest = [episodes[index] for index in order[len(test) :]]
    scorer = Scorer.fit(world, rest, false_alarms=settings.false_alarms, run_length=settings.run_length,
                        draws=settings.draws, seed=settings.seed, progress=True)
    report: dict[str, Any] = {
        "world": world.config.name, "world_id": world.world_id, "data": settings.data.name,
        "false_alarms": settings.false_alarms, "calibration_frames": len(scorer.fitted.ranks.scores),
        "calibration_episodes": len(scorer.fitted.episodes), "skipped": episodes.bad,
        "run_length": settings.run_length,
        "held_out": _held_out(scorer, scorer.score([episodes[index] for index in test]), settings.false_alarms),
    }
    scorer.save(settings.out)
    write_text(settings.out / REPORT, json.dumps(report, indent=1))
    print(f"scorer: {settings.out}, from {len(rest)} episodes, thresholds from {report['calibration_frames']} frames")
    _print_report(report, report["held_out"])
    return report


def _held_out(scorer: "Scorer", scored: Sequence["Scores"], false_alarms: float) -> dict[str, Any]:
    """Return the counts of flagged frames and episodes among held-out ones; the interval is over episodes."""
    from starflow_world.evaluation.intervals import interval, resampled

    flagged, frames = [int(scores.alarm.sum()) for scores in scored], [len(scores) for scores in scored]
    supported = 1 <= false_alarms * (1 + len(scorer.fitted.episodes))  # else no episode's p can be so small
    return {
        "frames": sum(frames), "frames_flagged": sum(flagged), "rate": sum(flagged) / sum(frames),
        "interval": interval(resampled(flagged, frames)), "episodes": len(scored),
        "episodes_flagged": sum(s.episode["p"] <= false_alarms for s in scored) if supported else None,
        "episodes_changed": sum(s.episode["change"] >= 0 for s in scored),
    }


def _print_report(report: dict[str, Any], held: dict[str, Any]) -> None:
    from starflow_world.evaluation.intervals import Share

    low, high = held["interval"]
    print(f"false alarms on held-out normal frames: {held['rate']:.2%} ({low:.2%} to {high:.2%}) of "
          f"{held['frames']}; asked for {report['false_alarms']:.4g}")
    few = (f"{report['calibration_episodes']} calibration episodes are too few for p-values of whole episodes at this "
           "rate")
    whole, total = held["episodes_flagged"], held["episodes"]
    print(f"held-out normal episodes flagged as a whole: {few if whole is None else Share(whole, total)}")
    print(f"held-out normal episodes with a change reported: {Share(held['episodes_changed'], total)}")
    if report["calibration_frames"] < report["run_length"]:
        print(f"one change report per {report['run_length']} normal frames cannot be shown by "
              f"{report['calibration_frames']} calibration frames: the threshold is the highest they reached")
    if report["skipped"]:
        print(f"left out: {len(report['skipped'])} bad episodes: {', '.join(sorted(report['skipped']))}")
