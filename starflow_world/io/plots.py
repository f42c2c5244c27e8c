"""Plots as PNG, drawn without pyplot, so that the caller's matplotlib backend (a notebook's) is unchanged."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from starflow_world.io.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {
    "nats_per_dim": "nats per dim, training",
    "excess": "excess nats per frame, training (frames after the first)",
    "valid_excess": "excess nats per frame, held out",
    "valid_start_excess": "excess nats per first frame, held out",
    "outcome": "outcome loss, weighted",
    "denoiser": "denoiser loss, weighted",
}


def write_curves(metrics: Path, out: Path) -> None:
    """Plot the figures of a metrics.jsonl against the training step; excess nats on a logarithmic axis."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(15, 7), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        points = [(line["step"], line[key]) for line in lines if line.get(key)]
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=0.8)
        if "excess" in key and any(value > 0 for _, value in points):
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    saved(figure, out)


def saved(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
