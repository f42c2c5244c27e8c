"""Videos can be played back, pictures read back, and nothing half-written is left."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from starflow_world.errors import DataError
from starflow_world.media import VideoWriter, caption, contact_sheet, enlarge, side_by_side, write_png


def shades(count: int) -> list[np.ndarray]:
    return [np.full((48, 64, 3), 20 + 10 * index, np.uint8) for index in range(count)]


def test_a_video_is_h264_and_gives_its_frames_back(tmp_path: Path) -> None:
    frames = shades(9)
    with VideoWriter(tmp_path / "clip.mp4", fps=5) as video:
        for frame in frames:
            video.add(frame)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(found) == len(frames)
    assert max(abs(a.astype(int) - b).max() for a, b in zip(found, frames, strict=True)) <= 6


def test_a_video_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def two_sizes() -> None:
        with VideoWriter(tmp_path / "clip.mp4", fps=5) as video:
            video.add(shades(1)[0])
            video.add(np.zeros((10, 10, 3), np.uint8))

    with pytest.raises(DataError, match="expected 48 x 64"):
        two_sizes()
    assert list(tmp_path.iterdir()) == []


class Broken:
    """An encoder that takes frames and cannot finish them."""

    height, width, pix_fmt = 48, 64, "yuv420p"

    def encode(self, picture: object) -> list[object]:
        if picture is None:
            raise OSError("the encoder is broken")
        return []


@pytest.mark.parametrize("failed", [True, False])
def test_an_encoder_that_breaks_leaves_nothing_and_hides_no_error(tmp_path: Path, failed: bool) -> None:
    def write() -> None:
        with VideoWriter(tmp_path / "clip.mp4", fps=5) as video:
            video._stream = Broken()  # type: ignore[assignment]
            video.add(shades(1)[0])
            if failed:
                raise ValueError("the caller's own")

    with pytest.raises(ValueError if failed else OSError, match="own" if failed else "broken"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_png_gives_its_pixels_back(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    write_png(tmp_path / "picture.png", picture)
    found = cv2.cvtColor(cv2.imread(str(tmp_path / "picture.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(found, picture)


def test_sheets_hold_every_picture_unchanged() -> None:
    frames = shades(5)
    sheet = contact_sheet(frames, columns=3, gap=6)
    assert sheet.shape == (2 * 54 + 6, 3 * 70 + 6, 3)
    assert (sheet[6 + 54 : 60 + 48, 6 + 70 : 76 + 64] == frames[4]).all()
    pair = side_by_side([enlarge(frames[0], 2), enlarge(frames[1], 2)], ["real", "imagined"])
    assert pair.shape[1] == 2 * 128 + 8
    assert (pair[-96:, :128] == frames[0][0, 0]).all()
    assert caption(pair, ["one", "two"])[: len(pair)].tobytes() == pair.tobytes()
