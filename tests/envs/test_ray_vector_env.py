"""What spreading rows over processes promises, with the actors in this process: the same frames, whatever dies when."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starflow_world.envs import ray_vector_env
from starflow_world.envs.episode import EnvState
from starflow_world.envs.infos import TextArray, merge_infos
from starflow_world.envs.ray_vector_env import RayVectorEnv
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.errors import ActionError, ConfigError, DataError, StarflowError, StateError, WorkerError
from starflow_world.world import World
from tests.fake_ray import FakeActor, FakeRay, Fate
from tests.worlds import env_world, save_world

pytestmark = pytest.mark.usefixtures("one_thread")

SHARDS = (slice(0, 2), slice(2, 3))
LIMIT = 8  # steps of an episode: past a slide of the window of 6 frames
MODES = ("next_step", "same_step", "disabled")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    folder = save_world(env_world(), tmp_path_factory.mktemp("world"))
    return folder, World.load(folder)


@pytest.fixture
def folder(saved: tuple[Path, World], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a world that is loaded once: a World has no state, and here all actors share a process."""
    monkeypatch.setattr(World, "load", staticmethod(lambda *_, **__: saved[1]))
    return saved[0]


def every(count: int, what: str = "die", *names: str) -> Fate:
    """Each so-many-th call of a shard (of these methods) dies or hangs; starting and restoring never do."""
    calls = [0]

    def fate(actor: FakeActor, method: str, args: tuple[Any, ...]) -> float | str:
        if method == "open" or args[0] == "restore" or (names and args[0] not in names):
            return 1.0
        calls[0] += 1
        return what if calls[0] % count == 0 else 1.0

    return fate


def spread(patch: pytest.MonkeyPatch, folder: Path, fate: Fate | None = None, **options: Any) -> RayVectorEnv:
    """Three rows over two actors."""
    FakeRay(fate or every(10**9), eager=True).install(patch, ray_vector_env)
    return RayVectorEnv(folder, 3, 2, threads=1, **{"max_episode_steps": LIMIT} | options)


def local(folder: Path, **options: Any) -> list[WorldVectorEnv]:
    """The same rows in envs of the same widths."""
    return [WorldVectorEnv(folder, rows.stop - rows.start, **{"max_episode_steps": LIMIT} | options) for rows in SHARDS]


def same(found: tuple[Any, ...], parts: list[tuple[Any, ...]]) -> None:
    """What a call returned is what it returned in the parts, infos included."""
    *arrays, infos = found
    for place, array in enumerate(arrays):
        np.testing.assert_array_equal(array, np.concatenate([part[place] for part in parts]))
    assert infos.keys() == {key for part in parts for key in part[-1]}
    for rows, part in zip(SHARDS, parts, strict=True):
        same_infos(infos, part[-1], rows)


def same_infos(whole: dict[str, Any], part: dict[str, Any], rows: slice) -> None:
    for key, value in whole.items():
        if isinstance(value, dict):
            same_infos(value, part.get(key, {}), rows)
        elif key in part:
            for mine, its in zip(value[rows], part[key], strict=True):
                np.testing.assert_array_equal(mine, its)
        else:
            assert not (any(value[rows]) if isinstance(value, TextArray) else value[rows].any())


def play(env: RayVectorEnv, parts: list[WorldVectorEnv], steps: int = 18, seed: int = 0) -> int:
    """Step both with the same actions, and compare; returns the number of episodes that ended."""
    rng, ends = np.random.default_rng(seed), 0
    for _ in range(steps):
        actions = rng.integers(0, 4, 3)
        found = env.step(actions)
        same(found, [part.step(actions[rows]) for part, rows in zip(parts, SHARDS, strict=True)])
        ended = found[2] | found[3]
        ends += int(ended.sum())
        if env.metadata["autoreset_mode"].name == "DISABLED" and ended.any():
            done = [(part, ended[rows]) for part, rows in zip(parts, SHARDS, strict=True)]
            frames, _ = env.reset(options={"reset_mask": ended})
            for (part, mask), rows in zip(done, SHARDS, strict=True):
                if mask.any():
                    np.testing.assert_array_equal(frames[rows], part.reset(options={"reset_mask": mask})[0])
    return ends


