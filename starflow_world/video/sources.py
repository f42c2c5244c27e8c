"""The picture or video that a request gives: measured before a model is loaded, then read in the model's own time.

A video of another frame rate is resampled: frame k of the model is the one that is shown k / fps seconds after the
first. Of a clip the first 1 + 4k frames are used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from starflow_world.config.video import ASPECTS, FRAMES, VideoConfig
from starflow_world.errors import ConfigError, DataError
from starflow_world.io.media import measure_video, read_picture, read_video, read_video_at
from starflow_world.video.request import Request

SAME_RATE = 0.01
"""Relative difference of frame rates that counts as none."""
LOST = 0.05
"""Share of a source's picture that may be cut off without a word."""


@dataclass(frozen=True)
class Given:
    """The frames that a request gives: `count` is 0, 1 or 1 + 4k at `rate` frames per second (None: as they are in
    the file); `notes` say what of the source is not used as it is."""

    count: int = 0
    rate: float | None = None
    notes: tuple[str, ...] = ()

    def read(self, request: Request) -> Iterator[np.ndarray]:
        """Yield the frames (H, W, 3) u8. Raises DataError."""
        if request.image is not None:
            yield read_picture(request.image)
        elif request.video is not None and self.rate is None:
            yield from read_video(request.video, self.count)
        elif request.video is not None and self.rate is not None:
            yield from read_video_at(request.video, self.rate, self.count)


def measure_given(request: Request, config: VideoConfig) -> Given:
    """Measure what a request gives, without its model. Raises ConfigError for sizes, numbers of frames and rates that
    do not fit each other, DataError for a file that is no picture or video."""
    size = config.size(request.aspect)
    if request.image is not None:
        return Given(1, notes=_cut(str(request.image), read_picture(request.image), size, request.aspect))
    if request.video is None:
        return Given()
    path, wanted = request.video, request.fps or config.fps
    length, rate = measure_video(path)
    notes = _cut(str(path), next(read_video(path, 1)), size, request.aspect)
    other = rate > 0 and abs(rate - wanted) > SAME_RATE * wanted
    if other and request.fps_policy == "strict":
        raise ConfigError(f"fps-policy: {path}: expected {wanted} frames per second, found {rate:g}; convert it, or "
                          "pass --fps-policy time")
    if other:
        notes += (f"{path}: {rate:g} frames per second are taken as {wanted} by time",)
        length = max(math.floor(length * wanted / rate + 0.25), 1)
    count = _used(request, length)
    if count < length:
        rest = f"; --frames {_whole(length)} takes more" if not request.extend and _whole(length) > count else ""
        notes += (f"{path}: the first {count} of {length} frames are used{rest}",)
    return Given(count, wanted if other else None, notes)


def nearest_aspect(frame: np.ndarray) -> str:
    """Return the aspect ratio of the model nearest to that of a frame (H, W, 3)."""
    ratio = frame.shape[1] / frame.shape[0]
    return min(ASPECTS, key=lambda name: abs(math.log(ASPECTS[name] / ratio)))


def _whole(frames: int) -> int:
    """Return the largest 1 + 4k up to `frames`."""
    return (frames - 1) // FRAMES * FRAMES + 1


def _used(request: Request, length: int) -> int:
    """Return how many of the `length` frames of a source are used."""
    whole = _whole(length)
    if request.extend and request.frames <= whole:
        raise ConfigError(f"frames: expected more than the {whole} that {request.video} gives, found {request.frames}; "
                          f"--frames counts these too: pass --frames {whole + 80} to go on with 80")
    if not request.extend and whole < 1 + FRAMES:
        raise DataError(f"{request.video}: expected at least {1 + FRAMES} frames to translate, found {length}")
    if not request.extend and request.frames > whole:
        raise ConfigError(f"frames: expected at most the {whole} that {request.video} gives to translate, found "
                          f"{request.frames}; pass --frames {whole}, or --extend to go on with it")
    return whole if request.extend else request.frames


def _cut(path: str, frame: np.ndarray, size: tuple[int, int], aspect: str) -> tuple[str, ...]:
    """Say what is cut off where a frame has another aspect than the result, (height, width)."""
    height, width = frame.shape[:2]
    kept = min(size[0] / height, size[1] / width) / max(size[0] / height, size[1] / width)
    if 1 - kept <= LOST:
        return ()
    better = nearest_aspect(frame)
    advice = f"; --aspect {better} is nearer" if better != aspect else ""
    return (f"{path}: {width} x {height} pixels are scaled to cover {size[1]} x {size[0]}, and {1 - kept:.0%} of them "
            f"cut off{advice}",)
