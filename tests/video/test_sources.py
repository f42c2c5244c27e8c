"""What is given is measured, and read in the model's own time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starflow_world.errors import ConfigError, DataError
from starflow_world.io.media import VideoWriter, read_video, write_png
from starflow_world.video.request import Request
from starflow_world.video.sources import measure_given
from tests.tiny_video import TINY_VIDEO

ASK = Request("a dog.", frames=9, aspect="16:9")


def counted(path: Path, frames: int, fps: int, size: tuple[int, int] = (32, 48)) -> Path:
    """A video whose frame k has the grey of 10 k."""
    with VideoWriter(path, fps) as video:
        for t in range(frames):
            video.add(np.full((*size, 3), 10 * t, np.uint8))
    return path


def numbers(request: Request) -> list[int]:
    """Which frames of `counted` are read."""
    return [round(frame.mean() / 10) for frame in measure_given(request, TINY_VIDEO).read(request)]


def test_a_source_of_the_models_rate_is_read_as_it_is(tmp_path: Path) -> None:
    request = replace(ASK, video=counted(tmp_path / "a.mp4", 9, 16))
    assert measure_given(request, TINY_VIDEO).notes == ()
    assert numbers(request) == list(range(9))


@pytest.mark.parametrize(("fps", "frames", "expected"), [
    (32, 18, [0, 2, 4, 6, 8, 10, 12, 14, 16]), (8, 5, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
    (24, 14, [0, 1, 3, 4, 6, 7, 9, 10, 12]),
])
def test_a_source_of_another_rate_is_resampled_by_time(
    tmp_path: Path, fps: int, frames: int, expected: list[int]
) -> None:
    request = replace(ASK, video=counted(tmp_path / "a.mp4", frames, fps))
    assert numbers(request) == expected
    assert f"{fps} frames per second are taken as 16 by time" in " ".join(measure_given(request, TINY_VIDEO).notes)


def test_the_rate_that_is_asked_for_counts_and_not_the_models(tmp_path: Path) -> None:
    request = replace(ASK, video=counted(tmp_path / "a.mp4", 9, 24), fps=24)
    assert numbers(request) == list(range(9))


def test_a_strict_policy_refuses_another_rate(tmp_path: Path) -> None:
    path = counted(tmp_path / "a.mp4", 12, 24)
    with pytest.raises(ConfigError, match=r"fps-policy: .*a.mp4: expected 16 frames per second, found 24"):
        measure_given(replace(ASK, video=path, fps_policy="strict"), TINY_VIDEO)
    assert measure_given(replace(ASK, video=path, fps_policy="strict", fps=24), TINY_VIDEO).count == 9


def test_using_a_part_of_a_source_is_said(tmp_path: Path) -> None:
    path = counted(tmp_path / "a.mp4", 15, 16)
    (said,) = measure_given(replace(ASK, video=path), TINY_VIDEO).notes
    assert said.endswith("a.mp4: the first 9 of 15 frames are used; --frames 13 takes more")
    (said,) = measure_given(replace(ASK, video=path, frames=17, extend=True), TINY_VIDEO).notes
    assert said.endswith("a.mp4: the first 13 of 15 frames are used")
    write_png(tmp_path / "tall.png", np.zeros((64, 32, 3), np.uint8))
    (said,) = measure_given(replace(ASK, image=tmp_path / "tall.png"), TINY_VIDEO).notes
    assert "32 x 64 pixels are scaled to cover 48 x 32, and 67% of them cut off; --aspect 9:16 is nearer" in said


def test_a_source_of_the_wrong_length_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = counted(tmp_path / "a.mp4", 15, 16)
    with pytest.raises(ConfigError, match=r"more than the 13 that .*a.mp4 gives, found 13; .* pass --frames 93"):
        measure_given(replace(ASK, video=path, frames=13, extend=True), TINY_VIDEO)
    with pytest.raises(ConfigError, match=r"at most the 13 that .* gives to translate, found 17; pass --frames 13"):
        measure_given(replace(ASK, video=path, frames=17), TINY_VIDEO)
    with pytest.raises(DataError, match="expected at least 5 frames to translate, found 3"):
        measure_given(replace(ASK, video=counted(tmp_path / "b.mp4", 3, 16)), TINY_VIDEO)


def test_a_resampled_video_ends_with_its_last_frame(tmp_path: Path) -> None:
    request = replace(ASK, video=counted(tmp_path / "a.mp4", 3, 4), frames=9)
    assert numbers(request) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert len(list(read_video(tmp_path / "a.mp4", 9))) == 3
