"""What more rows cost: seconds of the processor for a step of eight rows over those for a step of one."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

from starflow_world.envs.vector_env import WorldVectorEnv
from tests.worlds import env_world

TURNS, STEPS = 7, 20


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_eight_rows_cost_at_most_three_times_one(at_most: Callable[[str, float, float], None]) -> None:
    world, ratios = env_world(), []
    envs = [WorldVectorEnv(world, rows, max_episode_steps=99) for rows in (1, 8)]
    for turn in range(TURNS + 1):
        spent = []
        for env in envs:  # by turns, so that both meet the same machine
            env.reset(seed=turn)
            begin = time.process_time()
            for _ in range(STEPS):
                env.step(np.zeros(env.num_envs, int))
            spent.append(time.process_time() - begin)
        ratios.append(spent[1] / spent[0])
    at_most("ratio", statistics.median(ratios[1:]), 3)  # the first turn warms up
