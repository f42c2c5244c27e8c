"""Config of text-to-video models (STARFlow-V): sizes, frame sizes by aspect ratio, and prompts.

The published model reads everything except frames from its prompt: content, frames per second, noise level, aspect.
"""

from dataclasses import dataclass, field
from pathlib import Path

from starflow_world.config.published import published_values
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
"""Pixels per column and per row of a token."""
FRAMES = 4
"""Pixel frames per latent frame, except the first, which encodes one pixel frame."""
TASKS = ("", "extend", "last", "v2v")


@dataclass(frozen=True)
class VideoConfig:
    """Config of a text-to-video model: everything but its weights."""

    name: str
    flow: FlowConfig
    text: str = "google/flan-t5-xl"
    """Folder or hub name of the T5 encoder."""
    codec: str = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    """Folder or hub name of the Wan VAE."""
    side: int = 640
    """Frame size: frames of every aspect have about side**2 pixels."""
    fps: int = 16
    noise_level: float = 0.5
    later: float = 0.6
    """Factor on all latents of a clip except the first."""
    window: int = 21
    context: int = 16
    denoise_window: int = 21
    denoise_overlap: int = 10
    guidance: float = 3.5
    aspect: str = "16:9"
    """Aspect ratio of the frames when the model is used as a world."""
    action_space: str = NO_ACTIONS
    """Action space as JSON when the model is used as a world."""
    action_scale: ActionScale | None = None
    """Scaling of actions when the model is used as a world; None: none."""
    max_episode_steps: int = 64
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(tolerance=0.01, chunk=512, max_sweeps=64))
    """Decoding settings; the residual is an RMS in noise units. The published 1e-3 on squares is about 0.03."""

    def __post_init__(self) -> None:
        between(self, PIXELS, 1 << 14, "side")
        between(self, 1, 1 << 14, "window", "denoise_window", "fps")
        between(self, 0, 1 << 14, "guidance")
        positive(self, "noise_level")
        positive(self, "later")
        if self.flow.components > 1 or self.flow.features_width:
            found = (self.flow.components, self.flow.features_width)
            raise ConfigError(f"flow.components, features_width: expected (1, 0), as video models have, found {found}")
        if not 1 <= self.context < max(self.window, 2):
            raise ConfigError(f"context: expected 1 <= context < window {self.window}, found {self.context}")
        self.size(self.aspect)
        if not 0 <= self.denoise_overlap < self.denoise_window:
            expected = f"less than denoise_window {self.denoise_window}"
            raise ConfigError(f"denoise_overlap: expected {expected}, found {self.denoise_overlap}")

    def size(self, aspect: str) -> tuple[int, int]:
        """Return the height and width of a frame, (H, W), in pixels."""
        if aspect not in ASPECTS:
            raise ConfigError(f"aspect: expected one of {', '.join(ASPECTS)}, found {aspect!r}")
        root = ASPECTS[aspect] ** 0.5
        height, width = (max(round(side / PIXELS), 1) * PIXELS for side in (self.side / root, self.side * root))
        return height, width

    def grid(self, aspect: str) -> tuple[int, int]:
        """Return the number of tokens per column and per row, (h, w)."""
        height, width = self.size(aspect)
        return height // PIXELS, width // PIXELS

    def world(self) -> WorldConfig:
        """Return the config of the model as a world: a step is a latent frame, the text of an episode is put into the
        model's prompt, and actions are added to the inputs of the deep block."""
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
        """Return the prompt of the text encoder for `text`; `fps` 0 for an image. `task`: "", extend, last or v2v."""
        if task not in TASKS:
            raise ConfigError(f"task: expected one of {TASKS}, found {task!r}")
        text = f"({task}) {text}" if task else text
        text = f"A video with {fps} fps:\n{text}\n" if fps > 0 else f"An image:\n{text}\n"
        return f"Noise Level {int(1000 * self.noise_level)}:\n{text}\n in a {aspect} aspect ratio.\n"


def latent_frames(frames: int) -> int:
    """Return the number of latent frames of a clip of 1 + 4k frames."""
    if frames < 1 or (frames - 1) % FRAMES:
        near = max(round((frames - 1) / FRAMES), 0) * FRAMES + 1
        raise ConfigError(f"frames: expected 1 + {FRAMES}k, such as {near}, found {frames}")
    return 1 + (frames - 1) // FRAMES


def load_video_config(name: Path | str, text_width: int = 0) -> VideoConfig:
    """Load the config in a YAML file, or the one with that name in configs/, such as starflow-v-7b.

    A file of the published program, `arguments:`, is read too; `text_width` is that of its text's states (0: that of
    the T5 encoder that it names).
    """
    path = Path(name) if is_file(name) else CONFIGS / f"{str(name).replace('-', '_')}.yaml"
    if not is_file(path):
        models = [file for file in CONFIGS.glob("starflow*.yaml") if "train" not in read_yaml(file)]  # no recipes
        known = ", ".join(sorted(file.stem.replace("_", "-") for file in models))
        raise ConfigError(f"config: expected a YAML file or one of {known}, found {str(name)!r:.120}")
    values = read_yaml(path)
    if "arguments" not in values:
        return from_dict(VideoConfig, values)
    try:
        if others := [key for key in values if key != "arguments"]:
            raise ConfigError(f"expected arguments alone, found also {others[0]!s:.80}")
        return from_dict(VideoConfig, published_values(
            path.stem, values["arguments"], text_width=text_width, pixels=PIXELS, latent_frames=latent_frames
        ))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
