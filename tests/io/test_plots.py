"""Plots are drawn, and whoever draws elsewhere does not notice."""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from starflow_world.commands.train_agent.report import write_learning_curves
from starflow_world.io import plots
from starflow_world.io.media import read_picture


@pytest.fixture
def notebook() -> Iterator[Figure]:
    """A caller with a backend of its own and a figure that is not yet done."""
    before = matplotlib.get_backend()
    pyplot.switch_backend("svg")
    yield pyplot.figure()
    pyplot.close("all")
    pyplot.switch_backend(before)


def metrics(path: Path) -> None:
    lines = [{"step": step, "excess": 100 / step, "nats_per_dim": -step} for step in range(1, 4)]
    (path.parent / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plots.write_curves(path.parent / "metrics.jsonl", path)


def agents(path: Path) -> None:
    curve = [{"steps": step, "reward": step / 3, "imagined": step / 2} for step in range(3)]
    curves, random = {"dream": [curve], "real": [curve]}, {"real": {"reward": 0.1}}
    figures = {"curves": curves, "random": random, "plan": {"text": ""}, "env": "CartPolePixels-v0"}
    write_learning_curves(figures, path)


@pytest.mark.parametrize("draw", [metrics, agents])
def test_curves_are_drawn_and_the_callers_figures_and_backend_stay(draw, notebook: Figure, tmp_path: Path) -> None:
    draw(tmp_path / "curves.png")
    assert read_picture(tmp_path / "curves.png").std() > 5
    assert matplotlib.get_backend() == "svg"
    assert pyplot.get_fignums() == [notebook.number]


def test_a_drawing_for_a_page_takes_its_colours_and_texts_as_they_are() -> None:
    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.plot([1, 2], [3, 4], color="#0100ff")
        axis.set_title("$a^b$ <b>")

    found = plots.inline_svg(draw, (3, 2), {"#0100ff": "var(--blue)"})
    assert found == plots.inline_svg(draw, (3, 2), {"#0100ff": "var(--blue)"})
    assert found.startswith("<svg ")
    assert found.endswith("</svg>")
    assert "$a^b$ &lt;b&gt;" in found
    assert "var(--blue)" in found
    assert "#0100ff" not in found
    assert "http" not in found
    assert 'width="' not in found.partition(">")[0]
