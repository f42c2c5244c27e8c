"""Attributes, calls and wrappers of Gymnasium do with our envs what they do with CartPole, in lock step.

Worlds that count (counting.py) stand beside CartPole's own vector env: both are truncated at the same steps.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import vector

from starflow_world.envs.infos import TextArray
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError, StateError
from tests.envs.counting import CountingWorld
from tests.worlds import env_world

ROWS, LIMIT, STEPS = 3, 3, 9
NEVER = (99,) * ROWS
BOX_ACTIONS = {"ClipAction", "RescaleAction", "DiscretizeAction"}
PICTURES = {"GrayscaleObservation", "ResizeObservation", "RescaleObservation"}  # CartPole observes none
DICTIONARIES = {"FilterObservation"}
CONVERSIONS = {"ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch"}  # need array-api-compat, an option


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    gymnasium.register(
        "StarflowTest/Counting-v0", lambda **options: WorldEnv(CountingWorld(NEVER[:1]), **options),
        vector_entry_point=lambda num_envs, **options: WorldVectorEnv(CountingWorld(NEVER), num_envs, **options),
        max_episode_steps=LIMIT,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*pkg_resources.*|.*avx2.*")  # pygame's own
        yield
    del gymnasium.registry["StarflowTest/Counting-v0"]


def pair(**options: Any) -> tuple[VectorEnv, VectorEnv]:
    """Our vector env and CartPole's, as make_vec builds them; episodes of three steps."""
    ours = gymnasium.make_vec("StarflowTest/Counting-v0", ROWS, **options)
    theirs = gymnasium.make_vec("CartPole-v1", ROWS, "vector_entry_point", max_episode_steps=LIMIT, **options)
    return ours, theirs


def balanced(step: int) -> np.ndarray:
    return np.full(ROWS, step % 2)


# ---- attributes and calls --------------------------------------------------------------------------------------------


def test_every_public_attribute_is_of_the_type_that_cartpoles_is() -> None:
    ours, theirs = pair(render_mode="rgb_array")
    names = [name for name in dir(VectorEnv) if not name.startswith("_")] + [*VectorEnv.__annotations__]
    for _ in range(2):  # before and after a reset
        for name in {name for name in names if not name.startswith("_")}:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if isinstance(other, gymnasium.Space):
                assert isinstance(mine, gymnasium.Space), name
            elif name != "unwrapped":
                assert type(mine) is type(other), name
        ours.reset(seed=3), theirs.reset(seed=3)
    for env in (ours, theirs):
        assert (env.num_envs, env.render_mode, env.closed) == (ROWS, "rgb_array", False)
        assert env.spec is not None
        assert env.unwrapped is env
        assert env.observation_space == batch_space(env.single_observation_space, ROWS)
        assert env.action_space == batch_space(env.single_action_space, ROWS)
        assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        assert {"render_modes", "render_fps"} <= env.metadata.keys()
        assert env.spec.id in repr(env)


def test_the_seed_of_a_reset_is_read_back_and_a_generator_that_is_set_decides_what_follows() -> None:
    for env in pair():
        env.reset(seed=3)
        assert env.np_random_seed == 3
        assert env.np_random is env.np_random
        first, second = env.reset()[0], env.reset()[0]
        env.reset(seed=3)
        assert (env.reset()[0] == first).all()
        assert not (first == second).all()
        starts = []
        for _ in range(2):
            env.np_random = np.random.default_rng(7)
            assert env.np_random_seed == -1
            starts.append(env.reset()[0])
        assert (starts[0] == starts[1]).all()


def test_calls_in_any_order_do_what_they_do_with_cartpole() -> None:
    for env in pair():
        with pytest.raises((StateError, AssertionError), match="reset"):
            env.step(balanced(0))
        env.reset(seed=0)
        with pytest.warns(UserWarning, match="render"):
            assert env.render() is None
        env.close()
        env.close()
        env.reset(seed=0)
        env.step(balanced(0))
    for env in pair(render_mode="rgb_array"):
        env.reset(seed=0)
        frames = env.render()
        assert [(frame.dtype, frame.ndim) for frame in frames] == [(np.uint8, 3)] * ROWS
        env.close()


