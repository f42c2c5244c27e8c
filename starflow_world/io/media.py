"""Pictures and videos: H.264 and H.265 through PyAV, written frame by frame; PNG through OpenCV."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np

from starflow_world.errors import DataError
from starflow_world.io.files import atomic, is_file

INK, PAPER = (235, 235, 235), (24, 24, 24)
ZOOM = 4
MOST_PIXELS = 1 << 24  # pixels of the largest frame that is read
CODECS: dict[str, tuple[str, dict[str, str], str, int]] = {  # encoder, its options, tag for players, least side
    "h264": ("libx264", {}, "", 2),
    "h265": ("libx265", {"x265-params": "log-level=error"}, "hvc1", 64),  # smaller frames damage its memory
}
FRAGMENT = 2  # seconds of a growing video that are written at a time
DAMAGE = (av.FFmpegError, cv2.error, ValueError, OSError, IndexError)


class VideoWriter:
    """Writer of frames (H, W, 3) u8 to an MP4; the file gets its name when the block ends without an error.

    codec: one of CODECS; quality: its CRF from 0 (exact) to 51, None: its own. `frames` counts those that were added.
    """

    def __init__(self, path: Path | str, fps: int, *, codec: str = "h264", quality: int | None = None) -> None:
        self._path = Path(path).with_suffix(".mp4")
        self._fps, self._codec = fps, codec
        self._options = {"crf": str(quality)} if quality is not None else {}
        self._stream: av.VideoStream | None = None
        self.frames = 0

    def __enter__(self) -> "VideoWriter":
        with ExitStack() as files:
            temporary = files.enter_context(atomic(self._path))
            self._container = files.enter_context(av.open(str(temporary), "w", format="mp4"))
            files.push(self._flush)
            self._files = files.pop_all()
        return self

    def add(self, frame: np.ndarray) -> None:
        """Append one frame; all frames have one size, cropped to even numbers of pixels."""
        height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
        if self._stream is None:
            self._stream = self._begin(height, width)
        size = self._stream.height, self._stream.width
        if (height, width) != size:
            raise DataError(f"video: expected {size[0]} x {size[1]} pixels, found {height} x {width}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def _begin(self, height: int, width: int) -> av.VideoStream:
        name, options, tag, least = CODECS[self._codec]
        if min(height, width) < least:
            raise DataError(f"video: expected at least {least} x {least} pixels for {self._codec}, found {height} x "
                            f"{width}; choose h264")
        stream = self._container.add_stream(name, rate=self._fps, options={**options, **self._options})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if tag:
            stream.codec_context.codec_tag = tag
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def _flush(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode(None))


class GrowingVideo(VideoWriter):
    """Writer of frames (H, W, 3) u8 to an H.264 MP4 that plays while it grows: a new file at `path`, to which FRAGMENT
    seconds are added at a time. What is written stays whole when the process is killed; when the block ends, even with
    an error, all frames are. Equal frames give equal bytes (with equal versions of the encoder)."""

    def __enter__(self) -> "GrowingVideo":
        self._options = {"g": str(FRAGMENT * self._fps), "sc_threshold": "0", "tune": "zerolatency", "threads": "1"}
        with ExitStack() as files:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = files.enter_context(self._path.open("wb", buffering=0))
            self._boxes = BytesIO()
            files.callback(self._grow)
            self._container = files.enter_context(av.open(
                _Unseekable(self._boxes), "w", format="mp4",
                options={"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"},
            ))
            files.callback(self._flush, None)
            self._files = files.pop_all()
        return self

    def add(self, frame: np.ndarray) -> None:
        """Append one frame; write the fragment that is complete, if one is."""
        super().add(frame)
        self._grow()

    def _grow(self) -> None:
        """Write all complete boxes in one call, so that a kill leaves none of them half-written."""
        if self._boxes.tell():
            self._file.write(self._boxes.getvalue())
            self._boxes.seek(0)
            self._boxes.truncate()


class _Unseekable:
    """The end of a file to which a muxer can only append."""

    def __init__(self, file: BytesIO) -> None:
        self.write = file.write


@contextmanager
def _opened(path: Path | str | BytesIO) -> Iterator[av.container.InputContainer]:
    """Open a picture or video without decoding frames. Frames larger than MOST_PIXELS are never decoded."""
    if not isinstance(path, BytesIO) and not is_file(path):
        raise ValueError("no file")
    limit, source = {"max_pixels": str(MOST_PIXELS)}, path if isinstance(path, BytesIO) else str(path)
    with av.open(source, "r", options=limit) as container:  # opening may decode a frame to determine its size
        codec = container.streams.video[0].codec_context
        if codec is None:
            raise ValueError("no known codec")
        codec.options = limit
        if not 0 < codec.width * codec.height <= MOST_PIXELS:
            raise ValueError(f"frames of more than {MOST_PIXELS} pixels, or of no known size; make them smaller")
        yield container


def read_picture(path: Path | str) -> np.ndarray:
    """Read a picture file as (H, W, 3) u8. Raises DataError."""
    try:
        with _opened(path):
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError("none that can be read")
    except DAMAGE as error:
        raise DataError(f"{path}: expected a picture (PNG, JPEG), found {error}") from None
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def decode_picture(data: bytes, where: str) -> np.ndarray:
    """Decode the bytes of a PNG or JPEG as (H, W, 3) u8. Raises DataError that begins with `where`."""
    try:
        with _opened(BytesIO(data)):
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError("none that can be read")
    except DAMAGE as error:
        raise DataError(f"{where}: expected a picture (PNG, JPEG), found {error}") from None
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def read_video(path: Path | str, most: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yield up to `most` frames (H, W, 3) u8 of a video file from frame `start` on, at least one. Raises DataError."""
    count = 0
    try:
        with _opened(path) as container:
            for frame in islice(container.decode(video=0), start, start + most):
                yield frame.to_ndarray(format="rgb24")
                count += 1
    except DAMAGE as error:
        raise DataError(f"{path}: expected a video, found {error}") from None
    if not count:
        raise DataError(f"{path}: expected a video, found no frames")


