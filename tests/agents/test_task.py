"""Reality as an agent sees it: the frames, rewards and limits of the episodes that the world learned from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.agents.collect import play, seeds
from starflow_world.agents.environment import Environment, source_environment
from starflow_world.agents.policy import PartlyRandom, RandomPolicy
from starflow_world.agents.task import JUDGED_FROM, PictureEnv, data_steps, first_frames, make_task
from starflow_world.errors import ConfigError, DataError
from starflow_world.world import Starts, World
from tests.games import BOX, DISCRETE
from tests.worlds import no_text, save_world, tiny_world

SOURCES = {
    DISCRETE: Environment(DISCRETE, frame_size=16, max_steps=5),
    BOX: Environment(BOX, frame_size=8, max_steps=5, reward="raw"),
    "MinAtar/Breakout-v1": Environment("MinAtar/Breakout-v1", frame_size=10, max_steps=20),
    "MiniGrid-Dynamic-Obstacles-8x8-v0": Environment("MiniGrid-Dynamic-Obstacles-8x8-v0", max_steps=8, reward="raw"),
    "first person": Environment(
        "BabyAI-GoToLocalS8N4-v0", wrappers=(("minigrid.wrappers.RGBImgPartialObsWrapper", {"tile_size": 8}),),
        frame_size=56, max_steps=8, view="observation",
    ),
    "Pendulum-v1": Environment("Pendulum-v1", frame_size=32, max_steps=5, reward="raw",
                               wrappers=("gymnasium.wrappers.ClipAction",)),
}


def world_of(source: Environment, folder: Path, **changes: object) -> World:
    """A world with random weights and a card that names an environment."""
    world = tiny_world(source.make().action_space, height=source.size[0], width=source.size[1],
                       max_episode_steps=source.max_steps or 8, **no_text(), **changes)
    (save_world(world, folder) / "card.json").write_text(json.dumps(source.to_dict()))
    return World.load(folder)


@pytest.mark.parametrize("name", SOURCES)
def test_reality_shows_an_agent_what_was_recorded_for_the_world(name: str) -> None:
    if "tests" not in name:
        pytest.importorskip("minatar" if "MinAtar" in name else "pygame" if "Pendulum" in name else "minigrid")
    source = SOURCES[name]
    for index in range(2):
        recorded = play(source.make(), RandomPolicy(), seed=4, index=index, reward=source.reward,
                        frame_size=source.size)
        env, (env_seed, policy_seed) = PictureEnv(source), seeds(4, index)
        frames, rewards, policy = [env.reset(seed=env_seed)[0]], [0.0], RandomPolicy()
        policy.reset(policy_seed, env)
        over = False
        while not over:
            frame, reward, terminated, truncated, _ = env.step(policy(frames[-1]))
            frames.append(frame)
            rewards.append(reward)
            over = terminated or truncated
        assert env.observation_space.contains(frames[0])
        assert np.array_equal(np.stack(frames), recorded.frames)
        assert np.allclose(rewards, recorded.rewards)


@pytest.mark.parametrize(("kind", "seen"), [("event", [1.0, 0.0, 0.0]), ("raw", [0.25, -2.0, 0.0])])
def test_rewards_in_reality_are_of_the_kind_that_was_recorded(
    kind: str, seen: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    env, gains = PictureEnv(replace(SOURCES[DISCRETE], reward=kind)), iter([0.25, -2.0, 0.0])
    env.reset(seed=0)
    monkeypatch.setattr(env.env, "step", lambda action: (None, next(gains), False, False, {}))
    assert [env.step(0)[1] for _ in range(3)] == seen


@pytest.mark.parametrize("name", [DISCRETE, BOX])
def test_dreams_and_reality_begin_alike_with_the_same_spaces_and_limit(name: str, tmp_path: Path) -> None:
    world = world_of(SOURCES[name], tmp_path)
    task = make_task(world, source_environment(world), "", starts=3, episodes=2)
    assert max(task.learned) < JUDGED_FROM <= min(task.judged)
    begun = {frame.numpy().tobytes() for frame in first_frames(task.source, task.learned)[0]}
    envs = [task.train_env(where, 4) for where in ("dream", "real")]
    for env in envs:
        frames, _ = env.reset(seed=0)
        assert {frame.tobytes() for frame in frames} <= begun
    assert envs[0].single_observation_space == envs[1].single_observation_space
    assert envs[0].single_action_space == envs[1].single_action_space
    assert envs[0].max_episode_steps == task.source.max_steps == 5
    for start, frame in zip(task.starts("dream"), first_frames(task.source, task.judged)[0], strict=True):
        assert (task.env("dream").reset(seed=start.seed, options=start.options)[0] == frame.numpy()).all()
    for where in ("dream", "real"):
        assert task.judge(where, RandomPolicy()).episodes == 2


def test_a_world_that_does_not_fit_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    world = world_of(SOURCES[DISCRETE], tmp_path)
    with pytest.raises(ConfigError, match=r"the actions of tests\.games:ColumnsBox-v0, Box.*, found Discrete\(3\)"):
        make_task(world, SOURCES[BOX], "", starts=1, episodes=1)
    with pytest.raises(ConfigError, match=r"expected frames of .*, \(8, 8, 3\), found \(16, 16, 3\)"):
        make_task(world, replace(SOURCES[DISCRETE], frame_size=8), "", starts=1, episodes=1)


def test_the_mission_is_the_most_frequent_one_of_a_world_that_reads_texts() -> None:
    pytest.importorskip("minigrid")
    source = Environment("BabyAI-GoToLocalS8N4-v0", frame_size=64, max_steps=4)
    world = tiny_world(spaces.Discrete(7), height=64, width=64)
    frames, texts = first_frames(source, range(8))
    named = Starts(frames, (*texts[:5], "go to the red ball", "go to the red ball", "go to the red ball"))
    world = World(world.networks, starts=named)
    task = make_task(world, source, "", starts=1, episodes=1)
    assert task.text == max(set(named.texts), key=named.texts.count)
    assert PictureEnv(source).reset(seed=task.judged[0])[1]["text"] == task.text
    with pytest.raises(DataError, match="expected a mission of BabyAI"):
        make_task(world, source, "fly", starts=1, episodes=1)


def test_the_steps_of_the_data_are_those_in_the_card_or_the_most_that_its_episodes_can_have(tmp_path: Path) -> None:
    world_of(SOURCES[DISCRETE], tmp_path)
    known = []
    for card in ({"real_steps": 70}, {"episodes": 10, "max_steps": 5, "starts": 3}, {"episodes": 10}, {}):
        (tmp_path / "card.json").write_text(json.dumps(card))
        known.append(data_steps(World.load(tmp_path)))
    assert known == [{"steps": 70, "exact": True}, {"steps": 53, "exact": False}, {"steps": 50, "exact": False},
                     {"steps": None, "exact": False}]


def test_a_partly_random_policy_takes_a_share_of_other_actions() -> None:
    class Still(RandomPolicy):
        def __call__(self, observation: object) -> int:
            return 7

    env = PictureEnv(SOURCES[DISCRETE])
    for share, least, most in ((0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)):
        policy = PartlyRandom(Still(name="still"), share)
        policy.reset(3, env)
        drawn = [policy(None) for _ in range(200)]
        policy.reset(3, env)
        assert [policy(None) for _ in range(200)] == drawn
        assert least <= sum(action != 7 for action in drawn) <= most
        assert policy.name == f"still, {share:.0%} random"
