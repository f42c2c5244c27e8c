"""Figures computed from measurements. Every ratio compares runs that were measured alternately."""

import math
import os
from collections import Counter
from typing import Any

import numpy as np
import torch

from starflow_world.commands.bench.machine import disturbances, processor
from starflow_world.commands.bench.measure import PARTS, TimedRun
from starflow_world.commands.bench.operations import Operations
from starflow_world.commands.bench.run import Measured
from starflow_world.io.reports import Goal


def bench_figures(measured: Measured) -> dict[str, Any]:
    """Return all reported figures as plain data; after a profile only those of the profile."""
    figures: dict[str, Any] = {
        "world": measured.config.name, "torch": torch.__version__, "processor": processor(),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "repeats": measured.settings.repeats,
        "machine": measured.machine,
        "warnings": [f"the machine was not quiet: {reason}" for reason in disturbances(measured.machine)],
        "profile": _profile(measured), "envs": [_line(measured, envs) for envs in measured.runs],
        "sweeps": dict(sorted(Counter(
            sweeps for envs in measured.runs for step in measured.own(envs).sweeps for sweeps in step
        ).items())),
    }
    if measured.long_run:
        figures["figures"] = [goal.as_json() for goal in _goals(measured)]
        figures["state_mb_per_env"] = measured.state
    return figures


def count_envs(envs: int) -> str:
    """Return "1 env", "2 envs" ..."""
    return f"{envs} env" if envs == 1 else f"{envs} envs"


def _executed(operations: Operations, run: TimedRun) -> dict[str, float]:
    """Return the executed operations of each part: a pass runs on all rows until the last row has converged."""
    total = dict.fromkeys(PARTS, 0.0)
    shallow = run.calls.get("shallow sweeps", 0) / len(run.seconds)
    for sweeps, length, slides in zip(run.sweeps, run.lengths, run.slides, strict=True):
        for part, count in operations.step(length, max(sweeps), shallow).items():
            total[part] += run.rows * count
        total["slides"] += slides * operations.slide()
    return total


def _goals(measured: Measured) -> list[Goal]:
    one, many = measured.settings.fewest, measured.settings.many
    p50, p99 = np.percentile(measured.long_run, (50, 99))
    steps = len(measured.long_run)
    return [
        _speedup(measured, "jacobi", one, 4), _speedup(measured, "jacobi", many, 4),
        _speedup(measured, "sequential", one, 25), *_own_goals(measured),
        Goal("p99 / p50 of a step, slides included, 1 env", float(p99 / p50), most=3,
             note=f"{1e3 * p50:.1f} and {1e3 * p99:.1f} ms over {steps} steps"),
        Goal("growth of memory per 1,000 steps", measured.growth, most=1, unit="MB",
             note=f"{steps} steps of 1 env, after the first {min(1000, steps // 2)}"),
        *_scoring_goals(measured),
    ]


def _speedup(measured: Measured, baseline: str, envs: int, least: float) -> Goal:
    """Return the speedup of the world's decoder over a baseline, as a goal: median over the repeats; its note compares
    their errors and, for Jacobi decoding, the speeds at the published tolerance."""
    runs = measured.runs[envs]

    def times(own: str) -> float:
        return float(np.median([slow.total / fast.total for slow, fast in zip(runs[baseline], runs[own], strict=True)]))

    own, loose, other = (measured.errors[envs][name][0] for name in ("own", "own, loose", baseline))
    note = f"rms error from sequential {own:.1e}, {baseline} {other:.1e}"
    if baseline == "jacobi":
        note += f"; at its tolerance {times('own, loose'):.3g} times, error {loose:.1e}"
        note += "" if own <= other else "; OWN ERROR IS LARGER"
    name = f"times faster than published-style {baseline}, {count_envs(envs)}"
    return Goal(name, times("own, one age"), least=least, note=note)


def _own_goals(measured: Measured) -> list[Goal]:
    """Return the goals of the world's decoder with many envs of different ages."""
    envs = measured.settings.many
    run, width = measured.own(envs), count_envs(envs)
    done = sum(_executed(Operations(measured.config), run).values())
    p50, p99 = run.percentile(50), run.percentile(99)
    slowest = np.mean([max(step) for step in run.sweeps])
    return [
        Goal(f"share of the GEMM roofline, {width}", 100 * done / run.total / measured.machine["gemm"], least=50,
             unit="%"),
        Goal("deep sweeps per frame", float(np.mean(run.sweeps)), most=3,
             note=f"verifying sweep counted; the slowest of {width} needs {slowest:.2f}"),
        Goal(f"p99 / p50 of a step, slides included, {width}", p99 / p50, most=3,
             note=f"{1e3 * p50:.1f} and {1e3 * p99:.1f} ms over {len(run.seconds)} steps"),
        Goal(f"share of a step spent on slides, {width}", 100 * run.parts["slides"] / run.total, most=15, unit="%"),
    ]


def _scoring_goals(measured: Measured) -> list[Goal]:
    config, envs = measured.config, measured.settings.many
    seconds, operations = float(np.median(measured.scoring)), Operations(config)
    done = envs * (operations.score(config.window) + config.window * operations.codec())
    scored, generated = envs * config.window / seconds, measured.own(envs).steps_per_second
    return [
        Goal("scoring: share of the GEMM roofline", 100 * done / seconds / measured.machine["gemm"], least=50,
             unit="%"),
        Goal("scoring: frames/s over generation", scored / generated, least=2.5,
             note=f"{scored:.0f} frames/s against {generated:.0f} with {count_envs(envs)}"),
    ]


def _line(measured: Measured, envs: int) -> dict[str, Any]:
    """Return the figures for one number of envs."""
    run, runs = measured.own(envs), measured.runs[envs]
    done = sum(_executed(Operations(measured.config), run).values())
    line: dict[str, Any] = {
        "envs": envs, "steps_per_second": run.steps_per_second,
        "p50_ms": 1e3 * run.percentile(50), "p99_ms": 1e3 * run.percentile(99),
        "sweeps": float(np.mean(run.sweeps)), "passes": float(np.mean([max(s) for s in run.sweeps])),
        "roofline": done / run.total / measured.machine["gemm"],
        "gflop_per_step": done / envs / len(run.seconds) / 1e9, "resident_mb": measured.resident.get(envs, math.nan),
    }
    rates = {name: float(np.median([turn.steps_per_second for turn in turns])) for name, turns in runs.items()}
    line |= {f"steps_per_second, {name}": rate for name, rate in rates.items() if name != "own"}
    if "jacobi" in runs:
        line["rounds, jacobi"] = float(np.mean([turn.sweeps for turn in runs["jacobi"]]))
    for name, (rms, largest) in measured.errors.get(envs, {}).items():
        line[f"error, {name}"] = {"rms": rms, "largest": largest}
    return line


def _profile(measured: Measured) -> dict[int, dict[str, dict[str, float]]]:
    """Return ms, share of the step and share of the GEMM roofline of each part, for the fewest envs and for many."""
    profile = {}
    for envs in sorted({measured.settings.fewest, measured.settings.many}):
        run = measured.own(envs)
        done = _executed(Operations(measured.config), run)
        profile[envs] = {
            part: {
                "ms": 1e3 * run.parts[part] / len(run.seconds), "share": run.parts[part] / run.total,
                "roofline": done[part] / run.parts[part] / measured.machine["gemm"] if run.parts[part] > 0 else 0.0,
            }
            for part in PARTS
        }
    return profile
