"""Ablations take away what they name, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.data.episodes import Episode
from starflow_world.evaluation.ablations import (
    ablation_table,
    ablations,
    collapsed,
    one_frame_excess,
    without_last_layer,
)
from starflow_world.evaluation.fidelity import frame_excess
from starflow_world.flow.density import Mixture, MixtureHead
from starflow_world.model.actions import space_to_json
from starflow_world.world import World
from tests.worlds import TINY, tiny_world


def episodes(count: int = 3, length: int = 7) -> list[Episode]:
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (length + seed, 16, 16, 3), dtype=np.uint8)
        actions = np.zeros((len(frames), 4), np.float32)
        actions[np.arange(1, len(frames)), rng.integers(0, 4, len(frames) - 1)] = 1
        ends, rewards = np.zeros(len(frames), bool), np.zeros(len(frames), np.float32)
        found.append(Episode(frames, actions, rewards, ends, ends, "go", space_to_json(spaces.Discrete(4)), {}))
    return found


def mixture_world() -> World:
    world = tiny_world(flow=replace(TINY.flow, shallow_blocks=0, denoiser_layers=0))
    head = world.networks.flow.deep.head
    assert isinstance(head, MixtureHead)
    head.out.weight.data = 0.3 * torch.randn(head.out.weight.shape, generator=torch.Generator().manual_seed(0))
    return world


def test_every_ablation_is_measured_on_the_same_frames() -> None:
    world, some = mixture_world(), episodes()
    before = {name: tensor.clone() for name, tensor in world.networks.state_dict().items()}
    table = ablations(world, some)
    assert list(table) == ["whole", "one frame of history", "no action", "no text", "no last deep layer",
                           "no deep block", "most likely component"]
    assert [name for name, row in table.items() if "exact_1" in row] == ["whole", "most likely component"]
    assert table["whole"]["loss"] == table["whole"]["loss_error"] == 0
    for name, row in table.items():
        assert name == "whole" or row["loss"] != 0, "random weights read everything"
        assert row["excess_nats"] == pytest.approx(table["whole"]["excess_nats"] + row["loss"], rel=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in world.networks.state_dict().items())


def test_what_a_world_does_not_have_is_not_taken_away() -> None:
    plain = replace(TINY.flow, components=1, features_width=0, shallow_blocks=0, denoiser_layers=0)
    assert collapsed(tiny_world(flow=plain)) is None
    assert "most likely component" not in ablations(tiny_world(flow=plain), episodes(1))


def test_one_frame_of_history_is_all_that_a_second_frame_has() -> None:
    world, some = mixture_world(), episodes(2)
    for cut in one_frame_excess(world, some):
        assert cut[0] == 0
        assert np.isfinite(cut).all()
    clip = [replace(e, frames=e.frames[:2], actions=e.actions[:2], rewards=e.rewards[:2],
                    terminated=e.terminated[:2], truncated=e.truncated[:2]) for e in some[:1]]
    own, cut = frame_excess(world, clip)[0], one_frame_excess(world, clip)[0]
    assert cut[1] == pytest.approx(own[1], rel=1e-6)


def test_the_last_layer_of_the_deep_block_adds_nothing() -> None:
    world, x = mixture_world(), torch.randn(1, 5, 60)
    layer = without_last_layer(world).networks.flow.deep.layers[-1]
    rotary = world.dynamics.tables.frame[:, :5]
    assert torch.equal(layer(x, rotary), x)
    assert not torch.equal(world.networks.flow.deep.layers[-1](x, rotary), x)


def test_a_collapsed_mixture_has_one_component_and_draws_from_it() -> None:
    world = mixture_world()
    likely = collapsed(world)
    assert likely is not None
    hidden, noise = torch.randn(2, 3, 60), torch.randn(2, 3, world.networks.flow.noise_channels)
    density, own = likely.networks.flow.deep.head(hidden), world.networks.flow.deep.head(hidden)
    assert isinstance(density, Mixture)
    u, _ = density.draw(noise)
    _, chance, offset, factor = density.joint(u)
    assert (chance.exp().sum(-1) == 1).all()
    assert (chance.argmax(-1) == own.joint(u)[1].argmax(-1)).all()
    book, pick = density.head.codebook, chance.argmax(-1)
    expected = book.code[pick] + book.spread[pick] * (offset + factor * noise[..., :-4].unflatten(-1, (4, -1)))
    assert torch.allclose(u.unflatten(-1, (4, -1)), expected, atol=1e-5)
    assert torch.isfinite(density.nats(u)).all()
    assert torch.isfinite(density.clean(u, 0.3)).all()
    frames = torch.from_numpy(episodes(1)[0].frames[None, :1])
    state, _ = likely.start(frames, text="go")
    _, made = likely.step(state, [1])
    assert bool(made.nats.isfinite().all())


def test_the_table_has_a_line_for_each_ablation() -> None:
    row = {"excess_nats": 1.0, "excess_nats_error": 0.1, "loss": 123456.0, "loss_error": 0.0, "exact_1": 0.5}
    assert ablation_table({"whole": row, "no action": row}).count("\n") == 2
    assert "50.0 %" in ablation_table({"whole": row})
    assert "1.2e+05" in ablation_table({"whole": row})
