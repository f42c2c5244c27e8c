"""The verbs calibrate and score: whole folders, resumable, bad episodes named."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starflow_world.cli import main
from starflow_world.commands.calibrate import REPORT, Calibrate, calibrate
from starflow_world.commands.score.folder import SKIPPED, SUMMARY, score_folder
from starflow_world.commands.score.settings import ScoreSettings
from starflow_world.data.episodes import episode_path, write_episode
from starflow_world.errors import DataError, ScorerError
from starflow_world.score import Scorer
from tests.patchwork import ACTIONS, episode, some
from tests.worlds import env_world, save_world


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, normal episodes, a scorer made of them, and episodes to score, the third of them strange."""
    folder = tmp_path_factory.mktemp("home")
    save_world(env_world(ACTIONS), folder / "world")
    for index, one in enumerate(some(24)):
        write_episode(episode_path(folder / "normal", index), one)
    for index, one in enumerate(some(5, 100)):
        frames = one.frames.copy()
        frames[4:] = 128 if index == 2 else frames[4:]
        write_episode(episode_path(folder / "data", index), replace(one, frames=frames))
    calibrate(Calibrate(str(folder / "world"), data=folder / "normal", out=folder / "scorer", false_alarms=0.1,
                        run_length=50))
    return folder


def settings(home: Path, out: Path, data: str = "data", **options: bool | int) -> ScoreSettings:
    return ScoreSettings(str(home / "world"), out=out, data=home / data, scorer=home / "scorer", **options)


def scored(home: Path, out: Path, data: str = "data", **options: bool) -> dict[str, dict[str, str]]:
    path = score_folder(settings(home, out, data, **options))
    return {line["episode"]: line for line in csv.DictReader(path.read_text().splitlines())}


def test_calibrating_reports_the_false_alarms_on_episodes_that_were_kept_apart(home: Path) -> None:
    report = json.loads((home / "scorer" / REPORT).read_text())
    held = report["held_out"]
    assert held["episodes"] == 6
    assert report["calibration_episodes"] == 9
    assert held["rate"] == held["frames_flagged"] / held["frames"]
    assert held["interval"][0] <= held["rate"] <= held["interval"][1]


def test_calibrating_refuses_a_rate_that_the_episodes_cannot_support(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="at least 500"):
        calibrate(Calibrate(str(home / "world"), data=home / "normal", out=tmp_path / "s", false_alarms=0.01))
    assert not (tmp_path / "s").exists()


def test_a_folder_is_scored_with_tables_and_pictures_of_what_is_flagged(home: Path, tmp_path: Path) -> None:
    lines = scored(home, tmp_path, overlays=True)
    assert len(lines) == 5
    strange = lines["episode-000002"]
    assert max(lines.values(), key=lambda line: float(line["score"])) == strange
    assert int(strange["first_alarm"]) <= 5
    for name, line in lines.items():
        table = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        assert len(table) == int(line["frames"])
        assert sum(int(float(row["alarm"])) for row in table) == int(line["alarms"])
        assert (tmp_path / f"{name}.png").exists() == (int(line["alarms"]) > 0)
        assert (tmp_path / f"{name}.mp4").stat().st_size > 500


def test_an_interrupted_scoring_goes_on_where_it_stopped(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(home, tmp_path / "whole")
    scored(home, tmp_path / "cut")
    kept = (tmp_path / "cut" / SUMMARY).read_text().splitlines()[:3]
    (tmp_path / "cut" / SUMMARY).write_text("\n".join(kept) + "\n")
    asked: list[int] = []
    real = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, some, batch: asked.append(len(some)) or real(self, some))
    again = scored(home, tmp_path / "cut")
    assert asked == [3]
    assert again.keys() == whole.keys()
    for name, line in again.items():
        assert float(line["score"]) == pytest.approx(float(whole[name]["score"]), abs=0.02)


def test_videos_that_are_asked_for_later_are_made_then(home: Path, tmp_path: Path) -> None:
    lines = scored(home, tmp_path)
    (tmp_path / "episode-000001.mp4").touch()
    assert scored(home, tmp_path, overlays=True).keys() == lines.keys()
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("*.mp4")}
    assert sizes.keys() == lines.keys()
    assert sizes.pop("episode-000001") == 0, "one that is there is not made again"
    assert min(sizes.values()) > 500


def test_results_of_another_scorer_or_data_set_are_not_mixed(home: Path, tmp_path: Path) -> None:
    scored(home, tmp_path)
    with pytest.raises(DataError, match="use a new folder"):
        scored(home, tmp_path, "normal")
    calibrate(Calibrate(str(home / "world"), data=home / "normal", out=tmp_path / "other", false_alarms=0.1,
                        run_length=51))
    with pytest.raises(DataError, match="use a new folder"):
        score_folder(ScoreSettings(str(home / "world"), out=tmp_path, data=home / "data", scorer=tmp_path / "other"))


def test_a_bad_episode_is_named_and_can_be_left_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "bad").mkdir()
    for index, one in enumerate(some(4, 100)):
        write_episode(episode_path(home / "bad", index), episode(1) if index == 1 else one)
    damaged = bytearray(episode_path(home / "bad", 3).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    episode_path(home / "bad", 3).write_bytes(damaged)
    with pytest.raises(DataError, match=r"episode-000003\.h5"):
        scored(home, tmp_path / "a", "bad")
    lines = scored(home, tmp_path / "b", "bad", skip_bad=True)
    assert sorted(lines) == ["episode-000000", "episode-000002"]
    skipped = json.loads((tmp_path / "b" / SKIPPED).read_text())
    assert sorted(skipped) == ["episode-000001.h5", "episode-000003.h5"]
    assert "at least 2 frames" in skipped["episode-000001.h5"]
    assert "left out: 2 bad episodes" in capsys.readouterr().out
    write_episode(episode_path(home / "bad", 3), some(4, 100)[3])
    with pytest.raises(DataError, match=r"episode-000001\.h5.*--skip-bad"):
        scored(home, tmp_path / "c", "bad")


def test_data_of_another_size_is_one_clear_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_episode(episode_path(tmp_path / "big", 0), episode(6, size=16))
    words = ["score", str(home / "world"), "--data", str(tmp_path / "big"), "--scorer", str(home / "scorer")]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "expected the world's size (8, 8, 3)" in error
    assert "episode-000000.h5" in error
    assert "Traceback" not in error


def test_the_pictures_show_where() -> None:
    from starflow_world.commands.score.pictures import overlay

    heat = np.zeros((4, 4))
    heat[1, 3] = 50
    plain, hot = (overlay(np.zeros((8, 8, 3), np.uint8), part, alarm=False) for part in (0 * heat, heat))
    rows, columns = np.nonzero((plain != hot).any(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64, 127, 192, 255)


@pytest.mark.slow
def test_scores_that_actors_compute_are_those_computed_here(
    home: Path, tmp_path: Path, one_thread: None
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    for actors in (0, 2):
        out = tmp_path / f"{actors}"
        score_folder(settings(home, out, actors=actors), batch=1)
    files = [{path.name: path.read_bytes() for path in (tmp_path / f"{actors}").iterdir()} for actors in (0, 2)]
    assert files[0] == files[1]
    assert len(files[0]) >= 8
