"""The judge is judged: on worlds and frames whose figures are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.agents.babyai.memory import needs_memory
from starflow_world.commands.evaluate.measure import cost, json_figures
from starflow_world.config.world import CodecConfig, DecodeConfig
from starflow_world.data.episodes import Episode
from starflow_world.evaluation.fidelity import (
    actions_of,
    cells_right,
    codec_figures,
    excess_nats,
    one_step,
    open_loop,
    outcomes,
)
from starflow_world.evaluation.intervals import Share
from starflow_world.model.actions import space_to_json
from tests.worlds import KINDS, tiny_world


def episode(length: int = 9, seed: int = 0, still: bool = False, carrying: list[str | None] | None = None) -> Episode:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
    frames = np.repeat(frames[:1], length, axis=0) if still else frames
    actions = np.zeros((length, 4), np.float32)
    actions[np.arange(1, length), rng.integers(0, 4, length - 1)] = 1
    ends = np.zeros(length, bool)
    info = {} if carrying is None else {"carrying": carrying}
    rewards, space = np.zeros(length, np.float32), space_to_json(spaces.Discrete(4))
    return Episode(frames, actions, rewards, ends, ends, "go", space, info)


def test_a_cell_is_right_within_four_grey_levels_and_wrong_beyond() -> None:
    world = tiny_world()
    real = np.full((16, 16, 3), 100, np.uint8)
    near, far = real.copy(), real.copy()
    p = world.config.codec.patch
    near[:p, :p], far[p : 2 * p, :p] = 104, 105
    assert cells_right(world, near, real).all()
    assert (~cells_right(world, far, real)).sum() == 1
    assert not cells_right(world, far, real)[1, 0]


def test_the_error_of_a_codec_is_that_of_pixels_that_change() -> None:
    exact, moving = tiny_world(), episode()
    assert codec_figures(exact, [moving]) == {"codec_error": 0.0, "codec_worst": 0.0}
    lossy, still = tiny_world(codec=CodecConfig("pca", patch=2, components=3, merge=2)), episode(still=True)
    lossy.networks.codec.fit(torch.from_numpy(still.frames))
    found = codec_figures(lossy, [moving])
    assert 10 < found["codec_error"] < found["codec_worst"] <= 255
    assert codec_figures(lossy, [still])["codec_error"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_excess_nats_of_the_exact_density_are_zero_frame_by_frame(kind: str) -> None:
    """A fresh flow is the identity with unit scale, and its components are alike: on a grey picture with sigma 1 it
    *is* the noise distribution."""
    world = tiny_world(gain=0.0, noise_level=1.0, **KINDS[kind])
    grey = replace(episode(still=True), frames=np.full((9, 16, 16, 3), 0, np.uint8))
    world.networks.codec.encode = lambda frames, *_, **__: (torch.zeros(*frames.shape[:2], 64, 12), ())  # type: ignore[method-assign]
    found = excess_nats(world, [grey, grey])
    assert abs(found["excess_nats"]) < 1e-2
    assert found["frames"] == 16
    assert abs(found["excess_nats_first"]) < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_excess_nats_are_the_divergence_of_a_wrong_mean(kind: str) -> None:
    """A unit Gaussian around 0 that should be around 0.1 costs 0.1**2 / 2 nats per dim, on average over the noise."""
    world = tiny_world(gain=0.0, noise_level=1.0, **KINDS[kind])
    latents = torch.full((8, 9, 64, 12), 0.1)
    world.networks.codec.encode = lambda frames, *_, **__: (latents[: len(frames)], ())  # type: ignore[method-assign]
    found = excess_nats(world, [episode(seed=s) for s in range(8)])
    assert found["excess_nats"] == pytest.approx(768 * 0.005, abs=4 * found["excess_nats_error"] + 1e-2)


def test_a_still_episode_makes_the_copy_baseline_perfect() -> None:
    world, still = tiny_world(), [episode(still=True, seed=s) for s in range(3)]
    assert one_step(world, still)["exact_frames_1_copy"] == Share(24, 24)
    assert open_loop(world, still, horizons=(4, 8))["exact_frames_8_copy"] == Share(3, 3)


def test_a_random_world_is_found_to_be_wrong() -> None:
    figures = one_step(tiny_world(), [episode(seed=s) for s in range(3)])
    changed = figures["changed_cells_1"]
    assert isinstance(changed, Share)
    assert changed.total > 1000
    assert changed.share < 0.1
    assert sum(figures["sweep_counts"].values()) == 3 * 8, "every imagined frame took some sweeps"
    assert figures["sweeps"] == sum(int(n) * frames for n, frames in figures["sweep_counts"].items()) / 24


def test_frames_that_need_a_forgotten_object_are_reported_apart() -> None:
    held = [None, "red ball", *["red ball"] * 7]
    some = episode(carrying=held)
    actions = np.zeros_like(some.actions)
    actions[1:, 2] = 1
    actions[8] = (0, 0, 0, 1)
    some = replace(some, actions=actions)
    assert needs_memory(some, context=4).tolist() == [False] * 8 + [True]
    assert not needs_memory(some, context=16).any()
    assert needs_memory(some, 4, begin=6).tolist() == [False, False, True], "what is held at the beginning is old"
    figures = one_step(tiny_world(), [some], needs_memory=needs_memory)
    totals = [figures[key].total for key in ("exact_frames_1_memory", "exact_frames_1")]  # type: ignore[union-attr]
    assert totals == [1, 7]


def test_first_frames_carry_no_action() -> None:
    flat = actions_of([episode(seed=s) for s in range(2)], 5)
    assert flat.shape == (2, 5, 5)
    assert not flat[:, 0].any()
    assert (flat[:, 1:, 0] == 1).all()


def test_events_that_never_happen_and_are_not_predicted_are_no_hits() -> None:
    found = outcomes(tiny_world(), [episode(seed=s, length=5 + s) for s in range(3)])
    assert found["reward_events"].hits == 0
    assert 0 <= found["end_ece"] <= 1


def test_cost_counts_operations_and_agrees_with_sequential_decoding() -> None:
    found = cost(tiny_world().decoded(DecodeConfig(tolerance=1e-5)), episode(length=20))
    assert found["gflop_per_step"] > 0
    assert found["jacobi_error"] < 1e-2
    assert found["steps_per_second_64"] > 0


def test_figures_become_json_with_their_cases() -> None:
    found = json.loads(json.dumps(json_figures({"share": Share(3, 4), "none": Share(0, 0), "number": 1.5})))
    low, high = found["share"].pop("interval")
    assert 0 < low < 0.75 < high < 1
    assert found == {
        "share": {"share": 0.75, "total": 4}, "none": {"share": None, "total": 0, "interval": [0, 1]}, "number": 1.5,
    }
