"""The demo of the README: the shipped world beside the real environment."""

from pathlib import Path

import pytest

from starflow_world.cli import main


def test_the_demo_prints_each_step_and_leaves_a_video_and_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minigrid")
    main(["demo", str(tmp_path), "--steps", "2"])
    printed = capsys.readouterr().out
    assert "imagined frames are exactly right" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"demo.mp4", "demo.png"}
