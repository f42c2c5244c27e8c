"""Configuration: frozen dataclasses, read from YAML or JSON, at most two deep.

Unknown keys, wrong types and values out of range raise `ConfigError`; nothing is interpolated or evaluated.
"""

import dataclasses
import difflib
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError
from .plain_yaml import parse_yaml

LARGEST_FILE = 1 << 15
MOST_LAYERS, LARGEST_SIZE, MOST_TOKENS = 1 << 10, 1 << 20, 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the flow (STARFlow-V, sections 3.1 and 3.2); defaults that are switches (`neighbourhood`) are off."""

    channels: int
    shallow_blocks: int = 5
    shallow_layers: int = 2
    shallow_width: int = 3072
    deep_layers: int = 24
    deep_width: int = 4096
    head_width: int = 64
    text_length: int = 0
    text_width: int = 0
    position_scale: float = 32.0
    neighbourhood: int = 0
    """Odd size of the neighbourhood in the previous frame that is added to the deep block's inputs; 0: none."""
    draft_width: int = 0
    """Width of the network that drafts the next frame, the first guess of decoding; 0: the previous frame is it."""
    denoiser_layers: int = 0
    denoiser_width: int = 3072
    denoiser_window: int = 10
    """Frames before the latest visible one that a denoiser token attends to; 0: its own frame alone."""
    denoiser_look_ahead: tuple[int, ...] = ()
    """Future frames that each denoiser layer may see; empty: none in any layer."""
    denoiser_text: bool = True
    """Whether the denoiser reads the text."""
    denoiser_step: float = 0.3
    """Clean latents are noisy latents minus this times the denoiser's output."""

    def __post_init__(self) -> None:
        _between(self, 1, LARGEST_SIZE, "channels", "shallow_width", "deep_width", "denoiser_width", "head_width")
        _between(self, 0, LARGEST_SIZE, "text_length", "text_width", "neighbourhood", "draft_width", "denoiser_window")
        _between(self, 0, MOST_LAYERS, "shallow_blocks", "shallow_layers", "denoiser_layers")
        _between(self, 1, MOST_LAYERS, "deep_layers")
        _positive(self, "position_scale")
        for width in (self.shallow_width, self.deep_width, self.denoiser_layers and self.denoiser_width):
            if width % self.head_width:
                raise ConfigError(f"widths: expected multiples of head_width {self.head_width}, found {width}")
        if self.head_width < 20 or self.head_width % 4:
            raise ConfigError(f"head_width: expected 20 + 4k (rotary pairs for three axes), found {self.head_width}")
        if self.neighbourhood and self.neighbourhood % 2 == 0:
            raise ConfigError(f"neighbourhood: expected 0 or an odd number, found {self.neighbourhood}")
        ahead, layers = self.denoiser_look_ahead, self.denoiser_layers
        if ahead and (len(ahead) != layers or not 0 <= min(ahead) <= max(ahead) <= self.denoiser_window):
            expected = f"{layers} numbers from 0 to denoiser_window {self.denoiser_window}"
            raise ConfigError(f"denoiser_look_ahead: expected {expected}, found {ahead}")


@dataclass(frozen=True)
class CodecConfig:
    """How frames become latents: `patch` x `patch` pixels make one site of `components` numbers by the codec `kind`."""

    kind: str = "pca"
    patch: int = 8
    components: int = 16
    merge: int = 1
    """Sites of merge x merge form one token, so a token has components * merge**2 channels."""

    def __post_init__(self) -> None:
        _one_of(self, "kind", ("pca", "patch"))
        _between(self, 1, 1 << 10, "patch", "components", "merge")
        if self.kind == "pca":
            _between(self, 1, 3 * self.patch**2, "components")


@dataclass(frozen=True)
class TextConfig:
    """`kind` none: the world takes no text; t5: a T5 encoder of these sizes over bytes, trained with the world."""

    kind: str = "none"
    length: int = 32
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        _one_of(self, "kind", ("none", "t5"))
        _between(self, 1, LARGEST_SIZE, "length", "width")
        _between(self, 1, MOST_LAYERS, "layers", "heads")
        if self.width % self.heads:
            raise ConfigError(f"width: expected a multiple of heads {self.heads}, found {self.width}")