def begin(env: RayVectorEnv, parts: list[WorldVectorEnv], seed: int = 5) -> None:
    same(env.reset(seed=seed), [part.reset(seed=seed + rows.start) for part, rows in zip(parts, SHARDS, strict=True)])


@pytest.mark.parametrize("mode", MODES)
def test_rows_spread_over_actors_equal_local_ones_of_the_same_widths(
    monkeypatch: pytest.MonkeyPatch, folder: Path, mode: str
) -> None:
    env, parts = spread(monkeypatch, folder, autoreset_mode=mode), local(folder, autoreset_mode=mode)
    assert (env.observation_space.shape, env.num_envs) == ((3, 8, 8, 3), 3)
    assert env.single_action_space == parts[0].single_action_space
    begin(env, parts)
    assert play(env, parts) >= 6


@pytest.mark.parametrize("mode", MODES)
def test_the_caller_sees_the_same_frames_when_actors_die_in_mid_episode(
    monkeypatch: pytest.MonkeyPatch, folder: Path, mode: str
) -> None:
    env, parts = spread(monkeypatch, folder, every(5), autoreset_mode=mode), local(folder, autoreset_mode=mode)
    begin(env, parts)
    assert play(env, parts) >= 6
    restored = [actor for actor in ray_vector_env.new_actor.__self__.actors if actor.dead]
    assert len(restored) >= 8


