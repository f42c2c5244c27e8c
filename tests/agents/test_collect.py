"""What collecting promises: (seed, index) decides an episode, actions[t] led to frames[t], and runs can be resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from starflow_world.agents.babyai.bot import BotPolicy, MixedPolicy, TinkerPolicy, towards
from starflow_world.agents.collect import collect, play, seeds
from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import NoEnd, Policy, RandomPolicy
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, episode_path, read_episode
from starflow_world.errors import ActionError, ConfigError, DataError
from starflow_world.model.actions import space_from_json
from tests.ray_work import contents

ENV = "BabyAI-GoToLocalS8N4-v0"
PICKUP, DROP, TOGGLE = 3, 4, 5


def gather(out: Path, episodes: int, policy: Policy | None = None, **options: object) -> Path:
    """A small, quiet collection of the room."""
    settings = {"seed": 5, "max_steps": 40, "progress": False} | options
    return collect(ENV, out, episodes=episodes, policy=policy or MixedPolicy(), **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gather(tmp_path_factory.mktemp("episodes"), 40)


@pytest.fixture(scope="module")
def episodes(folder: Path) -> list[Episode]:
    return list(EpisodeDataset(folder))


@pytest.fixture
def room() -> Iterator[gymnasium.Env]:
    env = make_env(ENV, max_steps=40)
    yield env
    env.close()


def carried(episode: Episode) -> list[tuple[str | None, str | None]]:
    """What was in hand before and after each action."""
    held = episode.info["carrying"]
    return list(pairwise(held))


def test_each_action_led_to_the_frame_of_its_row(episodes: list[Episode], room: gymnasium.Env) -> None:
    for episode in episodes[:12]:
        room.reset(seed=episode.info["env_seed"])
        np.testing.assert_array_equal(room.render(), episode.frames[0])
        assert room.unwrapped.mission == episode.text
        for t in range(1, len(episode)):
            _, reward, terminated, truncated, _ = room.step(int(episode.actions[t].argmax()))
            np.testing.assert_array_equal(room.render(), episode.frames[t])
            assert (float(reward > 0), terminated, truncated) == (
                episode.rewards[t], episode.terminated[t], episode.truncated[t])


def test_the_mixture_reaches_goals_picks_up_drops_and_toggles(episodes: list[Episode]) -> None:
    moves = [pair for episode in episodes for pair in carried(episode)]
    taken = np.concatenate([episode.actions[1:].argmax(1) for episode in episodes])
    assert sum(episode.rewards.sum() for episode in episodes) >= 15
    assert sum(before is None and after is not None for before, after in moves) >= 30
    assert sum(before is not None and after is None for before, after in moves) >= 20
    assert sum(episode.truncated.any() for episode in episodes) >= 5
    assert np.bincount(taken, minlength=7)[:6].min() >= 20
    assert {episode.info["policy"] for episode in episodes} == {"random", "tinker", "mixed"}


def test_what_is_carried_follows_from_pickups_and_drops(episodes: list[Episode]) -> None:
    for episode in episodes:
        assert len(episode.info["carrying"]) == len(episode)
        for t, (before, after) in enumerate(carried(episode), start=1):
            if before != after:
                assert (before is None) != (after is None)
                assert episode.actions[t].argmax() == (PICKUP if before is None else DROP)


def test_an_episode_has_the_form_that_training_expects(episodes: list[Episode]) -> None:
    for episode in episodes:
        assert episode.frames.shape[1:] == (64, 64, 3)
        assert episode.actions.shape[1] == 7
        assert (episode.actions[1:].sum(1) == 1).all()
        assert episode.text.startswith("go to")
        assert space_from_json(episode.space) == gymnasium.spaces.Discrete(7)
        assert episode.rewards[-1] == float(episode.terminated[-1])
        assert episode.terminated[-1] or len(episode) == 41


def test_a_room_is_drawn_without_highlight_in_whole_tiles(room: gymnasium.Env) -> None:
    room.reset(seed=0)
    np.testing.assert_array_equal(room.render(), room.unwrapped.get_frame(highlight=False, tile_size=8))


def test_an_episode_follows_from_seed_and_index_alone(folder: Path, room: gymnasium.Env) -> None:
    for index in (7, 0, 31, 7):
        played = play(room, MixedPolicy(), seed=5, index=index)
        assert played.digest() == read_episode(episode_path(folder, index)).digest()
    assert play(room, MixedPolicy(), seed=6, index=7).digest() != read_episode(episode_path(folder, 7)).digest()


def test_seeds_of_many_episodes_all_differ() -> None:
    drawn = [number for seed in range(3) for index in range(1000) for number in seeds(seed, index)]
    assert len(set(drawn)) > len(drawn) - 5


COLLECTOR = f"""
import sys
from starflow_world.agents.babyai.bot import MixedPolicy
from starflow_world.agents.collect import collect
collect("{ENV}", sys.argv[1], episodes=40, policy=MixedPolicy(), seed=5, max_steps=40, progress=False)
"""


def test_a_run_killed_and_run_again_in_another_process_ends_in_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    with subprocess.Popen([sys.executable, "-c", COLLECTOR, str(tmp_path)], env=environment) as run:
        while run.poll() is None and not episode_path(tmp_path, 4).exists():
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert 5 <= len(list(tmp_path.glob("episode-*"))) < 40
    gather(tmp_path, 40)
    assert contents(tmp_path) == contents(folder)


def test_missing_and_damaged_episodes_are_played_again_and_whole_ones_are_not(tmp_path: Path) -> None:
    gather(tmp_path, 8)
    before = contents(tmp_path)
    untouched = episode_path(tmp_path, 6).stat().st_mtime_ns
    episode_path(tmp_path, 0).unlink()
    episode_path(tmp_path, 2).write_bytes(b"damage")
    episode_path(tmp_path, 3).unlink()
    episode_path(tmp_path, 3).symlink_to(episode_path(tmp_path, 4))
    (tmp_path / ".writing-left.h5").touch()
    gather(tmp_path, 8)
    assert contents(tmp_path) == before
    assert not episode_path(tmp_path, 3).is_symlink()
    assert episode_path(tmp_path, 6).stat().st_mtime_ns == untouched


def test_a_collection_can_be_extended_but_not_mixed_with_another(tmp_path: Path) -> None:
    gather(tmp_path, 2)
    gather(tmp_path, 3)
    assert len(EpisodeDataset(tmp_path)) == 3
    for other in ({"seed": 6}, {"max_steps": 20}, {"reward": "raw"}, {"policy": RandomPolicy()}, {"ends": False},
                  {"frame_size": 32}, {"env_kwargs": {"num_dists": 2}}):
        with pytest.raises(DataError, match=r"collection\.json.*another|collection\.json.*new folder"):
            gather(tmp_path, 3, **other)
    record = json.loads((tmp_path / "collection.json").read_text())
    assert (record["recipe"]["env"], record["recipe"]["seed"], record["episodes"]) == (ENV, 5, 3)
    assert "minigrid" in record["packages"]


@pytest.mark.parametrize("wrong", [{"reward": "shaped"}, {"seed": -1}, {"frame_size": 0}, {"max_steps": 0},
                                   {"max_steps": -5, "ends": False}, {"hold": 0}, {"hold": 4, "ends": False}])
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        gather(tmp_path, 1, **wrong)
    with pytest.raises(ConfigError, match="expected"):
        gather(tmp_path, 0)


def test_without_ends_every_episode_runs_to_its_limit_and_still_shows_actions(tmp_path: Path) -> None:
    gather(tmp_path, 10, ends=False, max_steps=70)
    dataset = EpisodeDataset(tmp_path)
    assert dataset.lengths.tolist() == [71] * 10
    for episode in dataset:
        assert not episode.terminated.any()
        assert not episode.rewards.any()
    assert any(before != after for episode in dataset for before, after in carried(episode))


def test_an_action_is_held_for_as_many_steps_as_asked(tmp_path: Path) -> None:
    dataset = EpisodeDataset(gather(tmp_path, 6, RandomPolicy(), hold=4))
    blocks = [episode.actions[1:][: (len(episode) - 1) // 4 * 4].reshape(-1, 4, 7) for episode in dataset]
    assert all((block == block[:, :1]).all() for block in blocks)
    assert any((before != after).any() for block in blocks for before, after in pairwise(block[:, 0]))
    recipe = json.loads((tmp_path / "collection.json").read_text())["recipe"]["policy"]
    assert recipe == {"type": "Held", "policy": {"type": "RandomPolicy", "weights": None, "name": "random"}, "steps": 4}


def test_asking_whether_an_action_would_end_does_not_change_the_course(room: gymnasium.Env) -> None:
    weights, ended = (1, 1, 2, 1, 1, 1, 0), 0
    for index in range(8):
        plain = play(room, RandomPolicy(weights), seed=1, index=index)
        careful = play(room, NoEnd(RandomPolicy(weights)), seed=1, index=index)
        np.testing.assert_array_equal(plain.frames[:-1], careful.frames[:len(plain) - 1])
        assert careful.truncated[-1]
        ended += plain.terminated[-1]
    assert ended >= 2


def test_raw_rewards_are_stored_as_they_are(tmp_path: Path) -> None:
    gather(tmp_path / "raw", 3, BotPolicy(), reward="raw")
    gather(tmp_path / "event", 3, BotPolicy())
    for raw, event in zip(EpisodeDataset(tmp_path / "raw"), EpisodeDataset(tmp_path / "event"), strict=True):
        np.testing.assert_array_equal(raw.frames, event.frames)
        assert event.rewards[-1] == 1
        assert 0 < raw.rewards[-1] < 1


def test_the_expert_reaches_the_goal(tmp_path: Path) -> None:
    gather(tmp_path, 20, BotPolicy())
    assert sum(episode.terminated[-1] for episode in EpisodeDataset(tmp_path)) >= 19


def test_an_expert_that_does_not_understand_its_world_plays_at_random(room: gymnasium.Env) -> None:
    bot = BotPolicy()
    observation, _ = room.reset(seed=1)
    bot.reset(1, room)
    room.unwrapped.instrs = None
    assert {bot(observation) in range(7) for _ in range(20)} == {True}
    assert bot.lost
    assert bot.name == "bot, then random"
    assert bot.recipe() == BotPolicy().recipe() == {"type": "BotPolicy", "name": "bot"}
    room.reset(seed=2)
    bot.reset(2, room)
    assert bot.name == "bot"


def test_a_tinker_finds_things_to_hold(room: gymnasium.Env) -> None:
    held = [play(room, TinkerPolicy(), seed=3, index=index).info["carrying"] for index in range(10)]
    assert sum(any(things) for things in held) >= 5


def test_a_walk_ends_in_front_of_the_thing_it_aims_at(room: gymnasium.Env) -> None:
    for seed in range(10):
        room.reset(seed=seed)
        world = room.unwrapped
        things = [(x, y) for x in range(8) for y in range(8) if getattr(world.grid.get(x, y), "type", "wall") != "wall"]
        for thing in things:
            for _ in range(60):
                if tuple(world.front_pos) == thing:
                    break
                world.step(towards(world, thing))
            assert tuple(world.front_pos) == thing


def test_weights_decide_how_often_an_action_is_drawn(room: gymnasium.Env) -> None:
    policy = RandomPolicy((0, 0, 3, 1, 0, 0, 0))
    policy.reset(0, room)
    drawn = np.bincount([policy(None) for _ in range(4000)], minlength=7) / 4000
    np.testing.assert_allclose(drawn, [0, 0, 0.75, 0.25, 0, 0, 0], atol=0.03)
    for weights in ((1.0, 1.0), (-1, 1, 1, 1, 1, 1, 1), (0,) * 7):
        with pytest.raises(ActionError, match="weights"):
            RandomPolicy(weights).reset(0, room)


@pytest.mark.parametrize(("name", "size"), [("CartPole-v1", 2), ("Pendulum-v1", 1)])
def test_any_gymnasium_env_that_renders_can_be_collected(tmp_path: Path, name: str, size: int) -> None:
    for policy, out in ((RandomPolicy(), tmp_path / "a"), (None, tmp_path / "b")):
        collect(name, out, episodes=2, policy=policy, seed=0, max_steps=15, reward="raw", frame_size=48, progress=False)
        for episode in EpisodeDataset(out):
            assert episode.frames.shape[1:] == (48, 48, 3)
            assert episode.actions.shape[1] == size
            assert (episode.text, episode.frames.std() > 1, "carrying" in episode.info) == ("", True, False)


def test_an_env_that_cannot_be_copied_is_not_asked_about_ends(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can be copied"):
        collect("CartPole-v1", tmp_path, episodes=1, policy=RandomPolicy(), seed=0, ends=False, progress=False)


def test_an_env_without_rgb_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rgb_array"):
        collect("Blind-v0", tmp_path, episodes=1, policy=RandomPolicy(), seed=0, progress=False)


class Blind(gymnasium.Env):
    """An env that shows a list instead of a frame."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Discrete(1)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str = "rgb_array") -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        return 0, {}

    def render(self) -> list:
        return []


gymnasium.register("Blind-v0", Blind)
