"""A report card is written whole and opens without a network; texts stay texts; several are compared.

Most figures are made up (tests/reports.py): what those of a world are is tested in tests/evaluation.
"""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.agents.collect import collect
from starflow_world.agents.policy import CarefulPolicy
from starflow_world.commands.compare import Compare
from starflow_world.commands.evaluate import Evaluate
from starflow_world.commands.evaluate.markdown import report_markdown
from starflow_world.commands.evaluate.page import report_page
from starflow_world.commands.evaluate.report import horizon_charts, outcome_charts, published_rows, read_curve
from starflow_world.commands.evaluate.writing import read_report, write_report
from starflow_world.errors import DataError
from starflow_world.evaluation.fidelity import RewardLevels
from starflow_world.evaluation.horizons import WORLD, Horizons, horizons_of
from starflow_world.evaluation.ledgers import LOSSES
from starflow_world.io.media import measure_video, read_picture
from tests.reports import SIDE, STEPS, made_up_report, made_up_rollouts
from tests.worlds import TINY, no_text, save_world, tiny_world

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>`|\n# <b>'
CURVE = [{"episodes": 100, "valid_excess": 3.0, "minutes": 10}, {"episodes": 300, "valid_excess": 1.0, "minutes": 10},
         {"episodes": 300, "valid_excess": 0.5, "minutes": 20}]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report card of made-up figures."""
    folder = tmp_path_factory.mktemp("report") / "card"
    assert write_report(made_up_report(), made_up_rollouts(), folder) == folder / "report.html"
    return folder


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def foul(value: Any, kept: tuple[str, ...] = ("ledger",)) -> Any:
    """The same report with other texts."""
    if isinstance(value, dict):
        return {key: part if key in kept else foul(part) for key, part in value.items()}
    if isinstance(value, list):
        return [foul(part) for part in value]
    return HOSTILE if isinstance(value, str) else value


def test_a_report_is_one_page_that_needs_no_network(written: Path) -> None:
    text = (written / "report.html").read_text("utf-8")
    elements = Elements(text).found
    assert {name for name, _ in elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    sources = [value or "" for _, given in elements for key, value in given.items() if key in ("src", "href", "action")]
    assert sources
    assert all(source.startswith(("data:image/png", "data:video/mp4", "#")) for source in sources)
    assert "http://" not in text
    assert "url(http" not in text
    assert sum(name == "video" for name, _ in elements) == 3
    assert sum(name == "svg" for name, _ in elements) >= 12
    assert text.count("prefers-color-scheme: dark") >= 2
    for words in ("PSNR", "SSIM", "Excess nats", "Objects lost", "Possible transitions", "Variance ratio",
                  "Action information", "True action most likely", "Ablations", "Data-size curve", "LPIPS is left out",
                  "GameNGen", "env steps per second", "SHA-256"):
        assert words in text, words


def test_pictures_and_videos_show_real_imagined_and_difference(written: Path) -> None:
    strip = read_picture(written / "frames-1.png")
    real, imagined, difference = (part.astype(int) for part in np.split(strip, 3))
    assert strip.shape[1] == SIDE * len(horizons_of(STEPS))
    assert (np.abs(real - imagined) == difference).all()
    assert difference.any()
    assert measure_video(written / "rollout-1.mp4") == (STEPS + 1, 10)


def test_markdown_and_json_say_the_same_as_the_page(written: Path) -> None:
    report, text = json.loads((written / "report.json").read_text("utf-8")), (written / "report.md").read_text("utf-8")
    series = report["charts"]["psnr"][WORLD]
    assert series["steps"][:2] == [1, 2]
    assert f"{series['value'][0]:.3g} (" in text
    assert "![frames](frames-1.png)" in text
    assert report["figures"]["chance"]["law_excess"] == 0.02


def test_no_text_of_a_report_becomes_a_part_of_the_page(written: Path) -> None:
    card = read_report(written)
    clean = Elements((written / "report.html").read_text("utf-8")).found
    report = foul(card.report)
    report["charts"] = card.report["charts"] | {f"distance of {HOSTILE}": card.report["charts"]["psnr"]}
    report["outcomes"] = card.report["outcomes"]
    report["card"] = {HOSTILE: HOSTILE, "env": HOSTILE}
    report["published"] = [[HOSTILE, "1", "2", HOSTILE]]
    report["figures"] |= {HOSTILE: HOSTILE}
    report["curve"] = card.report["curve"]
    report["figures"]["ablations"][HOSTILE] = report["figures"]["ablations"]["whole"]
    page = report_page([type(card)(report, card.strips, card.videos)])
    found = Elements(page).found
    assert {name for name, _ in found} == {name for name, _ in clean} | {"tr", "th", "td"}
    assert not [given for _, given in found if any(key.startswith("on") for key in given)]
    assert "<script" not in page
    text = report_markdown(report, ["frames-1.png"])
    assert "<script" not in text.replace("\\<", "")
    assert "\n# <" not in text
    many = report_page([type(card)(report, card.strips, card.videos)] * 2)
    assert "<script" not in many


def test_worlds_are_compared_in_one_page(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Compare((written, written), out=tmp_path / "both.html").run()
    assert capsys.readouterr().out.strip() == str(tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text("utf-8")
    elements = Elements(text).found
    assert sum(name == "video" for name, _ in elements) == 6
    assert "Worlds compared" in text
    assert "var(--c-blue)" in text
    assert "var(--c-orange)" in text
    with pytest.raises(DataError, match="expected 1 to 6 reports, found 7"):
        Compare((written,) * 7, out=tmp_path / "many.html").run()


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 0}', '{"format": 1}', '{"format": 1, "frame": [7, 7]}'])
def test_a_damaged_report_is_one_error_that_names_it(damage: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(damage)
    with pytest.raises(DataError, match=r"report.*expected.*evaluate"):
        Compare((tmp_path,), out=tmp_path / "page.html").run()
    assert not (tmp_path / "page.html").exists()


def test_a_curve_is_of_trainings_of_equal_time(tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(json.dumps(CURVE))
    assert [point["valid_excess"] for point in read_curve(tmp_path / "curve.json")] == [3.0, 1.0]


@pytest.mark.parametrize("text", ["[]", "{}", '[{"episodes": 1}]', '[{"episodes": NaN, "valid_excess": 1}]', "x"])
def test_a_damaged_curve_is_one_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(text)
    with pytest.raises(DataError, match=r"curve\.json: expected a curve"):
        read_curve(tmp_path / "curve.json")


def test_published_figures_stand_beside_those_of_the_same_name_and_others_are_refused() -> None:
    figures: dict[str, Any] = {"excess_nats": 0.5, "exact_frames_1": {"share": 0.25}}
    charts = {"psnr": {WORLD: {"steps": [1, 2], "value": [20.0, 19.5]}}}
    card = {"published": [{"figure": name, "value": 1, "source": "a paper"}
                          for name in ("psnr_2", "excess_nats", "exact_frames_1")]}
    assert [row[2] for row in published_rows(card, figures, charts)] == ["19.5", "0.5", "0.25"]
    for wrong in ({"figure": "psnr_3", "value": 1, "source": ""}, {"figure": "psnr_1"}, "psnr_1"):
        with pytest.raises(DataError, match="published: expected"):
            published_rows({"published": [wrong]}, figures, charts)


def test_a_world_gets_its_report_from_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On episodes in a room of 5x5 cells, whose law is known."""
    pytest.importorskip("minigrid")
    collect("MiniGrid-Dynamic-Obstacles-5x5-v0", tmp_path / "data", episodes=2, policy=CarefulPolicy(), seed=1,
            frame_size=20, max_steps=5, progress=False)
    save_world(tiny_world(spaces.Discrete(3), height=20, width=20, **no_text(TINY.flow)), tmp_path / "world")
    (tmp_path / "curve.json").write_text(json.dumps(CURVE))
    monkeypatch.setattr("starflow_world.commands.evaluate.measure.measure_world", lambda *_: {"episodes": 2})
    monkeypatch.setattr("starflow_world.commands.evaluate.measure.measure_chance", lambda *_: {"law_excess": 1.0})
    Evaluate(tmp_path / "data", str(tmp_path / "world"), out=tmp_path / "out", ablations=False,
             report=tmp_path / "card", curve=tmp_path / "curve.json").run()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "card" / "report.html")
    report = read_report(tmp_path / "card").report
    assert {"psnr", "ssim", "cells", "exact", "legal", "objects", "excess", "nats", "variance", "action_nats",
            "action_first"} <= set(report["charts"])
    assert (report["world"], report["actions"], report["ledger"]) == ("world", 3, "by the law")
    assert report["figures"] == {"episodes": 2, "chance": {"law_excess": 1.0}}


def test_f1_is_of_the_steps_since_the_horizon_before() -> None:
    made = Horizons(2, 16, 2)
    nothing = np.zeros((2, 16))
    real, said = nothing.copy(), nothing.copy()
    real[0, [1, 10]] = 1
    said[0, 1], said[1, 11] = 1, 1
    made.outcomes = {"reward": said, "real_reward": real, "end": nothing, "real_end": nothing}
    charts = outcome_charts(made, RewardLevels(0.0, 0.5))
    assert charts["end_f1"] == {}
    assert (charts["reward_f1"][WORLD]["steps"], charts["reward_f1"][WORLD]["value"]) == ([4, 16], [1.0, 0.0])


def test_objects_are_summed_up_by_the_law_and_not_beside_the_real_frame() -> None:
    lost = {WORLD: np.array([[1.0, 0.0, 2.0], [0.0, 1.0, np.nan]])}
    for ledger, expected in (("by the law", [0.5, 1.0, 3.0]), ("beside the real frame", [0.5, 0.5, 2.0])):
        made = Horizons(2, 3, 2, ledger, {name: copy.deepcopy(lost) for name in LOSSES})
        values = horizon_charts(made)["objects"][WORLD]["value"]
        assert values == [3 * value for value in expected]
