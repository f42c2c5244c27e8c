"""Plots as PNG and SVG, drawn without pyplot, so that the caller's matplotlib backend (a notebook's) is unchanged."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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


DRIFT = {
    "nats": "nats per frame", "latent_mean": "mean of the latents", "latent_variance": "variance of the latents",
    "sharpness": "sharpness, grey levels", "change": "change from the frame before, grey levels",
    "legal": "legal and readable frames, share",
}
POINTS = 100
"""Points of a curve of drift; each is the mean over the steps around it."""


def write_drift(rows: Mapping[str, Sequence[float]], out: Path) -> None:
    """Plot numbers of steps against the step, as means over one hundredth of the steps; NaN stand for unknown ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(2, 3).flat, DRIFT.items(), strict=True):
        for name in (key, *(("readable",) if key == "legal" else ())):
            values = np.array(rows[name])
            parts = np.array_split(np.arange(len(values)), min(POINTS, max(1, len(values))))
            points = [(part.mean() + 1, values[part][~np.isnan(values[part])]) for part in parts if len(part)]
            known = [(step, some.mean()) for step, some in points if len(some)]
            if known:
                axis.plot(*zip(*known, strict=True), linewidth=1.0, label=name)
        if key == "legal":
            axis.set_ylim(-0.02, 1.02)
            if axis.lines:
                axis.legend()
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    saved(figure, out)


def saved(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def inline_svg(draw: "Callable[[Figure], None]", size: tuple[float, float], colours: Mapping[str, str]) -> str:
    """Return what `draw` draws on a figure of `size` inches as an SVG element for an HTML page.

    It has no width and height, its text is text, and `colours` are replaced: {"#010101": "currentColor"}. Equal
    drawings give equal bytes. Texts are taken literally: a $ begins no formula.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "starflow", "text.parse_math": False, "font.size": 10,
                "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(settings):
        figure, text = Figure(figsize=size, layout="constrained"), StringIO()
        draw(figure)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace("\n", " ")
    begin, end, rest = svg.partition(">")
    begin = re.sub(r' (width|height|xmlns:xlink|xmlns)="[^"]*"', "", begin)
    svg = re.sub(r" +", " ", begin + end + rest).replace("xlink:href", "href")
    for own, wanted in colours.items():
        svg = svg.replace(own, wanted)
    return svg.strip()
