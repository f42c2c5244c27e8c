"""The report of bench: Markdown for the terminal, the same figures as JSON, and a picture."""

import json
from pathlib import Path
from typing import Any

from starflow_world.commands.bench.figures import count_envs
from starflow_world.commands.bench.machine import GEMM
from starflow_world.io.files import write_text
from starflow_world.io.plots import saved
from starflow_world.io.reports import goal_table, json_safe, markdown_table

BASELINES = {
    "steps_per_second": "this package", "steps_per_second, jacobi": "published-style Jacobi",
    "steps_per_second, sequential": "published-style sequential",
}
COLUMNS: dict[str, tuple[str, float]] = {  # title: key of the figures, factor
    "envs": ("envs", 1), "steps/s": ("steps_per_second", 1), "p50 ms": ("p50_ms", 1), "p99 ms": ("p99_ms", 1),
    "sweeps": ("sweeps", 1), "passes": ("passes", 1), "roofline %": ("roofline", 100),
    "Gflop/step": ("gflop_per_step", 1), "one age steps/s": ("steps_per_second, own, one age", 1),
    "loose steps/s": ("steps_per_second, own, loose", 1), "Jacobi steps/s": ("steps_per_second, jacobi", 1),
    "Jacobi rounds": ("rounds, jacobi", 1), "sequential steps/s": ("steps_per_second, sequential", 1),
    "process MB": ("resident_mb", 1),
}
ERRORS = {"error": "own", "loose error": "own, loose", "Jacobi error": "jacobi", "sequential error": "sequential"}


def write_bench_report(figures: dict[str, Any], out: Path) -> None:
    """Write bench.json, bench.md and bench.png into the folder `out`."""
    write_text(out / "bench.json", json.dumps(json_safe(figures), indent=1) + "\n")
    write_text(out / "bench.md", bench_markdown(figures) + "\n")
    _draw(figures, out / "bench.png")


def bench_markdown(figures: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    sweeps = [[f"{count}", f"{frames}"] for count, frames in figures["sweeps"].items()]
    return "\n\n".join([
        f"# Benchmark of {figures['world']}", *_conditions(figures), goal_table(figures["figures"]),
        "## Numbers of envs", _envs_table(figures), "## Where a step's time goes", _profile_table(figures),
        "## Deep sweeps per frame", markdown_table(["sweeps", "frames"], sweeps),
    ])


def profile_markdown(figures: dict[str, Any]) -> str:
    """Return the text that `--profile` prints."""
    return "\n\n".join([*_conditions(figures), _profile_table(figures)])


def _conditions(figures: dict[str, Any]) -> list[str]:
    machine = figures["machine"]
    conditions = (
        f"{figures['processor']}; torch {figures['torch']}, {figures['threads']} threads on {figures['cores']} cores, "
        f"float32; medians of {figures['repeats']} repeats in turns; {machine['seconds']:.0f} s. A {GEMM}³ matrix "
        f"product ran at {machine['gemm_before'] / 1e9:.0f} Gflop/s before and {machine['gemm_after'] / 1e9:.0f} "
        f"after; load average {machine['load_before']:.2f} before, {machine['load_after']:.2f} after; other processes "
        f"used {machine['others']:.2f} cores."
    )
    if "state_mb_per_env" in figures:
        conditions += f" A state holds {figures['state_mb_per_env']:.2f} MB per env."
    warned = [f"**Warning: {warning}. Do not trust these figures.**" for warning in figures["warnings"]]
    return [conditions, "\n".join(warned)] if warned else [conditions]


def _envs_table(figures: dict[str, Any]) -> str:
    rows = []
    for line in figures["envs"]:
        cells = [f"{line[key] * factor:.4g}" if key in line else "" for key, factor in COLUMNS.values()]
        errors = [line.get(f"error, {name}") for name in ERRORS.values()]
        rows.append(cells + [f"{e['rms']:.1e} (max {e['largest']:.1e})" if e else "" for e in errors])
    return markdown_table([*COLUMNS, *ERRORS], rows)


def _profile_table(figures: dict[str, Any]) -> str:
    profile, lines = figures["profile"], {line["envs"]: line for line in figures["envs"]}
    whole = {envs: {"ms": sum(part["ms"] for part in parts.values()), "share": 1, "roofline": lines[envs]["roofline"]}
             for envs, parts in profile.items()}
    names = [*next(iter(profile.values())), "whole step"]
    columns = {envs: parts | {"whole step": whole[envs]} for envs, parts in profile.items()}
    rows = [
        [name, *(text for parts in columns.values() for text in (
            f"{parts[name]['ms']:.2f}", f"{100 * parts[name]['share']:.1f}", f"{100 * parts[name]['roofline']:.0f}",
        ))] for name in names
    ]
    head = ["part", *(f"{count_envs(envs)}: {title}" for envs in profile for title in ("ms", "%", "roofline %"))]
    passes = ", ".join(f"{lines[envs]['passes']:.2f} with {count_envs(envs)}" for envs in profile)
    return f"{markdown_table(head, rows)}\n\nDeep passes per step (those of the slowest row): {passes}."


def _draw(figures: dict[str, Any], out: Path) -> None:
    """Plot speed and time of a step against the number of envs, the sweeps, and the share of each part in a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    (speed, times), (sweeps, parts) = figure.subplots(2, 2)
    _draw_against_envs(speed, figures["envs"], BASELINES)
    speed.set(title="env steps per second, all envs together", ylabel="steps/s")
    _draw_against_envs(times, figures["envs"], {"p50_ms": "p50", "p99_ms": "p99"})
    times.set(title="time of a step, slides included", ylabel="ms")
    counts = {int(count): frames for count, frames in figures["sweeps"].items()}
    sweeps.bar(list(counts), list(counts.values()), color="tab:blue")
    sweeps.set(title="deep sweeps per frame (verifying sweep counted)", xlabel="sweeps", ylabel="frames")
    sweeps.set_xticks(range(1, max(counts) + 2))
    _draw_profile(parts, figures["profile"])
    doubt = " - the machine was not quiet" if figures["warnings"] else ""
    figure.suptitle(f"{figures['world']}, {figures['threads']} threads{doubt}")
    saved(figure, out)


def _draw_against_envs(axis: Any, lines: list[dict[str, Any]], labels: dict[str, str]) -> None:
    from matplotlib import ticker

    for key, label in labels.items():
        points = [(line["envs"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), marker="o", label=label)
    axis.set(xlabel="envs", xscale="log", yscale="log")
    axis.set_xticks([line["envs"] for line in lines], labels=[str(line["envs"]) for line in lines])
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()


def _draw_profile(axis: Any, profile: dict[int, dict[str, dict[str, float]]]) -> None:
    """Draw one bar per number of envs, divided into the parts of a step."""
    names, left = [count_envs(envs) for envs in profile], [0.0] * len(profile)
    for index, part in enumerate(next(iter(profile.values()))):
        shares = [100 * parts[part]["share"] for parts in profile.values()]
        axis.barh(names, shares, left=left, label=part, color=f"C{index}")
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set(title="where a step's time goes", xlabel="% of the step", xlim=(0, 100))
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
