"""WorldVectorEnv: the autoreset tables, equality with single envs, and that rows do not depend on each other."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from starflow_world.envs.episode import EnvState
from starflow_world.envs.infos import TextArray
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ActionError, ConfigError, DataError, StateError
from starflow_world.world import World
from starflow_world.world.state import WorldState
from tests.envs.counting import CountingWorld
from tests.worlds import KINDS, env_world, save_world, tiny_world

ENDS = (2, 3, 3)
WINDOW = 6
F, T = False, True


def counting(mode: str, ends: tuple[int, ...] = ENDS, **changes: object) -> WorldVectorEnv:
    return WorldVectorEnv(CountingWorld(ends), len(ends), autoreset_mode=mode, **changes)


def ages(observations: np.ndarray) -> list[int]:
    return observations[:, 0, 0, 0].tolist()


# ---- the three modes, by hand (V1) -----------------------------------------------------------------------------------


def test_next_step_resets_a_row_in_the_step_after_its_end() -> None:
    env = counting("next_step")
    assert ages(env.reset(seed=0)[0]) == [0, 0, 0]
    table = [
        ([1, 1, 1], [1, 1, 1], [F, F, F]),
        ([2, 2, 2], [2, 2, 2], [T, F, F]),
        ([0, 3, 3], [0, 3, 3], [F, T, T]),
        ([1, 0, 0], [1, 0, 0], [F, F, F]),
        ([2, 1, 1], [2, 1, 1], [T, F, F]),
    ]
    for shown, rewards, terminated in table:
        observations, found, ended, truncated, infos = env.step(np.array([1, 2, 3]))
        assert (ages(observations), found.tolist(), ended.tolist()) == (shown, rewards, terminated)
        assert not truncated.any()
        assert infos["nats"].tolist() == shown
        assert infos["_nats"].all()
        # The row that was reset ignored its action.
        assert observations[:, 0, 0, 1].tolist() == [0 if age == 0 else k + 1 for k, age in enumerate(shown)]


def test_same_step_resets_at_once_and_keeps_the_final_observation_and_info() -> None:
    env = counting("same_step")
    env.reset(seed=0)
    table = [
        ([1, 1, 1], [1, 1, 1], [F, F, F]),
        ([0, 2, 2], [2, 2, 2], [T, F, F]),
        ([1, 0, 0], [1, 3, 3], [F, T, T]),
        ([0, 1, 1], [2, 1, 1], [T, F, F]),
    ]
    for shown, rewards, terminated in table:
        observations, found, ended, _, infos = env.step(np.array([1, 2, 3]))
        assert (ages(observations), found.tolist(), ended.tolist()) == (shown, rewards, terminated)
        assert infos["nats"].tolist() == shown
        assert ("final_obs" in infos) == any(terminated)
        for row in np.flatnonzero(ended):
            assert infos["final_obs"][row][0, 0].tolist()[:2] == [rewards[row], row + 1]
            assert infos["final_info"]["nats"][row] == rewards[row]
        if any(terminated):
            assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == terminated
            assert [one is not None for one in infos["final_obs"]] == terminated


def test_disabled_waits_for_a_masked_reset() -> None:
    env = counting("disabled")
    env.reset(seed=0)
    action = np.array([1, 2, 3])
    env.step(action)
    observations, _, terminated, _, _ = env.step(action)
    assert (ages(observations), terminated.tolist()) == ([2, 2, 2], [T, F, F])
    with pytest.raises(StateError, match=r"rows \[0\] have ended"):
        env.step(action)
    observations, infos = env.reset(options={"reset_mask": np.array([T, F, F])})
    assert ages(observations) == [0, 2, 2]
    assert infos["_nats"].tolist() == [T, F, F]
    observations, rewards, terminated, _, _ = env.step(action)
    assert (ages(observations), rewards.tolist(), terminated.tolist()) == ([1, 3, 3], [1, 3, 3], [F, T, T])


def with_strings(value: Any) -> Any:
    """The same value with the strings of Gymnasium's SyncVectorEnv in place of TextArrays."""
    if isinstance(value, tuple):
        return tuple(map(with_strings, value))
    if not isinstance(value, dict):
        return value
    found = {key: with_strings(part) for key, part in value.items()}
    for key in [key for key, part in value.items() if isinstance(part, TextArray)]:
        texts = [text if has else None for text, has in zip(value[key], value[f"_{key}"], strict=True)]
        found[key] = np.array(texts, dtype=object)
    return found


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_mode_equals_gymnasiums_sync_vector_env_of_single_envs(mode: AutoresetMode) -> None:
    ends, limit = (2, 3, 3, 9), 4
    ours = counting(mode.value, ends, max_episode_steps=limit)
    theirs = SyncVectorEnv(
        [lambda end=end: WorldEnv(CountingWorld([end]), max_episode_steps=limit) for end in ends], autoreset_mode=mode
    )
    for mine, other in zip(ours.reset(seed=5), theirs.reset(seed=5), strict=True):
        assert data_equivalence(with_strings(mine), other, exact=True)
    ours.action_space.seed(0)
    for _ in range(30):
        action = ours.action_space.sample()
        mine, other = ours.step(action), theirs.step(action)
        for part, (a, b) in enumerate(zip(mine, other, strict=True)):
            assert data_equivalence(with_strings(a), b, exact=True), (part, a, b)
        done = mine[2] | mine[3]
        if mode is AutoresetMode.DISABLED and done.any():
            pair = ours.reset(options={"reset_mask": done}), theirs.reset(options={"reset_mask": done.copy()})
            assert data_equivalence(*map(with_strings, pair), exact=True)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_random_calls_follow_a_plain_model_of_the_semantics(mode: AutoresetMode) -> None:
    ends, limit, rng = (2, 5, 3, 7), 4, np.random.default_rng(0)
    env = counting(mode.value, ends, max_episode_steps=limit)
    env.reset(seed=0)
    age, waits = [0] * 4, [False] * 4
    for _ in range(100):
        mask = rng.random(4) < 0.3
        if (mask.any() and rng.random() < 0.3) or (mode is AutoresetMode.DISABLED and any(waits)):
            mask |= np.array(waits)
            observations, _ = env.reset(options={"reset_mask": mask})
            age = [0 if mask[k] else age[k] for k in range(4)]
            waits = [waits[k] and not mask[k] for k in range(4)]
            assert ages(observations) == age
            continue
        observations, rewards, terminated, truncated, _ = env.step(rng.integers(0, 4, 4))
        reset = [mode is AutoresetMode.NEXT_STEP and waits[k] for k in range(4)]
        age = [0 if reset[k] else age[k] + 1 for k in range(4)]
        assert rewards.tolist() == age
        assert terminated.tolist() == [age[k] == ends[k] for k in range(4)]
        assert truncated.tolist() == [age[k] == limit for k in range(4)]
        waits = (terminated | truncated).tolist()
        if mode is AutoresetMode.SAME_STEP:
            age, waits = [0 if waits[k] else age[k] for k in range(4)], [False] * 4
        assert ages(observations) == age