def test_steps_are_of_gymnasiums_types_and_episodes_end_and_begin_with_cartpoles() -> None:
    ours, theirs = pair()
    for env in (ours, theirs):
        observations, infos = env.reset(seed=1)
        assert observations in env.observation_space
        assert type(infos) is dict
    for step in range(STEPS):
        mine, other = ours.step(balanced(step)), theirs.step(balanced(step))
        assert mine[0] in ours.observation_space
        for part, kind in ((1, "f"), (2, "b"), (3, "b")):
            assert mine[part].dtype.kind == other[part].dtype.kind == kind
            assert mine[part].shape == other[part].shape == (ROWS,)
        np.testing.assert_array_equal(mine[2], other[2])
        np.testing.assert_array_equal(mine[3], other[3])
        np.testing.assert_array_equal(mine[1] == 0, other[1] == 0)  # no reward in the step that resets
        for key, value in mine[4].items():
            assert key.startswith("_") or mine[4][f"_{key}"].shape == (ROWS,)
            assert len(value) == ROWS


# ---- wrappers of vector envs -----------------------------------------------------------------------------------------


def flat(env: Any) -> tuple[int, ...]:
    space = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    return (int(np.prod(space.shape)),)


VECTOR_WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "VectorizeTransformObservation": lambda env: vector.VectorizeTransformObservation(
        env, wrappers.ReshapeObservation, shape=flat(env)
    ),
    "VectorizeTransformAction": lambda env: vector.VectorizeTransformAction(
        env, wrappers.TransformAction, func=lambda action: 1 - action, action_space=env.single_action_space
    ),
    "VectorizeTransformReward": lambda env: vector.VectorizeTransformReward(
        env, wrappers.TransformReward, func=lambda reward: 2 * reward
    ),
    "DictInfoToList": vector.DictInfoToList,
    "TransformObservation": lambda env: vector.TransformObservation(env, lambda seen: seen),
    "FlattenObservation": vector.FlattenObservation,
    "GrayscaleObservation": vector.GrayscaleObservation,
    "ResizeObservation": lambda env: vector.ResizeObservation(env, (7, 5)),
    "ReshapeObservation": lambda env: vector.ReshapeObservation(env, (*flat(env), 1)),
    "RescaleObservation": lambda env: vector.RescaleObservation(env, np.float32(0), np.float32(1)),
    "DtypeObservation": lambda env: vector.DtypeObservation(env, np.float32),
    "NormalizeObservation": vector.NormalizeObservation,
    "TransformAction": lambda env: vector.TransformAction(env, lambda actions: 1 - actions, env.action_space),
    "ClipAction": vector.ClipAction,
    "RescaleAction": lambda env: vector.RescaleAction(env, np.float32(0), np.float32(1)),
    "TransformReward": lambda env: vector.TransformReward(env, lambda rewards: 2 * rewards),
    "ClipReward": lambda env: vector.ClipReward(env, 0.0, 0.5),
    "NormalizeReward": vector.NormalizeReward,
    "RecordEpisodeStatistics": vector.RecordEpisodeStatistics,
    "HumanRendering": vector.HumanRendering,
}


def played(env: Any, steps: int = STEPS) -> list[tuple[Any, ...]]:
    """What reset and steps return; every observation lies in the env's space."""
    env.action_space.seed(0)
    returned = [env.reset(seed=1)]
    for _ in range(steps):
        returned.append(env.step(env.action_space.sample()))
    for part in returned:
        assert part[0] in env.observation_space
    env.close()
    return returned


