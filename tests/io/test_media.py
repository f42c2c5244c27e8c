"""Videos can be played back, pictures read back, nothing half-written is left, and no file makes a reader fall over."""

from contextlib import suppress
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from starflow_world.errors import DataError
from starflow_world.io import media
from starflow_world.io.media import (
    GrowingVideo,
    VideoWriter,
    caption,
    contact_sheet,
    decode_picture,
    enlarge,
    read_picture,
    read_video,
    read_video_from,
    side_by_side,
    write_png,
)


def shades(count: int) -> list[np.ndarray]:
    return [np.full((48, 64, 3), 20 + 10 * index, np.uint8) for index in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A picture and a video."""
    picture, video = tmp_path / "picture.png", tmp_path / "clip.mp4"
    write_png(picture, np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    with VideoWriter(video, fps=5) as writer:
        for frame in shades(4):
            writer.add(frame)
    return picture, video


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


def test_a_video_is_read_from_the_frame_of_a_time_on(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps=5) as video:
        for frame in shades(9):
            video.add(frame)
    for first in (0, 3, 8):
        seen = [int(frame.mean().round()) for frame in read_video_from(tmp_path / "clip.mp4", first / 5, 3)]
        assert np.abs(np.subtract(seen, [20 + 10 * index for index in range(first, min(first + 3, 9))])).max() <= 3
    assert not list(read_video_from(tmp_path / "clip.mp4", 7.0, 3))
    with pytest.raises(DataError, match=r"nothing\.mp4: expected a video"):
        list(read_video_from(tmp_path / "nothing.mp4", 0.0, 3))


def test_a_picture_in_bytes_is_decoded_and_one_that_is_too_large_refused_before() -> None:
    small = cv2.imencode(".png", np.full((9, 8, 3), (1, 2, 3), np.uint8))[1].tobytes()
    assert decode_picture(small, "here").tolist() == [[[3, 2, 1]] * 8] * 9
    side = int(media.MOST_PIXELS**0.5) + 8
    large = cv2.imencode(".png", np.zeros((side, side), np.uint8))[1].tobytes()
    for wrong in (large, small[:40], b"", b"no picture"):
        with pytest.raises(DataError, match="here: expected a picture"):
            decode_picture(wrong, "here")


def test_codec_and_quality_are_those_that_are_asked_for(tmp_path: Path) -> None:
    noise, sizes = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), {}
    for codec, name in (("h264", "h264"), ("h265", "hevc")):
        for quality in (5, None, 50):
            path = tmp_path / f"{codec}-{quality}.mp4"
            with VideoWriter(path, 5, codec=codec, quality=quality) as video:
                for _ in range(3):
                    video.add(noise)
            with av.open(str(path)) as container:
                assert container.streams.video[0].codec_context.name == name
            sizes[codec, quality] = path.stat().st_size
        assert sizes[codec, 5] > sizes[codec, None] > sizes[codec, 50]


def test_frames_too_small_for_a_codec_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 5, codec="h265") as video, pytest.raises(DataError, match="found 48 x 64"):
        video.add(shades(1)[0])


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


def test_what_is_too_large_is_refused_before_it_is_decoded(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, video = files
    assert media.MOST_PIXELS == 2**24
    monkeypatch.setattr(media, "MOST_PIXELS", 48 * 64)
    assert read_picture(picture).shape == (48, 64, 3)
    assert len(list(read_video(video, 9))) == 4
    monkeypatch.setattr(media, "MOST_PIXELS", 48 * 64 - 1)
    monkeypatch.setattr(cv2, "imread", None)
    with pytest.raises(DataError, match=r"picture\.png: expected a picture .* more than 3071 pixels"):
        read_picture(picture)
    with pytest.raises(DataError, match=r"clip\.mp4: expected a video, .* more than 3071 pixels"):
        list(read_video(video, 9))


def test_a_video_whose_frames_grow_is_refused_where_they_are_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content, rng = tmp_path / "clip.h264", b"", np.random.default_rng(0)
    for side in (32, 64):
        with av.open(str(path), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=5)
            stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
            for _ in range(40):  # more than are looked at to learn their size
                frame = rng.integers(0, 256, (side, side, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux(stream.encode(None))
        content += path.read_bytes()
    path.write_bytes(content)
    assert [frame.shape[0] for frame in read_video(path, 99)] == [32] * 40 + [64] * 40
    monkeypatch.setattr(media, "MOST_PIXELS", 64 * 64 - 1)
    assert len(list(read_video(path, 20))) == 20
    with pytest.raises(DataError, match=r"clip\.h264: expected a video"):
        list(read_video(path, 99))


def test_a_picture_that_opencv_refuses_to_read_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "wide.pgm").write_bytes(b"P5 1048577 1 255\n" + bytes(1048577))
    with pytest.raises(DataError, match=r"wide\.pgm: expected a picture .*, found OpenCV"):
        read_picture(tmp_path / "wide.pgm")


def test_damaged_pictures_and_videos_are_read_or_refused(files: tuple[Path, Path]) -> None:
    rng, refused = np.random.default_rng(0), 0
    for path, read in zip(files, (read_picture, lambda path: list(read_video(path, 9))), strict=True):
        content = path.read_bytes()
        for cut in range(30):
            damaged = bytearray(content if cut % 3 else content[: len(content) * cut // 30])
            for _ in range(10 * bool(cut % 3)):
                damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
            path.write_bytes(damaged)
            try:
                read(path)
            except DataError as error:
                refused += str(path) in str(error)
    assert refused >= 20


def changing(count: int) -> list[np.ndarray]:
    colours = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [enlarge(picture, 16) for picture in colours]


def test_a_growing_video_plays_at_every_moment_and_in_the_end_shows_every_frame(tmp_path: Path) -> None:
    frames, path, now = changing(50), tmp_path / "clip.mp4", tmp_path / "now.mp4"
    shown: set[int] = set()
    with GrowingVideo(path, fps=5) as video:
        for count, frame in enumerate(frames, 1):
            video.add(frame)
            now.write_bytes(path.read_bytes())  # what a kill at this moment would leave
            if count > 10:
                found = list(read_video(now, 100))
                assert count - 10 <= len(found) <= count
                assert np.abs(found[-1].astype(int) - frames[len(found) - 1]).mean() < 8
                shown.add(len(found))
    assert shown == {10, 20, 30, 40}
    assert len(list(read_video(path, 100))) == 50


def test_a_growing_video_has_the_same_bytes_again_and_all_frames_after_an_error(tmp_path: Path) -> None:
    frames = changing(33)
    for name in ("a", "b"):
        with GrowingVideo(tmp_path / name, fps=5) as video:
            for frame in frames:
                video.add(frame)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with suppress(KeyError), GrowingVideo(tmp_path / "a", fps=5) as video:
        for frame in frames[:13]:
            video.add(frame)
        raise KeyError
    assert len(list(read_video(tmp_path / "a.mp4", 100))) == 13
