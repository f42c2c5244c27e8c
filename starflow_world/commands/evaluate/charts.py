"""The charts of a report card as SVG: lines with bands against the horizon, reliability diagrams, bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from starflow_world.evaluation.horizons import COPY, HORIZONS, ONE_FRAME, WORLD
from starflow_world.io.html import Markup
from starflow_world.io.plots import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = {  # name: colour on light, on dark
    "blue": ("#0b66d6", "#58a6ff"), "orange": ("#c25700", "#f0883e"), "grey": ("#6e7781", "#8b949e"),
    "green": ("#1a7f37", "#3fb950"), "purple": ("#8250df", "#bc8cff"), "red": ("#cf222e", "#ff7b72"),
    "teal": ("#0a7d86", "#39c5cf"),
}
SOURCES = {WORLD: "blue", ONE_FRAME: "orange", COPY: "grey", "real frames": "green"}
"""Colour of each source in the report of one world."""
WORLDS = ("blue", "orange", "green", "purple", "red", "teal")
"""Colours of the worlds in a comparison, in their order."""
INK, FAINT = "#010101", "#020202"
_STAND_INS = {name: f"#0300{number:02x}" for number, name in enumerate(PALETTE, 16)}
_COLOURS = {INK: "currentColor", FAINT: "var(--line)"} | {
    colour: f"var(--c-{name})" for name, colour in _STAND_INS.items()}
SIZE = (4.3, 2.7)


@dataclass(frozen=True)
class Line:
    """A series (steps, value, low, high) in a colour of PALETTE; dashed: of a baseline."""

    colour: str
    series: Mapping[str, Sequence[float]]
    dashed: bool = False


def line_chart(lines: Sequence[Line], unit: str, *, share: bool = False, log: bool = False) -> Markup:
    """Draw series with their bands against the horizon; points where a series has few steps. share: an axis from 0 to
    100 %; log: a logarithmic value axis that is linear near 0."""

    def draw(figure: "Figure") -> None:
        axis = _axis(figure, "steps imagined", unit)
        last = 1.0
        for line in lines:
            colour, style = _STAND_INS[line.colour], "--" if line.dashed else "-"
            steps, value, low, high = (np.array(line.series[name], float) for name in ("steps", "value", "low", "high"))
            marks = {"marker": "o", "markersize": 3.5} if len(steps) <= len(HORIZONS) + 1 else {}
            axis.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
            axis.plot(steps, value, color=colour, linewidth=1.8, linestyle=style, **marks)
            last = max([last, *steps])
        ticks = [horizon for horizon in HORIZONS if horizon <= last]
        axis.set_xscale("log")
        axis.set_xticks([*ticks, last] if last >= 1.5 * ticks[-1] else ticks)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.minorticks_off()
        if share:
            _percent(axis.yaxis)
            axis.set_ylim(-0.03, 1.03)
        elif log:
            axis.set_yscale("symlog", linthresh=0.1)
            axis.set_ylim(bottom=min([0.0, *(np.nanmin(line.series["value"]) for line in lines)]))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")

    return Markup(inline_svg(draw, SIZE, _COLOURS))


def reliability_chart(bins: Sequence[tuple[str, Sequence[Mapping[str, float]]]], unit: str) -> Markup:
    """Draw reliability diagrams, each a colour and its bins; the diagonal is perfect, and size shows how many cases."""

    def draw(figure: "Figure") -> None:
        axis = _axis(figure, f"predicted {unit}", f"observed {unit}")
        ends = [edge for _, some in bins for one in some for edge in (one["predicted"], one["observed"])]
        low, high = min([0.0, *ends]), max([1.0, *ends])
        axis.plot([low, high], [low, high], color=FAINT, linewidth=1.5)
        for name, some in bins:
            colour, x = _STAND_INS[name], [one["predicted"] for one in some]
            axis.vlines(x, [one["low"] for one in some], [one["high"] for one in some], color=colour, alpha=0.5)
            sizes = [10 + 12 * len(f"{one['count']:.0f}") for one in some]
            axis.scatter(x, [one["observed"] for one in some], s=sizes, color=colour, alpha=0.85, linewidth=0)

    return Markup(inline_svg(draw, SIZE, _COLOURS))


def bar_chart(
    names: Sequence[str], groups: Sequence[tuple[str, Sequence[float], Sequence[float]]], unit: str
) -> Markup:
    """Draw horizontal bars: for each group a colour, a value for each name, and its standard error; on a scale that is
    logarithmic beyond 0.1. NaN leaves a place empty."""

    def draw(figure: "Figure") -> None:
        axis = _axis(figure, unit, "")
        thick = 0.8 / len(groups)
        for number, (name, values, errors) in enumerate(groups):
            places = [row + (number - (len(groups) - 1) / 2) * thick for row in range(len(names))]
            axis.barh(places, values, thick * 0.9, xerr=[1.96 * error for error in errors], color=_STAND_INS[name],
                      error_kw={"ecolor": INK, "elinewidth": 1})
        axis.set_xscale("symlog", linthresh=0.1)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_yticks(range(len(names)), labels=names)
        axis.invert_yaxis()
        axis.axvline(0, color=INK, linewidth=0.8)

    return Markup(inline_svg(draw, (SIZE[0], 0.8 + 0.32 * len(names) * max(1.0, len(groups) / 2)), _COLOURS))


def curve_chart(curves: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> Markup:
    """Draw held-out excess nats against episodes of training data, each curve in its colour."""

    def draw(figure: "Figure") -> None:
        axis = _axis(figure, "episodes of training data", "excess nats per frame")
        for name, points in curves:
            axis.plot([point["episodes"] for point in points], [point["valid_excess"] for point in points], "o-",
                      color=_STAND_INS[name], linewidth=1.8, markersize=4)
        ticks = sorted({point["episodes"] for _, points in curves for point in points})
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_xticks(ticks, labels=[f"{tick:,.0f}" for tick in ticks])
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.minorticks_off()

    return Markup(inline_svg(draw, SIZE, _COLOURS))


def _axis(figure: "Figure", x: str, y: str) -> Any:
    axis = figure.subplots()
    axis.set_xlabel(x, color=INK)
    axis.set_ylabel(y, color=INK)
    axis.tick_params(colors=INK, length=3)
    for spine in axis.spines.values():
        spine.set_color(FAINT)
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    return axis


def _percent(axis: Any) -> None:
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
