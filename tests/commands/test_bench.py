"""`starflow-world bench`: what is counted, what it is compared with, what is reported. A timing is never a test."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from starflow_world.cli import main
from starflow_world.commands.bench import Bench
from starflow_world.commands.bench.machine import disturbances
from starflow_world.commands.bench.measure import (
    decoding_errors,
    of_one_age,
    random_actions,
    staggered,
    timed,
    timed_run,
)
from starflow_world.commands.bench.operations import Operations
from starflow_world.commands.bench.published import THRESHOLD, Published
from starflow_world.config.world import CodecConfig, DecodeConfig
from starflow_world.errors import ConfigError
from starflow_world.world import World
from tests.worlds import PUBLISHED, TINY, env_world, no_text, tiny_world

NO_FEATURES = {"flow": replace(TINY.flow, features_width=0)}
KINDS = {
    "mixtures": {}, "as published": PUBLISHED, "no text": no_text(), "no features": NO_FEATURES,
    "pca": {"codec": CodecConfig("pca", 2, 3, 2)},
}


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    return env_world(**KINDS[request.param])


# ---- operations ------------------------------------------------------------------------------------------------------


def test_operations_of_a_step_are_those_that_a_counter_sees(world: World) -> None:
    state = of_one_age(world, 1)
    flat = random_actions(world, 1, 1)[0]
    counting = FlopCounterMode(display=False)
    with timed(world) as timers, sdpa_kernel(SDPBackend.MATH), counting as counter:
        _, transition = world.step(state, flat)
    parts = Operations(world.config, dense=True).step(
        int(state.length[0]), int(transition.sweeps[0]), timers.calls["shallow sweeps"]
    )
    assert sum(parts.values()) == counter.get_total_flops()
    assert parts["deep sweeps"] > 0
    assert (parts["shallow sweeps"] > 0) == (len(world.networks.flow.shallow) > 0)
    assert (parts["features"] > Operations(world.config).action()) == (not world.networks.flow.features.silent)


@torch.inference_mode()
def test_operations_of_a_slide_are_those_that_a_counter_sees(world: World) -> None:
    state = of_one_age(world, 1)
    for flat in random_actions(world, 1, world.config.window - int(state.length[0])):
        state, _ = world.step(state, flat)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        world.dynamics.own(state, reuse=False)
    assert Operations(world.config, dense=True).slide() == counter.get_total_flops()


@torch.inference_mode()
def test_operations_of_scoring_are_those_that_a_counter_sees(world: World) -> None:
    count, networks, tables = world.config.window, world.networks, world.dynamics.tables
    x = torch.randn(1, count, world.dynamics.tokens, world.config.channels)
    flat, text = random_actions(world, 1, count).transpose(0, 1), world.encode_text([""])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        networks.flow.nats(x, text, networks.action(flat), tables)
    assert Operations(world.config, dense=True).score(count) == counter.get_total_flops()


def test_a_pass_over_a_chunk_counts_as_the_part_of_a_frame_that_it_is() -> None:
    config = tiny_world(height=8, width=8).config
    whole = Operations(config)
    parts = Operations(replace(config, decode=DecodeConfig(chunk=whole.tokens // 4)))
    (one,), (four,) = ([run.step(3, count)["deep sweeps"]] for run, count in ((whole, 1), (parts, 4)))
    assert four == pytest.approx(one, rel=1e-12), "each token in one pass sees the same keys"


def test_masked_work_is_not_counted() -> None:
    config = env_world().config
    assert Operations(config).score(6) < Operations(config, dense=True).score(6)


# ---- the published way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 32, 5])
def test_the_published_way_decodes_what_sequential_decoding_does_slides_included(world: World, block: int) -> None:
    """Of a mixture in one frame, for all but a few tokens: a change below the published threshold may choose another
    component."""
    state = of_one_age(world, 3)
    exact, baseline = world.decoded(DecodeConfig(chunk=1)), Published(world, state, block=block)
    tolerance = 1e-5 if block == 1 else THRESHOLD**0.5
    exactly = block == 1 or world.config.flow.components == 1
    for flat in random_actions(world, 3, 2 * world.config.window if exactly else 1):
        state, transition = exact.step(state, flat)
        frames = baseline.step(flat)
        wanted = state.tokens[torch.arange(3), state.length - 1]
        apart = (baseline.u - wanted).square().mean(-1)
        apart = apart.mean() if exactly else apart.flatten().quantile(0.9)
        assert apart.sqrt() < tolerance * wanted.square().mean().sqrt()
        assert frames.shape == transition.frames.shape
        assert block > 1 or (frames.int() - transition.frames.int()).abs().max() <= 1


def test_the_published_way_needs_fewer_rounds_than_tokens_and_at_least_two() -> None:
    world = env_world()
    baseline = Published(world, of_one_age(world, 2))
    baseline.step(random_actions(world, 2, 1)[0])
    assert 2 <= baseline.rounds < world.dynamics.tokens


def test_errors_are_measured_for_every_decoder() -> None:
    world = env_world(**PUBLISHED)
    found = decoding_errors(world, DecodeConfig(tolerance=0.03), of_one_age(world, 2), random_actions(world, 2, 2))
    assert found["sequential"][0] < 1e-5
    assert found["own"][0] < min(found["jacobi"][0], found["own, loose"][0])


def test_rows_of_different_ages_have_no_published_way() -> None:
    world = env_world()
    with pytest.raises(ValueError, match="one age"):
        Published(world, staggered(world, 2))


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_staggered_rows_slide_one_after_the_other_and_each_once_in_a_period() -> None:
    world = env_world()
    period = world.config.window - world.config.context
    state = staggered(world, period)
    assert sorted(state.length.tolist()) == list(range(world.config.context + 1, world.config.window + 1))
    run = timed_run(world, state, random_actions(world, period, period))
    assert run.slides == [1] * period
    assert run.parts["slides"] > 0
    assert sum(run.parts.values()) == pytest.approx(run.total)


def test_timers_change_nothing_and_are_taken_off_again() -> None:
    world = tiny_world()
    state, flat = of_one_age(world, 2), random_actions(world, 2, 1)[0]
    before = {id(place): set(vars(place)) for place in (world.dynamics, world.networks.flow.deep)}
    plain, _ = world.step(state, flat)
    with timed(world):
        found, _ = world.step(state, flat)
    assert found.digest() == plain.digest()
    assert all(set(vars(place)) == before[id(place)] for place in (world.dynamics, world.networks.flow.deep))


def test_a_busy_machine_is_told() -> None:
    quiet = {"others": 0.01, "load_before": 0.1, "gemm_before": 1e11, "gemm_after": 1.02e11}
    assert disturbances(quiet) == []
    for change in ({"others": 0.9}, {"load_before": 2.0}, {"gemm_after": 7e10}):
        assert len(disturbances(quiet | change)) == 1


# ---- reporting -------------------------------------------------------------------------------------------------------

GOALS = (
    "times faster than published-style jacobi, 1 env", "times faster than published-style jacobi, 2 envs",
    "times faster than published-style sequential, 1 env", "share of the GEMM roofline, 2 envs",
    "deep sweeps per frame", "p99 / p50 of a step, slides included, 2 envs", "share of a step spent on slides, 2 envs",
    "p99 / p50 of a step, slides included, 1 env", "growth of memory per 1,000 steps",
    "scoring: share of the GEMM roofline", "scoring: frames/s over generation",
)


def test_the_report_holds_every_figure_in_all_its_forms(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Bench(str(saved), tmp_path, envs=(1, 2), repeats=1, steps=6).run()
    found = json.loads((tmp_path / "bench.json").read_text())
    words, printed = (tmp_path / "bench.md").read_text(), capsys.readouterr().out
    assert sorted(figure["name"] for figure in found["figures"]) == sorted(GOALS)
    bounds = [(figure["least"] > 0, figure["most"] < 1e300) for figure in found["figures"]]
    assert all(lower != upper for lower, upper in bounds)
    assert all(figure["value"] is not None for figure in found["figures"])
    assert found["processor"] in words
    assert all(name in words and name in printed for name in GOALS)
    assert [line["envs"] for line in found["envs"]] == [1, 2]
    assert all(line["steps_per_second, jacobi"] > 0 for line in found["envs"])
    assert set(found["profile"]) == {"1", "2"}
    assert {"gemm_before", "gemm_after", "load_before", "load_after"} <= set(found["machine"])
    assert sum(found["sweeps"].values()) == 4 * (1 + 2)
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_profile_prints_where_the_time_goes_and_writes_nothing(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Bench(str(saved), tmp_path / "none", envs=(1,), repeats=1, profile=True).run()
    printed = capsys.readouterr().out
    for part in ("deep sweeps", "shallow sweeps", "features", "heads", "denoiser", "decode", "slides", "rest"):
        assert part in printed
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"envs": ()}, "envs"), ({"envs": (0,)}, "envs"), ({"repeats": 0}, "repeats"), ({"steps": 1}, "steps")],
)
def test_bad_options_give_one_clear_error(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Bench(**wrong)


@pytest.mark.parametrize("words", [["--envs", "0"], ["--repeats", "0"], ["nowhere"]])
def test_wrong_command_lines_exit_with_one_clear_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert error.startswith("starflow-world: ")
    assert error.count("\n") == 1
