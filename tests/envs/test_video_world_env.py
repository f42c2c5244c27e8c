"""A converted video model behind Gymnasium: a step is a latent frame of four pictures; no reward, no end."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ActionError, ConfigError, DataError
from tests.tiny_video import SEED, TEXT


@pytest.fixture
def env(video_world) -> WorldEnv:
    return WorldEnv(video_world, text=TEXT, max_episode_steps=2, frames_between=True)


def test_gymnasium_makes_it_from_the_folder_and_its_examiner_finds_nothing(video_folder):
    env = gymnasium.make("StarflowWorld/Custom-v0", path=video_folder, text=TEXT)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.observation_space.shape == (32, 48, 3)
    assert env.unwrapped.action_space == gymnasium.spaces.Discrete(4)


def test_a_step_is_four_pictures_of_which_the_last_is_shown_and_rewards_nothing(env, video_world):
    shown, info = env.reset(seed=SEED)
    assert info["frames"].shape == (1, 32, 48, 3)
    assert not {"bits_per_dim", "end_probability"} & set(info)
    for step in (1, 2):
        shown, reward, terminated, truncated, info = env.step(step)
        assert (reward, terminated, truncated) == (0.0, False, step == 2)
        assert info["frames"].shape == (4, 32, 48, 3)
        assert np.array_equal(info["frames"][-1], shown)
        assert np.isfinite(info["nats"])


def test_an_episode_begins_with_a_text_or_with_frames_and_says_so_where_it_has_neither(video_world):
    env = WorldEnv(video_world, frames_between=True)
    with pytest.raises(DataError, match="has no start set; pass options: text, frames or state"):
        env.reset(seed=SEED)
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    shown, info = env.reset(seed=SEED, options={"frames": frames, "actions": [None, 2], "text": TEXT})
    assert np.array_equal(shown, frames[-1])
    assert np.array_equal(info["frames"], frames[1:])
    with pytest.raises(ActionError, match="expected a list of 2, one per latent frame"):
        env.reset(options={"frames": frames, "actions": [None, 2, 2, 2, 2]})
    with pytest.raises(DataError, match=r"expected 1 \+ 4k"):
        env.reset(options={"frames": frames[:3]})


def test_an_env_goes_on_from_copies_of_its_state_with_the_same_pictures(env):
    env.reset(seed=SEED)
    env.step(1)
    whole, state = env.snapshot(), env.get_state()
    shown = env.step(3)[0]
    env.set_state(whole)
    assert np.array_equal(env.step(3)[0], shown)
    again, _ = env.reset(options={"state": state})
    assert np.array_equal(again, whole.frames[0]), "what was shown last is remembered"
    assert np.array_equal(env.step(3)[0], shown)


@pytest.mark.parametrize("mode", ["same-step", "next-step"])
def test_rows_of_a_vector_env_begin_anew_beside_others_that_go_on(video_world, mode):
    envs = WorldVectorEnv(
        video_world, num_envs=2, text=TEXT, max_episode_steps=2, frames_between=True, autoreset_mode=mode
    )
    alone = WorldEnv(video_world, text=TEXT)
    first, infos = envs.reset(seed=[1, 2])
    assert infos["frames"].shape == (2, 1, 32, 48, 3)
    assert np.array_equal(first[1], alone.reset(seed=2)[0])
    ended = np.zeros(2, bool)
    for _ in range(3):
        shown, rewards, terminated, truncated, infos = envs.step(np.array([0, 1]))
        ended |= truncated
        assert not terminated.any()
        assert not rewards.any()
        assert infos["frames"].shape[0] == 2
        assert np.array_equal(infos["frames"][:, -1], shown)
        state = envs.get_state()
        assert [stream.decoder.frames for stream in state.streams] == state.step.tolist()
    assert ended.all()


def test_rows_that_begin_with_a_picture_and_with_a_clip_have_as_many_frames(video_world):
    envs = WorldVectorEnv(video_world, num_envs=2, text=TEXT, frames_between=True)
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    shown, infos = envs.reset(seed=1, options={"frames": [frames[0], frames]})
    assert np.array_equal(infos["frames"], np.stack([frames[[0, 0, 0, 0]], frames[1:]]))
    assert np.array_equal(shown, frames[[0, 4]])


def test_what_needs_a_codec_of_single_frames_is_refused_in_one_sentence(video_world):
    env = WorldEnv(video_world, text=TEXT, trust=Trust(round_trip=1.0))
    env.reset(seed=SEED)
    with pytest.raises(ConfigError, match="found one with memory"):
        env.step(0)