def read_video_from(path: Path | str, seconds: float, most: int) -> Iterator[np.ndarray]:
    """Yield up to `most` frames (H, W, 3) u8 of a video file from the one shown at `seconds` on. Raises DataError."""
    try:
        with _opened(path) as container:
            stream = container.streams.video[0]
            half = 0.5 / float(stream.average_rate or 1)
            container.seek(int(seconds * av.time_base))  # to the key frame at or before that time
            late = (frame for frame in container.decode(video=0) if (frame.time or 0.0) >= seconds - half)
            for frame in islice(late, most):
                yield frame.to_ndarray(format="rgb24")
    except DAMAGE as error:
        raise DataError(f"{path}: expected a video, found {error}") from None


def read_video_at(path: Path | str, fps: float, count: int) -> Iterator[np.ndarray]:
    """Yield `count` frames (H, W, 3) u8 of a video file, those shown 0, 1 / fps, 2 / fps ... seconds after the first;
    the last stays for as long as it takes. Raises DataError."""
    done, shown, first = 0, None, 0.0
    try:
        with _opened(path) as container:
            for frame in container.decode(video=0):
                if frame.time is None:
                    raise ValueError("frames without times")
                first = frame.time if shown is None else first
                while shown is not None and done < count and (done + 0.25) / fps < frame.time - first:
                    yield shown.to_ndarray(format="rgb24")  # times in files are rounded: a quarter of a frame
                    done += 1
                if done == count:
                    return
                shown = frame
            while shown is not None and done < count:
                yield shown.to_ndarray(format="rgb24")
                done += 1
    except DAMAGE as error:
        raise DataError(f"{path}: expected a video, found {error}") from None
    if shown is None:
        raise DataError(f"{path}: expected a video, found no frames")


def measure_video(path: Path | str) -> tuple[int, float]:
    """Return the number of frames and the frames per second of a video file, without decoding. Raises DataError."""
    try:
        with _opened(path) as container:
            fps = float(container.streams.video[0].average_rate or 0)
            return sum(bool(packet.size) for packet in container.demux(video=0)), fps
    except DAMAGE as error:
        raise DataError(f"{path}: expected a video, found {error}") from None


def fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a frame (H, W, 3) u8 to cover (height, width), and crop it at the centre."""
    height, width = size
    factor = max(height / frame.shape[0], width / frame.shape[1])
    large = max(round(frame.shape[0] * factor), height), max(round(frame.shape[1] * factor), width)
    if large != frame.shape[:2]:
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        frame = np.asarray(cv2.resize(frame, (large[1], large[0]), interpolation=method), np.uint8)
    top, left = (large[0] - height) // 2, (large[1] - width) // 2
    return np.ascontiguousarray(frame[top : top + height, left : left + width])


def png_bytes(picture: np.ndarray) -> bytes:
    """Return a picture (H, W, 3) u8 as PNG."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"picture: expected (H, W, 3) uint8, found {picture.dtype} {picture.shape}")
    return bytes(data)


def write_png(path: Path | str, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) u8 as PNG, atomically."""
    data = png_bytes(picture)
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def enlarge(frame: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge a frame (H, W, 3): every pixel becomes a square of factor x factor pixels."""
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def caption(picture: np.ndarray, lines: Sequence[str], size: float = 0.45) -> np.ndarray:
    """Return the picture with lines of text on a strip below."""
    height = int(46 * size)
    strip = np.full((height * len(lines) + 6, picture.shape[1], 3), PAPER, np.uint8)
    for number, line in enumerate(lines):
        place = (8, height * (number + 1) - 3)
        cv2.putText(strip, line, place, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
    return np.concatenate((picture, strip))


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str], gap: int = 8) -> np.ndarray:
    """Return pictures of one height next to each other, each under its title."""
    parts: list[np.ndarray] = []
    for picture, title in zip(pictures, titles, strict=True):
        bar = np.full((24, picture.shape[1], 3), PAPER, np.uint8)
        cv2.putText(bar, title, (8, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
        column = np.concatenate((bar, picture))
        parts += [column, np.full((len(column), gap, 3), PAPER, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def compared(frames: Mapping[str, np.ndarray], lines: Sequence[str]) -> np.ndarray:
    """Return frames of a world, given by title, enlarged next to each other, with lines of text below."""
    return caption(side_by_side([enlarge(frame, ZOOM) for frame in frames.values()], list(frames)), lines)


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, gap: int = 6) -> np.ndarray:
    """Return pictures of one size as a contact sheet with `columns` columns."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return sheet
