"""Fit a scorer on a folder of normal episodes, and count its false alarms on some that it has not seen."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import EpisodeDataset
from ..errors import DataError
from ..files import write_text
from ..score import Scorer
from ..world import World

TEST_SHARE = 0.25
REPORT = "calibration.json"


@dataclass(frozen=True)
class Rate:
    """A share of cases."""

    hits: int
    total: int

    @property
    def share(self) -> float:
        """hits / total, NaN without cases."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The share that 95 % of such samples come from (Wilson 1927)."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.share
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.2f} % ({100 * low:.2f} to {100 * high:.2f}) of {self.total}"


def calibrate(
    world: str, data: Path, out: Path, *, false_alarms: float = 0.01, run_length: int = 1000, draws: int = 1,
    seed: int = 0, batch: int = 8, skip_bad: bool = False,
) -> dict[str, object]:
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
    frames = Rate(sum(int(one.alarm.sum()) for one in scored), sum(len(one) for one in scored))
    supported = 1 <= false_alarms * (1 + len(scorer.fitted.episodes))  # else no episode's p can be so small
    whole = Rate(sum(one.episode["p"] <= false_alarms for one in scored), len(scored)) if supported else None
    changes = Rate(sum(one.episode["change"] >= 0 for one in scored), len(scored))
    report = {
        "world": opened.config.name, "world_id": opened.world_id, "data": Path(data).name,
        "false_alarms": false_alarms, "calibration_frames": len(scorer.fitted.ranks.scores),
        "calibration_episodes": len(scorer.fitted.episodes), "skipped": episodes.bad,
        "held_out": {
            "frames": frames.total, "frames_flagged": frames.hits, "rate": frames.share, "interval": frames.interval,
            "episodes": changes.total, "episodes_flagged": whole.hits if whole else None,
            "episodes_changed": changes.hits,
        },
    }
    scorer.save(out)
    write_text(Path(out) / REPORT, json.dumps(report, indent=1))
    print(f"scorer: {out}, from {len(rest)} episodes, thresholds from {len(scorer.fitted.ranks.scores)} frames")
    print(f"false alarms on held-out normal frames: {frames}; asked for {100 * false_alarms:g} %")
    few = f"{len(scorer.fitted.episodes)} calibration episodes are too few for p-values of whole episodes at this rate"
    print(f"held-out normal episodes flagged as a whole: {whole or few}")
    print(f"held-out normal episodes with a change reported: {changes}")
    if episodes.bad:
        print(f"left out: {len(episodes.bad)} bad episodes: {', '.join(sorted(episodes.bad))}")
    return report
