"""The laws of MinAtar games against the games themselves. Skipped without the package and what it draws with."""

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from starflow_world.agents.collect import play
from starflow_world.agents.environment import Environment
from starflow_world.agents.laws import law_of
from starflow_world.agents.laws.minatar import Belief, MinAtarLaw, Possibility
from starflow_world.agents.policy import RandomPolicy
from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.errors import DataError
from starflow_world.evaluation.chance import ChanceSizes, Spot, draws, rollouts
from starflow_world.evaluation.law import Law
from starflow_world.world import World

pytest.importorskip("seaborn")
games = pytest.importorskip("minatar.gym")
GAMES = ["Breakout", "Freeway", "SpaceInvaders"]


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    games.register_envs()


def environment(game: str) -> Environment:
    return Environment(f"MinAtar/{game}-v1", frame_size=80, max_steps=60)


def recorded(game: str, index: int) -> tuple[MinAtarLaw, Episode]:
    known = law_of(environment(game))
    assert isinstance(known, MinAtarLaw)
    return known, play(environment(game).make(), RandomPolicy(), seed=1, index=index, frame_size=80)


def numbers(episode: Episode) -> list[int]:
    return [int(action) for action in episode.actions.argmax(-1)]


def filtered(known: Law, episode: Episode) -> list[tuple[Any, float]]:
    """The belief at each frame, and the nats of the picture."""
    state, pictures = known.begin(episode), known.read(episode.frames)
    found = [(state, 0.0)]
    for action, after in zip(numbers(episode)[1:], pictures[1:], strict=True):
        nats = known.nats(state, action, after)
        state = known.follow(state, action, after)
        found.append((state, nats))
    return found


@pytest.mark.parametrize("game", GAMES)
def test_every_recorded_picture_is_readable_and_possible(game: str) -> None:
    for index in range(2):
        known, episode = recorded(game, index)
        assert (known.read(episode.frames) >= 0).all()
        beliefs = filtered(known, episode)
        assert all(state is not None and nats > -math.inf for state, nats in beliefs)
        assert max(len(state) for state, _ in beliefs) < 50
        assert sum(one.chance for one in beliefs[-1][0]) == pytest.approx(1)


@pytest.mark.parametrize("game", GAMES)
def test_the_law_agrees_with_many_runs_of_the_game(game: str) -> None:
    """Copies of the real game, sticky actions and all, from a state in which the game and its last action are known."""
    known, episode = recorded(game, 0)
    env: Any = environment(game).make()
    env.reset(seed=episode.info["env_seed"])
    inner, last, count = env.unwrapped.game, known.actions[1], 600
    inner.last_action = last
    state = tuple(replace(one, chance=1.0) for one in known.begin(episode)[: len(known.actions)] if one.last == last)
    outcomes, seen = known.outcomes(state, 2), Counter[bytes]()
    for seed in range(count):
        other = copy.deepcopy(inner)
        other.seed(seed)
        other.act(known.actions[2])
        seen[(other.state() * np.arange(1, other.n_channels + 1)).max(-1).astype(np.int8).tobytes()] += 1
    assert outcomes is not None
    assert set(seen) == set(outcomes)
    for picture, chance in outcomes.items():
        assert seen[picture] / count == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / count) + 1e-9)
    drawn = known.sample(state, 2, np.random.default_rng(0))
    assert known.nats(state, 2, drawn) == pytest.approx(math.log(outcomes[drawn.tobytes()]))


def test_the_repeated_action_is_an_event_where_the_picture_shows_it() -> None:
    known, episode = recorded("Breakout", 0)
    beliefs = known.begin(episode)[: len(known.actions)]  # of the game itself, not of one that looks like it
    state = tuple(replace(one, chance=1.0) for one in beliefs if one.last == known.actions[1])
    assert known.events(state, 2) == {"action": {"chosen": pytest.approx(0.9), "repeated": pytest.approx(0.1)}}
    assert known.events(state, 1) == {}, "the chosen action is the last one"
    left, right = (next(one for one in known._next(state, 2) if one.repeated is r).picture() for r in (True, False))
    assert known.observed(state, 2, left) == {"action": {"chosen": 0.0, "repeated": 1.0}}
    assert known.observed(state, 2, right) == {"action": {"chosen": 1.0, "repeated": 0.0}}
    empty = right.copy()
    empty[9] = 0
    assert known.observed(state, 2, empty) is None
    assert known.nats(state, 2, empty) == -math.inf
    assert known.follow(state, 2, empty) is None


