"""Agents that train-agent saved collect in any env that renders: `--policy sb3:FOLDER`, with actors and without."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("minigrid")
pytest.importorskip("stable_baselines3")

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from starflow_world.agents import pool
from starflow_world.agents.algorithms import LearnerSettings
from starflow_world.agents.collect import collect
from starflow_world.agents.environment import OWN_VIEW, Environment
from starflow_world.agents.learning import AGENT, learn
from starflow_world.agents.registry import make_policy
from starflow_world.agents.sb3 import SB3VecEnv
from starflow_world.agents.task import PictureEnv
from starflow_world.cli import main
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import CheckpointError, ConfigError
from tests.fake_ray import FakeRay

SMALL = LearnerSettings(rollout=4, batch=8, epochs=1, pairs=2, frequencies=1, width=8)
ROOM = "MiniGrid-Empty-5x5-v0"
VIEWS = {
    "render": {"frame_size": 40, "wrappers": [["gymnasium.wrappers.RepeatAction", {"num_repeats": 2}]]},
    "observation": {"frame_size": 56, "view": "observation", "wrappers": [[OWN_VIEW, {"tile_size": 8}]]},
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that learned a little in a room, from frames of 40 x 40 pixels and the first three actions."""
    folder = tmp_path_factory.mktemp("agents") / "real-0"
    room = Environment(ROOM, frame_size=40, max_steps=8)
    rooms = SyncVectorEnv([lambda: PictureEnv(room, range(4))] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    learn(SB3VecEnv(rooms, actions=3), folder, SMALL, lambda policy: {}, steps=8, chunk=8)
    return folder


def collected(out: Path, agent: Path, actors: int = 0, **options: Any) -> list[bytes]:
    collect(ROOM, out, episodes=3, seed=5, max_steps=6, progress=False, actors=actors,
            policy=make_policy(f"sb3:{agent}"), **options)
    return [path.read_bytes() for path in sorted(out.glob("*.h5"))]


@pytest.mark.parametrize("view", VIEWS)
def test_actors_collect_the_same_bytes_with_wrappers_views_and_agents(
    view: str, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = collected(tmp_path / "alone", agent, **VIEWS[view])
    ray = FakeRay(lambda *_: 1.0, eager=False).install(monkeypatch, pool)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=ray.monotonic))
    assert collected(tmp_path / "spread", agent, actors=2, **VIEWS[view]) == alone
    assert len(ray.actors) == 2
    assert len(alone) == 3


def test_an_agent_collects_from_the_command_line_and_is_recorded_by_its_weights(agent: Path, tmp_path: Path) -> None:
    words = ["collect", "--env", ROOM, "--out", str(tmp_path / "a"), "--episodes", "1", "--max-steps", "3"]
    main([*words, "--frame-size", "40", "--policy", f"sb3:{agent}"])
    episode = EpisodeDataset(tmp_path / "a")[0]
    assert episode.info["policy"] == "real-0"
    text = (tmp_path / "a" / "collection.json").read_text()
    assert make_policy(f"sb3:{agent}").recipe()["weights"] in text
    assert str(agent.parent) not in text


def test_what_an_agent_cannot_play_is_one_error(agent: Path, tmp_path: Path) -> None:
    seeing = make_policy(f"sb3:{agent}")
    with pytest.raises(ConfigError, match=r"policy real-0: expected actions Discrete\(3\), found Discrete\(2\)"):
        seeing.check(Environment("CartPole-v1").make())
    with pytest.raises(CheckpointError, match=r"expected the folder of one agent, found 1; name one, such as .*real-0"):
        make_policy(f"sb3:{agent.parent}")
    with pytest.raises(CheckpointError, match=f"{AGENT}: expected a safetensors file, found none"):
        make_policy(f"sb3:{tmp_path}")
    with pytest.raises(ConfigError, match="or sb3:FOLDER, found 'sb3'"):
        make_policy("sb3")
