"""The real rooms: drawn as the env renders them, the plain env's under the same seed, and many at a time."""

import numpy as np
import pytest

pytest.importorskip("minigrid")
from gymnasium.vector import AutoresetMode

from starflow_world.agents.babyai.rooms import ENV, LIMIT, Room, Rooms, rooms_with
from starflow_world.agents.environment import make_env
from starflow_world.errors import ConfigError, DataError

TEXT = "go to the red ball"


@pytest.fixture(scope="module")
def rooms() -> tuple[int, ...]:
    return rooms_with(TEXT, 8)


def test_a_room_is_drawn_as_the_env_renders_it_after_every_action() -> None:
    room, rng, carried = Room(), np.random.default_rng(0), 0
    for seed in range(40):
        frame, _ = room.reset(seed=seed)
        assert (frame == room.inner.render()).all()
        over = False
        while not over:
            frame, _, terminated, truncated, _ = room.step(int(rng.integers(7)))
            assert (frame == room.inner.render()).all()
            carried += room.inner.carrying is not None
            over = terminated or truncated
    assert carried > 20


def test_a_room_is_that_of_the_plain_env_under_the_same_seed_and_actions() -> None:
    plain, room, rng = make_env(ENV, max_steps=LIMIT), Room(), np.random.default_rng(1)
    for seed in range(5):
        observation, _ = plain.reset(seed=seed)
        frame, info = room.reset(seed=seed)
        assert info["text"] == observation["mission"]
        over = False
        while not over:
            assert (frame == plain.render()).all()
            action = int(rng.integers(7))
            frame, reward, *ends, _ = room.step(action)
            _, gain, *others, _ = plain.step(action)
            assert reward == float(gain > 0)
            assert ends == others
            over = any(ends)


def test_rooms_are_found_by_their_mission(rooms: tuple[int, ...]) -> None:
    room = Room()
    assert len(set(rooms)) == 8
    for seed in rooms:
        assert room.reset(seed=seed)[1]["text"] == TEXT
    others = set(range(rooms[-1])) - set(rooms)
    assert all(room.reset(seed=seed)[1]["text"] != TEXT for seed in list(others)[:60])
    assert rooms_with(TEXT, 2, begin=rooms[1]) == rooms[1:3]
    with pytest.raises(DataError, match="mission"):
        rooms_with("make coffee", 1)


def test_rows_end_and_begin_in_the_same_step(rooms: tuple[int, ...]) -> None:
    env, rng = Rooms(4, rooms), np.random.default_rng(0)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    frames, infos = env.reset(seed=3)
    assert infos["text"].tolist() == [TEXT] * 4
    single, begun = Room(), {Room().reset(seed=seed)[0].tobytes() for seed in rooms}
    assert all(frame.tobytes() in begun for frame in frames)
    assert single.observation_space == env.single_observation_space
    ends = 0
    for _ in range(150):
        frames, rewards, terminated, truncated, infos = env.step(rng.integers(0, 3, 4))
        assert (rewards == terminated).all()
        for row in np.flatnonzero(terminated | truncated):
            ends += 1
            assert frames[row].tobytes() in begun
            assert (infos["final_obs"][row] != frames[row]).any()
    assert ends > 5


def test_the_same_seed_gives_the_same_rooms(rooms: tuple[int, ...]) -> None:
    first, second = Rooms(3, rooms), Rooms(3, rooms)
    assert (first.reset(seed=5)[0] == second.reset(seed=[5, 6, 7])[0]).all()
    for step in range(LIMIT + 1):
        assert (first.step([step % 3] * 3)[0] == second.step([step % 3] * 3)[0]).all()


def test_seeds_are_read_as_those_of_a_vector_env_and_options_are_refused(rooms: tuple[int, ...]) -> None:
    env = Rooms(3, rooms)
    assert (env.reset(seed=np.int64(5))[0] == env.reset(seed=5)[0]).all()
    for wrong in ([5, 6], [5, 6, 7, 8]):
        with pytest.raises(ConfigError, match="seed: expected an integer or 3"):
            env.reset(seed=wrong)
    with pytest.raises(ConfigError, match="options"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
