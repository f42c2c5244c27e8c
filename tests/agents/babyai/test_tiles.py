"""Reading BabyAI pictures: the judge of imagined frames agrees with the environment's own grid."""

import numpy as np
import pytest

from starflow_world.agents.babyai.tiles import ENV, is_valid, named_object, read_tiles, text_starts, tiles
from starflow_world.agents.environment import make_env
from starflow_world.evaluation.tiles import RIGHT
from starflow_world.world import World


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_tiles_are_read_as_the_environment_placed_them(seed: int) -> None:
    env = make_env(ENV, max_steps=64)
    observation, _ = env.reset(seed=seed)
    names = read_tiles(np.asarray(env.render()))
    room = env.unwrapped
    for x in range(8):
        for y in range(8):
            thing = room.grid.get(x, y)  # type: ignore[attr-defined]
            expected = "floor" if thing is None else "wall" if thing.type == "wall" else f"{thing.color} {thing.type}"
            if tuple(room.agent_pos) == (x, y):  # type: ignore[attr-defined]
                expected = f"agent {room.agent_dir}"  # type: ignore[attr-defined]
            assert names[y, x] == expected
    assert is_valid(names)
    assert named_object(observation["mission"]) in names


def test_no_two_tiles_are_close_enough_to_be_taken_for_each_other() -> None:
    pictures = np.stack(list(tiles().values())).astype(float)
    distance = np.sqrt(((pictures[:, None] - pictures[None]) ** 2).mean(axis=(-3, -2, -1)))
    assert len(pictures) == 24
    assert distance[~np.eye(24, dtype=bool)].min() > 4 * RIGHT


def test_a_blurred_tile_a_second_agent_or_a_missing_object_is_not_valid() -> None:
    known = tiles()
    env = make_env(ENV, max_steps=64)
    env.reset(seed=3)
    frame = np.asarray(env.render()).copy()
    floors = np.argwhere(read_tiles(frame) == "floor")

    def with_tile(picture: np.ndarray, name: str = "floor") -> np.ndarray:
        row, column = np.argwhere(read_tiles(frame) == name)[0] * 8
        changed = frame.copy()
        changed[row : row + 8, column : column + 8] = picture
        return read_tiles(changed)

    assert len(floors) > 20
    assert is_valid(read_tiles(frame))
    assert not is_valid(with_tile((known["floor"] * 0.5 + known["red ball"] * 0.5).astype(np.uint8)))
    assert not is_valid(with_tile(known["agent 2"]))
    assert not is_valid(with_tile(known["blue box"]))


def test_text_starts_are_judged_one_by_one_and_follow_from_the_seed() -> None:
    world = World.load("babyai-gotolocal")
    figures, frames = text_starts(world, ["go to the red ball", "go to a blue key"], seed=5)
    again = text_starts(world, ["go to the red ball", "go to a blue key"], seed=5)[1]
    assert figures["text_named_object"].total == 2
    assert frames.shape == (2, 64, 64, 3)
    assert np.array_equal(frames, again)
