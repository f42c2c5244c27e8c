"""The report: a table on the terminal and in Markdown, the same numbers as JSON, and pictures."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from starflow_world.commands.bench import figures
from starflow_world.commands.bench.machine import GEMM
from starflow_world.commands.bench.measured import Measured
from starflow_world.io.files import write_text
from starflow_world.io.plots import saved
from starflow_world.io.reports import markdown_table as table

BASELINES = {
    "own": "this package", "jacobi": "published-style Jacobi", "sequential": "published-style sequential",
}


def summary(measured: Measured) -> dict[str, Any]:
    """All that is reported, as plain data; after `--profile` only what that measures."""
    settings = measured.settings
    found: dict[str, Any] = {
        "world": measured.config.name, "torch": torch.__version__, "threads": torch.get_num_threads(),
        "cores": os.cpu_count(), "repeats": settings.repeats, "machine": measured.machine,
        "warnings": figures.warnings(measured), "profile": figures.profile(measured),
        "sweeps": figures.histogram(measured), "envs": figures.widths(measured),
    }
    if measured.long_run:
        found["figures"] = [figures.plain(figure) for figure in figures.figures(measured)]
        found["state_mb_per_env"] = measured.state
    return found


def write(found: dict[str, Any], out: Path) -> None:
    """bench.json, bench.md and bench.png in the folder `out`."""
    write_text(out / "bench.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "bench.md", markdown(found) + "\n")
    picture(found, out / "bench.png")


# ---- words -----------------------------------------------------------------------------------------------------------


def markdown(found: dict[str, Any]) -> str:
    """The whole report as Markdown, which reads well on a terminal too."""
    goals = [
        [f["name"], _number(f["value"], f["unit"]), f"{'<=' if f['at_most'] else '>='} {_number(f['goal'], f['unit'])}",
         {True: "yes", False: "no", None: "not measured"}[f["met"]], f["note"]]
        for f in found["figures"]
    ]
    sweeps = [[f"{count}", f"{frames}"] for count, frames in found["sweeps"].items()]
    parts = [
        f"# Benchmark of {found['world']}", _conditions(found), _warned(found),
        table(["figure", "measured", "goal", "met", "how"], goals),
        "## Numbers of envs", table(*_widths(found)), "## Where a step's time goes", _profile(found),
        "## Deep sweeps per frame", table(["sweeps", "frames"], sweeps),
    ]
    return "\n\n".join(part for part in parts if part)


def profile_table(found: dict[str, Any]) -> str:
    """What `--profile` prints of a summary."""
    return "\n\n".join(part for part in (_conditions(found), _warned(found), _profile(found)) if part)


def _conditions(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return (
        f"torch {found['torch']}, {found['threads']} threads on {found['cores']} cores, float32; medians of "
        f"{found['repeats']} repeats in turns; {machine['seconds']:.0f} s. A {GEMM}³ matrix product ran at "
        f"{machine['gemm_before'] / 1e9:.0f} Gflop/s before and {machine['gemm_after'] / 1e9:.0f} after; load average "
        f"{machine['load_before']:.2f} before, {machine['load_after']:.2f} after; other processes used "
        f"{machine['others']:.2f} cores."
        + (f" A state holds {found['state_mb_per_env']:.2f} MB per env." if "state_mb_per_env" in found else "")
    )


def _warned(found: dict[str, Any]) -> str:
    return "\n".join(f"**Warning: {warning}. Do not trust these figures.**" for warning in found["warnings"])


def _widths(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    columns: dict[str, tuple[str, float]] = {
        "envs": ("envs", 1), "steps/s": ("steps_per_second", 1), "p50 ms": ("p50_ms", 1), "p99 ms": ("p99_ms", 1),
        "sweeps": ("sweeps", 1), "passes": ("passes", 1), "roofline %": ("roofline", 100),
        "Gflop/step": ("gflop_per_step", 1), "one age steps/s": ("steps_per_second, own, one age", 1),
        "loose steps/s": ("steps_per_second, own, loose", 1),
        "Jacobi steps/s": ("steps_per_second, jacobi", 1), "Jacobi rounds": ("rounds, jacobi", 1),
        "sequential steps/s": ("steps_per_second, sequential", 1), "process MB": ("resident_mb", 1),
    }
    errors = {"error": "own", "loose error": "own, loose", "Jacobi error": "jacobi", "sequential error": "sequential"}
    lines = []
    for line in found["envs"]:
        cells = [f"{line[key] * unit:.4g}" if key in line else "" for key, unit in columns.values()]
        some = [line.get(f"error, {name}") for name in errors.values()]
        lines.append(cells + ["" if e is None else f"{e['rms']:.1e} (max {e['largest']:.1e})" for e in some])
    return [*columns, *errors], lines


def _profile(found: dict[str, Any]) -> str:
    widths, whole = found["profile"], {line["envs"]: line for line in found["envs"]}
    head = ["part", *(f"{figures.envs(rows)}: {what}" for rows in widths for what in ("ms", "%", "roofline %"))]
    lines = []
    for part in next(iter(widths.values())):
        cells = [widths[rows][part] for rows in widths]
        lines.append([part, *(text for c in cells for text in _share(c["ms"], c["share"], c["roofline"]))])
    steps = [(sum(part["ms"] for part in parts.values()), whole[rows]["roofline"]) for rows, parts in widths.items()]
    lines.append(["whole step", *(text for ms, roofline in steps for text in _share(ms, 1.0, roofline))])
    passes = ", ".join(f"{whole[rows]['passes']:.2f} with {figures.envs(rows)}" for rows in widths)
    return f"{table(head, lines)}\n\nDeep passes per step (those of the slowest row): {passes}."


def _share(ms: float, share: float, roofline: float) -> tuple[str, str, str]:
    return f"{ms:.2f}", f"{100 * share:.1f}", f"{100 * roofline:.0f}"


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}".strip()


# ---- pictures --------------------------------------------------------------------------------------------------------


def picture(found: dict[str, Any], out: Path) -> None:
    """Four small pictures: speed and time of a step against the number of envs, sweeps, and where the time goes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_speed(axes[0, 0], found["envs"])
    _draw_times(axes[0, 1], found["envs"])
    _draw_sweeps(axes[1, 0], {int(count): frames for count, frames in found["sweeps"].items()})
    _draw_profile(axes[1, 1], found["profile"])
    doubt = " - the machine was not quiet" if found["warnings"] else ""
    figure.suptitle(f"{found['world']}, {found['threads']} threads{doubt}")
    saved(figure, out)


