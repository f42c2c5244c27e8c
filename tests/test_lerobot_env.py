"""LeRobot's EnvHub: what its documentation asks of `make_env`, and what its evaluation asks of the vector env."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world import lerobot_env
from starflow_world.errors import ActionError
from starflow_world.lerobot_env import LeRobotVectorEnv
from starflow_world.world import World
from tests.envs.counting import CountingWorld
from tests.worlds import env_world, save_world


def evaluated(env: Any, choose: Any, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Play one batch of episodes as LeRobot's evaluation does; return the sums of rewards and the successes (N,)."""
    observation, _ = env.reset(seed=seeds, options={"lerobot_new_rollout": True})
    done, total, success = np.zeros(env.num_envs, bool), np.zeros(env.num_envs), np.zeros(env.num_envs, bool)
    most = env.call("_max_episode_steps")[0]
    assert env.get_attr("task") == env.get_attr("task_description")
    for _ in range(most):
        pixels = observation["pixels"]
        assert pixels.dtype == np.uint8
        assert pixels.shape[0] == env.num_envs
        assert np.stack(env.call("render")).shape == pixels.shape
        assert len(list(env.call("task_description"))) == env.num_envs
        action = choose(pixels)
        assert action.ndim == 2
        observation, reward, terminated, truncated, info = env.step(action)
        ended = info["final_info"].get("is_success") if "final_info" in info else np.zeros(env.num_envs, bool)
        success |= ended & ~done
        total += reward * ~done
        done |= terminated | truncated
    assert done.all()
    env.close()
    return total, success


def test_envhub_gets_a_suite_of_one_task_and_evaluates_it(tmp_path: Path) -> None:
    saved = save_world(env_world(max_episode_steps=3), tmp_path)
    made = partial(lerobot_env.make_env, world=str(saved))  # env.py of a repository
    suites = made(n_envs=3, use_async_envs=True, cfg=object())
    (name, tasks), = suites.items()
    assert name == World.load(saved).config.name
    assert list(tasks) == [0]
    assert isinstance(tasks[0], LeRobotVectorEnv)
    right = lambda pixels: np.full((len(pixels), 1), 1.2, np.float32)  # noqa: E731
    totals = [evaluated(env, right, [5, 6, 7])[0] for env in (tasks[0], made(n_envs=3)[name][0])]
    assert (totals[0] == totals[1]).all()


def test_success_is_a_reward_at_the_end_and_a_last_observation_is_one_of_the_space() -> None:
    env = next(iter(lerobot_env.make_env(3, world=CountingWorld((2, 3, 500))).values()))[0]  # the reward is the age
    env.reset(seed=0)
    seen = [env.step(np.zeros((3, 1), np.float32))[4] for _ in range(3)]
    assert "final_info" not in seen[0]
    assert seen[1]["final_info"]["is_success"].tolist() == [True, False, False]
    assert seen[1]["final_info"]["_is_success"].tolist() == [True, False, False]
    assert env.single_observation_space.contains(seen[1]["final_obs"][0])
    assert seen[2]["final_info"]["is_success"].tolist() == [False, True, False]


def test_rows_of_floats_become_actions_of_the_space() -> None:
    box = lerobot_env.make_env(2, world=env_world(spaces.Box(-1, 1, (2,))))
    env = next(iter(box.values()))[0]
    env.reset(seed=0)
    assert env._read(np.array([[0.5, 9.0], [-9.0, 0.0]])).tolist() == [[0.5, 1.0], [-1.0, 0.0]]
    env.step(np.array([[0.5, 9.0], [-9.0, 0.0]]))
    four = next(iter(lerobot_env.make_env(2, world=env_world()).values()))[0]
    four.reset(seed=0)
    four.step(four.action_space.sample())
    with pytest.raises(ActionError, match=r"expected rows of one number for Discrete\(4\), found \(2, 4\)"):
        four.step(np.zeros((2, 4), np.float32))
    with pytest.raises(ActionError):
        four.step(np.full((2, 1), 7.0))
    with pytest.raises(AttributeError, match="agent_pos"):
        four.get_attr("agent_pos")
