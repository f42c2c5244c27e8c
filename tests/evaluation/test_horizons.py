"""Figures against the horizon are those of rollouts in open loop, episode by episode and step by step."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.evaluation.actions import action_information
from starflow_world.evaluation.fidelity import actions_of, frames_right, rolled
from starflow_world.evaluation.horizons import (
    COPY,
    ONE_FRAME,
    WORLD,
    Horizons,
    horizons_of,
    measure_horizons,
)
from starflow_world.evaluation.similarity import psnr
from starflow_world.world import World
from tests.evaluation.test_fidelity import episode
from tests.worlds import no_text, tiny_world

LENGTHS = (9, 12, 7)


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world(**no_text())


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [episode(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def made(world: World, episodes: list[Episode]) -> Horizons:
    return measure_horizons(world, episodes)


def test_every_step_of_every_episode_has_a_value_and_no_other(world: World, made: Horizons) -> None:
    given = world.config.context
    assert (made.given, made.steps, made.episodes) == (given, 12 - given, 3)
    for figure in ("psnr", "ssim", "cells", "exact"):
        for source in (WORLD, COPY, ONE_FRAME):
            known = ~np.isnan(made.values[figure][source])
            assert known.sum(1).tolist() == [12 - given, 9 - given, 7 - given]  # the longest first
            assert (np.diff(known.astype(int), axis=1) <= 0).all()


def test_the_world_is_judged_on_its_rollouts_in_open_loop(
    world: World, episodes: list[Episode], made: Horizons
) -> None:
    some, given = sorted(episodes, key=len, reverse=True), world.config.context
    for t, imagined, real in rolled(world, some, given - 1, 7 - given, given=given):
        assert made.values["psnr"][WORLD][:, t - 1] == pytest.approx(psnr(imagined, real), abs=0.01)
        right = frames_right(world, imagined, real)
        assert made.values["exact"][WORLD][:, t - 1].astype(bool).tolist() == right.tolist()


def test_a_picture_that_stays_is_right_where_nothing_moves(world: World) -> None:
    made = measure_horizons(world, [episode(still=True)], sources=(COPY,))
    assert (made.values["exact"][COPY] == 1).all()


def test_what_actions_are_worth_in_the_dream_is_measured_at_the_horizons(made: Horizons) -> None:
    known = ~np.isnan(made.values["action_nats"][WORLD]).all(0)
    assert (np.flatnonzero(known) + 1).tolist() == horizons_of(made.steps)


def test_frames_are_kept_at_the_horizons_and_for_videos(made: Horizons, episodes: list[Episode]) -> None:
    assert list(made.frames) == horizons_of(made.steps)
    longest = max(episodes, key=len)
    assert (made.shown[0].real[3] == longest.frames[made.given + 2]).all()
    assert (made.shown[0].imagined[0] == longest.frames[made.given - 1]).all()


def test_recorded_rewards_and_ends_stand_beside_the_predicted_ones(world: World) -> None:
    one = episode()
    rewards, ends = np.arange(9, dtype=np.float32), np.arange(9) == 8
    made = measure_horizons(world, [replace(one, rewards=rewards, terminated=ends)], sources=(WORLD,))
    assert made.outcomes["real_reward"][0].tolist() == rewards[made.given :].tolist()
    assert made.outcomes["real_end"][0].tolist() == ends[made.given :].tolist()
    assert np.isfinite(made.outcomes["end_probability"]).all()


def test_horizons_end_with_the_episodes() -> None:
    assert horizons_of(3) == [1, 3]
    assert horizons_of(64) == [1, 4, 16, 64]
    assert horizons_of(70) == [1, 4, 16, 64]
    assert horizons_of(2000) == [1, 4, 16, 64, 256, 1000, 2000]


def test_episodes_that_are_too_short_are_one_error(world: World) -> None:
    with pytest.raises(DataError, match=r"expected one of more than the \d+ frames .* found 2 at most"):
        measure_horizons(world, [episode(2)])


def test_every_action_is_tried_and_the_true_one_judged_by_the_others(world: World, episodes: list[Episode]) -> None:
    some, given = episodes[:1], world.config.context
    found, flat = action_information(world, some), actions_of(some, 9)
    t = given + 1
    frequencies = flat[0, given:, 1:].mean(0).numpy()
    tried = []
    for action in range(4):
        other = flat[:, : t + 1].clone()
        other[0, t] = world.flatten([action])[0]
        tried.append(float(world.log_prob(some[0].frames[None, : t + 1], other)[0, -1]))
    true = tried[int(flat[0, t, 1:].argmax())]
    assert found["nats"][0, 1] == pytest.approx(true, abs=1e-2)
    assert found["action_nats"][0, 1] == pytest.approx(true - frequencies @ tried, abs=1e-2)
    assert found["action_first"][0, 1] == float(true == max(tried))
    assert np.isnan(found["nats"]).sum() == 0


def test_a_world_that_does_not_listen_gains_nothing_by_actions(episodes: list[Episode]) -> None:
    deaf = tiny_world(**no_text())
    deaf.networks.action.project.weight.data.zero_()
    found = action_information(deaf, episodes)
    assert np.nanmax(np.abs(found["action_nats"])) < 1e-3


def test_numbers_are_tried_in_another_order_and_have_no_first(episodes: list[Episode]) -> None:
    world = tiny_world(spaces.Box(-1, 1, (4,)), **no_text())
    found = action_information(world, episodes)
    assert set(found) == {"nats", "action_nats"}
    assert np.nanmax(np.abs(found["action_nats"])) > 0
