"""From measurements to figures: each with its goal beside it, every ratio one of runs that took turns."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from starflow_world.commands.bench.machine import disturbances
from starflow_world.commands.bench.measure import Rolled
from starflow_world.commands.bench.measured import Measured
from starflow_world.commands.bench.operations import Operations
from starflow_world.commands.bench.profile import PARTS


@dataclass(frozen=True)
class Figure:
    """A value with its goal: at most that, or at least."""

    name: str
    value: float
    goal: float
    at_most: bool
    unit: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where nothing was measured."""
        if math.isnan(self.value):
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def executed(operations: Operations, rolled: Rolled) -> dict[str, float]:
    """Operations of each part in a run: a pass is executed for all rows, until the last of them has converged."""
    total = dict.fromkeys(PARTS, 0.0)
    shallow = rolled.calls.get("shallow sweeps", 0) / len(rolled.seconds)
    for sweeps, length, slides in zip(rolled.sweeps, rolled.lengths, rolled.slides, strict=True):
        for part, count in operations.step(length, max(sweeps), shallow).items():
            total[part] += rolled.rows * count
        total["slides"] += slides * operations.slide()
    return total


def faster(measured: Measured, rows: int, baseline: str, own: str = "own, one age") -> float:
    """How many times faster the own decoder is, rows of one age: the median over the repeats."""
    runs = measured.runs[rows]
    pairs = zip(runs[baseline], runs[own], strict=True)
    return float(np.median([sum(slow.seconds) / sum(fast.seconds) for slow, fast in pairs]))


def figures(measured: Measured) -> list[Figure]:
    """All figures that have a goal."""
    one, many = measured.settings.fewest, measured.settings.many
    found = [
        _ratio(measured, "jacobi", one, 4), _ratio(measured, "jacobi", many, 4),
        _ratio(measured, "sequential", one, 25), *_own(measured),
    ]
    p50, p99 = np.percentile(measured.long_run, (50, 99))
    found.append(Figure(
        "p99 / p50 of a step, slides included, 1 env", float(p99 / p50), 3, True,
        note=f"{1e3 * p50:.1f} and {1e3 * p99:.1f} ms over {len(measured.long_run)} steps",
    ))
    found.append(Figure(
        "growth of memory per 1,000 steps", measured.growth, 1, True, "MB",
        f"{len(measured.long_run)} steps of 1 env, after the first {min(1000, len(measured.long_run) // 2)}",
    ))
    return [*found, *_scoring(measured)]


def _ratio(measured: Measured, baseline: str, rows: int, goal: float) -> Figure:
    """The speed of the own decoder as it is shipped; in the note its error, and both at the published tolerance."""
    own, loose, other = (measured.errors[rows][name][0] for name in ("own", "own, loose", baseline))
    note = f"rms error from sequential {own:.1e}, {baseline} {other:.1e}"
    if baseline == "jacobi":
        again = faster(measured, rows, baseline, "own, loose")
        note += f"; at its tolerance {again:.3g} times, error {loose:.1e}"
        note += "" if own <= other else "; OWN ERROR IS LARGER"
    name = f"times faster than published-style {baseline}, {envs(rows)}"
    return Figure(name, faster(measured, rows, baseline), goal, False, note=note)


def _own(measured: Measured) -> list[Figure]:
    """Figures of the own decoder with many envs at all ages."""
    rows = measured.settings.many
    rolled, width = measured.own(rows), envs(rows)
    seconds, sweeps = sum(rolled.seconds), [sweep for step in rolled.sweeps for sweep in step]
    done = sum(executed(Operations(measured.config), rolled).values())
    p50, p99 = rolled.percentile(50), rolled.percentile(99)
    slowest = np.mean([max(step) for step in rolled.sweeps])
    return [
        Figure(f"share of the GEMM roofline, {width}", 100 * done / seconds / measured.machine["gemm"], 50, False, "%"),
        Figure(
            "deep sweeps per frame", float(np.mean(sweeps)), 3, True,
            note=f"verifying sweep counted; the slowest of {width} needs {slowest:.2f}",
        ),
        Figure(
            f"p99 / p50 of a step, slides included, {width}", p99 / p50, 3, True,
            note=f"{1e3 * p50:.1f} and {1e3 * p99:.1f} ms over {len(rolled.seconds)} steps",
        ),
        Figure(f"share of a step spent on slides, {width}", 100 * rolled.parts["slides"] / seconds, 15, True, "%"),
    ]


