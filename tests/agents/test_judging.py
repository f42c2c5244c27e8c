"""Scores, ranks, and the scripted agent that reads the picture."""

import gymnasium
import numpy as np
import pytest

pytest.importorskip("minigrid")

from starflow_world.agents.babyai.rooms import Room, rooms_with
from starflow_world.agents.babyai.scripted import ScriptedPolicy
from starflow_world.agents.judging import DISCOUNT, Start, episode_result, score_policy, spearman
from starflow_world.agents.policy import RandomPolicy
from starflow_world.envs.world_env import WorldEnv
from tests.envs.counting import CountingWorld

TEXT = "go to the red ball"


def test_an_outcome_adds_up_an_episode() -> None:
    env = WorldEnv(CountingWorld([3]))  # the reward is the age
    found = episode_result(RandomPolicy(), env, Start(0), seed=0)
    assert (found.reward, found.steps, found.success) == (6.0, 3, True)
    assert found.discounted == pytest.approx(1 + 2 * DISCOUNT + 3 * DISCOUNT**2)


def test_a_score_is_the_mean_over_its_starts() -> None:
    rooms = rooms_with(TEXT, 30)
    starts = [Start(seed) for seed in rooms]
    whole = score_policy(RandomPolicy(), Room(), starts, seed=4)
    each = [episode_result(RandomPolicy(), Room(), start, 4 + index) for index, start in enumerate(starts)]
    assert whole.episodes == 30
    assert whole.success == np.mean([one.success for one in each])
    assert whole.length == np.mean([one.steps for one in each])
    assert 0 < whole.success < 0.6


def test_the_scripted_agent_finds_its_way_by_the_picture_alone() -> None:
    starts = [Start(seed) for seed in rooms_with(TEXT, 20)]

    class Blind(gymnasium.Wrapper):
        """An env that a policy can learn nothing from."""

        unwrapped = None

    sure, noisy = (ScriptedPolicy(TEXT, noise) for noise in (0.0, 0.9))
    best, worse = score_policy(sure, Blind(Room()), starts), score_policy(noisy, Blind(Room()), starts)
    assert best.success == 1.0
    assert best.length < 12
    assert worse.discounted < best.discounted / 2


def test_the_scripted_agent_plays_on_where_it_understands_nothing() -> None:
    policy = ScriptedPolicy(TEXT)
    policy.reset(0, Room())
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert {policy(noise) for _ in range(50)} == {0, 1, 2}


def test_spearman_is_the_correlation_of_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    # with ties: ranks (0, 1.5, 1.5, 3) and (0, 1, 2, 3): 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
