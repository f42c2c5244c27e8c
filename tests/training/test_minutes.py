"""A training of a given time: its steps are set from the time of some real ones, and a resumed run keeps them."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.config.train import RecipeConfig, TrainConfig, load_recipe
from starflow_world.config.world import CodecConfig, FlowConfig, WorldConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, episode_path, write_episode
from starflow_world.model.actions import space_to_json
from starflow_world.training import train
from starflow_world.training import world as training

pytestmark = pytest.mark.usefixtures("no_curves")
FLOW = FlowConfig(12, shallow_blocks=0, deep_layers=1, deep_width=32, head_width=32, sites=2, components=3,
                  head_inner=8, features_width=8, features_layers=1)
WORLD = WorldConfig("timed", FLOW, 5, 4, CodecConfig("patch", 1, 3, 2), noise_level=0.1, window=4, context=1)
TIMED = TrainConfig(minutes=0.002, frames=8, lengths=(4,), starts=2, warmup=1, precision="f32")


@pytest.fixture
def episodes(tmp_path):
    space, rng = spaces.Discrete(2), np.random.default_rng(0)
    for index in range(3):
        actions = np.eye(2, dtype=np.float32)[rng.integers(2, size=9)]
        actions[0] = 0
        frames = rng.integers(0, 2, (9, 5, 4, 3)).astype(np.uint8) * 200
        last = np.arange(9) == 8
        write_episode(episode_path(tmp_path / "data", index), Episode(
            frames, actions, np.zeros(9, np.float32), ~last & last, last, "", space_to_json(space)))
    return tmp_path / "data"


def test_steps_are_set_from_the_time_of_real_steps(episodes, monkeypatch, capsys):
    clock = iter((10.0, 10.0 + 0.5 * training.TIMED_STEPS))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    recipe = RecipeConfig(WORLD, replace(TIMED, minutes=3.0))
    recipe = replace(recipe, world=replace(WORLD, action_space=space_to_json(spaces.Discrete(2))))
    steps = training.steps_in_time(recipe, EpisodeDataset(episodes).memory_map())
    assert steps == int(3 * 60 * 0.95 / 0.5)
    assert f"train: {steps} steps of 0.5 seconds in 3 minutes" in capsys.readouterr().err


def test_a_run_takes_the_steps_that_fit_and_a_resumed_one_keeps_them(episodes, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "steps_in_time", lambda *arguments: 3)
    train(RecipeConfig(WORLD, TIMED), episodes, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    monkeypatch.setattr(training, "steps_in_time", lambda *arguments: pytest.fail("timed again"))
    train(RecipeConfig(WORLD, replace(TIMED, minutes=9.0)), episodes, tmp_path / "run", resume=True)
    assert (tmp_path / "run/metrics.jsonl").read_text().splitlines() == lines


def test_an_override_of_the_steps_replaces_the_minutes(tmp_path):
    path = tmp_path / "a.yaml"
    flow = "{channels: 12, shallow_blocks: 0, deep_width: 32, head_width: 32}"
    path.write_text(f"world: {{name: a, flow: {flow}, codec: {{kind: patch, patch: 2}}}}\ntrain: {{minutes: 5}}\n")
    assert load_recipe(path).train.minutes == 5
    assert load_recipe(path, ("train.steps=7",)).train == TrainConfig(steps=7)
    assert load_recipe(path, ("train.steps=7", "train.minutes=2.0")).train.minutes == 2