def _draw_speed(axis: Any, envs: list[dict[str, Any]]) -> None:
    for name, label in BASELINES.items():
        key = "steps_per_second" if name == "own" else f"steps_per_second, {name}"
        points = [(line["envs"], line[key]) for line in envs if key in line]
        axis.plot(*zip(*points, strict=True), marker="o", label=label)
    _logarithmic(axis, envs, "env steps per second, all envs together", "steps/s")


def _draw_times(axis: Any, envs: list[dict[str, Any]]) -> None:
    for key, label in (("p50_ms", "p50"), ("p99_ms", "p99")):
        axis.plot([line["envs"] for line in envs], [line[key] for line in envs], marker="o", label=label)
    _logarithmic(axis, envs, "time of a step, slides included", "ms")


def _draw_sweeps(axis: Any, counts: dict[int, int]) -> None:
    axis.bar(list(counts), list(counts.values()), color="tab:blue")
    axis.set(title="deep sweeps per frame (verifying sweep counted)", xlabel="sweeps", ylabel="frames")
    axis.set_xticks(range(1, max(counts) + 2))


def _logarithmic(axis: Any, envs: list[dict[str, Any]], title: str, unit: str) -> None:
    from matplotlib import ticker

    widths = [line["envs"] for line in envs]
    axis.set(title=title, xlabel="envs", ylabel=unit, xscale="log", yscale="log")
    axis.set_xticks(widths, labels=[str(rows) for rows in widths])
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_profile(axis: Any, profile: dict[int, dict[str, dict[str, float]]]) -> None:
    """One bar for each number of envs, as long as the step, in the colours of the parts."""
    names = [figures.envs(rows) for rows in profile]
    left = [0.0] * len(names)
    for index, part in enumerate(next(iter(profile.values()))):
        shares = [100 * parts[part]["share"] for parts in profile.values()]
        axis.barh(names, shares, left=left, label=part, color=f"C{index}")
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set(title="where a step's time goes", xlabel="% of the step", xlim=(0, 100))
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
