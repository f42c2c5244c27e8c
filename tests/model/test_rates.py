"""The precision is the faster of two, whatever the processor of the tests: the measurement is given."""

import itertools
import math

import pytest
import torch
from torch import nn

from starflow_world.model.rates import choose_precision, layer_sizes, measured_rates
from starflow_world.world import World

F32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("half", "at_least", "chosen"),
    [(5.8, 1.0, F32), (120.0, 1.0, BF16), (120.0, 1.2, BF16), (42.0, 1.2, F32), (38.7, 1.0, F32), (0.0, 1.0, F32)],
)
def test_bfloat16_is_chosen_only_where_it_was_measured_to_be_faster(half, at_least, chosen):
    assert choose_precision({F32: 38.7, BF16: half}, at_least=at_least) == chosen


def test_the_sizes_of_all_linear_layers_are_counted():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False)))
    assert layer_sizes(network) == {(3, 4): 1, (4, 4): 2}


def test_rates_follow_from_the_best_time_of_each_product(monkeypatch):
    """One size of layer is used three times, so its time counts three times."""
    wide, tall = (8, 16), (16, 8)
    times = {(F32, wide): [9.0, 2.0], (F32, tall): [1.0, 4.0], (BF16, wide): [8.0, 8.0], (BF16, tall): [1.0, 1.0]}
    times |= {(dtype, (256, 256)): [5.0] for dtype in (F32, BF16)}  # to warm up
    ticks = itertools.count()
    turns = {key: iter(some) for key, some in times.items()}

    def timed(rows, size, dtype, device, clock):
        return next(turns[dtype, size])

    monkeypatch.setattr("starflow_world.model.rates._seconds_of_product", timed)
    found = measured_rates({wide: 3, tall: 1}, "cpu", seconds=1.5, clock=lambda: next(ticks))
    work = 4 * 2 * 512 * 8 * 16
    assert found == {F32: work / (3 * 2 + 1), BF16: work / (3 * 8 + 1)}


def test_measuring_ends_when_its_time_is_over_and_takes_no_random_numbers():
    ticks, before = itertools.count(0.0, 0.125), torch.get_rng_state()
    found = measured_rates({(8, 16): 1}, "cpu", seconds=5.0, clock=lambda: next(ticks))
    assert next(ticks) < 8
    assert set(found) == {F32, BF16}
    assert all(0 < rate < math.inf for rate in found.values())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_precision_that_the_device_refuses_is_not_chosen(monkeypatch):
    def refuse(inputs, weight):
        if inputs.dtype == BF16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return inputs @ weight.T

    monkeypatch.setattr("starflow_world.model.rates.F.linear", refuse)
    found = measured_rates({(8, 16): 1}, "cpu", seconds=0.0)
    assert found[BF16] == 0
    assert choose_precision(found) == F32


def precision_of(world: World) -> torch.dtype:
    return world.networks.flow.deep.project_in.weight.dtype


@pytest.mark.parametrize(("half", "expected"), [(2.5, BF16), (2.3, F32), (0.5, F32)])
def test_a_world_is_loaded_in_the_precision_that_is_clearly_faster(saved, monkeypatch, half, expected):
    monkeypatch.setattr("starflow_world.model.rates.measured_rates", lambda *sizes, **limits: {F32: 2.0, BF16: half})
    assert precision_of(World.load(saved, device="cpu", dtype="auto")) == expected
    assert precision_of(World.load(saved, device="cpu")) == F32, "what is not asked for is not measured"
