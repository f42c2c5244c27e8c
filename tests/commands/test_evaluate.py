"""The command measures everything on a tiny world, and writes it where it says."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from gymnasium import spaces

from starflow_world.agents.collect import collect
from starflow_world.agents.policy import CarefulPolicy
from starflow_world.commands.evaluate import Evaluate
from starflow_world.commands.evaluate.measure import figure_text, known_law
from starflow_world.evaluation.chance import ChanceSizes
from starflow_world.evaluation.intervals import Share
from tests.worlds import TINY, no_text, save_world, tiny_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes in a room of 5x5 cells, whose law is known."""
    folder = tmp_path_factory.mktemp("episodes")
    return collect("MiniGrid-Dynamic-Obstacles-5x5-v0", folder, episodes=3, policy=CarefulPolicy(), seed=1,
                   frame_size=20, max_steps=8, progress=False)


def test_chance_and_ablations_are_printed_and_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(ChanceSizes, states=2, steps=4, starts=2, real=4)
    monkeypatch.setattr("starflow_world.evaluation.chance.ChanceSizes", small)
    monkeypatch.setattr("starflow_world.commands.evaluate.measure.cost", lambda *_: {})
    flow = replace(TINY.flow, shallow_blocks=0, denoiser_layers=0, text_length=0, text_width=0)
    world = tiny_world(spaces.Discrete(3), height=20, width=20, **no_text() | {"flow": flow})
    folder = save_world(world, tmp_path / "world")
    Evaluate(data, str(folder), out=tmp_path / "out", draws=20, rollouts=4, card=True).run()
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    assert json.loads((folder / "card.json").read_text("utf-8"))["figures"] == written
    assert written["chance"]["legal_1"]["total"] == 20
    assert written["chance"]["most_likely"]["known_tiles_1"]["share"] == 0
    assert set(written["ablations"]) == {"whole", "one frame of history", "no action", "no last deep layer",
                                         "no deep block", "most likely component"}
    printed = capsys.readouterr().out
    for name in ("law_excess", "event_distance_of_law", "legal_rollouts_4", "ledger_4", "no last deep layer"):
        assert name in printed


def test_an_environment_of_unknown_law_is_measured_without_it(tmp_path: Path, data: Path) -> None:
    assert known_law(data) is not None
    assert known_law(tmp_path) is None


def test_figures_of_figures_are_printed_below_each_other() -> None:
    lines = figure_text("a", {"b": 1.23456, "c": {"d": Share(1, 2)}}).splitlines()
    assert lines[:3] == ["a", f"  {'b':<28} 1.235", "  c"]
