"""The verbs as the command line reads them; nothing heavy is imported before one runs."""

from pathlib import Path

import tyro

from starflow_world.errors import ConfigError


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


def score(
    world: tyro.conf.Positional[str] = "babyai-gotolocal", *, out: Path, data: Path | None = None,
    scorer: Path | None = None, skip_bad: bool = False, overlays: bool = False, actors: int = 0,
    gpus_per_actor: float = 0.0, video: Path | None = None, prompt: str = "", aspect: str = "", fps: int = 0,
    draws: int = 1, seed: int = 0, text: str = "", vae: str = "", device: str = "auto", dtype: str = "auto",
) -> None:
    """Score a folder of episodes by a scorer (--data, --scorer), or one clip by a converted video model (--video).

    Of episodes: tables, a summary, pictures of what is flagged; goes on where it stopped. Of a clip: nats and bits per
    number of its noisy latents, for every latent frame and in all.

    Args:
        world: folder or name of a shipped world; for a clip: the folder that convert wrote.
        out: folder for the results.
        data: folder of episodes.
        scorer: folder that calibrate has written for this world.
        skip_bad: leave bad episodes out, and say which.
        overlays: write an MP4 of every episode, its heat-map over it, too.
        actors: Ray actors that score; 0: this process.
        gpus_per_actor: GPUs for each actor, such as 1 or 0.25; 0: on the CPU.
        video: clip to score.
        prompt: what the clip shows.
        aspect: of the pictures that the model sees, as for generate; empty: the nearest to the clip's own.
        fps: frames per second, which the model reads; 0: as it was trained.
        draws: of noise that are averaged.
        seed: of the noise.
        text: folder or hub name of the T5 encoder, if not the model's own.
        vae: folder or hub name of the Wan VAE, if not the model's own.
        device: for the clip: auto, cpu, cuda ...
        dtype: for the clip: auto (bfloat16, float32 on a CPU), bfloat16 or float32.
    """
    episodes = {"data": data, "scorer": scorer, "skip-bad": skip_bad, "overlays": overlays, "actors": actors,
                "gpus-per-actor": gpus_per_actor}
    clip = {"prompt": prompt, "aspect": aspect, "fps": fps, "draws": draws - 1, "seed": seed, "text": text, "vae": vae,
            "device": device != "auto", "dtype": dtype != "auto"}
    if others := [f"--{name}" for name, value in (clip if video is None else episodes).items() if value]:
        only = "--video" if video is None else "--data and --scorer"
        raise ConfigError(f"score: {', '.join(others)}: expected only with {only}; score episodes or one clip")
    if video is not None:
        from starflow_world.commands.score.clip import Clip, score_clip

        score_clip(Path(world), Clip(video, prompt, aspect, fps, draws, seed), out, text=text, vae=vae, device=device,
                   dtype=dtype)
    elif data is None or scorer is None:
        raise ConfigError("score: expected --data and --scorer, or --video, found none or half of it")
    else:
        from starflow_world.commands.score.folder import score_folder

        score_folder(world, data, scorer, out, skip_bad=skip_bad, videos=overlays, actors=actors,
                     gpus_per_actor=gpus_per_actor)
