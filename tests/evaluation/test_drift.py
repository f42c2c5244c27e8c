"""What a drift report says: broken pictures, steps at which the window slid, and the law's judgement."""


import numpy as np
import pytest
import torch

from starflow_world.agents.environment import Environment
from starflow_world.agents.laws import law_of
from starflow_world.agents.laws.dynamic_obstacles import BALL, FLOOR, DynamicObstaclesLaw
from starflow_world.agents.stream_env import StreamEnv
from starflow_world.data.episodes import Episode
from starflow_world.evaluation.drift import FROZEN, Drift, drift_lines, measure_drift
from starflow_world.evaluation.fidelity import clip_excess
from starflow_world.world import World
from tests.worlds import env_world

pytestmark = pytest.mark.usefixtures("one_thread")


def files(frames: np.ndarray, actions: np.ndarray, each: int = 60) -> list[Episode]:
    """A stream with these frames (T, H, W, 3) and numbers of actions (T,) in files of `each` steps."""
    found = []
    for begin in range(0, len(frames) - 1, each):
        part = slice(begin, begin + each + 1)
        flat = np.eye(3, dtype=np.float32)[actions[part]]
        flat[0], count = 0, len(flat)
        info = {"first_step": begin, "since_start": begin} | {
            name: np.arange(begin, begin + count, dtype=float).tolist()
            for name in ("nats", "latent_mean", "latent_variance")
        }
        nothing = np.zeros(count, bool)
        found.append(Episode(frames[part], flat, np.zeros(count, np.float32), nothing, nothing, info=info))
    return found


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 190, (count, 16, 16, 3), dtype=np.uint8)


ACTIONS = np.random.default_rng(0).integers(0, 3, 400)


def test_a_blank_a_saturated_and_a_frozen_picture_are_said_with_their_step() -> None:
    whole = pictures(300)
    assert measure_drift(files(whole, ACTIONS), 8, 2).figures()["broken"] == {}
    blank, saturated, frozen = whole.copy(), whole.copy(), whole.copy()
    blank[200:210] = (90, 120, 150)
    saturated[150:] = np.where(saturated[150:] > 120, 255, 0)
    frozen[100:] = whole[100]
    frozen[100:] += np.random.default_rng(1).integers(0, 3, frozen[100:].shape, dtype=np.uint8)  # not to the last level
    for name, frames, count, first in (("blank", blank, 10, 200), ("saturated", saturated, 150, 150),
                                       ("frozen", frozen, 200 - FROZEN, 100 + FROZEN)):
        figures = measure_drift(files(frames, ACTIONS), 8, 2).figures()
        assert figures["broken"][name] == {"frames": count, "first": first}
        assert any(line.startswith(f"WARNING: {count} {name} frames") for line in drift_lines(figures))
    waiting = measure_drift(files(frozen, np.zeros(400, int)), 8, 2).figures()
    assert "frozen" not in waiting["broken"]  # under one action nothing need happen


def test_a_world_that_really_shows_plain_and_extreme_colours_is_not_called_broken() -> None:
    plain = np.full((100, 16, 16, 3), 255, np.uint8)
    plain[:, 4, :] = np.arange(100, dtype=np.uint8)[:, None, None]  # a line on white
    assert measure_drift(files(plain, ACTIONS), 8, 2).figures()["broken"] == {}


def test_figures_are_means_over_horizons_and_do_not_depend_on_the_files() -> None:
    frames = pictures(301)
    one, many = (measure_drift(files(frames, ACTIONS, each), 8, 2) for each in (300, 7))
    assert one.rows == many.rows or all(np.array_equal(one.rows[n], many.rows[n], equal_nan=True) for n in one.rows)
    assert (one.slides, one.still) == (many.slides, many.still)
    horizons = one.figures()["horizons"]
    assert [(part["from"], part["to"], part["nats"]) for part in horizons] == [(1, 100, 50.5), (101, 300, 200.5)]


def test_the_steps_at_which_the_window_slid_are_those_of_the_world() -> None:
    env = StreamEnv(env_world(), render_mode="rgb_array", max_episode_steps=100)
    config = env.world.config
    env.reset(seed=0)
    slid, frames = [], np.zeros((31, 8, 8, 3), np.uint8)
    for _ in range(30):
        before = int(env.now.world.length[0])
        env.step(1)
        slid.append(int(env.now.world.length[0]) <= before)
    assert any(slid)
    assert measure_drift(files(frames, ACTIONS, 11), config.window, config.context).slides == slid


@pytest.fixture(scope="module")
def law() -> DynamicObstaclesLaw:
    found = law_of(Environment("MiniGrid-Dynamic-Obstacles-8x8-v0"))
    assert isinstance(found, DynamicObstaclesLaw)
    return found


def drawn(law: DynamicObstaclesLaw, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (count, 8, 8) that the law draws from a start of the shipped world, and the actions that led to them."""
    starts = World.load("dynamic-obstacles", device="cpu").starts
    assert starts is not None
    rng = np.random.default_rng(seed)
    symbols, actions = [law.read(starts.frames[seed : seed + 1].numpy())[0]], [0]
    for _ in range(count - 1):
        actions.append(int(rng.choice(law.choices(symbols[-1]))))
        symbols.append(law.sample(symbols[-1], actions[-1], rng))
    return np.stack(symbols), np.array(actions)


def test_legal_frames_and_lost_objects_are_counted_where_the_law_is_known(law: DynamicObstaclesLaw) -> None:
    symbols, actions = drawn(law, 121, 0)
    whole = measure_drift(files(law.draw(symbols), actions), 8, 2, law).figures()
    assert [(part["legal"], part["readable"], part["vanished"]) for part in whole["horizons"]] == [(1, 1, 0)] * 2
    assert whole["legal_last_over_first"] == 1
    lost = symbols.copy()
    for picture in lost[111:]:
        picture.flat[np.flatnonzero(picture.ravel() == BALL)[0]] = FLOOR
    figures = measure_drift(files(law.draw(lost), actions), 8, 2, law).figures()
    last = figures["horizons"][-1]
    assert (last["judged"], last["legal"], last["vanished"]) == (20, 0.5, 1000 / 20)
    assert figures["legal_last_over_first"] == 0.5


def test_frames_at_which_the_window_slides_are_as_probable_as_others(law: DynamicObstaclesLaw) -> None:
    world = World.load("dynamic-obstacles", device="cpu")
    rows = [drawn(law, 32, seed) for seed in range(8)]
    frames = np.stack([law.draw(symbols) for symbols, _ in rows])
    flat = torch.stack([world.flatten([None, *actions[1:].tolist()]) for _, actions in rows])
    excess = clip_excess(world, frames, flat, [""] * len(rows))
    drift = Drift(world.config.window, world.config.context)
    for clip, (_, actions), beyond in zip(frames, rows, excess, strict=True):
        [file] = files(clip, actions)
        file.info["nats"] = (-beyond).tolist()
        drift.add(file)
    jump = drift.figures()["slides"]["nats"]
    assert jump["slides"] == 8 * 4
    assert abs(jump["in_errors"]) < 4
    assert jump["error"] < 1
