"""How fast two actors step the shipped world beside one process, with the same number of threads in all.

On a quiet machine of two cores or more, from the root of the repository (five minutes):
    python -m tests.benchmarks.ray_vector_env --out out/ray.json
One process steps `envs` rows with two threads; two actors step half of the rows each with one. They take turns; the
figure is the median of the ratios of neighbouring turns, and the goal is 0.9.
"""

from pathlib import Path

import numpy as np
import torch
import tyro

from starflow_world.envs.ray_vector_env import RayVectorEnv
from starflow_world.envs.vector_env import WorldVectorEnv
from tests.benchmarks.turns import measure, report

ACTORS, GOAL = 2, 0.9


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
    both = {"local": WorldVectorEnv(world, envs), "actors": RayVectorEnv(world, envs, ACTORS, threads=1)}
    for env in both.values():
        env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, both["local"].single_action_space.n, (1 + repeats, steps, envs))
    rates = measure(both, actions)
    report(out, rates, GOAL, world=world, envs=envs, actors=ACTORS, threads=ACTORS)


if __name__ == "__main__":
    tyro.cli(main)