@pytest.mark.parametrize("name", vector.__all__)
def test_every_wrapper_of_vector_envs_works_as_around_cartpole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in DICTIONARIES | CONVERSIONS | {"RecordVideo"}:
        pytest.skip("tested below, or only for observations of another kind")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    wrap, mode = VECTOR_WRAPPERS[name], "rgb_array" if name == "HumanRendering" else None
    if name in BOX_ACTIONS:
        env = WorldVectorEnv(env_world(Box(-1, 1, (2,))), 2, max_episode_steps=LIMIT)
        assert played(wrap(env), 4)[LIMIT][3].all()
        return
    ours, theirs = pair(render_mode=mode)
    mine = played(wrap(ours))
    other = played(wrap(theirs)) if name not in PICTURES else mine
    for a, b in zip(mine[1:], other[1:], strict=True):
        np.testing.assert_array_equal(a[2], b[2])
        np.testing.assert_array_equal(a[3], b[3])
        assert type(a[4]) is type(b[4])
        assert a[1].shape == b[1].shape
        assert a[1].dtype.kind == "f"
        if name == "RecordEpisodeStatistics" and a[3].any():
            np.testing.assert_array_equal(a[4]["episode"]["l"], b[4]["episode"]["l"])
    assert np.array([a[3] for a in mine[1:]]).sum() >= 2 * ROWS


def test_a_list_of_infos_has_the_strings_and_numbers_of_its_row() -> None:
    env = vector.DictInfoToList(pair()[0])
    observations, infos = env.reset(seed=0)
    assert [info["text"] for info in infos] == [str(frame[0, 0, 2]) for frame in observations]
    infos = env.step(balanced(0))[4]
    assert [float(info["nats"]) for info in infos] == [1.0] * ROWS


def test_every_array_in_infos_becomes_a_tensor_and_texts_stay_readable() -> None:
    """NumpyToTorch and TorchRL convert all arrays that they meet; arrays of strings have no tensor."""
    env = pair()[0]
    for infos in (env.reset(seed=0)[1], env.step(balanced(0))[4]):
        for key, value in infos.items():
            assert value.dtype != object, key
            assert torch.equal(torch.from_dlpack(value), torch.as_tensor(np.asarray(value)))
        texts = infos["text"]
        assert list(texts) == texts.tolist() == [texts[row] for row in range(ROWS)] == list(env.get_state().texts)
        assert all(type(text) is str for text in texts)
    again = env.reset(options={"reset_mask": np.array([True, False, False]), "text": "7"})[1]
    assert again["text"].tolist() == ["7", "", ""]
    assert again["_text"].tolist() == [True, False, False]
    odd = TextArray(["ä\0", "", "🙂" * 20, None], 8)
    assert odd.tolist() == copy.deepcopy(odd).tolist() == ["ä\0", "", "🙂" * 20, ""]
    assert (odd.shape, odd[1:3].tolist(), str(odd[:1])) == ((4, 80), ["", "🙂" * 20], "TextArray(['ä\\x00'])")
    assert type(odd == odd) is np.ndarray


def test_numpy_to_torch_converts_observations_rewards_and_infos() -> None:
    pytest.importorskip("array_api_compat")
    env = vector.NumpyToTorch(pair()[0])
    observations, infos = env.reset(seed=0)
    for part in (observations, *infos.values(), *env.step(torch.zeros(ROWS, dtype=torch.int64))[:4]):
        assert isinstance(part, torch.Tensor)
    single = wrappers.NumpyToTorch(gymnasium.make("StarflowTest/Counting-v0"))
    assert isinstance(single.reset(seed=0)[0], torch.Tensor)
    assert isinstance(single.step(torch.tensor(1))[0], torch.Tensor)


def test_rendering_for_humans_needs_frames() -> None:
    with pytest.raises(ValueError, match="render_mode"):
        vector.HumanRendering(pair()[0])
    with pytest.raises(ConfigError, match="render_mode: expected None or one of rgb_array"):
        pair(render_mode="human")


