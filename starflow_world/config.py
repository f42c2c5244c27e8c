"""Configuration: frozen dataclasses, read from YAML or JSON, at most two deep.

Unknown keys, wrong types and values out of range raise `ConfigError`; nothing is interpolated or evaluated.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the flow (STARFlow-V, sections 3.1 and 3.2). The defaults that are switches (`neighbourhood`) are off."""

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
    """Odd size of the neighbourhood in the previous frame whose tokens are added to the deep block's inputs; 0: none."""
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
        for name in ("channels", "shallow_width", "deep_layers", "deep_width", "head_width"):
            _at_least(self, name, 1)
        for name in ("shallow_blocks", "shallow_layers", "text_length", "text_width", "neighbourhood",
                     "denoiser_layers", "denoiser_window"):
            _at_least(self, name, 0)
        for name in ("shallow_width", "deep_width", "denoiser_width"):
            if getattr(self, name) % self.head_width:
                raise ConfigError(f"{name}: expected a multiple of head_width {self.head_width}, found {getattr(self, name)}")
        if self.neighbourhood and self.neighbourhood % 2 == 0:
            raise ConfigError(f"neighbourhood: expected 0 or an odd number, found {self.neighbourhood}")
        if self.denoiser_look_ahead and len(self.denoiser_look_ahead) != self.denoiser_layers:
            raise ConfigError(
                f"denoiser_look_ahead: expected {self.denoiser_layers} numbers, one per denoiser layer, "
                f"found {len(self.denoiser_look_ahead)}"
            )


@dataclass(frozen=True)
class CodecConfig:
    """How frames become latents: `kind` names the codec, `patch` x `patch` pixels make one site of `components` numbers."""

    kind: str = "pca"
    patch: int = 8
    components: int = 16
    merge: int = 1
    """Sites of merge x merge form one token, so a token has components * merge**2 channels."""

    def __post_init__(self) -> None:
        _one_of(self, "kind", ("pca", "patch"))
        for name in ("patch", "components", "merge"):
            _at_least(self, name, 1)


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
        for name in ("length", "width", "layers", "heads"):
            _at_least(self, name, 1)


@dataclass(frozen=True)
class OutcomeConfig:
    """Reward and end head. `width` 0: the world predicts neither and cannot be an env without a `reward_fn`."""

    width: int = 0
    bins: int = 41
    largest_reward: float = 1.0
    end: str = "sample"
    """How `terminated` follows from p(end): sample (keyed draw) or threshold (p >= 0.5)."""

    def __post_init__(self) -> None:
        _at_least(self, "width", 0)
        _at_least(self, "bins", 2)
        _one_of(self, "end", ("sample", "threshold"))


@dataclass(frozen=True)
class DecodeConfig:
    """Jacobi decoding: `tolerance` is the RMS residual in noise units, `chunk` the tokens solved at once (0: a frame)."""

    tolerance: float = 1e-3
    chunk: int = 0
    max_sweeps: int = 0
    """Largest number of sweeps per chunk; 0: as many as certainly suffice (tokens + 1)."""

    def __post_init__(self) -> None:
        _at_least(self, "chunk", 0)
        _at_least(self, "max_sweeps", 0)
        if not self.tolerance >= 0:
            raise ConfigError(f"tolerance: expected a number >= 0, found {self.tolerance}")


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
        _at_least(self, "window", 2)
        _at_least(self, "context", 1)
        _one_of(self, "reward", ("event", "raw"))
        if self.context >= self.window:
            raise ConfigError(f"context: expected less than window {self.window}, found {self.context}")
        if not 0 < self.noise_level < math.inf:
            raise ConfigError(f"noise_level: expected a positive number, found {self.noise_level}")
        scale = self.codec.patch * self.codec.merge
        if self.height % scale or self.width % scale:
            raise ConfigError(f"height, width: expected multiples of patch * merge = {scale}, found {self.height} x {self.width}")
        if self.flow.channels != self.channels:
            raise ConfigError(f"flow.channels: expected {self.channels} (what the codec makes), found {self.flow.channels}")

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


@dataclass(frozen=True)
class TrainConfig:
    """How a world is trained; every batch holds `frames` frames in windows of one of `lengths`, plus `starts` first frames."""

    steps: int = 1000
    frames: int = 256
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    starts: int = 32
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
        for name in ("steps", "frames"):
            _at_least(self, name, 1)
        for name in ("start_rate", "end_rate", "action_dropout", "text_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected a share between 0 and 1, found {getattr(self, name)}")
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths: expected window lengths >= 1, found {self.lengths}")


@dataclass(frozen=True)
class RecipeConfig:
    """A file in configs/: the world, its data and its training."""

    world: WorldConfig
    data: DataConfig
    train: TrainConfig = field(default_factory=TrainConfig)


def _at_least(config: Any, name: str, least: int) -> None:
    if getattr(config, name) < least:
        raise ConfigError(f"{name}: expected a number >= {least}, found {getattr(config, name)}")


def _one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(config, name) not in allowed:
        raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(config, name)!r}")


T = TypeVar("T")


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `kind` from plain data, checking names and types."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where or kind.__name__}: expected a mapping, found {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    names = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(names)}"
            raise ConfigError(f"unknown key {where}{key!s:.80}{hint}")
    required = (dataclasses.MISSING, dataclasses.MISSING)
    for name, spec in names.items():
        if name not in values and (spec.default, spec.default_factory) == required:
            raise ConfigError(f"{where}{name}: expected a value, found none")
    return kind(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, f"{where}.")  # type: ignore[arg-type]
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {value!r:.80}")
        return tuple(_convert(typing.get_args(kind)[0], item, where) for item in value)
    if isinstance(kind, types.UnionType):
        raise TypeError(f"{where}: unions are not configuration")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r:.80}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The plain data of a configuration, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> RecipeConfig:
    """Read configs/*.yaml; `overrides` are `section.key=value` strings such as `train.steps=100`."""
    values = _read_yaml(Path(path))
    for override in overrides:
        _override(values, override)
    return from_dict(RecipeConfig, values)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise ConfigError(f"{path}: expected a YAML file, found none")
    if path.stat().st_size > LARGEST_FILE:
        raise ConfigError(f"{path}: expected at most {LARGEST_FILE} bytes, found {path.stat().st_size}")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tokens = list(yaml.scan(text, Loader=yaml.SafeLoader))
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise ConfigError(f"{path}: expected plain YAML, found an alias; write the values out")
        _refuse_duplicates(yaml.compose(text, Loader=yaml.SafeLoader), path)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: expected YAML, found an error: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(values).__name__}")
    return values


def _refuse_duplicates(node: Any, path: Path) -> None:
    if not hasattr(node, "value") or not isinstance(node.value, list):
        return
    keys = [key.value for key, _ in node.value if isinstance(key.value, str)] if node.id == "mapping" else []
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{path}: expected each key once, found {key!r} twice")
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            _refuse_duplicates(part, path)


def _override(values: dict[str, Any], override: str) -> None:
    import yaml

    path, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override: expected key.sub=value, found {override!r}")
    *parents, last = path.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {name} has no keys below it")
    values[last] = yaml.safe_load(text)
