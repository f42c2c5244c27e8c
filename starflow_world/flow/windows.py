"""Which frames a network sees at a time: the windows of the deep block, and those of a denoiser.

The deep block holds W frames. When the window is full its last C frames begin a new one (STARFlow-V, long videos): they
are encoded again after the text, with positions from 0. What frame t sees depends on t alone.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from starflow_world.errors import ConfigError


class Span(NamedTuple):
    """Frames begin, ..., end - 1 in one window of the deep block; those before `known` were in an earlier window."""

    begin: int
    known: int
    end: int


def spans(frames: int, window: int, context: int, breaks: Iterable[int] = ()) -> Iterator[Span]:
    """Yield the windows of a clip of `frames` frames; window W >= 1 holds more than `context` C frames. A window also
    ends at each of `breaks`; unless it is full, the next one then begins where it began."""
    begin, known, stops = 0, 0, sorted(stop for stop in set(breaks) if 0 < stop < frames)
    while known < frames:
        end = min(begin + window, next((stop for stop in stops if stop > known), frames))
        yield Span(begin, known, end)
        begin, known = end - context if end == begin + window else begin, end


def denoise_spans(frames: int, *, window: int, overlap: int, look_ahead: int) -> Iterator[tuple[slice, slice]]:
    """Yield the windows in which a denoiser cleans a clip: the frames that it sees, and which of those are kept.

    Consecutive windows share `overlap` frames. Each frame is kept from a window that shows its future, up to
    `look_ahead` frames and half the overlap; the rest of the overlap is its past. Windows hold noisy latents only, as
    in training (the published program feeds denoised frames to the next window). Raises ConfigError.
    """
    if not 0 <= overlap < window:
        raise ConfigError(f"overlap: expected 0 <= overlap < window {window}, found {overlap}")
    later, done = min(look_ahead, overlap // 2), 0
    while done < frames:
        start = max(min(done - overlap + later, frames - window), 0)
        end = min(start + window, frames)
        until = end if end == frames else end - later
        yield slice(start, end), slice(done - start, until - start)
        done = until