@dataclass(frozen=True)
class OutcomeConfig:
    """Reward and end head. `width` 0: the world predicts neither and cannot be an env without a `reward_fn`."""

    width: int = 0
    bins: int = 41
    largest_reward: float = 1.0
    end: str = "sample"
    """How `terminated` follows from p(end): sample (keyed draw) or threshold (p >= 0.5)."""

    def __post_init__(self) -> None:
        _between(self, 0, LARGEST_SIZE, "width")
        _between(self, 2, LARGEST_SIZE, "bins")
        _positive(self, "largest_reward")
        _one_of(self, "end", ("sample", "threshold"))


@dataclass(frozen=True)
class DecodeConfig:
    """Jacobi decoding: `tolerance` is the RMS residual in noise units, `chunk` the tokens solved at once (0: all)."""

    tolerance: float = 1e-3
    chunk: int = 0
    max_sweeps: int = 0
    """Largest number of sweeps per chunk; 0: as many as certainly suffice (tokens + 1)."""

    def __post_init__(self) -> None:
        _between(self, 0, math.inf, "chunk", "max_sweeps", "tolerance")


@dataclass(frozen=True)
class WorldConfig:
    """Everything that fixes a world but its weights; stored as JSON beside them."""

    name: str
    flow: FlowConfig
    height: int = 64
    width: int = 64
    codec: CodecConfig = field(default_factory=CodecConfig)
    text: TextConfig = field(default_factory=TextConfig)
    outcome: OutcomeConfig = field(default_factory=OutcomeConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    noise_level: float = 0.3
    window: int = 32
    context: int = 8
    action_space: str = '{"n": 1, "start": 0, "type": "Discrete"}'
    max_episode_steps: int = 64
    reward: str = "event"
    """What the reward means: event (1 at success, 0 elsewhere) or raw (as the source env gave it)."""

    def __post_init__(self) -> None:
        _between(self, 1, 1 << 14, "height", "width")
        _between(self, 2, 1 << 14, "window")
        _between(self, 1, 1 << 14, "context")
        _between(self, 1, math.inf, "max_episode_steps")
        _one_of(self, "reward", ("event", "raw"))
        if self.context >= self.window:
            raise ConfigError(f"context: expected less than window {self.window}, found {self.context}")
        _positive(self, "noise_level")
        scale = self.codec.patch * self.codec.merge
        if self.height % scale or self.width % scale or self.grid[0] * self.grid[1] * self.window > MOST_TOKENS:
            expected = f"multiples of patch * merge = {scale}, and at most {MOST_TOKENS} tokens in a window"
            raise ConfigError(f"height, width: expected {expected}, found {self.height} x {self.width}")
        text = (0, 0) if self.text.kind == "none" else (self.text.length, self.text.width)
        found = (self.flow.channels, self.flow.text_length, self.flow.text_width)
        if found != (self.channels, *text):
            expected = f"{(self.channels, *text)}, as codec and text have"
            raise ConfigError(f"flow.channels, text_length, text_width: expected {expected}, found {found}")

    @property
    def channels(self) -> int:
        """Channels of a token, c."""
        per_site = self.codec.components if self.codec.kind == "pca" else 3 * self.codec.patch**2
        return per_site * self.codec.merge**2

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per column and per row of a frame, (h, w)."""
        scale = self.codec.patch * self.codec.merge
        return self.height // scale, self.width // scale


@dataclass(frozen=True)
class DataConfig:
    """What `starflow-world collect` gathers for this world."""

    env: str
    episodes: int = 4000
    policy: str = "mixed"
    seed: int = 0
    max_steps: int = 64

    def __post_init__(self) -> None:
        _between(self, 1, math.inf, "episodes", "max_steps")
        _between(self, 0, math.inf, "seed")


@dataclass(frozen=True)
class TrainConfig:
    """How a world is trained; a batch: `frames` frames in windows of one of `lengths`, and `starts` first frames."""

    steps: int = 1000
    frames: int = 256
    parts: str = "all"
    """What is trained: all, or the draft or the denoiser alone behind frozen weights (--init)."""
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    starts: int = 32
    denoiser_target: str = "score"
    """score: the flow's gradient (flow-score matching); noise, with parts denoiser: the noise itself (Vincent 2011),
    which costs no pass through the flow."""
    start_weight: float = 0.1
    """Weight of true first frames in the flow's loss, against 1 for the frames that follow."""
    start_rate: float = 0.3
    """Share of windows that begin at a true episode start."""
    end_rate: float = 0.3
    """Share of windows that end with the last frame of their episode."""
    action_dropout: float = 0.1
    text_dropout: float = 0.1
    learning_rate: float = 2e-3
    warmup: int = 100
    outcome_weight: float = 0.05
    denoiser_weight: float = 0.1
    seed: int = 0
    precision: str = "bf16"
    save_minutes: float = 5.0
    valid_every: int = 200

    def __post_init__(self) -> None:
        _one_of(self, "precision", ("bf16", "f32"))
        _one_of(self, "parts", ("all", "draft", "denoiser"))
        _one_of(self, "denoiser_target", ("score", "noise") if self.parts == "denoiser" else ("score",))
        _between(self, 1, math.inf, "steps", "frames", "valid_every")
        _between(self, 0, math.inf, "starts", "warmup", "seed", "save_minutes")
        _between(self, 0, math.inf, "start_weight", "outcome_weight", "denoiser_weight")
        _between(self, 0, 1, "start_rate", "end_rate", "action_dropout", "text_dropout")
        _positive(self, "learning_rate")
        if self.start_rate + self.end_rate > 1:
            raise ConfigError(f"start_rate + end_rate: expected at most 1, found {self.start_rate + self.end_rate}")
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths: expected window lengths >= 1, found {self.lengths}")


@dataclass(frozen=True)
class RecipeConfig:
    """A file in configs/: the world, its data and its training."""

    world: WorldConfig
    data: DataConfig
    train: TrainConfig = field(default_factory=TrainConfig)


def _between(config: Any, least: float, most: float, *names: str) -> None:
    for name in names:
        if not least <= getattr(config, name) <= most:
            limit = f">= {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{name}: expected a number {limit}, found {getattr(config, name)}")


