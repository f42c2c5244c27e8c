"""The verb calibrate as the command line reads it; nothing heavy is imported before it runs."""

from pathlib import Path

import tyro


def calibrate(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, data: Path, out: Path, false_alarms: float = 0.01,
    run_length: int = 1000, draws: int = 1, seed: int = 0, skip_bad: bool = False,
) -> None:
    """Fit an anomaly scorer on normal episodes and count its false alarms on some that it has not seen.

    Args:
        world: folder or name of a shipped world.
        data: folder of normal episodes.
        out: folder for the scorer.
        false_alarms: share of normal frames that may be flagged; the data must support it (500 frames for 1 %).
        run_length: normal frames between two false reports of a change.
        draws: noise draws that are averaged.
        seed: of the noise, and of which episodes fit, calibrate and test.
        skip_bad: leave bad episodes out, and say which.
    """
    from starflow_world.commands.calibrate import calibrate as run

    run(world, data, out, false_alarms=false_alarms, run_length=run_length, draws=draws, seed=seed, skip_bad=skip_bad)
