"""The likelihood of a real video under a converted video model: a table, JSON, CSV and a chart.

What has a density are the clip's noisy latents: the posterior's sample plus noise of the model's own level, as it was
trained on; the figures are averages over keyed draws of both. Teacher-forced, a window at a time in one parallel pass,
as the clip comes: a frame's nats are those given its prompt and what its window shows of the past, and neither memory
nor time per frame grows with the clip.

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
from starflow_world.config.video import ASPECTS, FRAMES
from starflow_world.errors import ConfigError, DataError
from starflow_world.flow import Tables
from starflow_world.io.files import write_text
from starflow_world.io.media import fitted, read_video
from starflow_world.io.reports import csv_text
from starflow_world.model.checkpoint import load_video
from starflow_world.noise import make_key
from starflow_world.video.model import VideoModel

SHORTEST = 1 + FRAMES
ENDLESS = 1 << 62
HEIGHT = 120
"""Pixels of the pictures in the chart."""
COLUMNS = ("latent_frame", "first_frame", "last_frame", "nats", "spread", "nats_per_dim", "bits_per_dim")


@dataclass(frozen=True)
class ClipScores:
    """nats (K, T): log-probability of each latent frame in each draw of noise; dims: numbers in a latent frame."""

    nats: np.ndarray
    dims: int

    def lines(self) -> list[dict[str, Any]]:
        """One for every latent frame; `spread` is the standard deviation over draws, of more than one."""
        found = []
        for t, nats in enumerate(self.nats.T):
            spread = float(nats.std(ddof=1)) if len(nats) > 1 else None
            first, last = max(FRAMES * (t - 1) + 1, 0), FRAMES * t
            values = (t, first, last, float(nats.mean()), spread, *self._per_dim(nats.mean(), self.dims))
            found.append(dict(zip(COLUMNS, values, strict=True)))
        return found

    def whole(self) -> dict[str, Any]:
        """The figures of the whole clip."""
        nats = self.nats.sum(1)
        per_dim, bits = self._per_dim(nats.mean(), self.dims * self.nats.shape[1])
        spread = float(nats.std(ddof=1)) if len(nats) > 1 else None
        return {"nats": float(nats.mean()), "spread": spread, "nats_per_dim": per_dim, "bits_per_dim": bits}

    @staticmethod
    def _per_dim(nats: float, dims: int) -> tuple[float, float]:
        return float(nats) / dims, -float(nats) / dims / math.log(2)


def score_clip(settings: ScoreSettings) -> ClipScores:
    """Score a clip under the model in the folder `settings.world`; print the table, and write clip.csv, clip.json and
    clip.png. Raises ConfigError, DataError, CheckpointError."""
    folder, video = Path(settings.world), clip_path(settings)
    config, weights = load_video(folder)
    start = list(read_video(video, SHORTEST))
    if len(start) < SHORTEST:
        raise DataError(f"{video}: expected at least {SHORTEST} frames, two latent ones, found {len(start)}")
    aspect = settings.aspect or nearest_aspect(start[0])
    height, width = config.size(aspect)
    model = VideoModel.load(folder, text=settings.text, codec=settings.vae, cache=folder / "prompts",
                            device=settings.device, dtype=settings.dtype)
    thumbnails: list[np.ndarray] = []
    frames = _with_thumbnails(read_video(video, ENDLESS), thumbnails, (HEIGHT, round(HEIGHT * width / height)))
    scores = clip_nats(model, settings, frames, aspect)
    record = {
        "model": config.name, "weights": weights, "video": video.name, "prompt": settings.prompt, "aspect": aspect,
        "fps": settings.fps or config.fps, "draws": settings.draws, "seed": settings.seed,
        "noise_level": config.noise_level, "window": config.window,
        "context": config.context, "dims_per_latent_frame": scores.dims, "whole": scores.whole(),
        "latent_frames": scores.lines(),
    }
    write_text(settings.out / "clip.json", json.dumps(record, indent=1) + "\n")
    write_text(settings.out / "clip.csv", csv_text(COLUMNS, [list(line.values()) for line in scores.lines()]))
    clip_chart(settings.out / "clip.png", f"{video.name}: {settings.prompt}", thumbnails, scores.nats / scores.dims)
    print(clip_table(scores))
    print(settings.out / "clip.json")
    return scores


def clip_path(settings: ScoreSettings) -> Path:
    """Return the path of the clip."""
    assert settings.video
    return settings.video


def clip_nats(model: VideoModel, settings: ScoreSettings, frames: Iterable[np.ndarray], aspect: str) -> ClipScores:
    """The nats of a clip's frames (H, W, 3) u8, which are fitted to the aspect."""
    config, size, grid = model.config, model.config.size(aspect), model.config.grid(aspect)
    if config.window < 2:
        raise ConfigError(f"model {config.name}: expected one of videos, found one whose window is a single frame")
    text = model.text.encode([config.prompt(settings.prompt, fps=settings.fps or config.fps, aspect=aspect)])
    keys = torch.tensor([make_key(settings.seed + draw) for draw in range(settings.draws)])
    tables = model.flow.tables(grid, config.window)
    found: list[Tensor] = []
    held, known = torch.empty(0, device=model.device), 0
    with tqdm(desc=clip_path(settings).name, unit=" latent frame") as bar:
        for piece in model.noisy(frames, size, keys):
            held = torch.cat((held, piece), dim=1) if len(held) else piece
            while held.shape[1] >= config.window:
                found.append(window_nats(model, held[:, : config.window], text, tables)[:, known:])
                held, known = held[:, config.window - config.context :], config.context
            bar.update(piece.shape[1])
        if held.shape[1] > known:
            found.append(window_nats(model, held, text, tables)[:, known:])
    return ClipScores(torch.cat(found, dim=1).double().cpu().numpy(), math.prod(held.shape[2:]))


def window_nats(model: VideoModel, x: Tensor, text: Tensor, tables: Tables) -> Tensor:
    """Nats (K, T) of the latent frames of a window x (K, T, n, c) behind a text (1, L, w): one parallel pass a draw."""
    with torch.no_grad(), model.flow.products():
        return torch.cat([model.flow.nats(draw, text, None, tables)[0].sum(-1) for draw in x.split(1)])


def nearest_aspect(frame: np.ndarray) -> str:
    """The aspect of the model that is nearest to that of a frame (H, W, 3)."""
    ratio = frame.shape[1] / frame.shape[0]
    return min(ASPECTS, key=lambda name: abs(math.log(ASPECTS[name] / ratio)))


def clip_table(scores: ClipScores) -> str:
    """The figures for a terminal."""
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