def test_all_rows_are_always_computed_at_the_full_width() -> None:
    env = counting("next_step")
    env.reset(seed=0)
    for _ in range(9):
        env.step(np.array([0, 0, 0]))
    assert env.world.calls == [3] * 9


# ---- equal to single envs (V2, V7) -----------------------------------------------------------------------------------


def play_singles(world: World, count: int, seed: int, actions: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (steps + 1, rows, ...) and keys of single envs that are reset in the step after an end."""
    frames, keys = [], []
    for row in range(count):
        env = WorldEnv(world, max_episode_steps=limit)
        shown, used, over = [env.reset(seed=seed + row)[0]], [int(env.get_state().key[0])], False
        for action in actions[:, row]:
            if over:
                observation, over = env.reset()[0], False
            else:
                observation, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
            shown.append(observation)
            used.append(int(env.get_state().key[0]))
        frames.append(np.stack(shown))
        keys.append(used)
    return np.stack(frames, axis=1), np.array(keys).T


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_single_envs_with_consecutive_seeds(
    kind: str, dtype: torch.dtype, at_most: Callable[[str, float, float], None]
) -> None:
    world, rows, seed, limit = env_world(dtype=dtype, **KINDS[kind]), 3, 40, 8
    actions = np.random.default_rng(0).integers(0, 4, (15, rows))
    env = WorldVectorEnv(world, rows, max_episode_steps=limit)
    shown, keys = [env.reset(seed=seed)[0]], [env.get_state().key.numpy()]
    for action in actions:
        shown.append(env.step(action)[0])
        keys.append(env.get_state().key.numpy())
    frames, expected = play_singles(world, rows, seed, actions, limit)
    assert (np.stack(keys) == expected).all(), "noise is a function of the key: it must be equal to the bit"
    assert len(np.unique(expected)) >= rows + 2, "rows were reset on the way"
    difference = np.abs(np.stack(shown).astype(int) - frames)
    if dtype == torch.float64:
        assert difference.max() == 0
    assert difference.max() <= 1
    at_most("share of pixels", (difference > 0).mean(), 1e-4)


def pool_of_ages(world: World, most: int) -> list[WorldState]:
    """States of one episode at every age from 0 to `most`."""
    env = WorldEnv(world, max_episode_steps=10 * most, reward_fn=lambda *_: (0.0, False))
    env.reset(seed=7)
    states = [env.get_state()]
    for age in range(most):
        env.step(age % 4)
        states.append(env.get_state())
    return states


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_all_ages_in_one_batch_equal_themselves_alone(kind: str) -> None:
    world = env_world(dtype=torch.float64, **KINDS[kind])
    states = pool_of_ages(world, 3 * WINDOW)
    together, transition = world.step(WorldState.stack(states), [2] * len(states))
    env = WorldVectorEnv(world, len(states), autoreset_mode="disabled", max_episode_steps=99)
    env.reset(options={"state": WorldState.stack(states)})
    observations, rewards, _, _, infos = env.step(np.full(len(states), 2))
    for row, state in enumerate(states):
        alone, one = world.step(state, [2])
        assert (observations[row] == one.frames[0, -1].numpy()).all()
        assert infos["nats"][row] == pytest.approx(float(one.nats[0]), rel=1e-9)
        assert rewards[row] == pytest.approx(float(one.reward[0]), rel=1e-9)
        assert torch.allclose(together.tokens[row], alone.tokens[0], atol=1e-9)
    assert (observations == transition.frames[:, -1].numpy()).all()


# ---- rows do not depend on each other (V3, V4) -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_among_any_companions_of_any_ages(kind: str) -> None:
    world, width, rng = env_world(**KINDS[kind]), 4, np.random.default_rng(0)
    pool = pool_of_ages(world, 3 * WINDOW)
    env = WorldVectorEnv(world, width, autoreset_mode="disabled", max_episode_steps=99)
    for needle in (0, WINDOW - 1):  # a young row, and one whose window is full
        expected = None
        for _ in range(25):
            place, others = int(rng.integers(width)), rng.integers(0, len(pool), width)
            states = [pool[other] if row != place else pool[needle] for row, other in enumerate(others)]
            keys = rng.integers(0, 2**62, width)
            keys[place] = 12345
            env.set_state(WorldState.stack(states).with_keys(keys))
            found = b""
            for action in (1, 2):
                actions = rng.integers(0, 4, width)
                actions[place] = action
                observations, rewards, _, _, infos = env.step(actions)
                found += observations[place].tobytes() + rewards[place].tobytes() + infos["nats"][place].tobytes()
                found += infos["residual"][place].tobytes() + infos["sweeps"][place].tobytes()
                if (env.snapshot().ended).any():
                    env.set_state(env.get_state())
            found += env.get_state()[place].digest().encode()
            expected = expected or found
            assert found == expected


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_row_has_the_same_bits_whenever_its_companions_end_and_begin_anew(mode: str) -> None:
    world, width, limit, steps, rng = env_world(), 4, 30, 8, np.random.default_rng(1)
    env = WorldVectorEnv(world, width, autoreset_mode=mode, max_episode_steps=limit, reward_fn=lambda *_: (0.0, False))
    env.reset(seed=0)
    first, expected = env.snapshot(), None
    for place in range(width):
        for _ in range(2):
            order = np.arange(width)
            order[[0, place]] = order[[place, 0]]
            begun = 1 - rng.integers(limit - steps, limit, width)  # companions are truncated at other steps every time
            begun[place] = 1
            env.set_state(replace(first[order], begun=begun))
            resets, found = 0, b""
            for _ in range(steps):
                observations, _, _, truncated, infos = env.step(np.full(width, 3))
                resets += int(truncated.sum())
                found += observations[place].tobytes() + infos["nats"][place].tobytes()
            assert resets >= 2
            found += env.get_state()[place].digest().encode()
            expected = expected or found
            assert found == expected


def test_a_masked_reset_leaves_the_other_rows_as_they_were() -> None:
    env = WorldVectorEnv(env_world(), 4, max_episode_steps=99)
    env.reset(seed=3)
    for _ in range(WINDOW + 1):
        env.step(env.action_space.sample())
    before = env.snapshot()
    observations, infos = env.reset(options={"reset_mask": np.array([F, T, F, T])})
    after = env.snapshot()
    for row in (0, 2):
        assert before.world[row].digest() == after.world[row].digest()
        assert (observations[row] == before.frames[row]).all()
        assert before.steps[row] == after.steps[row] == WINDOW + 1
    for row in (1, 3):
        assert before.world[row].digest() != after.world[row].digest()
        assert after.steps[row] == 0
        assert (observations[row] == after.frames[row]).all()
    assert infos["_nats"].tolist() == [F, T, F, T]
    assert before.world.digest() != after.world.digest()


@pytest.mark.parametrize("rows", [[0], [2, 0], [0, 1, 2]])
def test_replacing_rows_in_place_equals_replacing_them_by_copy(rows: list[int]) -> None:
    world = env_world()
    env = WorldVectorEnv(world, 3)
    env.reset(seed=1)
    env.step(np.array([1, 1, 1]))
    old = env.snapshot()
    env.reset(seed=9)
    new = env.snapshot()[np.array(rows)]
    expected = old.world.replace_rows(torch.tensor(rows), new.world).digest()
    found = old.clone().insert(np.array(rows), new)
    assert found.world.digest() == expected
    assert found.world.texts == old.world.replace_rows(torch.tensor(rows), new.world).texts
    assert all((found.frames[row] == new.frames[k]).all() for k, row in enumerate(rows))


# ---- seeds, sizes, actions, options (V5, V6, V8) ---------------------------------------------------------------------


def test_integer_and_list_seeds_mean_the_same_and_none_goes_on() -> None:
    env, other = counting("next_step"), counting("next_step")
    a, b = env.reset(seed=11)[0], other.reset(seed=[11, 12, 13])[0]
    assert (a == b).all()
    assert (env.get_state().key == other.get_state().key).all()
    first = env.get_state().key
    env.reset()
    other.reset(seed=[None, None, None])
    assert (env.get_state().key == other.get_state().key).all()
    assert (env.get_state().key != first).all()
    env.reset(seed=[None, 12, None])
    assert (env.get_state().key == first).tolist() == [False, True, False]


@pytest.mark.parametrize("seed", [[1, 2], [], 1.5, "seed"])
def test_seeds_of_a_wrong_form_are_refused_and_nothing_changes(seed: object) -> None:
    env = counting("next_step")
    env.reset(seed=0)
    before = env.get_state().digest()
    with pytest.raises(ConfigError, match="seed: expected an integer or 3"):
        env.reset(seed=seed)
    assert env.get_state().digest() == before


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_any_number_of_rows_works(count: int) -> None:
    env = WorldVectorEnv(env_world(), count, max_episode_steps=2)
    observations, infos = env.reset(seed=0)
    for _ in range(3):
        assert observations in env.observation_space
        assert observations.shape == (count, 8, 8, 3)
        assert all(len(values) == count for values in infos.values())
        observations, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        assert rewards.shape == terminated.shape == truncated.shape == (count,)
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
    env.close()
    env.close()


@pytest.mark.parametrize("count", [0, -1, 1.5, "2"])
def test_no_rows_are_refused(count: object) -> None:
    with pytest.raises(ConfigError, match="num_envs"):
        WorldVectorEnv(env_world(), count)


@pytest.mark.parametrize("mode", [*AutoresetMode, "next_step", "SAME_STEP", "Disabled"])
def test_the_mode_is_declared_in_metadata_and_attribute(mode: object) -> None:
    env = WorldVectorEnv(env_world(), 2, autoreset_mode=mode)
    assert isinstance(env.autoreset_mode, AutoresetMode)
    assert env.metadata["autoreset_mode"] is env.autoreset_mode
    assert "autoreset_mode" not in WorldVectorEnv.metadata
    with pytest.raises(ConfigError, match="expected one of next_step, same_step, disabled"):
        WorldVectorEnv(env_world(), 2, autoreset_mode="sometimes")


SPACES = {
    "Discrete": spaces.Discrete(3, start=1),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict({"go": spaces.Discrete(3), "turn": spaces.Box(-1, 1, (1,), np.float32)}),
    "Tuple": spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]),
}


@pytest.mark.parametrize("kind", SPACES)
def test_batched_actions_of_every_space_reach_their_rows(kind: str) -> None:
    world, rows = env_world(SPACES[kind]), 3
    env = WorldVectorEnv(world, rows, max_episode_steps=99)
    env.reset(seed=0)
    env.action_space.seed(3)
    action = env.action_space.sample()
    listed = list(gymnasium.vector.utils.iterate(env.action_space, action))
    expected = world.flatten(listed)
    env.step(action)
    assert torch.equal(env.get_state().actions[:, 1], expected)
    assert env.single_action_space == SPACES[kind]


WRONG_ACTIONS = [
    None, "go", 7, np.array([0, 1]), np.array([0, 1, 4]), np.array([0.0, 1.0, 2.0]), [0, 1, None],
    np.zeros((3, 2), int),
]


@pytest.mark.parametrize("action", WRONG_ACTIONS, ids=repr)
def test_wrong_actions_are_refused_and_nothing_changes(action: object) -> None:
    env = WorldVectorEnv(env_world(), 3)
    env.reset(seed=0)
    env.step(np.array([1, 1, 1]))
    before = env.get_state().digest()
    with pytest.raises(ActionError, match="action"):
        env.step(action)
    assert env.get_state().digest() == before


def test_the_action_of_a_row_that_waits_for_its_reset_is_not_looked_at() -> None:
    env = WorldVectorEnv(env_world(), 2, max_episode_steps=1)
    env.reset(seed=0)
    env.step(np.array([1, 1]))
    env.step(np.array([99, -1]))
    with pytest.raises(ActionError):
        env.step(np.array([99, -1]))


WRONG = [
    ({"texts": "a"}, ConfigError, "did you mean 'text'"),
    ({"reset_mask": [True, False]}, ConfigError, "reset_mask"),
    ({"reset_mask": np.array([False, False])}, ConfigError, "reset_mask"),
    ({"reset_mask": np.array([True])}, ConfigError, "reset_mask"),
    ({"reset_mask": np.array([1, 0])}, ConfigError, "reset_mask"),
    ({"text": ["a"]}, ConfigError, "one for each of 2 rows"),
    ({"text": ["a", 3]}, DataError, "expected a string"),
    ({"text": "a" * 10_000}, DataError, "shorten"),
    ({"frames": np.zeros((1, 8, 8, 3), np.uint8)}, ConfigError, "one for each of 2 rows"),
    ({"frames": np.zeros((2, 9, 8, 3), np.uint8)}, DataError, "frames"),
    ({"actions": [[None], [None]]}, ConfigError, "frames"),
    ({"state": 3}, StateError, "state"),
]


@pytest.mark.parametrize(("options", "error", "match"), WRONG, ids=[repr(options)[:60] for options, _, _ in WRONG])
def test_wrong_options_are_refused_and_nothing_changes(options: dict, error: type, match: str) -> None:
    env = WorldVectorEnv(env_world(), 2)
    env.reset(seed=0)
    given, before, generators = dict(options), env.get_state().digest(), copy.deepcopy(env._generators)
    for seed in (5, None):
        with pytest.raises(error, match=match):
            env.reset(seed=seed, options=options)
        assert env.get_state().digest() == before
        assert [g.bit_generator.state for g in env._generators] == [g.bit_generator.state for g in generators]
    assert options.keys() == given.keys()


def test_options_are_given_row_by_row() -> None:
    world = env_world()
    env, frames = WorldVectorEnv(world, 2, autoreset_mode="disabled"), np.asarray(world.starts.frames[2:6])
    clip = frames.reshape(2, 2, 8, 8, 3)
    observations, infos = env.reset(options={"frames": clip, "actions": [[None, 1], [None, 2]], "text": ["x", "y"]})
    assert (observations == clip[:, 1]).all()
    assert infos["text"].tolist() == ["x", "y"]
    expected = world.flatten([None, 1, None, 2]).unflatten(0, (2, 2))
    assert torch.equal(env.get_state().actions[:, :2], expected)
    observations, infos = env.reset(options={"text": "z"})
    assert infos["text"].tolist() == ["z", "z"]
    assert (observations[0] != observations[1]).any(), "imagined with different noise"


def test_steps_count_from_the_end_of_the_start_however_long_it_was() -> None:
    env = WorldVectorEnv(env_world(), 2, autoreset_mode="disabled", max_episode_steps=2)
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    clips = np.zeros((2, 3, 8, 8, 3), np.uint8)
    env.reset(options={"frames": clips, "reset_mask": np.array([F, T])})
    assert env.snapshot().steps.tolist() == [1, 0]
    assert env.step(np.array([0, 0]))[3].tolist() == [T, F]
    env.reset(options={"reset_mask": np.array([T, F])})
    assert env.step(np.array([0, 0]))[3].tolist() == [F, T]


def test_calls_before_reset_and_after_close_are_refused() -> None:
    env = WorldVectorEnv(env_world(), 2, render_mode="rgb_array")
    mask = {"reset_mask": np.array([True, False])}
    for _ in range(2):
        for call in (env.render, env.get_state, env.snapshot, lambda: env.step(np.array([0, 0]))):
            with pytest.raises(StateError, match="reset"):
                call()
        with pytest.raises(StateError, match="reset all rows first"):
            env.reset(options=mask)
        env.reset(seed=0)
        frames = env.render()
        assert frames is not None
        assert len(frames) == 2
        env.close()


def test_a_world_without_starts_needs_a_text_or_no_autoreset() -> None:
    world = tiny_world()
    with pytest.raises(ConfigError, match="no start set"):
        WorldVectorEnv(world, 2)
    WorldVectorEnv(world, 2, autoreset_mode="disabled")
    env = WorldVectorEnv(world, 2, text="go", max_episode_steps=1)
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    *_, infos = env.step(np.array([0, 0]))
    assert infos["text"].tolist() == ["go", "go"]


# ---- rewards, copies, make_vec ---------------------------------------------------------------------------------------


def test_a_reward_function_sees_each_row_and_a_failing_one_takes_no_step() -> None:
    seen, broken = [], []

    def reward(observation, action, after, info):
        seen.append((int(observation[0, 0, 0]), int(action), int(after[0, 0, 0]), info["nats"]))
        if broken:
            raise RuntimeError("no reward today")
        return (action / 2, action == 3)

    env = counting("next_step", (99, 99, 99), reward_fn=reward)
    env.reset(seed=0)
    _, rewards, terminated, _, _ = env.step(np.array([1, 2, 3]))
    assert (rewards.tolist(), terminated.tolist()) == ([0.5, 1.0, 1.5], [F, F, T])
    assert seen == [(0, 1, 1, 1.0), (0, 2, 1, 1.0), (0, 3, 1, 1.0)]
    seen.clear()
    env.step(np.array([0, 0, 0]))
    assert [one[0] for one in seen] == [1, 1], "a row that is being reset has no reward"
    before = env.get_state().digest()
    broken.append(True)
    with pytest.raises(DataError, match=r"reward_fn reward: .*no reward today"):
        env.step(np.array([0, 0, 0]))
    assert env.get_state().digest() == before
    broken.clear()
    assert ages(env.step(np.array([0, 0, 0]))[0]) == [3, 3, 1]


def test_what_is_returned_is_copied() -> None:
    world = env_world()
    env = WorldVectorEnv(world, 2, frames_between=True, render_mode="rgb_array")
    starts = world.starts.frames.clone()
    kept = [env.reset(seed=0)[0]]
    for _ in range(4):
        observations, *_, infos = env.step(np.array([1, 2]))
        shown, frames = env.render(), env.snapshot().frames
        assert infos["frames"].shape == (2, 1, 8, 8, 3)
        kept.append(observations.copy())
        for array in (observations, infos["frames"], *shown, frames):
            array[:] = 255
        assert (env.snapshot().frames == kept[-1]).all()
    kept[0][:] = 255
    assert torch.equal(world.starts.frames, starts)
    assert len({one.tobytes() for one in kept}) == len(kept)


def test_a_snapshot_goes_on_exactly_and_stays_as_it_was() -> None:
    env = WorldVectorEnv(env_world(), 3, max_episode_steps=4)
    env.reset(seed=2)
    for _ in range(3):
        env.step(np.array([0, 1, 2]))
    snapshot = env.snapshot()
    digest = snapshot.world.digest()
    runs = []
    for _ in range(2):
        env.set_state(snapshot)
        generators = copy.deepcopy(env._generators)
        runs.append([env.step(np.array([3, 3, 3])) for _ in range(2)])
        env._generators = generators
    assert runs[0][0][3].all(), "truncated at the fourth step"
    for a, b in zip(*runs, strict=True):
        assert data_equivalence(a[:4], b[:4], exact=True)
    assert snapshot.world.digest() == digest
    assert isinstance(snapshot, EnvState)


def test_make_vec_builds_the_native_env_and_its_spec_builds_it_again(tmp_path) -> None:
    folder = save_world(env_world(), tmp_path / "world")
    env = gymnasium.make_vec("StarflowWorld/Custom-v0", num_envs=3, path=str(folder), max_episode_steps=2)
    assert isinstance(env.unwrapped, WorldVectorEnv)
    again = gymnasium.make_vec(env.spec)
    a, b = env.reset(seed=4), again.reset(seed=4)
    assert data_equivalence(a, b, exact=True)
    assert again.num_envs == 3
    assert not env.step(np.zeros(3, int))[3].any()
    assert env.step(np.zeros(3, int))[3].all()
