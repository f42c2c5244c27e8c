"""Text-to-video models (STARFlow-V): what fixes one besides its weights, the sizes of its pictures, and its prompts.

The published model reads everything but frames as text: what to show, frames per second, noise level, aspect.
"""

from dataclasses import dataclass, field
from pathlib import Path

from starflow_world.config.reading import between, from_dict, positive
from starflow_world.config.world import (
    NO_ACTIONS,
    ActionScale,
    CodecConfig,
    DecodeConfig,
    FlowConfig,
    PublishedConfig,
    TextConfig,
    WorldConfig,
)
from starflow_world.errors import ConfigError
from starflow_world.io.files import is_file
from starflow_world.io.yaml import read_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
ASPECTS = {  # width : height
    "21:9": 21 / 9, "16:9": 16 / 9, "3:2": 3 / 2, "5:4": 5 / 4, "1:1": 1.0,
    "4:5": 4 / 5, "2:3": 2 / 3, "9:16": 9 / 16, "9:21": 9 / 21,
}
PIXELS = 16
"""Pixels per column and row of a token."""
FRAMES = 4
"""Frames per latent frame, but for the first, which is a frame on its own."""
TASKS = ("", "extend", "last", "v2v")


@dataclass(frozen=True)
class VideoConfig:
    """Everything that fixes a text-to-video model but its weights."""

    name: str
    flow: FlowConfig
    text: str = "google/flan-t5-xl"
    """Folder or hub name of the T5 encoder."""
    codec: str = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    """Folder or hub name of the Wan VAE."""
    side: int = 640
    """Pictures of every aspect have about side**2 pixels."""
    fps: int = 16
    noise_level: float = 0.5
    later: float = 0.6
    """Factor on all latents of a clip but its first."""
    window: int = 21
    context: int = 16
    denoise_window: int = 21
    denoise_overlap: int = 10
    guidance: float = 3.5
    aspect: str = "16:9"
    """Of the model as a world, as the two that follow."""
    action_space: str = NO_ACTIONS
    """JSON of a Gymnasium space."""
    action_scale: ActionScale | None = None
    """As for worlds."""
    max_episode_steps: int = 64
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(tolerance=0.01, chunk=512, max_sweeps=64))
    """The residual is a root mean square in noise units; the published threshold of 1e-3 on squares is about 0.03."""

    def __post_init__(self) -> None:
        between(self, PIXELS, 1 << 14, "side")
        between(self, 1, 1 << 14, "window", "denoise_window", "fps")
        between(self, 0, 1 << 14, "guidance")
        positive(self, "noise_level")
        positive(self, "later")
        if self.flow.motion_width:
            raise ConfigError(f"flow.motion_width: expected 0, as video models have, found {self.flow.motion_width}")
        if not 1 <= self.context < max(self.window, 2):
            raise ConfigError(f"context: expected 1 <= context < window {self.window}, found {self.context}")
        self.size(self.aspect)
        if not 0 <= self.denoise_overlap < self.denoise_window:
            expected = f"less than denoise_window {self.denoise_window}"
            raise ConfigError(f"denoise_overlap: expected {expected}, found {self.denoise_overlap}")

    def size(self, aspect: str) -> tuple[int, int]:
        """Height and width of a picture, (H, W), in pixels."""
        if aspect not in ASPECTS:
            raise ConfigError(f"aspect: expected one of {', '.join(ASPECTS)}, found {aspect!r}")
        root = ASPECTS[aspect] ** 0.5
        height, width = (max(round(side / PIXELS), 1) * PIXELS for side in (self.side / root, self.side * root))
        return height, width

    def grid(self, aspect: str) -> tuple[int, int]:
        """Tokens per column and row, (h, w)."""
        height, width = self.size(aspect)
        return height // PIXELS, width // PIXELS

    def world(self) -> WorldConfig:
        """The model as a world: a step is a latent frame, the text of an episode stands in the model's own prompt, and
        actions are added to what the deep block sees."""
        height, width = self.size(self.aspect)
        prompt = self.prompt("{}", fps=self.fps, aspect=self.aspect)
        return WorldConfig(
            self.name, self.flow, height, width, CodecConfig("wan", PIXELS, self.flow.channels),
            TextConfig("published", self.flow.text_length, self.flow.text_width), decode=self.decode,
            noise_level=self.noise_level, window=self.window, context=self.context, action_space=self.action_space,
            action_scale=self.action_scale, max_episode_steps=self.max_episode_steps, reward="none",
            published=PublishedConfig(self.text, self.codec, prompt, self.later, self.guidance),
        )

    def prompt(self, text: str, *, fps: int, aspect: str, task: str = "") -> str:
        """What the text encoder reads for `text`; `fps` 0 for an image. `task`: "", extend, last or v2v."""
        if task not in TASKS:
            raise ConfigError(f"task: expected one of {TASKS}, found {task!r}")
        text = f"({task}) {text}" if task else text
        text = f"A video with {fps} fps:\n{text}\n" if fps > 0 else f"An image:\n{text}\n"
        return f"Noise Level {int(1000 * self.noise_level)}:\n{text}\n in a {aspect} aspect ratio.\n"


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of 1 + 4k frames."""
    if frames < 1 or (frames - 1) % FRAMES:
        near = max(round((frames - 1) / FRAMES), 0) * FRAMES + 1
        raise ConfigError(f"frames: expected 1 + {FRAMES}k, such as {near}, found {frames}")
    return 1 + (frames - 1) // FRAMES


def load_video_config(name: Path | str) -> VideoConfig:
    """The config in a YAML file, or the one in configs/ of that name, such as starflow-v-7b."""
    path = Path(name) if is_file(name) else CONFIGS / f"{str(name).replace('-', '_')}.yaml"
    if not is_file(path):
        models = [file for file in CONFIGS.glob("starflow*.yaml") if "train" not in read_yaml(file)]  # no recipes
        known = ", ".join(sorted(file.stem.replace("_", "-") for file in models))
        raise ConfigError(f"config: expected a YAML file or one of {known}, found {str(name)!r:.120}")
    return from_dict(VideoConfig, read_yaml(path))
