"""Compiled networks say what plain ones say, and what cannot be compiled runs as it is."""

import warnings
from pathlib import Path

import pytest
import torch

from starflow_world.flow import compiled
from starflow_world.flow.compiled import Compiled
from starflow_world.world import World
from tests.states import F32
from tests.worlds import env_world


class Refused(Exception):
    """What a compiler raises."""


Refused.__module__ = "torch._dynamo.exc"


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[object]:
    """A compiler that always fails; how often it was asked."""
    asked: list[object] = []

    def compile(function, **options):
        def run(*arguments, **named):
            asked.append(function)
            raise error

        return run

    monkeypatch.setattr(torch, "compile", compile)
    return asked


def test_what_the_compiler_refuses_runs_as_it_is_with_one_warning(monkeypatch, saved):
    asked = refusing(monkeypatch, Refused("no compiler"))
    plain, world = World.load(saved), World.load(saved, compiled=True)
    state, _ = plain.start(text=["a", "b"], seed=[1, 2])
    state, wanted = plain.step(state, [0, 1])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        other, _ = world.start(text=["a", "b"], seed=[1, 2])
        other, found = world.step(other, [0, 1])
    assert "deep block: not compiled: Refused: no compiler" in [str(warning.message) for warning in said]
    assert torch.allclose(found.latents, wanted.latents, atol=1e-5)
    count = len(asked)
    assert count >= 3, "the deep block, the features, the reward head"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.step(other, [0, 1])
    assert len(asked) == count, "and nobody asks again"


def test_errors_that_are_not_the_compilers_are_raised(monkeypatch):
    refusing(monkeypatch, ValueError("wrong shape"))
    with pytest.raises(ValueError, match="wrong shape"):
        Compiled("a function", lambda x: x)(1)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_a_compiled_world_gives_the_same_nats_rewards_and_frames(tmp_path: Path, rows, at_most):
    from tests.worlds import save_world

    folder = save_world(env_world(), tmp_path / "world")
    plain, world = World.load(folder), World.load(folder, compiled=True)
    assert isinstance(world.networks.flow.deep.predict, compiled.Compiled)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not compiled.*")
        (state, _), (other, _) = (some.start(text=["a"] * rows, seed=3) for some in (plain, world))
        for step in range(2 * plain.config.window):
            state, wanted = plain.step(state, [step % 4] * rows)
            other, found = world.observe(other, [step % 4] * rows, latents=wanted.latents)
            at_most("relative error of nats", ((found.nats - wanted.nats) / wanted.nats).abs().max(), 1e-4)
            at_most("difference of rewards", (found.reward - wanted.reward).abs().max(), 1e-4)
            assert (found.frames.int() - wanted.frames.int()).abs().max() <= 1
    assert world.networks.flow.deep.start.dtype == F32
