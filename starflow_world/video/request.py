"""The request for a generated video. Light to import: its fields are flags of `starflow-world generate`."""

import math
from dataclasses import dataclass
from pathlib import Path

from starflow_world.config.prompts import check_times, timed_prompts
from starflow_world.errors import ConfigError

FPS_POLICIES, VIDEO_CODECS = ("time", "strict"), ("h264", "h265")


@dataclass(frozen=True)
class Request:
    """Request for a video from text, and from an image or a video. Raises ConfigError for conflicting fields."""

    prompt: str = ""
    """Text that describes the video; "0: A dog runs. 40: It sleeps." changes it at frame 40."""
    negative_prompt: str = ""
    """Text that guidance moves away from; empty: that of no prompt, as published."""
    frames: int = 81
    """Frames of the result: 1 + 4k, such as 81, 161, 481; past the model's window it slides."""
    aspect: str = "16:9"
    """Aspect ratio: 21:9, 16:9, 3:2, 5:4, 1:1, 4:5, 2:3, 9:16 or 9:21."""
    fps: int = 0
    """Frames per second, which the model reads; 0: as it was trained."""
    guidance: float | None = None
    """Weight by which predictions move away from those of an empty prompt; 0: no guidance; None: the model's own."""
    seed: int = 0
    """Seed; the same seed gives the same video."""
    image: Path | None = None
    """First frame."""
    video: Path | None = None
    """Clip to translate, or to go on with (--extend)."""
    extend: bool = False
    """Go on with the video instead of translating it."""
    fps_policy: str = "time"
    """A video of another frame rate: time (resampled by time) or strict (refused)."""
    codec: str = "h264"
    """Codec of the MP4: h264 or h265."""
    quality: int | None = None
    """CRF of the codec, 0 (exact) to 51 (small); None: the codec's own."""
    png: bool = False
    """Also write each frame of a video as PNG, into a folder NAME-frames."""

    def __post_init__(self) -> None:
        from starflow_world.config.video import latent_frames

        check_times(self.prompts, max(self.frames, 1), "prompt: expected frames")
        if self.image is not None and self.video is not None:
            raise ConfigError(f"image, video: expected one of them at most, found {self.image} and {self.video}")
        if self.extend and self.video is None:
            raise ConfigError("extend: expected a video to go on with, found none")
        if self.fps_policy not in FPS_POLICIES:
            expected = " or ".join(FPS_POLICIES)
            raise ConfigError(f"fps-policy: expected {expected}, found {self.fps_policy!r:.40}")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ConfigError(f"guidance: expected a number >= 0, found {self.guidance}")
        if self.codec not in VIDEO_CODECS:
            raise ConfigError(f"codec: expected {' or '.join(VIDEO_CODECS)}, found {self.codec!r:.40}")
        if self.quality is not None and not 0 <= self.quality <= 51:
            raise ConfigError(f"quality: expected a CRF from 0 to 51, found {self.quality}")
        if self.negative_prompt and self.guidance == 0:
            raise ConfigError(f"negative-prompt: expected guidance > 0 with {self.negative_prompt!r:.60}, found 0")
        if self.seed < 0 or self.fps < 0:
            raise ConfigError(f"seed, fps: expected numbers >= 0, found {self.seed}, {self.fps}")
        if latent_frames(self.frames) == 1 and (self.image is not None or self.video is not None):
            raise ConfigError("frames: expected at least 5 after an image or a video, found 1")

    @property
    def prompts(self) -> tuple[tuple[int, str], ...]:
        """Return the texts of the prompt and the frames from which they hold; the first is frame 0."""
        return timed_prompts(self.prompt)
