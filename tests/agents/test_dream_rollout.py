"""What imagining episodes into files promises; the same over actors is in tests/agents/test_ray_faults.py."""

import errno
from pathlib import Path

import numpy as np
import pytest

from starflow_world.agents.babyai.bot import BotPolicy, MixedPolicy, TinkerPolicy
from starflow_world.agents.cartpole import BalancePolicy
from starflow_world.agents.collect import collect, rollout
from starflow_world.agents.policy import RandomPolicy
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import episode_path
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import CheckpointError, ConfigError, DataError, StarflowError
from starflow_world.world import World
from tests.ray_work import contents

pytestmark = pytest.mark.usefixtures("one_thread")


def imagine(world: Path, out: Path, **options: object) -> EpisodeDataset:
    settings = {"episodes": 3, "policy": RandomPolicy(), "seed": 4, "max_steps": 5, "progress": False} | options
    return EpisodeDataset(rollout(world, out, **settings))  # type: ignore[arg-type]


def test_an_episode_is_what_the_env_shows_under_the_same_actions(saved: Path, tmp_path: Path) -> None:
    for episode in imagine(saved, tmp_path):
        env = WorldEnv(World.load(saved, device="cpu"))
        observation, info = env.reset(seed=episode.info["env_seed"])
        np.testing.assert_array_equal(observation, episode.frames[0])
        assert info["text"] == episode.text
        for t in range(1, len(episode)):
            observation, reward, *_ = env.step(int(episode.actions[t].argmax()))
            np.testing.assert_array_equal(observation, episode.frames[t])
            assert np.float32(reward) == episode.rewards[t]
        assert (len(episode), bool(episode.truncated[-1])) == (6, True)


def test_an_interrupted_rollout_goes_on_to_the_same_bytes_and_keeps_what_is_whole(saved: Path, tmp_path: Path) -> None:
    imagine(saved, tmp_path / "a")
    imagine(saved, tmp_path / "b", episodes=1)
    kept = episode_path(tmp_path / "b", 0).stat().st_mtime_ns
    (tmp_path / "b" / ".writing-left.h5").touch()
    imagine(saved, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert episode_path(tmp_path / "b", 0).stat().st_mtime_ns == kept


def test_starts_and_texts_can_be_chosen(saved: Path, tmp_path: Path) -> None:
    starts = World.load(saved).starts
    assert starts is not None
    for episode in imagine(saved, tmp_path / "place", start=5):
        np.testing.assert_array_equal(episode.frames[0], starts.frames[5])
        assert episode.text == starts.texts[5]
    assert imagine(saved, tmp_path / "text", text="b").texts == ("b",) * 3
    assert imagine(saved, tmp_path / "new", text="unseen").texts == ("unseen",) * 3
    assert len({episode.digest() for episode in EpisodeDataset(tmp_path / "place")}) == 3
    for wrong in ({"start": 8}, {"start": -1}, {"episodes": 0}, {"seed": -1}, {"actors": -1}, {"threads": 0},
                  {"max_steps": 0}, {"max_steps": -5}):
        with pytest.raises(ConfigError, match="expected"):
            imagine(saved, tmp_path / "wrong", **wrong)


def test_a_folder_belongs_to_one_recipe_in_which_actors_do_not_count(saved: Path, tmp_path: Path) -> None:
    imagine(saved, tmp_path)
    for other in ({"seed": 5}, {"text": "a"}, {"max_steps": 6}, {"threads": 2}, {"policy": RandomPolicy((1, 1, 1, 2))}):
        with pytest.raises(DataError, match="new folder"):
            imagine(saved, tmp_path, **other)
    with pytest.raises(CheckpointError):
        rollout(tmp_path / "nowhere", tmp_path, episodes=1, policy=RandomPolicy())


def test_a_policy_that_reads_a_simulator_is_refused_before_anything_is_written(saved: Path, tmp_path: Path) -> None:
    for policy in (BotPolicy(), MixedPolicy(), TinkerPolicy(), BalancePolicy()):
        with pytest.raises(ConfigError, match="policy: expected one that can play"):
            imagine(saved, tmp_path / "out", policy=policy)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_clear_error_and_what_is_written_stays(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = Path.replace, [3]

    def full(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StarflowError, match=r"episode-000002\.h5: .*No space left.*make room") as error:
        imagine(saved, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"collection\.json: expected to write.*make room"):
        imagine(saved, tmp_path / "other")
    monkeypatch.setattr(Path, "replace", replace)
    assert not list(tmp_path.glob(".writing-*"))
    assert len(imagine(saved, tmp_path)) == 3


def test_actors_without_ray_are_refused_and_everything_else_works(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(imagine(saved, tmp_path)) == 3
    for call in (
        lambda: imagine(saved, tmp_path / "a", actors=2),
        lambda: collect("BabyAI-GoToLocalS8N4-v0", tmp_path / "b", episodes=1, policy=RandomPolicy(), seed=0, actors=1),
    ):
        with pytest.raises(ConfigError, match=r'pip install "starflow-world\[ray\]"'):
            call()
