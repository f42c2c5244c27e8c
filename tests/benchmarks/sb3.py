"""What SB3's adapter costs: steps per second of the shipped world through it, over those of the bare vector env.

On a quiet machine, from the root of the repository (three minutes):
    python -m tests.benchmarks.sb3 --out out/sb3.json
Both play the same episodes and take turns; the figure is the median of the ratios of neighbouring turns, and the goal
is 0.85.
"""

from pathlib import Path

import numpy as np
import torch
import tyro

from starflow_world.agents.sb3 import SB3VecEnv
from starflow_world.envs.vector_env import WorldVectorEnv
from tests.benchmarks.turns import measure, report

GOAL = 0.85


def main(world: str = "babyai-gotolocal", *, out: Path = Path("out/sb3.json"), envs: int = 64, steps: int = 8,
         repeats: int = 5) -> None:
    """Measure, print and write the figures.

    Args:
        world: folder or name of a shipped world.
        out: file for the figures.
        envs: rows.
        steps: of each turn.
        repeats: turns that count.
    """
    bare, below = (WorldVectorEnv(world, envs, autoreset_mode="same_step") for _ in range(2))
    adapted = SB3VecEnv(below)
    bare.reset(seed=0)
    adapted.seed(0)
    adapted.reset()
    actions = np.random.default_rng(0).integers(0, bare.single_action_space.n, (1 + repeats, steps, envs))
    rates = measure({"bare": bare, "sb3": adapted}, actions)
    report(out, rates, GOAL, world=world, envs=envs, threads=torch.get_num_threads())


if __name__ == "__main__":
    tyro.cli(main)
