"""Every action space becomes keys or sliders, and what a page sends becomes an action of it or an error."""

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.errors import ActionError
from starflow_world.play.controls import action_names, action_of, control_fields, keys_of

SPACES = {
    "discrete": (spaces.Discrete(3, start=2), [1], 3),
    "box": (spaces.Box(-1, 1, (2,), np.float32), [0.5, -1], np.array([0.5, -1], np.float32)),
    "unbounded": (spaces.Box(-np.inf, np.inf, (1,), np.float32), [10.0], np.array([10], np.float32)),
    "multidiscrete": (spaces.MultiDiscrete([2, 3]), [1, 2], np.array([1, 2])),
    "multibinary": (spaces.MultiBinary(3), [1, 0, 1], np.array([1, 0, 1], np.int8)),
    "tuple": (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), [1, 2], (1, 2)),
    "dict": (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 1, (1,))}), [1, 0.25],
             {"a": 1, "b": np.array([0.25], np.float32)}),
}


@pytest.mark.parametrize("name", SPACES)
def test_numbers_become_an_action_of_every_kind_of_space(name):
    space, numbers, expected = SPACES[name]
    action = action_of(space, numbers)
    assert space.contains(action)
    np.testing.assert_equal(action, expected)
    assert len(control_fields(space)) == len(numbers)


@pytest.mark.parametrize("numbers", [[], [3], [-1], [1.0], [True], ["1"], [None], [float("nan")], [0, 0], 1, None])
def test_numbers_that_make_no_action_are_refused(numbers):
    with pytest.raises(ActionError, match="expected 1 numbers"):
        action_of(spaces.Discrete(3), numbers)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1.01, "0", True])
def test_a_slider_outside_its_range_is_refused(number):
    with pytest.raises(ActionError):
        action_of(spaces.Box(-1, 1, (1,)), [number])


class _Ale:
    def get_action_meanings(self):
        return ["NOOP", "FIRE", "UPRIGHT", "DOWNLEFTFIRE"]


def test_names_are_those_of_the_environment_and_stand_for_keys():
    ale = type("Env", (), {"unwrapped": _Ale()})()
    names = action_names(ale, spaces.Discrete(4))
    assert names == ["noop", "fire", "upright", "downleftfire"]
    assert [keys_of(name) for name in names] == [
        [], ["Space"], ["ArrowUp", "ArrowRight"], ["ArrowDown", "ArrowLeft", "Space"]]
    assert action_names(ale, spaces.Discrete(5)) == []
    assert action_names(None, spaces.Discrete(2)) == []
    assert keys_of("jump") is None


def test_minigrid_and_minatar_name_their_actions():
    pytest.importorskip("minigrid")
    pytest.importorskip("minatar")
    from starflow_world.agents.environment import make_env

    grid = make_env("MiniGrid-Empty-5x5-v0")
    assert action_names(grid, grid.action_space)[:3] == ["left", "right", "forward"]
    game = make_env("MinAtar/Breakout-v1")
    assert action_names(game, game.action_space) == ["noop", "left", "right"]