def _scoring(measured: Measured) -> list[Figure]:
    config, rows = measured.config, measured.settings.many
    seconds = float(np.median(measured.scoring))
    done = rows * (Operations(config).score(config.window) + config.window * Operations(config).codec())
    rate, made = rows * config.window / seconds, measured.own(rows).steps_per_second
    return [
        Figure("scoring: share of the GEMM roofline", 100 * done / seconds / measured.machine["gemm"], 50, False, "%"),
        Figure(
            "scoring: frames/s over generation", rate / made, 2.5, False,
            note=f"{rate:.0f} frames/s against {made:.0f} with {envs(rows)}",
        ),
    ]


def envs(rows: int) -> str:
    """A number of envs in words."""
    return f"{rows} env" if rows == 1 else f"{rows} envs"


# ---- tables ----------------------------------------------------------------------------------------------------------


def widths(measured: Measured) -> list[dict[str, Any]]:
    """One line for each number of envs."""
    found = []
    for rows, runs in measured.runs.items():
        rolled, gemm = measured.own(rows), measured.machine["gemm"]
        done = executed(Operations(measured.config), rolled)
        line: dict[str, Any] = {
            "envs": rows, "steps_per_second": rolled.steps_per_second,
            "p50_ms": 1e3 * rolled.percentile(50), "p99_ms": 1e3 * rolled.percentile(99),
            "sweeps": float(np.mean(rolled.sweeps)), "passes": float(np.mean([max(s) for s in rolled.sweeps])),
            "roofline": sum(done.values()) / sum(rolled.seconds) / gemm,
            "gflop_per_step": sum(done.values()) / rows / len(rolled.seconds) / 1e9,
            "resident_mb": measured.resident.get(rows, math.nan),
        }
        for name in [name for name in runs if name != "own"]:
            rates = [run.steps_per_second for run in runs[name]]
            line[f"steps_per_second, {name}"] = float(np.median(rates))
        if "jacobi" in runs:
            line["rounds, jacobi"] = float(np.mean([run.sweeps for run in runs["jacobi"]]))
        for name, (rms, largest) in measured.errors.get(rows, {}).items():
            line[f"error, {name}"] = {"rms": rms, "largest": largest}
        found.append(line)
    return found


def histogram(measured: Measured) -> dict[int, int]:
    """Frames by the deep sweeps that they took, at all numbers of envs."""
    counts = Counter(s for rows in measured.runs for step in measured.own(rows).sweeps for s in step)
    return dict(sorted(counts.items()))


def profile(measured: Measured) -> dict[int, dict[str, dict[str, float]]]:
    """Where a step's time goes, with one env and with many: ms, share of the step, share of the GEMM roofline."""
    found = {}
    for rows in sorted({measured.settings.fewest, measured.settings.many}):
        rolled = measured.own(rows)
        done, steps = executed(Operations(measured.config), rolled), len(rolled.seconds)
        found[rows] = {
            part: {
                "ms": 1e3 * spent / steps, "share": spent / sum(rolled.seconds),
                "roofline": done[part] / spent / measured.machine["gemm"] if spent > 0 else 0.0,
            }
            for part, spent in rolled.parts.items()
        }
    return found


def warnings(measured: Measured) -> list[str]:
    """What makes the figures doubtful."""
    return [f"the machine was not quiet: {why}" for why in disturbances(measured.machine)]


def plain(figure: Figure) -> dict[str, Any]:
    """A figure as JSON can hold it."""
    value = None if math.isnan(figure.value) else figure.value
    return asdict(figure) | {"value": value, "met": figure.met}
