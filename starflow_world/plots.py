"""Plots: learning curves as PNG."""

import json
from pathlib import Path

from .files import atomic

CURVES = {
    "nats_per_dim": "nats per dim, training",
    "excess": "excess nats per frame, training (frames after the first)",
    "valid_excess": "excess nats per frame, held out",
    "valid_start_excess": "excess nats per first frame, held out",
    "outcome": "outcome loss, weighted",
    "denoiser": "denoiser loss, weighted",
}


def write_curves(metrics: Path, out: Path) -> None:
    """Plot the figures of a metrics.jsonl over the steps; excess nats on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7), constrained_layout=True)
    for axis, (key, title) in zip(axes.flat, CURVES.items(), strict=True):
        points = [(line["step"], line[key]) for line in lines if line.get(key)]
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=0.8)
        if "excess" in key and any(value > 0 for _, value in points):
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    with atomic(out) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    pyplot.close(figure)
