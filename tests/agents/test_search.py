"""Searching: what the three methods find, what they count, and what they do not believe."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.agents.proposals import Categorical, Gaussian, choices
from starflow_world.agents.search import ActionPlan, Gallery, Lookahead, find_plan
from starflow_world.agents.search_settings import METHODS, Search
from starflow_world.errors import ActionError, ConfigError, StateError
from tests.mazes import MazeWorld, Rules, begun, draw, find, played_out

OPEN = Rules(goals=((3, 3),), walls=())


class Still(Rules):
    """Nothing moves."""

    def move(self, cell, action):
        return cell


def distance(rules, start, goal):
    """Steps of a shortest way, by a search that knows the rules."""
    far, queue = {start: 0}, deque([start])
    while queue:
        here = queue.popleft()
        for action in range(4):
            there = rules.move(here, action)
            if there not in far:
                far[there] = far[here] + 1
                queue.append(there)
    return far[goal]


# ---- searches --------------------------------------------------------------------------------------------------------


def test_best_first_finds_a_shortest_way_around_walls():
    world = MazeWorld()
    found = find_plan(world, begun(world), Search(branches=16), seed=0)
    assert len(found) == distance(world.rules, (0, 0), (3, 0)) == 9
    assert played_out(world, found.actions)[-1] == (3, 0)
    assert found.value == pytest.approx(0.97**8)
    assert found.promise == 1
    assert found.rewards.tolist() == found.ends.tolist() == [0] * 8 + [1]
    for frame, cell in zip(found.frames, played_out(world, found.actions), strict=True):
        assert np.abs(frame.astype(int) - draw(cell, world.rules)).max() <= 1


def test_a_tree_does_not_go_on_from_frames_that_look_as_one_reached():
    world = MazeWorld(Rules(goals=()))
    found = find_plan(world, begun(world), Search(branches=8, draws=1), seed=0)
    assert found.imagined == 13 * 4, "each of the 13 free cells is gone on from once"


def test_a_tree_stops_at_its_budget_and_when_nothing_can_promise_more():
    world = MazeWorld(Rules(goals=(), walls=()))
    assert find_plan(world, begun(world), Search(branches=4, draws=1, budget=12), seed=0).imagined == 12
    near = MazeWorld(Rules(goals=((1, 0),), walls=()))
    assert find_plan(near, begun(near), Search(branches=4, draws=1), seed=0).imagined == 4


def test_a_tree_looks_for_rewards_of_a_function_that_are_larger_than_the_worlds():
    """What ends the episode at once is worth half of what lies in the far corner."""
    world, worth = MazeWorld(Rules(goals=(), walls=())), {(1, 0): 5.0, (3, 3): 10.0}

    def reward(before, action, after, info):
        return worth.get(find(after), 0.0), find(after) in worth

    found = find_plan(world, begun(world), Search(branches=16, draws=1), seed=0, reward_fn=reward)
    assert played_out(world, found.actions)[-1] == (3, 3)
    assert found.value == pytest.approx(10 * 0.97**5)


@pytest.mark.parametrize("method", METHODS)
def test_reward_after_an_end_does_not_count(method):
    """Straight ahead lies a goal behind a trap; the way around costs two steps more."""
    rules = Rules(goals=((2, 0),), walls=(), traps=((1, 0),))
    world = MazeWorld(rules)
    found = find_plan(world, begun(world), Search(method, branches=256, draws=1, horizon=6), seed=1)
    assert (1, 0) not in played_out(world, found.actions)
    assert played_out(world, found.actions)[-1] == (2, 0)
    assert found.promise == 1
    lost = MazeWorld(Rules(goals=((2, 0),), walls=((0, 1),), traps=((1, 0),)))
    assert find_plan(lost, begun(lost), Search(method), seed=1).value == 0


@pytest.mark.parametrize("method", ["best-first", "cem"])
def test_a_risk_of_an_end_is_weighed_against_a_longer_way(method):
    rules = Rules(goals=((2, 0),), walls=(), traps=((1, 0),))
    for risk, length in ((0.02, 2), (0.4, 4)):
        world = MazeWorld(rules, risk)
        found = find_plan(world, begun(world), Search(method, branches=256, draws=1, horizon=4), seed=0)
        assert len(found) == length
        assert found.value == pytest.approx(0.97 ** (length - 1) * (1 - risk if length == 2 else 1))


def test_luck_is_not_taken_for_a_plan():
    """Going up flies to the goal one time in four; on foot it is four steps. Drawn once each, luck is believed."""
    world = MazeWorld(Rules(goals=((2, 2),), walls=()), luck=[(0, 0)])
    once, often = (
        {len(find_plan(world, begun(world), Search(draws=draws), seed=seed)) for seed in range(16)} for draws in (1, 4)
    )
    assert 1 in once
    assert often == {4}


@pytest.mark.parametrize("method", METHODS)
def test_a_way_is_worth_no_more_than_the_chance_to_get_there(method):
    world = MazeWorld(Rules(goals=((2, 2),), walls=((1, 0), (0, 1))), luck=[(0, 0)])
    found = find_plan(world, begun(world), Search(method, 4000, 250, horizon=1, rounds=2), seed=0)
    assert found.actions == [3]
    assert found.promise == pytest.approx(found.value)
    assert found.value == pytest.approx(0.25, abs=0.1)


def test_a_promise_weighs_rewards_by_the_chance_that_the_episode_goes_on():
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    rewards, ends, chances = np.array([[0.5, 1.0, 1.0], [0.5, 0.0, 1.0], [1.0, 0.5, 0.5]])
    unsure = ActionPlan([0, 0, 0], frames, rewards, ends, chances, 0.0, 0)
    assert unsure.promise == 0.5 + 0.25 + 0.25


@pytest.mark.parametrize("method", ["random", "cem"])
def test_sequences_end_where_the_episode_does(method):
    world = MazeWorld(Rules(goals=((1, 1),), walls=()))
    found = find_plan(world, begun(world), Search(method, horizon=10), seed=0)
    assert len(found) == 2
    assert len(found.frames) == len(found.rewards) == len(found.ends) == 2


def test_cem_does_better_than_as_many_random_sequences():
    """Every step earns the more the nearer it is to a corner."""
    world, values = MazeWorld(Rules(goals=(), walls=())), {}
    for search in (Search("cem", 24, 1, 10, rounds=6), Search("random", 144, 1, 10)):
        plans = [
            find_plan(world, begun(world), search, seed=seed,
                      reward_fn=lambda _, __, after, ___: float(sum(find(after))))
            for seed in range(4)
        ]
        assert {found.imagined for found in plans} == {1440}
        values[search.method] = np.mean([found.value for found in plans])
    assert values["cem"] > 1.05 * values["random"]


def test_branches_are_stepped_in_one_forward():
    world = MazeWorld(OPEN)
    found = find_plan(world, begun(world), Search("random", branches=64, horizon=5), seed=0)
    assert world.widths == [64] * 5
    assert found.imagined == 320
    world.widths.clear()
    find_plan(world, begun(world), Search(branches=64), seed=0)
    assert max(world.widths) > 4
    assert max(world.widths) <= 64


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_follows_from_its_seed_alone(method):
    world = MazeWorld(OPEN)
    first, again = (find_plan(world, begun(world), Search(method, 16), seed=5) for _ in range(2))
    assert first.actions == again.actions
    assert np.array_equal(first.frames, again.frames)
    assert first.value == again.value
    others = [find_plan(world, begun(world), Search(method, 16), seed=seed) for seed in range(6, 10)]
    assert any(not np.array_equal(first.frames, other.frames) for other in others)


def test_only_the_given_actions_are_considered():
    world = MazeWorld(OPEN)
    for method in METHODS:
        found = find_plan(world, begun(world, (0, 0)), Search(method, actions=(1,)), seed=0)
        assert set(found.actions) == {1}
    with pytest.raises(ActionError, match="expected elements of Discrete"):
        find_plan(world, begun(world), Search(actions=(9,)), seed=0)


def test_frames_known_not_to_end_the_episode_promise_nothing():
    world, seen = MazeWorld(Rules(goals=((1, 0), (3, 3)), walls=())), Gallery(8.0)
    assert played_out(world, find_plan(world, begun(world), Search(), seed=0, seen=seen).actions)[-1] == (1, 0)
    seen.add(draw((1, 0), world.rules)[None])
    assert played_out(world, find_plan(world, begun(world), Search(), seed=0, seen=seen).actions)[-1] == (3, 3)


def test_a_reward_at_a_known_frame_is_believed_as_far_as_no_end_brings_it():
    """Rewards that come again, such as those of CartPole, are there at frames that were seen; -1 for an end is not."""
    class Bringing(MazeWorld):
        def step(self, state, action, **kwargs):
            state, made = super().step(state, action, **kwargs)
            rewards, ends = torch.tensor([1.0, -1.0, 0.3, 1.0]), torch.tensor([0.02, 1.0, 0.3, 0.0])
            return state, replace(made, reward=rewards, end_probability=ends)

    world, seen = Bringing(OPEN), Gallery(8.0)
    seen.add(draw((0, 0), world.rules)[None])
    ahead = Lookahead(world, np.random.default_rng(0), seen)
    look = ahead.step(begun(world)[[0] * 4], draw((0, 0), world.rules)[None].repeat(4, 0), [3] * 4)
    assert look.rewards.tolist() == pytest.approx([0.98, 0.0, 0.0, 1.0])
    assert look.ends.tolist() == [0.0] * 4


def test_a_pixel_of_a_small_frame_is_a_difference():
    frame = np.zeros((2, 10, 10, 3), np.uint8)
    frame[0, 4, 5] = frame[1, 5, 5] = 200  # a ball that moved by one pixel
    assert Gallery(8.0).add(frame).tolist() == [True, True]


def test_frames_are_one_when_they_differ_by_a_little_everywhere_and_two_when_a_patch_differs():
    frame = np.random.default_rng(0).integers(0, 200, (18, 17, 3)).astype(np.uint8)
    gallery, patch = Gallery(8.0), frame.copy()
    patch[16:, 16:] += 30  # where no whole patch fits
    assert gallery.add(np.stack([frame, frame + 5, patch, patch])).tolist() == [True, False, True, False]
    assert gallery.knows(np.stack([frame + 5, frame + 20])).tolist() == [True, False]


def test_what_cannot_be_planned_is_refused():
    world = MazeWorld()
    with pytest.raises(ConfigError, match="method: expected one of best-first"):
        Search("mcts")
    with pytest.raises(ConfigError, match="branches: expected a number >= 1, found 0"):
        Search(branches=0)
    with pytest.raises(ConfigError, match="0 < discount"):
        Search(discount=0.0)
    with pytest.raises(StateError, match="one row to plan from, found 2"):
        find_plan(world, begun(world)[[0, 0]], Search(), seed=0)


# ---- proposals -------------------------------------------------------------------------------------------------------


def test_choices_of_every_space():
    rng = np.random.default_rng(0)
    assert choices(spaces.Discrete(3, start=2), (), 9, rng) == [2, 3, 4]
    box = spaces.Box(-1, 1, (2,), np.float32)
    drawn = choices(box, (), 5, rng)
    assert len(drawn) == 5
    assert all(box.contains(action) for action in drawn)


def test_categorical_draws_its_shares_and_moves_to_the_best():
    found = Categorical("abc", 2, np.random.default_rng(0))
    found.shares[:] = [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]
    drawn = found.draw(4000)
    assert {second for _, second in drawn} == {"b"}
    assert sum(first == "c" for first, _ in drawn) / 4000 == pytest.approx(0.5, abs=0.04)
    found.refit(np.array([i for i, (first, _) in enumerate(drawn) if first == "a"]))
    assert found.shares[0].tolist() == pytest.approx([0.7 + 0.06, 0.09, 0.15])


def test_cem_finds_numbers_of_a_box():
    world, wish = MazeWorld(Still()), np.array([1.3, -0.7])
    world.action_space = spaces.Box(-2, 2, (2,), np.float32)
    search = Search("cem", branches=24, draws=1, horizon=2, rounds=8)
    found = find_plan(
        world, begun(world), search, seed=0, reward_fn=lambda _, action, __, ___: -float(np.abs(action - wish).sum())
    )
    assert np.abs(np.stack(found.actions) - wish).max() < 0.1
    assert all(world.action_space.contains(action) for action in found.actions)
    open_box = Gaussian(spaces.Box(0, np.inf, (2,), np.float32), 3, np.random.default_rng(0))
    assert all((action >= 0).all() for sequence in open_box.draw(20) for action in sequence)
