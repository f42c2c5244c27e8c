"""The examiner examined: sound worlds of all kinds pass, and every sabotaged one is caught by the check that should."""

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from gymnasium import spaces

import starflow_world
from starflow_world.check import CHECKS, Report, check_world, examine
from starflow_world.check.result import FAILED, NOT_APPLICABLE, PASSED, Result
from starflow_world.cli import main
from starflow_world.config.world import CodecConfig, DecodeConfig, OutcomeConfig
from starflow_world.errors import StarflowError
from starflow_world.world import World
from starflow_world.world.dynamics import Dynamics
from tests.sabotage import SABOTAGES, sabotaged_world
from tests.worlds import PUBLISHED, TINY, env_world, no_text, save_world, tiny_world

SMALL = {"height": 4, "width": 4}
MERGED = CodecConfig("patch", patch=2, merge=2)
SPACES = spaces.Dict({"move": spaces.Box(-1, 1, (2,)), "mode": spaces.Tuple([spaces.Discrete(3, start=-1)])})


def sound(kind: str) -> World:
    match kind:
        case "mixtures and text":
            return tiny_world(height=8, width=8, window=4, context=1)
        case "as published":
            return tiny_world(height=8, width=8, window=4, context=1, **PUBLISHED)
        case "one normal per channel, no denoiser, decoded in chunks":
            # 48 channels: on the CPU the last bit of a number depends on its place in a vector of 32, and with fewer
            # numbers in a chunk of a row the rows that are no whole vectors differ in it.
            flow = replace(TINY.flow, channels=48, shallow_blocks=2, sites=1, components=1, features_width=0)
            options = {"flow": flow, "codec": MERGED, "decode": DecodeConfig(chunk=2)}
            return tiny_world(spaces.MultiBinary(3), height=8, width=8, **options)
        case "no text, no outcome, one action":
            return tiny_world(spaces.Discrete(1), outcome=OutcomeConfig(), **SMALL, **no_text())
        case "actions of all sorts, a start set, a small window":
            return env_world(SPACES, size=4, window=2, context=1)
        case "shallow blocks and mixtures, one token, float64":
            flow = replace(TINY.flow, channels=48, shallow_blocks=2)
            return tiny_world(spaces.MultiDiscrete([2, 3]), dtype=torch.float64, codec=MERGED, flow=flow, **SMALL)
    raise AssertionError(kind)


ABSENT = {
    "mixtures and text": {"N6"},
    "as published": {"N7"},
    "one normal per channel, no denoiser, decoded in chunks": {"N7"},
    "no text, no outcome, one action": {"N6", "N23", "N24"},
    "actions of all sorts, a start set, a small window": {"N6"},
    "shallow blocks and mixtures, one token, float64": {"N6", "N7"},
}
"""Kinds of worlds, and the promises of which a part says nothing about them."""


SELDOM = {
    "actions of all sorts, a start set, a small window", "shallow blocks and mixtures, one token, float64",
    "one normal per channel, no denoiser, decoded in chunks",
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SELDOM else []) for kind in ABSENT]
)
def test_a_sound_world_keeps_every_promise(kind):
    report = check_world(sound(kind))
    print(report)
    report.raise_if_broken()
    assert report.passed
    assert {result.id for result in report.results} == {check.id for check in CHECKS}
    assert {result.id for result in report.results if result.status == NOT_APPLICABLE} == ABSENT[kind]
    assert all(result.reason for result in report.results if result.status == NOT_APPLICABLE)


@pytest.mark.parametrize("kind", SABOTAGES)
def test_a_sabotaged_world_is_caught_by_the_check_that_should(kind):
    broken = next((result for result in examine(sabotaged_world(kind)) if result.status == FAILED), None)
    print(broken)
    assert broken is not None
    assert broken.id == SABOTAGES[kind][0]
    assert not broken.reason, "it was found by a figure, not by an error"


def test_every_check_has_caught_something():
    assert {check.id for check in CHECKS} == {caught for caught, *_ in SABOTAGES.values()}


def test_an_examination_changes_neither_the_world_nor_what_lies_outside():
    world = env_world(size=4)
    weights = {name: value.clone() for name, value in world.networks.state_dict().items()}
    generator, decode, drawn = torch.get_rng_state(), world.dynamics.decode, world.action_space.np_random
    place = drawn.bit_generator.state
    report = check_world(world, seed=3)
    assert torch.equal(generator, torch.get_rng_state())
    assert world.dynamics.decode == decode
    assert drawn.bit_generator.state == place
    assert all(torch.equal(value, weights[name]) for name, value in world.networks.state_dict().items())
    again = tuple(islice(examine(world, seed=3), 12))
    assert again == report.results[:12], "an examination follows from its seed"


class Crashing(Dynamics):
    def imagine(self, *given):
        raise RuntimeError("the device\nis gone")


def test_a_world_that_raises_has_failed_and_nothing_comes_through():
    world = tiny_world(**SMALL)
    world.dynamics.__class__ = Crashing
    report = check_world(world)
    assert {result.id for result in report.broken} >= {"S6", "E15", "N7", "S1"}
    assert report.broken[0].reason == "RuntimeError: the device is gone"
    with pytest.raises(StarflowError, match=r"promise S6 is broken: .*the device is gone"):
        report.raise_if_broken()


def test_a_report_says_what_was_measured_and_what_could_not_be():
    good = Result("N1", "all is well", "float32", 1e-6, 1e-4, PASSED)
    bad = Result("N2", "all is well", "float64", 3e-3, 1e-4, FAILED)
    none = Result("N3", "text is read", "frames", math.nan, 0, NOT_APPLICABLE, "this world takes no text")
    assert good.passed
    assert not none.passed
    assert "1e-06 <= 0.0001" in str(good)
    assert "0.003 >  0.0001" in str(bad)
    assert "not applicable" in str(none)
    assert "this world takes no text" in str(none)
    assert Report("w", (good, none), 2.0).passed
    report = Report("w", (good, bad, none, replace(bad, id="N4")), 2.0)
    assert not report.passed
    assert str(report).splitlines()[-1] == "world w: 1 passed, 2 failed, 1 not applicable, in 2.0 s"
    with pytest.raises(StarflowError, match=r"N2 is broken: all is well: float64: found 0.003 .*; also broken: N4"):
        report.raise_if_broken()


def test_check_is_a_public_name():
    assert starflow_world.check_world is check_world


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_figure(tmp_path: Path, capsys):
    main(["check", str(save_world(env_world(size=4), tmp_path)), "--seed", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.split()[0] for line in lines[:-1]}) == len(CHECKS)
    assert all(line[5:].startswith((PASSED, NOT_APPLICABLE)) for line in lines[:-1])
    assert " 0 failed" in lines[-1]


def test_the_command_fails_with_the_first_broken_promise(monkeypatch, capsys):
    monkeypatch.setattr(World, "load", lambda name: sabotaged_world("log-det sign"))
    with pytest.raises(SystemExit) as stopped:
        main(["check", "any"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("starflow-world: world tiny: promise N6 is broken: ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_shipped_world_keeps_every_promise():
    check_world(World.load("babyai-gotolocal")).raise_if_broken()
