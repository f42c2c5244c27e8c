"""Pictures of scores: heat map over a frame, chart of an episode or a clip, video."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from starflow_world.io.media import VideoWriter, caption, enlarge
from starflow_world.io.plots import saved
from starflow_world.score import Scores

SIDE, SHOWN = 256, 8
HOT, ALARM = np.array([255.0, 60.0, 40.0]), (230, 40, 40)
STRANGE = 20.0
"""Nats per token that get the hottest colour."""


def overlay(frame: np.ndarray, heat: np.ndarray, *, alarm: bool) -> np.ndarray:
    """Enlarge a frame (H, W, 3) u8 and draw the surprise heat (h, w) of its tokens in red; an alarm adds a border."""
    picture = enlarge(frame, max(1, SIDE // max(frame.shape[:2])))
    hot = np.clip(heat / STRANGE, 0, 1).astype(np.float32)
    share = np.asarray(cv2.resize(hot, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST))[..., None]
    mixed = (picture * (1 - 0.6 * share) + HOT * 0.6 * share).astype(np.uint8)
    if alarm:
        cv2.rectangle(mixed, (0, 0), (mixed.shape[1] - 1, mixed.shape[0] - 1), ALARM, 6)
    return mixed


def strip_chart(path: Path, title: str, frames: np.ndarray, scores: Scores) -> None:
    """Write a PNG with the most surprising frames of an episode, their heat maps, and its scores over time."""
    from matplotlib.figure import Figure

    strangest = np.sort(np.argsort(-scores.score, kind="stable")[:SHOWN])
    figure = Figure(figsize=(16, 9), layout="constrained")
    grid = figure.add_gridspec(4, SHOWN, height_ratios=(2, 1.3, 1.3, 1.3))
    for column, t in enumerate(strangest.tolist()):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(overlay(frames[t], scores.heat[t], alarm=bool(scores.alarm[t])))
        axis.set_title(f"frame {t}: p = {scores.p[t]:.3g}", fontsize=9)
        axis.set_axis_off()
    lines = (("score", scores.score), ("cusum (change)", scores.cusum), ("nats per dim", scores.nats_per_dim))
    for row, (name, values) in enumerate(lines):
        axis = figure.add_subplot(grid[row + 1, :])
        axis.plot(values, linewidth=1, color="tab:blue")
        flags = scores.change if row == 1 else scores.alarm
        axis.plot(np.flatnonzero(flags), values[flags], "o", color="tab:red", markersize=4)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axis.set_xlabel("frame")
    figure.suptitle(title)
    saved(figure, path)


def clip_chart(path: Path, title: str, frames: Sequence[np.ndarray], nats_per_dim: np.ndarray) -> None:
    """Write a PNG with frames (h, w, 3) of a clip, one per latent frame, and the nats per dimension (K, T) with their
    spread over K draws of noise."""
    from matplotlib.figure import Figure

    draws, total = nats_per_dim.shape
    count = min(total, SHOWN)
    figure = Figure(figsize=(16, 6), layout="constrained")
    grid = figure.add_gridspec(2, count, height_ratios=(1, 1.5))
    for column, t in enumerate(np.linspace(0, total - 1, count).round().astype(int).tolist()):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(frames[t])
        axis.set_title(f"latent frame {t}: {nats_per_dim[:, t].mean():.3f}", fontsize=9)
        axis.set_axis_off()
    axis = figure.add_subplot(grid[1, :])
    spread = nats_per_dim.std(0, ddof=1) if draws > 1 else None
    axis.errorbar(np.arange(total), nats_per_dim.mean(0), spread, marker=".", linewidth=1, color="tab:blue")
    axis.set(xlabel="latent frame", ylabel="nats per dim")
    axis.grid(alpha=0.3)
    figure.suptitle(title, wrap=True)
    saved(figure, path)


def write_overlay_video(path: Path, frames: np.ndarray, scores: Scores) -> None:
    """Write an MP4 of an episode with the heat map over every frame."""
    with VideoWriter(path, fps=6) as writer:
        for t, frame in enumerate(frames):
            lines = (f"frame {t}  score {scores.score[t]:.1f}", f"p {scores.p[t]:.3g}  cusum {scores.cusum[t]:.1f}")
            writer.add(caption(overlay(frame, scores.heat[t], alarm=bool(scores.alarm[t])), lines))
