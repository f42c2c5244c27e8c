"""`starflow-world data`: what is printed, what is drawn, and the way from a folder of videos to episodes."""

from pathlib import Path

import av
import pytest

from starflow_world import EpisodeDataset
from starflow_world.cli import main
from starflow_world.io.media import read_picture
from tests import written_recordings as written


def test_inspect_prints_counts_sizes_actions_rewards_texts_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "inspect", str(written.videos(tmp_path / "made"))])
    lines = dict(line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert lines["recordings"] == "2, 21 frames"
    assert lines["lengths"] == "9 to 12 frames, median 10.5"
    assert lines["frames"] == "32 x 32, 10 per second"
    assert lines["action space"] == "Discrete(3)"
    assert lines["actions"].startswith("shares 0: 0.")
    assert lines["rewards"] == "0 to 1, 2 that are not 0"
    assert lines["texts"] == "1 different, 8 bytes at most: 'go right'"
    assert lines["ends"] == "2 terminated"
    assert lines["world.reward"] == "event"
    assert lines["world.text"] == "{kind: t5, length: 9 or more}"
    assert lines["world.max_episode_steps"] == "64"


def test_import_then_inspect_and_merge_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, lengths in (("a", (9, 12)), ("b", (7,))):
        folder = written.videos(tmp_path / name, lengths)
        main(["data", "import", str(folder), "--out", str(tmp_path / f"{name}-data"), "--frame-size", "16",
              "--space", '{"type": "Discrete", "n": 3}'])
    main(["data", "merge", str(tmp_path / "a-data"), str(tmp_path / "b-data"), "--out", str(tmp_path / "all")])
    capsys.readouterr()
    main(["data", "inspect", str(tmp_path / "all")])
    assert "recordings: 3, 28 frames" in capsys.readouterr().out
    assert EpisodeDataset(tmp_path / "all").lengths.tolist() == [9, 12, 7]


def test_preview_writes_a_sheet_and_a_video_with_a_strip_for_actions_and_rewards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "preview", str(written.videos(tmp_path / "made")), "--out", str(tmp_path / "look"), "--frames", "8"])
    sheet = read_picture(tmp_path / "look/preview.png")
    assert sheet.shape[1] > 8 * written.SIDE
    with av.open(str(tmp_path / "look/preview.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert float(video.streams.video[0].average_rate) == written.FPS
    assert len(frames) == 16
    enlarged = 10 * written.SIDE
    assert frames[0].shape[1] == enlarged
    assert frames[0][enlarged + 8 :].max() > 150, "something is written below the frame"
    assert capsys.readouterr().out.split() == [str(tmp_path / "look/preview.png"), str(tmp_path / "look/preview.mp4")]


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written.videos(tmp_path / "made", action=None)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "import", str(folder), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("starflow-world: ")
    assert error.count("\n") == 1
    assert "clip0.csv: expected a column of actions" in error
