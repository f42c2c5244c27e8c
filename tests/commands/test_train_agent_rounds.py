"""The online loop: what a round does, that an interrupted loop goes on, and its report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from starflow_world.agents.collect import collect
from starflow_world.commands.train_agent import TrainAgent
from starflow_world.commands.train_agent.rounds import loop_recipe
from starflow_world.commands.train_agent.rounds_report import rounds_markdown
from starflow_world.commands.train_agent.training import train_agent
from starflow_world.config.train import load_recipe
from starflow_world.config.video import CONFIGS
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import ConfigError, DataError
from starflow_world.training import train
from starflow_world.world import World
from tests.games import DISCRETE
from tests.worlds import tiny_world

RECIPE = """
world:
  name: small
  codec: {kind: patch, patch: 1, merge: 2}
  flow: {channels: 12, shallow_blocks: 0, deep_layers: 1, deep_width: 40, head_width: 20, sites: 2, components: 4,
         head_inner: 8, features_width: 8, features_layers: 1}
  outcome: {width: 8}
  noise_level: 0.1
  window: 4
  context: 2
train: {steps: 2, frames: 8, lengths: [4], starts: 2, warmup: 1, precision: f32}
"""
PLAN = TrainAgent(steps=256, dream_steps=256, envs=8, seeds=1, starts=3, episodes=2, chunk=256, rounds=1, collected=3,
                  world_steps=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, data and the world that learned from them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "small.yaml").write_text(RECIPE)
    collect(DISCRETE, folder / "data", episodes=4, seed=0, max_steps=5, frame_size=8, progress=False)
    train(load_recipe(folder / "small.yaml"), folder / "data", folder / "world")
    return folder


def plan(home: Path, out: Path, **changes: object) -> TrainAgent:
    own = {"world": str(home / "world"), "recipe": home / "small.yaml", "data": home / "data", "out": out}
    return replace(PLAN, **{**own, **changes})


def test_a_round_collects_with_the_agent_trains_the_world_and_the_agent_on_and_is_not_done_twice(
    home: Path, tmp_path: Path
) -> None:
    out = train_agent(plan(home, tmp_path / "out"))
    first, second = (out / "loop-0" / f"round-{index}" for index in (0, 1))
    assert {path.name for path in first.iterdir()} == {"agent", "round.json"}
    assert {path.name for path in second.iterdir()} == {"agent", "episodes", "round.json", "world"}
    collection = json.loads((second / "episodes" / "collection.json").read_text())["recipe"]
    assert collection["policy"]["type"] == "AgentPolicy"
    card = json.loads((second / "world" / "card.json").read_text())
    known = World.load(home / "world").card["real_steps"]
    assert known == 4 * 5
    assert card["real_steps"] == known + 3 * 5  # old and new episodes
    assert World.load(second / "world").world_id != World.load(home / "world").world_id
    figures = json.loads((out / "agents.json").read_text())
    rounds = figures["rounds"][0]
    assert [record["real_steps"] for record in rounds] == [known, known + 15]
    assert [point["steps"] for point in rounds[1]["curve"]] == [0, 256, 512]
    assert rounds[1]["curve"][:2] == rounds[0]["curve"]
    assert {"excess_before", "excess_after"} <= rounds[1].keys()
    assert rounds_markdown(figures) == (out / "report.md").read_text()
    assert (out / "curves.png").stat().st_size > 5000

    seen = [(path, path.stat().st_mtime_ns) for path in sorted((out / "loop-0").rglob("*")) if path.is_file()]
    train_agent(plan(home, out, resume=True))
    assert [(path, path.stat().st_mtime_ns) for path, _ in seen] == seen
    with pytest.raises(DataError, match="new folder"):
        train_agent(plan(home, out, resume=True, collected=4))


def test_an_interrupted_round_goes_on_to_the_same_world_and_agent(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starflow_world.commands.train_agent import rounds

    whole = train_agent(plan(home, tmp_path / "whole"))
    parts, calls, train_one = plan(home, tmp_path / "parts", resume=True), [], rounds.train_one

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the agent of round 1 is not trained, and was copied
            raise KeyboardInterrupt
        return train_one(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "train_one", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_agent(parts)
    train_agent(parts)
    one, other = (folder / "loop-0" / "round-1" for folder in (whole, parts.out))
    assert World.load(one / "world").world_id == World.load(other / "world").world_id
    assert (one / "agent" / "agent.safetensors").read_bytes() == (other / "agent" / "agent.safetensors").read_bytes()
    assert len(EpisodeDataset(other / "episodes")) == 3


def test_a_world_learns_on_from_that_of_the_round_before_and_from_random_episodes_for_comparison(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []

    def learned(*args: Any, **kwargs: Any) -> Path:
        begun.append(kwargs["init"])
        return train(*args, **kwargs)

    monkeypatch.setattr("starflow_world.training.train", learned)
    out = train_agent(plan(home, tmp_path / "out", collector="random", data=None, rounds=2, steps=512))
    assert begun == [home / "world", out / "loop-0" / "round-1" / "world"]
    episodes = out / "loop-0" / "round-1" / "episodes"
    assert json.loads((episodes / "collection.json").read_text())["recipe"]["policy"]["type"] == "RandomPolicy"
    assert json.loads((out / "loop-0" / "round-1" / "world" / "card.json").read_text())["episodes"] == 3


def test_a_world_without_a_recipe_that_ships_needs_one() -> None:
    with pytest.raises(ConfigError, match="pass --recipe"):
        loop_recipe(PLAN, tiny_world())
    shipped = replace(PLAN, world_steps=7, recipe=CONFIGS / "dynamic-obstacles.yaml")
    assert loop_recipe(shipped, tiny_world()).train.steps == 7
