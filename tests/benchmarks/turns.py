"""Envs that take turns on one machine, so that what disturbs it disturbs all of them alike."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from starflow_world.io.files import write_text


def measure(envs: dict[str, Any], actions: np.ndarray) -> dict[str, list[float]]:
    """Env steps per second of envs that have begun, by turns; actions (turns, steps, rows), the first turn warms up.

    The envs are closed.
    """
    found: dict[str, list[float]] = {name: [] for name in envs}
    for turn, course in enumerate(actions):
        for name, env in envs.items():
            begun = time.perf_counter()
            for chosen in course:
                env.step(chosen)
            if turn:
                found[name].append(course.size / (time.perf_counter() - begun))
    for env in envs.values():
        env.close()
    return found


def report(out: Path, rates: dict[str, list[float]], goal: float, **facts: object) -> None:
    """Write and print the median, over neighbouring turns, of the last env's rate over the first one's."""
    first, *_, last = rates.values()
    ratios = [one / other for one, other in zip(last, first, strict=True)]
    median = statistics.median(ratios)
    figures = {**facts, "steps_per_second": rates, "ratio": median, "ratios": ratios, "goal": goal}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(figures, indent=1))
    shown = ", ".join(f"{name} {statistics.median(speeds):.0f}" for name, speeds in rates.items())
    print(f"env steps per second: {shown}; ratio {median:.3f} (goal {goal}); {out}")
