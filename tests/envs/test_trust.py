"""Trust: an episode is cut off where a signal passes its limit, and looking changes nothing else."""

import numpy as np
import pytest

from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError
from starflow_world.world import World
from tests.worlds import env_world

HIGH = Trust(residual=1e9, round_trip=1e9, disagreement=1e9)


@pytest.fixture(scope="module")
def world() -> World:
    return env_world()


@pytest.mark.parametrize("name", ["round_trip", "disagreement"])
def test_an_episode_is_truncated_where_a_signal_passes_its_limit(world: World, name: str) -> None:
    env = WorldEnv(world, trust=Trust(**{name: 1e-6}))
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(1)
    assert truncated
    assert not terminated
    assert info["reason"] == f"{name} {info[name]:.3g} > 1e-06"


def test_an_unsolved_frame_is_not_believed() -> None:
    found = {"nats": np.zeros(3), "residual": np.array([0.1, 0.3, np.nan])}
    assert Trust(residual=0.2).reasons(found).tolist() == ["", "residual 0.3 > 0.2", "residual nan > 0.2"]


def test_looking_changes_nothing_and_its_signals_are_in_info(world: World) -> None:
    plain, looking = WorldEnv(world), WorldEnv(world, trust=HIGH)
    assert (plain.reset(seed=3)[0] == looking.reset(seed=3)[0]).all()
    for step in range(12):  # over a slide of the window
        observation, reward, terminated, truncated, info = plain.step(step % 4)
        seen, gain, *ends, told = looking.step(step % 4)
        assert (seen == observation).all()
        assert (gain, ends) == (reward, [terminated, truncated])
        assert "reason" not in info
        assert told["reason"] == ""
        assert told["round_trip"] > 0
        assert told["disagreement"] > 0


def test_only_signals_with_a_limit_are_computed(world: World) -> None:
    env = WorldEnv(world, trust=Trust(round_trip=1e9))
    env.reset(seed=0)
    info = env.step(0)[4]
    assert "round_trip" in info
    assert "disagreement" not in info


def test_disagreement_is_with_the_frame_of_the_opposite_noise(world: World) -> None:
    env = WorldEnv(world, trust=HIGH)
    env.reset(seed=5)
    state = env.get_state()
    _, mine = world.step(state, [2])
    _, other = world.step(state, [2], noise=-mine.noise)
    info = env.step(2)[4]
    apart = mine.frames[0, 0].double() - other.frames[0, 0].double()
    assert info["disagreement"] == pytest.approx(float((apart**2).mean().sqrt()), abs=1e-9)


def test_rows_are_judged_one_by_one_and_begin_anew(world: World) -> None:
    probe = WorldVectorEnv(world, 4, trust=HIGH, autoreset_mode="same_step")
    probe.reset(seed=0)
    signals = np.sort(probe.step(np.zeros(4, int))[4]["round_trip"])
    limit = float(signals[1] + signals[2]) / 2
    env = WorldVectorEnv(world, 4, trust=Trust(round_trip=limit), autoreset_mode="same_step")
    env.reset(seed=0)
    _, _, terminated, truncated, infos = env.step(np.zeros(4, int))
    assert truncated.sum() == 2
    assert not terminated.any()
    for row in range(4):
        told = infos["final_info"]["reason"][row] if truncated[row] else infos["reason"][row]
        assert bool(told) == truncated[row]


def test_a_row_that_waits_for_its_reset_is_not_cut_off_again(world: World) -> None:
    env = WorldVectorEnv(world, 2, trust=Trust(round_trip=1e-6))
    env.reset(seed=0)
    assert env.step(np.zeros(2, int))[3].all()
    assert not env.step(np.zeros(2, int))[3].any()
    assert env.step(np.zeros(2, int))[3].all()


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_a_row_that_begins_anew_tells_of_its_start_and_of_nothing_before_it(world: World, mode: str) -> None:
    env = WorldVectorEnv(world, 2, trust=Trust(round_trip=1e-6), autoreset_mode=mode)
    begun = env.reset(seed=0)[1]
    infos = env.step(np.zeros(2, int))[4]
    if mode == "same_step":
        assert all(infos["final_info"]["reason"])
        infos = {key: value for key, value in infos.items() if not key.endswith(("final_obs", "final_info"))}
    else:
        assert all(infos["reason"])
        infos = env.step(np.zeros(2, int))[4]
    told = {key for key in infos if not key.startswith("_") and infos[f"_{key}"].any()}
    assert told == {key for key in begun if not key.startswith("_")}
    assert infos["reason"].tolist() == ["", ""]


@pytest.mark.parametrize("limit", [-1.0, float("nan"), "much"])
def test_limits_are_numbers(limit: object) -> None:
    with pytest.raises(ConfigError, match="round_trip"):
        Trust(round_trip=limit)  # type: ignore[arg-type]
