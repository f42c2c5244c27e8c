"""Atari games through ale-py: preprocessing named as a wrapper, applied alike wherever the environment is made."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow_world.agents.collect import collect
from starflow_world.agents.environment import Environment
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import ConfigError

pytestmark = pytest.mark.skipif(find_spec("ale_py") is None, reason="ale-py is not installed")  # not imported here

PONG = "ALE/Pong-v5"
PREPROCESSED = ["gymnasium.wrappers.AtariPreprocessing", {"frame_skip": 1, "screen_size": 64, "grayscale_obs": False}]


def pong(out: Path, **options: Any) -> list:
    """Two short episodes. Seeding reads the game again, a tenth of a second: the kind of rewards is not tried out."""
    settings = {"episodes": 2, "seed": 3, "max_steps": 6, "reward": "raw", "progress": False} | options
    return list(EpisodeDataset(collect(PONG, out, **settings)))


def test_a_game_is_recorded_as_it_is_drawn_or_as_it_is_preprocessed(tmp_path: Path) -> None:
    drawn = pong(tmp_path / "drawn")
    seen = pong(tmp_path / "seen", view="observation", wrappers=[PREPROCESSED])
    assert [episode.frames.shape for episode in (*drawn, *seen)] == [(7, 64, 64, 3)] * 4
    assert len(np.unique(seen[0].frames)) > 3
    again = pong(tmp_path / "again", view="observation", wrappers=[PREPROCESSED])
    assert [episode.digest() for episode in again] == [episode.digest() for episode in seen]
    assert seen[0].digest() != seen[1].digest()
    recipe = json.loads((tmp_path / "seen" / "collection.json").read_text())["recipe"]
    assert (recipe["wrappers"], recipe["view"]) == ([PREPROCESSED], "observation")


def test_arguments_that_skip_frames_twice_are_one_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected arguments of .*AtariPreprocessing") as caught:
        pong(tmp_path / "out", wrappers=["gymnasium.wrappers.AtariPreprocessing"])
    assert "frame-skipping" in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="did you mean 'ALE/Pong-v5'"):
        Environment("ALE/Pongg-v5").make()
