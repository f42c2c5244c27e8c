"""What SB3's adapter costs: steps per second seen through it, over those of the bare vector env; run with -s, quiet."""

import statistics
import time

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from starflow_world.agents.sb3 import SB3VecEnv
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.world import World

ENVS, STEPS, TURNS = 64, 8, 5


@pytest.mark.slow
def test_sb3_sees_at_least_85_percent_of_the_bare_env_s_steps() -> None:
    world = World.load("babyai-gotolocal")
    bare, adapted = (WorldVectorEnv(world, ENVS, autoreset_mode="same_step") for _ in range(2))
    seen, actions = SB3VecEnv(adapted), np.random.default_rng(0).integers(0, 3, (STEPS, ENVS))
    spent: dict[str, list[float]] = {"bare": [], "sb3": []}
    for turn in range(TURNS + 1):
        bare.reset(seed=turn)
        seen.seed(turn)
        seen.reset()
        for name, env in (("bare", bare), ("sb3", seen)):  # the same episodes, by turns
            begin = time.perf_counter()
            for chosen in actions:
                env.step(chosen)
            spent[name].append(time.perf_counter() - begin)
    ratio = statistics.median(a / b for a, b in list(zip(spent["bare"], spent["sb3"], strict=True))[1:])
    for name, seconds in spent.items():
        print(f"{name}: {ENVS * STEPS / statistics.median(seconds[1:]):.0f} env steps/s")
    print(f"through SB3: {ratio:.1%} of the bare env's")
    assert ratio >= 0.85
