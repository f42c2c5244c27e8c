"""The metrics of chance are judged on worlds whose figures are known: the law itself, and the law broken on purpose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.agents.collect import play
from starflow_world.agents.environment import Environment
from starflow_world.agents.laws import law_of
from starflow_world.agents.laws.dynamic_obstacles import BALL, FLOOR, DynamicObstaclesLaw
from starflow_world.agents.policy import CarefulPolicy
from starflow_world.data.episodes import Episode
from starflow_world.evaluation.chance import ChanceSizes, chance_figures, draws, law_excess, ledger, rollouts, spots
from starflow_world.evaluation.intervals import Share
from starflow_world.evaluation.tiles import nearest_tiles
from starflow_world.noise import make_key, normals
from starflow_world.world import World
from tests.worlds import TINY, no_text, tiny_world

ROOM = Environment("MiniGrid-Dynamic-Obstacles-8x8-v0", max_steps=24)
SMALL = Environment("MiniGrid-Dynamic-Obstacles-5x5-v0", frame_size=20, max_steps=12)
SIZES = ChanceSizes(draws=400, states=4, rows=64, rollouts=12, starts=2, steps=16, real=48)


def law(environment: Environment = ROOM) -> DynamicObstaclesLaw:
    found = law_of(environment)
    assert isinstance(found, DynamicObstaclesLaw)
    return found


def episodes(environment: Environment = ROOM, count: int = 4) -> list[Episode]:
    env, size = environment.make(), environment.size
    return [play(env, CarefulPolicy(), seed=3, index=index, frame_size=size) for index in range(count)]


@dataclass
class Rows:
    """State of a world made of a law: the picture of each row, and its key."""

    pictures: np.ndarray
    keys: Sequence[int]

    def __getitem__(self, rows: Sequence[int]) -> "Rows":
        return Rows(self.pictures[rows], [0] * len(rows))

    def with_keys(self, keys: Sequence[int]) -> "Rows":
        return Rows(self.pictures, keys)


class LawWorld:
    """A world that follows the law exactly; its subclasses break it."""

    def __init__(self, known: DynamicObstaclesLaw) -> None:
        self.law = known
        self.config = SimpleNamespace(window=8, noise_level=0.5, channels=3)
        self.dynamics = SimpleNamespace(tokens=4)

    def texts_for(self, texts: list[str]) -> list[str]:
        return texts

    def start(self, frames: np.ndarray, actions: object, **_: object) -> tuple[Rows, None]:
        return Rows(self.law.read(frames[:, -1]), [0] * len(frames)), None

    def step(self, state: Rows, actions: Sequence[int], *, reuse: bool = False) -> tuple[Rows, object]:
        rngs = [np.random.default_rng(key) for key in state.keys]
        rows = zip(state.pictures, actions, rngs, strict=True)
        after = np.stack([self.next(picture, action, rng) for picture, action, rng in rows])
        keys = [int(rng.integers(1 << 60)) for rng in rngs]
        frames = torch.from_numpy(self.frames(after))[:, None]
        return Rows(after, keys), SimpleNamespace(frames=frames)

    def next(self, picture: np.ndarray, action: int, rng: np.random.Generator) -> np.ndarray:
        return self.law.sample(picture, action, rng)

    def frames(self, pictures: np.ndarray) -> np.ndarray:
        return self.law.draw(pictures)

    def log_prob(self, frames: torch.Tensor, actions: torch.Tensor, *, text: object, seed: int) -> torch.Tensor:
        """The law's nats and, as a world's frames are noisy, those of the noise."""
        keys = torch.tensor([make_key(seed + row) for row in range(len(frames))])
        noise = torch.stack([normals(keys, keys * 0 + t, "observation", (4, 3)) for t in range(frames.shape[1])], 1)
        nats = (-0.5 * noise.square() - math.log(0.5) - 0.5 * math.log(2 * math.pi)).sum((-1, -2)).double()
        for row, (clip, moves) in enumerate(zip(frames.numpy(), actions, strict=True)):
            pictures = self.law.read(clip)
            for t in range(1, len(pictures)):
                nats[row, t] += self.law.nats(pictures[t - 1], int(moves[t, 1:].argmax()), pictures[t])
        return nats


class Frozen(LawWorld):
    """Obstacles stand still."""

    def next(self, picture: np.ndarray, action: int, rng: np.random.Generator) -> np.ndarray:
        room = self.law._room(picture)
        assert room is not None
        return self.law._picture(self.law._acted(room, room.balls, action))


class Habit(LawWorld):
    """Every draw from a state is the same one."""

    def next(self, picture: np.ndarray, action: int, rng: np.random.Generator) -> np.ndarray:
        return self.law.sample(picture, action, np.random.default_rng(int(picture.astype(int).sum())))


class Multiplied(LawWorld):
    """Another obstacle appears in every frame."""

    def next(self, picture: np.ndarray, action: int, rng: np.random.Generator) -> np.ndarray:
        after = self.law.sample(picture, action, rng)
        free = np.argwhere(after == FLOOR)
        after[tuple(free[0])] = BALL
        return after


class Blurred(LawWorld):
    """All frames are a little too dark."""

    def frames(self, pictures: np.ndarray) -> np.ndarray:
        return (0.8 * self.law.draw(pictures)).astype(np.uint8)


def one_step(kind: type[LawWorld], sizes: ChanceSizes = SIZES, environment: Environment = ROOM) -> dict[str, Any]:
    world = cast(World, kind(law(environment)))
    some = spots(world, episodes(environment), law(environment), sizes.states, 0)
    return draws(world, some, law(environment), sizes)


def open_loop(kind: type[LawWorld]) -> dict[str, Any]:
    world = cast(World, kind(law()))
    return rollouts(world, spots(world, episodes(), law(), SIZES.starts, 0), law(), SIZES)


def test_draws_from_the_law_are_lawful_and_as_frequent_as_they_should_be() -> None:
    figures = one_step(LawWorld)
    assert figures["legal_1"] == figures["known_tiles_1"] == Share(400, 400)
    assert figures["event_distance"] == pytest.approx(figures["event_distance_of_law"], abs=0.05)
    assert figures["event_distance_pooled"] < 0.06
    assert abs(figures["event_recall"].share - figures["event_recall_of_law"].share) < 0.05
    assert "mode_recall" not in figures, "there are hundreds of next pictures, too many for 100 draws"


def test_frozen_obstacles_are_impossible_and_far_from_the_law() -> None:
    figures = one_step(Frozen)
    assert figures["legal_1"].share < 0.1
    assert figures["known_tiles_1"].share == 1
    assert figures["event_distance"] > 0.9
    assert figures["event_recall"].share < 0.1


def test_a_world_without_variety_is_lawful_but_misses_modes_and_frequencies() -> None:
    figures = one_step(Habit)
    assert figures["legal_1"].share == 1
    assert figures["event_distance"] > 3 * figures["event_distance_of_law"]
    assert figures["event_recall"].share < 0.5


def test_frames_of_unknown_tiles_are_unreadable() -> None:
    figures = one_step(Blurred)
    assert figures["known_tiles_1"].share == figures["legal_1"].share == 0


def test_modes_are_counted_where_there_are_four_draws_for_each() -> None:
    sizes = replace(SIZES, draws=600, states=3)
    whole, habit = (one_step(kind, sizes, SMALL) for kind in (LawWorld, Habit))
    assert whole["mode_recall"].share == pytest.approx(whole["mode_recall_of_law"], abs=0.1)
    assert habit["mode_recall"].share < 0.3


def test_a_state_of_few_modes_gets_the_draws_it_needs_where_all_have_too_many() -> None:
    whole = one_step(LawWorld, replace(SIZES, draws=80, states=8), SMALL)
    assert whole["mode_recall"].total > 80 / 8 / 4, "more modes than a quarter of the draws of a state"
    assert whole["mode_recall"].share == pytest.approx(whole["mode_recall_of_law"], abs=0.3)
    assert whole["legal_1"].total == 80


def test_rollouts_of_the_law_are_lawful_and_vary_as_much_as_real_ones() -> None:
    figures = open_loop(LawWorld)
    assert figures["legal_rollouts_16"].share == 1
    assert figures["ledger_1"] == figures["ledger_16"] == {"duplicated": 0, "vanished": 0, "transmuted": 0}
    assert figures["variance_ratio_1"] == pytest.approx(1, abs=0.6)
    assert figures["variance_ratio_16"] == pytest.approx(1, abs=0.6)


def test_frozen_obstacles_have_no_variance() -> None:
    figures = open_loop(Frozen)
    assert figures["legal_rollouts_16"].share == 0
    assert figures["variance_ratio_1"] == figures["variance_ratio_16"] == 0


def test_an_obstacle_too_many_is_in_the_ledger() -> None:
    figures = open_loop(Multiplied)
    assert figures["ledger_1"]["duplicated"] == pytest.approx(1000)
    assert figures["legal_rollouts_16"].share == 0


def test_the_ledger_tells_what_came_and_went() -> None:
    known = law()
    before = known.begin(episodes(count=1)[0])
    first, second = np.argwhere(before == BALL)[:2]
    gone, unreadable = before.copy(), before.copy()
    gone[tuple(first)] = FLOOR
    unreadable[tuple(second)] = -1
    assert ledger(known, before, [before]) == (0, 0, 0)
    assert ledger(known, gone, [before]) == (0, 1, 0)
    assert ledger(known, before, [gone]) == (1, 0, 0)
    assert ledger(known, unreadable, [before]) == (0, 0, 1)
    assert ledger(known, gone, [before, gone]) == (0, 0, 0), "the nearest of what is lawful counts"


def test_a_density_that_is_the_law_costs_nothing_beyond_its_entropy() -> None:
    figures = law_excess(cast(World, LawWorld(law())), episodes(count=6), law())
    assert figures["law_possible"].share == 1
    assert figures["law_excess"] == pytest.approx(0, abs=1e-4)
    assert 5 < figures["law_nats"] < 8


def test_a_random_world_gets_all_figures_and_is_found_to_be_wrong() -> None:
    flow = replace(TINY.flow, shallow_blocks=0, denoiser_layers=0, text_length=0, text_width=0)
    world = tiny_world(spaces.Discrete(3), height=20, width=20, **no_text() | {"flow": flow})
    sizes = ChanceSizes(draws=8, states=2, rows=3, rollouts=4, starts=2, steps=5, real=4)
    figures = chance_figures(world, episodes(SMALL), law(SMALL), sizes)
    assert figures["known_tiles_1"] == figures["legal_1"] == Share(0, 8)
    assert figures["legal_rollouts_5"] == Share(0, 4)
    assert figures["law_excess"] > 1


def test_the_nearest_tile_is_read_within_a_few_grey_levels() -> None:
    tiles = np.zeros((2, 2, 2, 3), np.uint8)
    tiles[1] = 100
    frame = np.full((1, 4, 4, 3), 100, np.uint8)
    frame[0, :2, :2], frame[0, :2, 2:], frame[0, 2:, :2] = 3, 50, 104
    assert nearest_tiles(frame, tiles).tolist() == [[[0, -1], [1, 1]]]
