"""A small game: a random world of two actions beside CartPole, and a folder for what is saved."""


import pytest
from gymnasium import spaces

from starflow_world.agents.environment import Environment
from starflow_world.play.game import Game, open_game
from starflow_world.play.saving import Shelf
from tests.worlds import env_world


@pytest.fixture(scope="session")
def small_game(tmp_path_factory: pytest.TempPathFactory) -> Game:
    world = env_world(spaces.Discrete(2))
    source = Environment("CartPolePixels-v0", frame_size=8)
    return open_game(world, Shelf(tmp_path_factory.mktemp("saved")), source)