def test_an_actor_that_hangs_is_replaced_and_one_that_always_fails_is_given_up(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    env, parts = spread(monkeypatch, folder, every(7, "hang")), local(folder)
    begin(env, parts)
    play(env, parts, 10)
    env = spread(monkeypatch, folder, every(1, "die", "advance"))
    env.reset(seed=1)
    with pytest.raises(WorkerError, match=r"rows 0 to 1: .*3 in a row failed, the last with ActorDiedError"):
        env.step(np.zeros(3, int))


def test_rows_begun_from_clips_texts_and_states_are_computed_again_too(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    env, parts = spread(monkeypatch, folder, every(2)), local(folder)
    world = parts[0].world
    clips = [world.starts.frames[:count].numpy() for count in (1, 3, 6)]
    actions = [[None, *[1] * (len(clip) - 1)] for clip in clips]
    for options in ({"frames": clips, "actions": actions, "text": list("xyz")}, {"text": ["new", "a", "c"]}):
        given = [{key: value[rows] for key, value in options.items()} for rows in SHARDS]
        same(env.reset(seed=9, options=options),
             [part.reset(seed=9 + rows.start, options=one)
              for part, rows, one in zip(parts, SHARDS, given, strict=True)])
        play(env, parts, 6)
    state = env.snapshot()
    assert isinstance(state, EnvState)
    for rows, part in zip(SHARDS, parts, strict=True):
        assert part.snapshot().world.digest() == state[np.arange(3)[rows]].world.digest()
    play(env, parts, 3)
    env.set_state(state)
    for rows, part in zip(SHARDS, parts, strict=True):
        part.set_state(state[np.arange(3)[rows]])
    play(env, parts, 8, seed=3)
    same(env.reset(seed=2, options={"state": env.get_state()}),
         [part.reset(seed=2 + rows.start, options={"state": part.get_state()})
          for part, rows in zip(parts, SHARDS, strict=True)])
    play(env, parts, 8, seed=4)


def test_a_refused_call_leaves_every_row_as_it_was(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    angry = [False]

    def reward(before: np.ndarray, action: Any, after: np.ndarray, info: dict[str, Any]) -> float:
        if angry[0] and action == 3:
            raise ValueError("no")
        return float(after.mean())

    env, parts = spread(monkeypatch, folder, reward_fn=reward), local(folder, reward_fn=reward)
    begin(env, parts)
    play(env, parts, 4)
    angry[0] = True
    with pytest.raises(DataError, match="reward_fn"):
        env.step(np.array([0, 1, 3]))  # the first shard has stepped when the second refuses
    angry[0] = False
    play(env, parts, 2, seed=1)  # no row has ended yet: one that waits ignores its action
    for wrong in (np.array([0, 1, 4]), np.array([0, 1]), None, np.array([0.5, 0, 0])):
        with pytest.raises(ActionError):
            env.step(wrong)
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    for options in ({"text": ["a", "b"]}, {"frames": [*frames[:2], frames[2, :4]]}, {"sed": 1}, {"state": 3},
                    {"reset_mask": np.zeros(3, bool)}):
        with pytest.raises(StarflowError):
            env.reset(seed=3, options=options)
    play(env, parts, 4, seed=2)


def test_an_interrupted_call_is_taken_back(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    env, parts = spread(monkeypatch, folder), local(folder)
    begin(env, parts)
    play(env, parts, 3)
    answer, stops = env._answer, [True]

    def interrupted(*args: Any) -> Any:
        if stops.pop() if stops else False:
            raise KeyboardInterrupt
        return answer(*args)

    monkeypatch.setattr(env, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.step(np.array([1, 2, 3]))
    play(env, parts, 6, seed=1)


def test_what_the_driver_keeps_is_small_however_long_an_episode_lasts(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    env, parts = spread(monkeypatch, folder, every(11), max_episode_steps=10**6), local(folder, max_episode_steps=10**6)
    begin(env, parts)
    for seed in range(3):
        play(env, parts, 12, seed)
        bases, actions, _ = env._log.of(np.arange(3))
        assert max(len(since) for since in actions) <= 6
        assert all(base.state is not None and base.state.world.cache is None for base in bases if base is not None)


def test_rows_computed_again_from_other_actions_are_told_apart(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The comparison above can fail."""
    env, parts = spread(monkeypatch, folder, every(5, "die", "advance")), local(folder)
    begin(env, parts)
    course = env._log.of

    def shuffled(rows: np.ndarray) -> tuple[Any, ...]:
        bases, actions, ended = course(rows)
        return bases, [since[::-1] for since in actions], ended

    monkeypatch.setattr(env._log, "of", shuffled)
    with pytest.raises(AssertionError, match="not equal"):
        play(env, parts)


def test_the_order_of_calls_is_kept(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    env, parts = spread(monkeypatch, folder, render_mode="rgb_array"), local(folder)
    for call in (lambda: env.step(np.zeros(3, int)), env.render, env.snapshot,
                 lambda: env.reset(options={"reset_mask": np.array([True, False, False])})):
        with pytest.raises(StateError, match="reset"):
            call()
    begin(env, parts)
    assert len(env.render() or ()) == 3
    env.close()
    env.close()
    with pytest.raises(StateError):
        env.step(np.zeros(3, int))
    begin(env, parts)
    play(env, parts, 2)
    ended = spread(monkeypatch, folder, autoreset_mode="disabled", max_episode_steps=1)
    ended.reset(seed=0)
    ended.step(np.zeros(3, int))
    with pytest.raises(StateError, match=r"rows \[0, 1, 2\] have ended"):
        ended.step(np.zeros(3, int))


def test_a_closed_env_goes_on_from_a_state_and_can_be_closed_again(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    env, local = spread(monkeypatch, folder), WorldVectorEnv(folder, 3)
    begun = env.reset(seed=4)[0]
    kept = env.snapshot()
    for one in (env, local):
        one.close()
        one.set_state(kept)
        np.testing.assert_array_equal(one.snapshot().frames, begun)
        one.close()
        with pytest.raises(StateError, match="none"):
            one.snapshot()


def test_settings_that_cannot_be_meant_are_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for wrong in ({"render_mode": "human"}, {"autoreset_mode": "never"}, {"max_episode_steps": 0}):
        with pytest.raises(ConfigError):
            spread(monkeypatch, folder, **wrong)
        assert all(actor.dead for actor in ray_vector_env.new_actor.__self__.actors)
    for sizes in ((3, 4), (3, 0), (0, 0), (2.5, 1)):
        with pytest.raises(ConfigError, match="num_envs >= num_actors >= 1"):
            RayVectorEnv(folder, *sizes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="for every actor to load"):
        RayVectorEnv(env_world(), 2)  # type: ignore[arg-type]
    with pytest.raises(StarflowError, match="shipped worlds"):
        RayVectorEnv("nowhere", 2)


def test_infos_are_joined_with_blanks_where_a_shard_has_none() -> None:
    names = np.array(["a", "b"], dtype=object)
    whole = merge_infos([{}, {"x": np.ones((2, 4)), "_x": np.array([True, False]), "in": {"name": names}}], (1, 2))
    assert whole["x"].tolist() == [[0] * 4, [1] * 4, [1] * 4]
    assert whole["_x"].tolist() == [False, True, False]
    assert whole["in"]["name"].tolist() == [None, "a", "b"]