def _positive(config: Any, name: str) -> None:
    if not 0 < getattr(config, name) < math.inf:
        raise ConfigError(f"{name}: expected a positive number, found {getattr(config, name)}")


def _one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(config, name) not in allowed:
        raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(config, name)!r}")


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `kind` from plain data, checking names and types."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where or kind.__name__}: expected a mapping, found {type(values).__name__}")
    hints, names = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key)[:80], names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(names)}"
            raise ConfigError(f"unknown key {where}{key!s:.80}{hint}")
    for name, spec in names.items():
        if name not in values and spec.default is spec.default_factory:  # both are MISSING
            raise ConfigError(f"{where}{name}: expected a value, found none")
    return kind(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, f"{where}.")  # type: ignore[arg-type]
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {value!r:.80}")
        return tuple(_convert(typing.get_args(kind)[0], item, where) for item in value)
    if kind is float and type(value) is int and abs(value) < 1 << 1000:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r:.80}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The plain data of a configuration, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> RecipeConfig:
    """Read configs/*.yaml; `overrides` are `section.key=value` strings such as `train.steps=100`."""
    path, size, text = Path(path), -1, ""
    try:
        if path.is_file() and (size := path.stat().st_size) <= LARGEST_FILE:
            text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        size = -1
    if not 0 <= size <= LARGEST_FILE:
        found = f"{size} bytes" if size >= 0 else "none"
        raise ConfigError(f"{path}: expected YAML of at most {LARGEST_FILE} bytes, found {found}")
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    return from_dict(RecipeConfig, values)


def _override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override: expected key.sub=value, found {override!r}")
    *parents, last = path.split(".")
    for name in parents:
        if not isinstance(values := values.setdefault(name, {}), dict):
            raise ConfigError(f"override {override!r}: {name} has no keys below it")
    values[last] = parse_yaml(text, f"override {override!r}")
