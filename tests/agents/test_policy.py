"""The careful policy, which asks copies of an environment, and who may act in a MiniGrid of few actions."""

import copy
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest

pytest.importorskip("minigrid")

from starflow_world.agents.babyai.bot import TinkerPolicy
from starflow_world.agents.collect import play
from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import CarefulPolicy, Policy, RandomPolicy
from starflow_world.agents.registry import default_policy, make_policy
from starflow_world.errors import ConfigError, DataError

OBSTACLES = "MiniGrid-Dynamic-Obstacles-6x6-v0"


@pytest.fixture
def env() -> Iterator[gymnasium.Env]:
    made = make_env(OBSTACLES, max_steps=40)
    yield made
    made.close()


def test_episodes_of_the_careful_are_longer_than_random_ones(env: gymnasium.Env) -> None:
    def length(policy: Policy) -> float:
        return float(np.mean([len(play(env, policy, seed=1, index=index)) for index in range(12)]))

    assert length(CarefulPolicy()) > 1.5 * length(RandomPolicy())
    assert length(CarefulPolicy(risk=1.0)) < 1.5 * length(RandomPolicy()), "who checks nothing is not careful"


def test_what_the_careful_choose_does_not_depend_on_the_luck_of_the_environment(env: gymnasium.Env) -> None:
    """Else a recording would show only what chance does to actions that it spares."""
    env.reset(seed=3)
    asked = 0
    for step in range(30):
        chosen = []
        for luck in range(4):
            twin, policy = copy.deepcopy(env), CarefulPolicy(risk=0.0)
            twin.unwrapped.np_random = np.random.default_rng(luck)
            policy.reset(step, twin)
            state = twin.unwrapped.np_random.bit_generator.state
            chosen.append(int(policy(None)))
            assert twin.unwrapped.np_random.bit_generator.state == state, "it draws nothing from the environment"
        assert len(set(chosen)) == 1
        first = RandomPolicy()
        first.reset(step, env)
        asked += chosen[0] != int(first(None))
        if env.step(chosen[0])[2]:
            env.reset(seed=step)
    assert asked > 0, "some action was refused"


def test_an_environment_whose_copies_differ_is_refused(env: gymnasium.Env) -> None:
    CarefulPolicy().check(env)
    with pytest.raises(DataError, match="can be copied"):
        CarefulPolicy().check(gymnasium.make("CartPole-v1", render_mode="rgb_array"))


def test_the_careful_policy_is_known_by_its_name_and_records_its_risk() -> None:
    policy = make_policy("careful")
    assert policy.recipe() == {"type": "CarefulPolicy", "risk": 0.03, "name": "careful"}


def test_who_picks_up_and_toggles_needs_a_minigrid_that_lets_him(env: gymnasium.Env) -> None:
    with pytest.raises(ConfigError, match="made for MiniGrid with all its actions"):
        TinkerPolicy().check(env)
    assert isinstance(default_policy(env), RandomPolicy)
    assert isinstance(default_policy(make_env("MiniGrid-Empty-5x5-v0")), TinkerPolicy)
