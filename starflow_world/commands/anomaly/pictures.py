"""Pictures of the report: ROC curves, delays, and heat maps of surprise at the events."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.commands.anomaly.figures import BASELINES
from starflow_world.commands.anomaly.run import BLIND, NATS, OWN, PREDICTOR, SeedResult
from starflow_world.io.plots import saved

SHOWN = {OWN: "tab:red", NATS: "tab:orange", PREDICTOR: "tab:blue", BLIND: "black"}


def _grid(count: int, width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    """Return a figure with `count` axes in a grid."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in list(axes.flat)[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat)[:count]


def _draw_roc(figures: dict[str, Any], path: Path) -> None:
    """Plot a ROC curve per kind, with a false positive axis that enlarges small rates."""
    kinds = figures["curves"]
    figure, axes = _grid(len(kinds), 2.6, 2.6, 5)
    for axis, (kind, curves) in zip(axes, kinds.items(), strict=True):
        for name, color in SHOWN.items():
            rates = np.linspace(0, 1, len(curves[name]))
            label = f"{name} {figures['kinds'][kind][name]['auroc']:.3f}"
            axis.plot(rates, curves[name], color=color, label=label, linewidth=1.2)
        axis.set_title(kind, fontsize=9)
        axis.set_xscale("function", functions=(np.sqrt, np.square))
        axis.set_xticks([0, 0.01, 0.1, 0.5, 1], labels=["0", "1 %", "10 %", "50 %", "100 %"], fontsize=6)
        axis.tick_params(axis="y", labelsize=6)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6, loc="lower right")
    figure.suptitle(f"{figures['part']}: true against false positive rates per frame", fontsize=10)
    saved(figure, path)


def _draw_delays(figures: dict[str, Any], path: Path) -> None:
    """Plot the share of missed anomalies and the median delay of Page's test, by kind and detector."""
    names = [OWN, *BASELINES]
    figure, axes = _grid(2, 6.5, 0.34 * len(figures["kinds"]) + 1.6, 2)
    kinds, height = list(figures["kinds"]), 0.8 / len(names)
    for number, name in enumerate(names):
        cells = [figures["kinds"][kind][name] for kind in kinds]
        places = np.arange(len(kinds)) + (number - len(names) / 2) * height
        missed = [100 * cell["missed"] for cell in cells]
        delays = [cell["delay"] if np.isfinite(cell["delay"]) else np.nan for cell in cells]
        axes[0].barh(places, missed, height, color=f"C{number}", label=name)
        axes[1].plot(delays, places, "o", color=f"C{number}", markersize=4, label=name)
    titles = "episodes never found, %", "median delay in frames, where found in half"
    for axis, title in zip(axes, titles, strict=True):
        axis.set_yticks(range(len(kinds)), labels=kinds, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3, axis="x")
    axes[1].set_xscale("symlog", linthresh=1)
    axes[1].set_xlim(left=-0.3)
    axes[1].legend(fontsize=7)
    figure.suptitle(f"{figures['part']}: Page's test, one false alarm per 1,000 normal frames", fontsize=10)
    saved(figure, path)


def _draw_heat(figures: dict[str, Any], seed: SeedResult, path: Path) -> None:
    """Plot, for one event of each kind, the frame before it, its frame, and the surprise of its tokens."""
    kinds = list(figures["kinds"])
    figure, axes = _grid(3 * len(kinds), 1.5, 1.7, 6)
    for number, kind in enumerate(kinds):
        group, (before, event, over) = seed.groups[kind], axes[3 * number : 3 * number + 3]
        height, width = group.picture.shape[1:3]
        before.imshow(group.picture[0])
        event.imshow(group.picture[1])
        over.imshow(group.picture[1])
        drawn = over.imshow(
            group.heat, extent=(-0.5, width - 0.5, height - 0.5, -0.5), cmap="inferno", alpha=0.6,
            interpolation="nearest",
        )
        figure.colorbar(drawn, ax=over, shrink=0.7).ax.tick_params(labelsize=6)
        for axis, title in ((before, "before"), (event, kind), (over, "nats of surprise")):
            axis.set_title(title, fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
    saved(figure, path)


def draw(figures: dict[str, Any], seeds: Sequence[SeedResult], out: Path) -> None:
    """Write all pictures of a part."""
    _draw_roc(figures, out / f"{figures['part']}-roc.png")
    _draw_delays(figures, out / f"{figures['part']}-delay.png")
    _draw_heat(figures, seeds[0], out / f"{figures['part']}-heat.png")