def test_videos_are_recorded(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    ours, _ = pair(render_mode="rgb_array")
    played(vector.RecordVideo(ours, str(tmp_path / "many"), step_trigger=lambda step: step == 0))
    single = gymnasium.make("StarflowTest/Counting-v0", render_mode="rgb_array")
    played(wrappers.RecordVideo(single, str(tmp_path / "one"), episode_trigger=lambda _: True), LIMIT)
    assert list(tmp_path.glob("many/*.mp4"))
    assert list(tmp_path.glob("one/*.mp4"))


# ---- wrappers of single envs -----------------------------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 1),
    "DtypeObservation": lambda env: wrappers.DtypeObservation(env, np.float32),
    "FlattenObservation": wrappers.FlattenObservation,
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 2),
    "GrayscaleObservation": wrappers.GrayscaleObservation,
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda seen: seen, env.observation_space),
    "MaxAndSkipObservation": lambda env: wrappers.MaxAndSkipObservation(env, 2),
    "NormalizeObservation": wrappers.NormalizeObservation,
    "AddRenderObservation": wrappers.AddRenderObservation,
    "ResizeObservation": lambda env: wrappers.ResizeObservation(env, (7, 5)),
    "ReshapeObservation": lambda env: wrappers.ReshapeObservation(env, (*flat(env), 1)),
    "RescaleObservation": lambda env: wrappers.RescaleObservation(env, np.float32(0), np.float32(1)),
    "TimeAwareObservation": wrappers.TimeAwareObservation,
    "ClipAction": wrappers.ClipAction,
    "DiscretizeAction": lambda env: wrappers.DiscretizeAction(env, 3),
    "TransformAction": lambda env: wrappers.TransformAction(env, lambda action: 1 - action, env.action_space),
    "RescaleAction": lambda env: wrappers.RescaleAction(env, np.float32(0), np.float32(1)),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "RepeatAction": lambda env: wrappers.RepeatAction(env, 2),
    "ClipReward": lambda env: wrappers.ClipReward(env, 0.0, 0.5),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
    "NormalizeReward": wrappers.NormalizeReward,
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 2),
    "Autoreset": wrappers.Autoreset,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "OrderEnforcing": wrappers.OrderEnforcing,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "AddWhiteNoise": lambda env: wrappers.AddWhiteNoise(env, 0.5),
    "ObstructView": lambda env: wrappers.ObstructView(env, 0.5, 2),
    "RenderCollection": wrappers.RenderCollection,
    "HumanRendering": wrappers.HumanRendering,
}
RENDERING = {"AddRenderObservation", "AddWhiteNoise", "ObstructView", "RenderCollection", "HumanRendering"}
ELSEWHERE = {"vector", "AtariPreprocessing", "DiscretizeObservation", "RecordVideo"} | DICTIONARIES | CONVERSIONS


@pytest.mark.parametrize("name", sorted(set(wrappers.__all__) - ELSEWHERE))
def test_every_wrapper_of_single_envs_works_as_around_cartpole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    mode = "rgb_array" if name in RENDERING else None
    if name in BOX_ACTIONS:
        assert played(WRAPPERS[name](WorldEnv(env_world(Box(-1, 1, (2,))), max_episode_steps=LIMIT)), LIMIT)[-1][3]
        return
    ours = gymnasium.make("StarflowTest/Counting-v0", render_mode=mode)
    theirs = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT, render_mode=mode)
    steps = {"MaxAndSkipObservation": 2, "RepeatAction": 2, "TimeLimit": 2, "Autoreset": 2 * LIMIT + 1}.get(name, LIMIT)
    mine = played(WRAPPERS[name](ours), steps)
    other = played(WRAPPERS[name](theirs), steps) if name not in PICTURES else mine
    for a, b in zip(mine[1:], other[1:], strict=True):
        assert [type(part) for part in a[2:]] == [type(part) for part in b[2:]]
        assert a[2:4] == b[2:4]
        assert isinstance(a[1], float | np.floating)
    assert mine[-1][3]
