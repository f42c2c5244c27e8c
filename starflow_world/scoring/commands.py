"""The verbs as the command line reads them; nothing heavy is imported before one runs."""

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
    from .calibrate import calibrate as run

    run(world, data, out, false_alarms=false_alarms, run_length=run_length, draws=draws, seed=seed, skip_bad=skip_bad)


def score(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, data: Path, scorer: Path, out: Path,
    skip_bad: bool = False, video: bool = False, actors: int = 0, gpus_per_actor: float = 0.0,
) -> None:
    """Score a folder of episodes: tables, a summary, pictures of what is flagged; goes on where it stopped.

    Args:
        world: folder or name of a shipped world.
        data: folder of episodes.
        scorer: folder that calibrate has written for this world.
        out: folder for the results.
        skip_bad: leave bad episodes out, and say which.
        video: write an MP4 of every episode too.
        actors: Ray actors that score; 0: this process.
        gpus_per_actor: GPUs for each actor, such as 1 or 0.25; 0: on the CPU.
    """
    from .folder import score_folder

    score_folder(world, data, scorer, out, skip_bad=skip_bad, videos=video, actors=actors,
                 gpus_per_actor=gpus_per_actor)
