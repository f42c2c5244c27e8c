"""What training reads off its data before the first step, and what it refuses there."""

import json
from pathlib import Path

import pytest

from starflow_world.data.dataset import ORIGIN, origin
from starflow_world.errors import DataError
from starflow_world.training.world import train
from starflow_world.world import find_world
from tests.squares import fill, recipe

pytestmark = pytest.mark.usefixtures("no_curves")
ENV = {"env": "Squares-v0", "env_kwargs": {"size": 8}, "wrappers": ["Slow"], "frame_size": 8, "max_steps": 11}


def record(folder: Path, **values: object) -> Path:
    """Write collection.json as `collect` does."""
    (folder / "collection.json").write_text(json.dumps({"recipe": values, "episodes": 4}))
    return folder


def card(out: Path) -> dict[str, object]:
    return json.loads((out / "card.json").read_text())


def test_the_card_says_what_the_world_was_learned_from(tmp_path):
    data = record(fill(tmp_path / "data", (5, 8)), **ENV, reward="event", policy="x", seed=3)
    train(recipe(steps=1), data, tmp_path / "out")
    assert card(tmp_path / "out").items() >= {**ENV, "reward": "event", "data": "data"}.items()


def test_own_recordings_have_no_environment_and_a_damaged_record_is_named(tmp_path):
    data = fill(tmp_path / "data", (5, 8))
    assert origin(data) == {}
    record(data, **{**ENV, "max_steps": None})
    assert "max_steps" not in origin(data)
    (data / "collection.json").write_text("[")
    with pytest.raises(DataError, match=r"collection\.json: expected the record of a collection"):
        origin(data)


@pytest.mark.parametrize("world", ["babyai-gotolocal", "cartpole-pixels"])
def test_the_card_of_a_shipped_world_says_what_it_was_learned_from(world):
    assert card(find_world(world)).keys() >= set(ORIGIN)
