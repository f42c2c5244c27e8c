"""The likelihood of a real video under a converted video model: a table, JSON, CSV and a chart.

Noisy latents have a density: as in training, they are a posterior sample plus noise of the model's level; the figures
are averages over keyed draws of both. Windows are scored in sequence, each in one teacher-forced parallel pass: the
nats of a frame are conditioned on the prompt and on the past in its window, and memory and time per frame do not grow
with the clip.

Shapes: K draws, T latent frames, n tokens per frame, c channels.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.commands.score.pictures import clip_chart
from starflow_world.commands.score.settings import ScoreSettings
from starflow_world.config.video import FRAMES
from starflow_world.errors import ConfigError, DataError
from starflow_world.flow import Tables
from starflow_world.io.files import write_text
from starflow_world.io.media import fitted, read_video
from starflow_world.io.reports import csv_text
from starflow_world.model.checkpoint import load_video
from starflow_world.noise import make_key
from starflow_world.video.model import VideoModel
from starflow_world.video.sources import nearest_aspect

SHORTEST = 1 + FRAMES
ENDLESS = 1 << 62
HEIGHT = 120
"""Height of the thumbnails in the chart, in pixels."""
COLUMNS = ("latent_frame", "first_frame", "last_frame", "nats", "spread", "nats_per_dim", "bits_per_dim")


@dataclass(frozen=True)
class ClipScores:
    """Scores of a clip: nats (K, T), the log-probability of each latent frame per draw; `dims`: numbers per frame."""

    nats: np.ndarray
    dims: int

    def lines(self) -> list[dict[str, Any]]:
        """Return the figures of each latent frame, and the video frames that it covers."""
        return [
            {"latent_frame": t, "first_frame": max(FRAMES * (t - 1) + 1, 0), "last_frame": FRAMES * t}
            | _statistics(nats, self.dims) for t, nats in enumerate(self.nats.T)
        ]

    def whole(self) -> dict[str, Any]:
        """Return the figures of the whole clip."""
        return _statistics(self.nats.sum(1), self.dims * self.nats.shape[1])


def _statistics(nats: np.ndarray, dims: int) -> dict[str, Any]:
    """Return the mean over draws (K,), in nats and per dimension, and the standard deviation of several draws."""
    mean, spread = float(nats.mean()), float(nats.std(ddof=1)) if len(nats) > 1 else None
    return {"nats": mean, "spread": spread, "nats_per_dim": mean / dims, "bits_per_dim": -mean / dims / math.log(2)}


def score_clip(settings: ScoreSettings, video: Path) -> ClipScores:
    """Score the clip `video` under the model in the folder `settings.world`; print the table, and write clip.csv,
    clip.json and clip.png. Raises ConfigError, DataError, CheckpointError."""
    folder = Path(settings.world)
    config, weights = load_video(folder)
    start = list(read_video(video, SHORTEST))
    if len(start) < SHORTEST:
        raise DataError(f"{video}: expected at least {SHORTEST} frames, two latent ones, found {len(start)}")
    aspect = settings.aspect or nearest_aspect(start[0])
    height, width = config.size(aspect)
    model = VideoModel.from_pretrained(
        folder, text=settings.text, codec=settings.vae, cache=folder / "prompts", device=settings.device,
        dtype=settings.dtype,
    )
    thumbnails: list[np.ndarray] = []
    frames = _with_thumbnails(read_video(video, ENDLESS), thumbnails, (HEIGHT, round(HEIGHT * width / height)))
    scores = clip_nats(model, settings, frames, aspect)
    record = {
        "model": config.name, "weights": weights, "video": video.name, "prompt": settings.prompt, "aspect": aspect,
        "fps": settings.fps or config.fps, "draws": settings.draws, "seed": settings.seed,
        "noise_level": config.noise_level, "window": config.window, "context": config.context,
        "dims_per_latent_frame": scores.dims, "whole": scores.whole(),
        "latent_frames": scores.lines(),
    }
    write_text(settings.out / "clip.json", json.dumps(record, indent=1) + "\n")
    write_text(settings.out / "clip.csv", csv_text(COLUMNS, [list(line.values()) for line in scores.lines()]))
    clip_chart(settings.out / "clip.png", f"{video.name}: {settings.prompt}", thumbnails, scores.nats / scores.dims)
    print(clip_table(scores))
    print(settings.out / "clip.json")
    return scores


def clip_nats(model: VideoModel, settings: ScoreSettings, frames: Iterable[np.ndarray], aspect: str) -> ClipScores:
    """Score the frames (H, W, 3) u8 of a clip, fitted to the aspect."""
    config, size, grid = model.config, model.config.size(aspect), model.config.grid(aspect)
    if config.window < 2:
        raise ConfigError(f"model {config.name}: expected a model of videos, found a window of {config.window} frame")
    text = model.text.encode([config.prompt(settings.prompt, fps=settings.fps or config.fps, aspect=aspect)])
    keys = torch.tensor([make_key(settings.seed + draw) for draw in range(settings.draws)])
    tables = model.flow.tables(grid, config.window)
    nats: list[Tensor] = []
    held, known = torch.empty(0, device=model.device), 0
    with tqdm(desc="score", unit=" latent frame") as bar:
        for piece in model.noisy(frames, size, keys):
            held = torch.cat((held, piece), dim=1) if len(held) else piece
            while held.shape[1] >= config.window:
                nats.append(window_nats(model, held[:, : config.window], text, tables)[:, known:])
                held, known = held[:, config.window - config.context :], config.context
            bar.update(piece.shape[1])
        if held.shape[1] > known:
            nats.append(window_nats(model, held, text, tables)[:, known:])
    return ClipScores(torch.cat(nats, dim=1).double().cpu().numpy(), math.prod(held.shape[2:]))


def window_nats(model: VideoModel, x: Tensor, text: Tensor, tables: Tables) -> Tensor:
    """Return the nats (K, T) of a window x (K, T, n, c) given a text (1, L, w), in one parallel pass per draw."""
    with torch.no_grad(), model.flow.products():
        return torch.cat([model.flow.nats(draw, text, None, tables)[0].sum(-1) for draw in x.split(1)])


def clip_table(scores: ClipScores) -> str:
    """Return the figures as a table for a terminal."""
    lines = [f"{'latent':>6}  {'frames':>9}  {'nats':>12}  {'spread':>8}  {'nats/dim':>9}  {'bits/dim':>9}"]
    for line in scores.lines():
        lines.append(f"{line['latent_frame']:>6}  {_span(line):>9}  {_figures(line)}")
    return "\n".join([*lines, f"{'clip':>6}  {'':>9}  {_figures(scores.whole())}"])


def _figures(line: dict[str, Any]) -> str:
    spread = "" if line["spread"] is None else f"{line['spread']:.1f}"
    return f"{line['nats']:>12.1f}  {spread:>8}  {line['nats_per_dim']:>9.4f}  {line['bits_per_dim']:>9.4f}"


def _span(line: dict[str, Any]) -> str:
    return f"{line['first_frame']}-{line['last_frame']}" if line["last_frame"] else "0"


def _with_thumbnails(
    frames: Iterable[np.ndarray], kept: list[np.ndarray], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yield the frames; append a small copy of the last frame of every latent frame to `kept`."""
    for index, frame in enumerate(frames):
        if index % FRAMES == 0:
            kept.append(fitted(frame, size))
        yield frame