def test_new_cars_after_a_crossing_are_read_from_the_picture() -> None:
    """Each of 8 cars has one of 5 speeds and 2 directions."""
    known, episode = recorded("Freeway", 0)
    one = known.begin(episode)[0]
    game = copy.deepcopy(one.game)
    game.pos, game.move_timer = 1, 0
    state = (Possibility(game, known.actions[1], 1.0),)
    assert known.outcomes(state, 1) is None
    for seed in range(20):
        after = known.sample(state, 1, np.random.default_rng(seed))
        assert known.nats(state, 1, after) == pytest.approx(-8 * math.log(10))
        assert known.follow(state, 1, after) is not None
    wrong = after.copy()
    wrong[3][wrong[3] > 2] = 0
    assert known.nats(state, 1, wrong) == -math.inf


def test_an_episode_of_another_origin_is_refused() -> None:
    known, episode = recorded("Breakout", 0)
    with pytest.raises(DataError, match="env_seed"):
        known.begin(replace(episode, info={}))


def test_cells_of_broken_pixels_have_no_law() -> None:
    assert law_of(replace(environment("Breakout"), frame_size=64)) is None
    assert law_of(replace(environment("Breakout"), env="MinAtar/Asterix-v1")) is None


@dataclass
class Beliefs:
    """State of a world made of the law: the belief of each row."""

    rows: list[Belief]

    def __getitem__(self, rows: list[int]) -> "Beliefs":
        return Beliefs([self.rows[row] for row in rows])

    def with_keys(self, keys: list[int]) -> "Beliefs":
        return self


class BeliefWorld:
    """A world that follows the law from one state."""

    def __init__(self, known: MinAtarLaw, belief: Belief) -> None:
        self.law, self.belief, self.rng = known, belief, np.random.default_rng(0)

    def texts_for(self, texts: list[str]) -> list[str]:
        return texts

    def start(self, *_: object, **__: object) -> tuple[Beliefs, None]:
        return Beliefs([self.belief]), None

    def step(self, state: Beliefs, actions: list[int], *, reuse: bool = False) -> tuple[Beliefs, object]:
        pictures = [self.law.sample(row, action, self.rng) for row, action in zip(state.rows, actions, strict=True)]
        after = [self.law.follow(*row) for row in zip(state.rows, actions, pictures, strict=True)]
        assert all(after)
        frames = self.law.tiles[np.stack(pictures)].swapaxes(2, 3).reshape(len(pictures), 80, 80, 3)
        made = SimpleNamespace(frames=torch.from_numpy(frames)[:, None], sweeps=torch.ones(len(pictures)).long())
        return Beliefs([row for row in after if row is not None]), made


@pytest.mark.parametrize("game", GAMES)
def test_draws_and_rollouts_of_the_law_are_lawful(game: str) -> None:
    known, episode = recorded(game, 0)
    t = 7
    state, sizes = filtered(known, episode)[t][0], ChanceSizes(draws=150, rollouts=6, steps=12, real=12)
    spot = Spot(episode.frames[t:], flat_actions(episode)[t:], "", state, 2)
    world = cast(World, BeliefWorld(known, state))
    figures = draws(world, [spot], known, sizes)
    figures |= rollouts(world, [spot], known, sizes)
    assert figures["legal_1"].share == figures["known_tiles_1"].share == figures["legal_rollouts_12"].share == 1
    assert figures["mode_recall"].share >= figures["mode_recall_of_law"] - 0.51
    assert figures.get("event_distance", 0.0) < 0.1
    assert figures["ledger_12"] == {"duplicated": 0, "vanished": 0, "transmuted": 0}


def test_what_the_first_picture_hides_may_be_either() -> None:
    """Bricks cover the ball of a new game of Breakout, which falls from the left or from the right."""
    known, episode = recorded("Breakout", 0)
    state = known.begin(episode)
    assert sum(one.chance for one in state) == pytest.approx(1)
    ball = known.kinds["ball"][0]
    columns: Counter[int] = Counter()
    for picture, chance in (known.outcomes(state, 0) or {}).items():
        columns[int(np.argwhere(np.frombuffer(picture, np.int8).reshape(10, 10) == ball)[0, 1])] += chance  # type: ignore[assignment]
    assert sorted(columns) == [1, 8]
    assert columns[1] == pytest.approx(columns[8])
    assert len(known.follow(state, 0, known.read(episode.frames[1:2])[0]) or ()) < len(state), "then it is seen"
