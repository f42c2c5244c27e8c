"""The arcade policy plays MinAtar's games better than chance, and the same in every run."""

import gymnasium
import numpy as np
import pytest

from starflow_world.agents.collect import play
from starflow_world.agents.environment import make_env
from starflow_world.agents.minatar import ArcadePolicy
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.agents.registry import default_policy
from starflow_world.errors import ConfigError

pytest.importorskip("seaborn")
pytest.importorskip("minatar.gym")


@pytest.mark.parametrize("game", ["Breakout", "Freeway", "SpaceInvaders"])
def test_a_player_wins_more_than_chance_and_is_the_default(game: str) -> None:
    env = make_env(f"MinAtar/{game}-v1", max_steps=200)

    def reward(policy: Policy) -> float:
        return float(np.mean([play(env, policy, seed=1, index=index).rewards.sum() for index in range(8)]))

    assert isinstance(default_policy(env), ArcadePolicy)
    if game != "SpaceInvaders":  # who fires more there is hit as soon
        assert reward(ArcadePolicy(noise=(0.0, 0.0))) > 1.2 * reward(RandomPolicy())
    first, again = (play(env, ArcadePolicy(), seed=3, index=5) for _ in range(2))
    assert first.digest() == again.digest()
    env.close()


def test_elsewhere_the_arcade_policy_is_refused() -> None:
    env = gymnasium.make("CartPole-v1")
    with pytest.raises(ConfigError, match="made for MinAtar"):
        ArcadePolicy().check(env)
    env.close()
