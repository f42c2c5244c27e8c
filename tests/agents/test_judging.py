"""Scores, ranks, and the scripted agent that reads the picture."""

import gymnasium
import numpy as np
import pytest

pytest.importorskip("minigrid")

from starflow_world.agents.babyai.scripted import ScriptedPolicy
from starflow_world.agents.environment import Environment
from starflow_world.agents.judging import (
    DISCOUNT,
    Start,
    episode_result,
    score_in_dreams,
    score_policy,
    spearman,
)
from starflow_world.agents.policy import PartlyRandom, RandomPolicy
from starflow_world.agents.task import PictureEnv, seeds_with
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from tests.envs.counting import CountingWorld
from tests.games import DISCRETE
from tests.worlds import env_world

TEXT = "go to the red ball"
ROOMS = Environment("BabyAI-GoToLocalS8N4-v0", max_steps=64)
GAME = Environment(DISCRETE, frame_size=16)


def test_an_outcome_adds_up_an_episode() -> None:
    env = WorldEnv(CountingWorld([3]))  # the reward is the age
    found = episode_result(RandomPolicy(), env, Start(0), seed=0)
    assert (found.reward, found.steps, found.success) == (6.0, 3, True)
    assert found.discounted == pytest.approx(1 + 2 * DISCOUNT + 3 * DISCOUNT**2)


def test_a_score_is_the_mean_over_its_starts() -> None:
    env, starts = PictureEnv(GAME), [Start(seed) for seed in range(12)]
    whole = score_policy(RandomPolicy(), env, starts, seed=4)
    each = [episode_result(RandomPolicy(), env, start, 4 + index) for index, start in enumerate(starts)]
    assert whole.episodes == 12
    assert whole.success == np.mean([one.success for one in each])
    assert whole.length == np.mean([one.steps for one in each])
    assert whole.reward == np.mean([one.reward for one in each])
    assert 0 < whole.success <= 1


@pytest.mark.parametrize("rows", [3, 8])
def test_dreams_that_are_played_together_have_the_scores_of_dreams_one_by_one(rows: int) -> None:
    world, limit = env_world(), 5
    assert world.starts is not None
    pairs = zip(world.starts.frames.numpy()[:5], world.starts.texts[:5], strict=True)
    starts = [Start(seed, {"frames": frame, "text": text}) for seed, (frame, text) in enumerate(pairs)]
    alone = WorldEnv(world, max_episode_steps=limit)
    together = WorldVectorEnv(world, rows, autoreset_mode="same_step", max_episode_steps=limit)
    for policy in (RandomPolicy(), PartlyRandom(RandomPolicy(), 0.5)):
        one = score_policy(policy, alone, starts, seed=2).to_dict()
        assert score_in_dreams(policy, together, alone, starts, seed=2).to_dict() == pytest.approx(one, rel=1e-6)


def test_the_scripted_agent_finds_its_way_by_the_picture_alone() -> None:
    starts = [Start(seed) for seed in seeds_with(ROOMS, TEXT, 6, 0)]

    class Blind(gymnasium.Wrapper):
        """An env that a policy can learn nothing from."""

        unwrapped = None

    sure, noisy = (ScriptedPolicy(TEXT, noise) for noise in (0.0, 0.9))
    best, worse = (score_policy(policy, Blind(PictureEnv(ROOMS)), starts) for policy in (sure, noisy))
    assert best.success == 1.0
    assert best.length < 12
    assert worse.discounted < best.discounted / 2


def test_the_scripted_agent_plays_on_where_it_understands_nothing() -> None:
    policy = ScriptedPolicy(TEXT)
    policy.reset(0, PictureEnv(ROOMS))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert {policy(noise) for _ in range(50)} == {0, 1, 2}


def test_spearman_is_the_correlation_of_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    # with ties: ranks (0, 1.5, 1.5, 3) and (0, 1, 2, 3): 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
