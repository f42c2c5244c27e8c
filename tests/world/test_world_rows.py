"""Rows, purity, branches and counterfactuals: what makes a state of many rows many worlds, and a step a function."""

import random

import numpy as np
import pytest
import torch

from starflow_world.config.world import DecodeConfig
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState
from tests.states import F32, F64, RELATIVE, aged, far, moves, pictures, same


@pytest.fixture(scope="module")
def world(worlds: dict[torch.dtype, World]) -> World:
    return worlds[F64]


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["step", "observe"])
def test_a_row_has_the_same_bits_whatever_the_other_rows_are(worlds, verb):
    world, rng = worlds[F32], np.random.default_rng(0)
    pool = [aged(world, age, seed=10 * age) for age in (1, 2, 5, 6, 6, 9, 10, 13)]
    shown, needle = pictures(1, 8), 3  # a row whose window is full: it slides
    found: list[Transition] = []
    ends: list[str] = []
    for _ in range(12):
        others = rng.permutation([i for i in range(8) if i != needle])[:3].tolist()
        place = int(rng.integers(4))
        chosen = [*others[:place], needle, *others[place:]]
        state, actions = WorldState.stack([pool[i] for i in chosen]), [i % 4 for i in chosen]
        frames = shown[0, chosen]
        grown, what = world.step(state, actions) if verb == "step" else world.observe(state, actions, frames)
        found.append(Transition(**{name: value[place] for name, value in vars(what).items()}))
        ends.append(grown[place].digest())
    assert all(same(found[0], other) for other in found[1:])
    assert len(set(ends)) == 1


@pytest.mark.parametrize("dtype", [F64, F32])
def test_rows_agree_at_any_width(worlds, dtype, at_most):
    world, frames, actions = worlds[dtype], pictures(8, 9), moves(8, 9)
    texts = [f"row {row}" for row in range(8)]
    alone = torch.cat([world.log_prob(frames[i : i + 1], actions[i : i + 1], text=texts[i], seed=i) for i in range(8)])
    for width in (2, 3, 8):
        wide = world.log_prob(frames[:width], actions[:width], text=texts[:width])
        at_most("relative error", far(wide / alone[:width], torch.ones(())), RELATIVE[dtype])
    ages = (1, 2, 6, 7, 10, 12, 17, 18)
    state = aged(world, *ages)
    _, together = world.observe(state, [row[1] for row in actions], frames[:, 0])
    for row in range(8):
        _, single = world.observe(aged(world, ages[row], seed=row), [actions[row][1]], frames[row : row + 1, 0])
        assert far(together.nats[row] / single.nats, torch.ones(())) <= RELATIVE[dtype]


def test_a_row_that_did_not_converge_says_so_and_its_nats_are_still_exact(world):
    hasty = world.decoded(DecodeConfig(max_sweeps=1))
    state = aged(world, 2, 6)
    _, patient = world.step(state, [1, 2])
    _, said = hasty.step(state, [1, 2])
    assert patient.converged.all()
    assert (patient.residual <= 1e-3).all()
    assert not said.converged.any()
    assert (said.residual > 1e-3).all()
    assert (said.sweeps == 1).all()
    assert far(said.nats, world.observe(state, [1, 2], latents=said.latents)[1].nats) <= 1e-9
    exact = world.decoded(DecodeConfig(chunk=1)).step(state, [1, 2])[1]
    assert exact.converged.all()
    assert far(exact.latents, patient.latents) <= 1e-2


# ---- purity ----------------------------------------------------------------------------------------------------------


def test_a_step_is_a_pure_function(worlds):
    world = worlds[F32]
    state = aged(world, 1, 5, 6)
    before, shown = state.digest(), pictures(3, 1)[:, 0]
    for verb in (lambda: world.step(state, [1, 2, 3]), lambda: world.observe(state, [1, 2, 3], shown)):
        (one, first), (other, second) = verb(), verb()
        assert same(one, other)
        assert same(first, second)
        assert state.digest() == before
    world.with_text(state, "other")
    assert state.digest() == before


@pytest.mark.parametrize("dtype", [F64, F32])
def test_a_state_that_gave_its_cache_away_stays_valid(worlds, dtype):
    world = worlds[dtype]
    state = aged(world, 1, 5, 6)
    kept = state.clone()
    moved, first = world.step(state, [1, 2, 3], reuse=True)
    assert state.cache is None
    assert same(world.step(kept, [1, 2, 3])[1], first)
    later = world.step(moved, [0, 0, 0])[0].digest()
    _, again = world.step(state, [1, 2, 3])
    assert far(again.latents, first.latents) <= {F64: 1e-9, F32: 1e-4}[dtype]
    assert world.step(moved, [0, 0, 0])[0].digest() == later


def test_no_verb_touches_a_global_random_number_generator(worlds):
    world = worlds[F32]
    states = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002 (looked at)
    state, _ = world.start(pictures(1, 2), moves(1, 2), text="go")
    state, _ = world.step(state, [1])
    state, _ = world.observe(state, [2], pictures(1, 1)[:, 0])
    world.start(text="go", guidance=1.0)
    world.log_prob(pictures(1, 8))
    world.with_text(state, "stay")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[2] == random.getstate()
    assert str(states[1]) == str(np.random.get_state(legacy=False))  # noqa: NPY002


# ---- branches and counterfactuals ------------------------------------------------------------------------------------


def test_branches_with_equal_keys_are_equal_and_with_other_keys_distinct(worlds, at_most):
    world = worlds[F32]
    root = aged(world, 5)
    twins = root[[0] * 64]
    for _ in range(3):
        twins, seen = world.step(twins, [1] * 64, reuse=True)
    assert (seen.latents == seen.latents[:1]).all()
    assert (seen.frames == seen.frames[:1]).all()
    keys = list(range(100, 164))
    branches, alone = root[[0] * 64].with_keys(keys), root.with_keys(keys[37:38])
    for _ in range(3):
        branches, many = world.step(branches, [1] * 64, reuse=True)
        alone, one = world.step(alone, [1])
    assert len(torch.unique(many.latents, dim=0)) == 64
    at_most("difference", far(many.latents[37], one.latents[0]), 1e-5)
    assert far(branches.tokens[37], alone.tokens[0]) <= 1e-5


def test_the_same_luck_and_the_same_action_give_the_observed_frame_again(world):
    exact = world.decoded(DecodeConfig(tolerance=1e-12))
    state, frame = aged(world, 4, 6), pictures(2, 1)[:, 0]
    _, seen = world.observe(state, [1, 2], frame)
    _, again = exact.step(state, [1, 2], noise=seen.noise)
    assert far(again.latents, seen.latents) <= 1e-8
    assert far(again.nats, seen.nats) <= 1e-7
    _, other = exact.step(state, [1, 3], noise=seen.noise)
    assert far(other.latents[0], seen.latents[0]) <= 1e-8
    assert far(other.latents[1], seen.latents[1]) > 1e-3
