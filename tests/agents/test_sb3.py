"""SB3VecEnv: to the step what the vector env below it does, in the form that Stable-Baselines3 asks for."""

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor

from starflow_world.agents.sb3 import SB3VecEnv, first_actions
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ActionError, ConfigError
from tests.envs.counting import CountingWorld
from tests.worlds import env_world

ENDS = (2, 3, 5)


def counting(ends: tuple[int, ...] = ENDS, limit: int = 3) -> WorldVectorEnv:
    return WorldVectorEnv(CountingWorld(ends), len(ends), autoreset_mode="same_step", max_episode_steps=limit)


def dream(rows: int = 3, limit: int = 4) -> WorldVectorEnv:
    return WorldVectorEnv(env_world(size=16), rows, autoreset_mode="same_step", max_episode_steps=limit)


def test_every_step_is_that_of_the_vector_env_below() -> None:
    raw, adapted, rng = dream(), SB3VecEnv(dream()), np.random.default_rng(0)
    adapted.seed(7)
    assert (adapted.reset() == raw.reset(seed=7)[0]).all()
    ends = 0
    for _ in range(13):
        actions = rng.integers(0, 4, 3)
        observations, rewards, terminated, truncated, infos = raw.step(actions)
        seen, gains, dones, rows = adapted.step(actions)
        assert (seen == observations).all()
        assert (gains == rewards.astype(np.float32)).all()
        assert dones.dtype == bool
        assert (dones == (terminated | truncated)).all()
        for row, info in enumerate(rows):
            source = infos["final_info"] if dones[row] else infos
            assert {"nats", "text", "end_probability", "sweeps"} <= info.keys()
            assert info["nats"] == source["nats"][row]
            assert ("terminal_observation" in info) == dones[row]
            if dones[row]:
                ends += 1
                assert (info["terminal_observation"] == infos["final_obs"][row]).all()
                assert adapted.reset_infos[row]["nats"] == infos["nats"][row]
    assert ends >= 9


def test_a_time_limit_is_told_from_an_end_also_where_both_fall_together() -> None:
    env = SB3VecEnv(counting())  # row 0 ends at 2, row 1 ends at 3, which is the limit, row 2 would end at 5
    env.seed(0)
    env.reset()
    told = {}
    for step in range(1, 4):
        _, _, dones, infos = env.step(np.zeros(3, int))
        told |= {(step, row): infos[row]["TimeLimit.truncated"] for row in np.flatnonzero(dones).tolist()}
        for row in np.flatnonzero(dones).tolist():
            assert infos[row]["terminal_observation"][0, 0, 0] == step
    assert told == {(2, 0): False, (3, 1): False, (3, 2): True}


def test_observations_are_passed_on_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    below, given = counting(), []
    step = below.step
    monkeypatch.setattr(below, "step", lambda actions: given.append(step(actions)) or given[-1])
    env = SB3VecEnv(below)
    env.reset()
    seen, _, _, _ = env.step(np.zeros(3, int))
    assert seen is given[0][0]


def test_seeds_are_those_of_single_envs_and_used_once() -> None:
    env, single = SB3VecEnv(dream()), WorldEnv(env_world(size=16))
    env.seed(11)
    first = env.reset()
    for row in range(3):
        assert (first[row] == single.reset(seed=11 + row)[0]).all()
    assert (env.reset() != first).any()
    env.seed(11)
    assert (env.reset() == first).all()


def test_options_reach_their_rows() -> None:
    env = SB3VecEnv(dream())
    env.set_options([{"text": "b"}, {}, {"text": "c"}])
    env.reset()
    texts = [info["text"] for info in env.reset_infos]
    assert texts[0] == "b"
    assert texts[2] == "c"


def test_an_agent_may_be_offered_the_first_actions_only() -> None:
    assert SB3VecEnv(dream(), actions=3).action_space == spaces.Discrete(3)
    assert SB3VecEnv(dream()).action_space == spaces.Discrete(4)
    for space, count in ((spaces.Discrete(4), 5), (spaces.Discrete(4), 0), (spaces.Box(0, 1, (2,)), 1)):
        with pytest.raises(ActionError, match="actions"):
            first_actions(space, count)
    with pytest.raises(ActionError, match="actions"):
        first_actions(spaces.Discrete(4, start=1), 2)


def test_another_autoreset_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="same_step"):
        SB3VecEnv(WorldVectorEnv(CountingWorld(ENDS), 3, autoreset_mode="next_step"))


def test_rows_share_attributes_and_methods() -> None:
    env = SB3VecEnv(counting())
    env.reset()
    assert env.get_attr("max_episode_steps") == [3, 3, 3]
    assert env.get_attr("max_episode_steps", [1]) == [3]
    env.set_attr("max_episode_steps", 9)
    assert env.env.max_episode_steps == 9
    assert len(env.env_method("get_state")) == 3
    with pytest.raises(ConfigError, match="all 3 rows"):
        env.set_attr("max_episode_steps", 9, indices=[0])
    assert env.env_is_wrapped(VecMonitor) == [False] * 3


def test_the_wrappers_of_sb3_see_sums_and_no_nan() -> None:
    env = VecMonitor(VecCheckNan(SB3VecEnv(counting()), raise_exception=True))
    env.reset()
    episodes = []
    for _ in range(6):
        _, _, _, infos = env.step(np.zeros(3, int))
        episodes += [info["episode"] for info in infos if "episode" in info]
    assert [(one["r"], one["l"]) for one in episodes] == [
        (3, 2), (6, 3), (6, 3), (3, 2), (3, 2), (6, 3), (6, 3)  # the reward is the age
    ]


def test_pictures_are_rendered_as_one_sheet() -> None:
    below = WorldVectorEnv(
        env_world(size=16), 4, autoreset_mode="same_step", render_mode="rgb_array", max_episode_steps=4
    )
    env = SB3VecEnv(below)
    env.reset()
    assert env.render().shape == (32, 32, 3)


def test_ppo_of_sb3_learns_through_it_as_it_is() -> None:
    agent = PPO("MlpPolicy", SB3VecEnv(dream(4)), n_steps=8, batch_size=16, n_epochs=1, device="cpu", seed=0)
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    agent.learn(64)
    assert agent.num_timesteps == 64
    after = list(agent.policy.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
