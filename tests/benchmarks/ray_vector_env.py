"""How fast two actors step the shipped world beside one process, with the same number of threads in all.

On a quiet machine of two cores or more, from the root of the repository (five minutes):
    python -m tests.benchmarks.ray_vector_env --out out/ray.json
One process steps `envs` rows with two threads; two actors step half of the rows each with one. They take turns; the
figure is the median of the ratios of neighbouring turns, and the goal is 0.9.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from starflow_world.envs.ray_vector_env import RayVectorEnv
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.files import write_text

ACTORS, GOAL = 2, 0.9


def rate(env: Any, steps: int, rng: np.random.Generator) -> float:
    """Env steps per second."""
    begun = time.perf_counter()
    for _ in range(steps):
        env.step(rng.integers(0, env.single_action_space.n, env.num_envs))
    return env.num_envs * steps / (time.perf_counter() - begun)


def measure(make: dict[str, Callable[[], Any]], steps: int, repeats: int) -> dict[str, list[float]]:
    """Rates of envs that take turns, after one turn to warm up."""
    envs = {name: build() for name, build in make.items()}
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in envs}
    for env in envs.values():
        env.reset(seed=0)
    for turn in range(repeats + 1):
        for name, env in envs.items():
            speed = rate(env, steps, rng)
            if turn:
                found[name].append(speed)
    for env in envs.values():
        env.close()
    return found


def main(world: str = "babyai-gotolocal", *, out: Path = Path("out/ray.json"), envs: int = 64, steps: int = 40,
         repeats: int = 7) -> None:
    """Measure, print and write the figures.

    Args:
        world: folder or name of a shipped world.
        out: file for the figures.
        envs: rows in all.
        steps: of each turn.
        repeats: turns that count.
    """
    torch.set_num_threads(ACTORS)
    found = measure({
        "local": lambda: WorldVectorEnv(world, envs),
        "actors": lambda: RayVectorEnv(world, envs, ACTORS, threads=1),
    }, steps, repeats)
    ratios = [actors / local for actors, local in zip(found["actors"], found["local"], strict=True)]
    median = statistics.median(ratios)
    figures = {"world": world, "envs": envs, "actors": ACTORS, "threads": ACTORS, "steps_per_second": found,
               "ratio": median, "ratios": ratios, "goal": GOAL}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(figures, indent=1))
    rates = ", ".join(f"{name} {statistics.median(speeds):.0f}" for name, speeds in found.items())
    print(f"env steps per second: {rates}; ratio {median:.3f} (goal {GOAL}); {out}")


if __name__ == "__main__":
    tyro.cli(main)
