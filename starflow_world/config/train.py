"""Recipes, configs/*.yaml: a model, its data and its training.

Unknown keys, wrong types and values out of range raise `ConfigError`; nothing is interpolated or evaluated.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starflow_world.config.reading import between, from_dict, one_of, positive, to_dict
from starflow_world.config.video import ASPECTS, VideoConfig, latent_frames, load_video_config
from starflow_world.config.world import WorldConfig
from starflow_world.errors import ConfigError
from starflow_world.io.yaml import parse_yaml, read_yaml


@dataclass(frozen=True)
class TrainConfig:
    """Training settings of a world; a step has `frames` frames in windows of `lengths`, `starts` first frames of
    episodes, and `events` frames that bring a reward or an end."""

    steps: int = 1000
    minutes: float = 0.0
    """Time of the whole training, from which `steps` is set when a run begins; 0: `steps` counts."""
    frames: int = 256
    parts: tuple[str, ...] = ()
    """Dotted names of the modules or parameters that are trained, such as flow.shallow; empty: all."""
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    """Lengths of windows in frames: the shortest alone at first, joined by the next in equal shares of the steps."""
    reappearing: float = 0.5
    """Share of windows that are drawn because something that was gone reappears in them, so that history is learned.
    Their frames come to count less for that in the first half of the training."""
    starts: int = 32
    start_weight: float = 0.1
    """Weight of real first frames in the flow's loss; later frames have weight 1."""
    events: int = 32
    """Frames with an unusual reward or an end, each behind the frame before it, from which the reward head learns."""
    action_dropout: float = 0.1
    text_dropout: float = 0.1
    learning_rate: float = 2e-3
    site_learning_rate: float = 2e-2
    """Learning rate of the networks over sites (features, reward head) and of the action encoder."""
    warmup: int = 100
    outcome_weight: float = 0.05
    denoiser_weight: float = 0.1
    seed: int = 0
    precision: str = "auto"
    """Precision of matrix products: bf16, f32, or auto (the faster one on this machine, measured at the start of the
    run). Weights, sums over processes and losses are float32."""
    checkpointing: bool = False
    """Activation checkpointing: recompute the activations of a layer in the backward pass instead of storing them."""
    half: tuple[str, ...] = ()
    """Name prefixes of the parameters that checkpoints store as float16."""
    save_minutes: float = 5.0
    valid_every: int = 200

    def __post_init__(self) -> None:
        one_of(self, "precision", ("auto", "bf16", "f32"))
        between(self, 1, math.inf, "steps", "frames", "valid_every")
        between(self, 0, math.inf, "starts", "events", "warmup", "seed", "save_minutes", "minutes")
        between(self, 0, math.inf, "start_weight", "outcome_weight", "denoiser_weight")
        between(self, 0, 1, "action_dropout", "text_dropout", "reappearing")
        positive(self, "learning_rate")
        positive(self, "site_learning_rate")
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths: expected window lengths >= 1, found {self.lengths}")


@dataclass(frozen=True)
class VideoTrainConfig:
    """Training settings of a text-to-video model: each step uses a batch of clips or of pictures; if the data are
    episodes with actions, a batch of windows."""

    steps: int = 100_000
    parts: tuple[str, ...] = ()
    """Dotted names of the modules or parameters that are trained; action: the action adapter alone; empty: all."""
    clips: int = 8
    """Clips (or windows) per step, summed over all processes."""
    frames: int = 81
    """Frames of a clip or a window, 1 + 4k."""
    pictures: int = 64
    """Pictures per step of pictures."""
    picture_rate: float = 0.2
    """Share of steps that train on pictures."""
    rows_at_once: int = 1
    """Rows per forward pass of a process; gradients are accumulated over the rows of a step."""
    aspect: str = "16:9"
    caption_dropout: float = 0.1
    image_dropout: float = 0.25
    """Share of steps on clips in which the first latent frame is dropped and the prompt says to extend. With episodes,
    whose windows slide, the prompt does not say so."""
    start_rate: float = 0.3
    """Share of windows that begin at a true episode start."""
    action_dropout: float = 0.1
    """Probability that the action of a latent frame is dropped."""
    learning_rate: float = 5e-5
    denoiser_learning_rate: float = 1e-4
    action_learning_rate: float = 1e-3
    warmup: int = 1000
    seed: int = 0
    precision: str = "auto"
    """Precision of matrix products, as in TrainConfig; models for `generate` are written in it."""
    checkpointing: bool = True
    """Activation checkpointing, as in TrainConfig."""
    save_minutes: float = 30.0

    def __post_init__(self) -> None:
        one_of(self, "precision", ("auto", "bf16", "f32"))
        one_of(self, "aspect", tuple(ASPECTS))
        between(self, 1, math.inf, "steps", "clips", "pictures", "rows_at_once")
        between(self, 0, math.inf, "warmup", "seed", "save_minutes")
        between(self, 0, 1, "picture_rate", "caption_dropout", "image_dropout", "start_rate", "action_dropout")
        for rate in ("learning_rate", "denoiser_learning_rate", "action_learning_rate"):
            positive(self, rate)
        if latent_frames(self.frames) == 1:
            raise ConfigError("frames: expected at least 5 in a clip, found 1; pictures are steps of their own")


@dataclass(frozen=True)
class VideoRecipe:
    """Recipe of a text-to-video model: a file with its config and its training settings."""

    video: VideoConfig
    train: VideoTrainConfig = field(default_factory=VideoTrainConfig)

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.video.name


@dataclass(frozen=True)
class DataConfig:
    """The episodes that `starflow-world make` collects for a recipe; keys mean what the flags of `collect` mean."""

    env: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: tuple[Any, ...] = ()
    view: str = "render"
    policy: str = "auto"
    reward: str = "auto"
    max_steps: int = 64
    episodes: int = 6000
    """Episodes to learn from."""
    valid: int = 200
    """Held-out episodes, played like those to learn from."""
    eval: int = 0
    """Held-out episodes without ends, for long open loops (collect --no-end); 0: those of `valid` are used."""
    starts: int = 0
    """Further episodes of one step, for first frames alone; 0: first frames are those of `episodes`."""
    seed: int = 1

    def __post_init__(self) -> None:
        between(self, 1, math.inf, "episodes", "valid")
        between(self, 0, math.inf, "eval", "starts", "seed", "max_steps")


@dataclass(frozen=True)
class RecipeConfig:
    """Recipe of a world: a file in configs/ with its config, its training settings and where its data come from."""

    world: WorldConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig | None = None
    follow: tuple[str, ...] = ()
    """Keys of `world` that training takes from its data, see FOLLOW."""

    @property
    def name(self) -> str:
        """Return the name of the world."""
        return self.world.name

    def __post_init__(self) -> None:
        if unknown := set(self.follow) - set(FOLLOW):
            raise ConfigError(f"follow: expected some of {', '.join(FOLLOW)}, found {sorted(unknown)[0]!r:.80}")


FOLLOW = ("name", "height", "width", "max_episode_steps", "reward", "outcome.largest_reward")
"""Keys of `world` that a recipe may omit (or set to 0, largest_reward only); training then takes them from its data."""


Recipe = RecipeConfig | VideoRecipe


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read the recipe of a world (key `world`) or of a video model (key `video`), such as configs/*.yaml.

    `overrides` are `section.key=value` strings such as `train.steps=100`, which replaces `train.minutes` too. Raises
    ConfigError.
    """
    values, keys = read_yaml(path), {override.partition("=")[0] for override in overrides}
    if "train.steps" in keys and "train.minutes" not in keys and isinstance(values.get("train"), dict):
        values["train"].pop("minutes", None)
    for override in overrides:
        _override(values, override)
    return _video_recipe(values) if "video" in values else _world_recipe(values)


def _world_recipe(values: dict[str, Any]) -> RecipeConfig:
    """Read the recipe of a world; keys of FOLLOW that the file omits get their defaults and are listed in `follow`."""
    if isinstance(world := values.get("world"), dict):
        outcome = world.get("outcome", {})
        if isinstance(outcome, dict) and outcome.get("largest_reward") == 0:
            world = {**world, "outcome": (outcome := {key: outcome[key] for key in outcome if key != "largest_reward"})}
        said = {*world, *(f"outcome.{key}" for key in outcome)} if isinstance(outcome, dict) else {*world}
        follow = [key for key in FOLLOW if key not in said]
        values = {"follow": follow, **values, "world": {"name": "", **world}}
    return from_dict(RecipeConfig, values)


def _video_recipe(values: dict[str, Any]) -> VideoRecipe:
    """Read the recipe of a video model; `like` in `video` names the config that provides the omitted keys."""
    video = values["video"]
    if isinstance(video, dict) and "like" in video:
        known = to_dict(load_video_config(video["like"]))
        said = {key: value for key, value in video.items() if key != "like"}
        flow = {**known["flow"], **said["flow"]} if isinstance(said.get("flow"), dict) else known["flow"]
        values = {**values, "video": {**known, **said, "flow": flow}}
    return from_dict(VideoRecipe, values)


def _override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override: expected key.sub=value, found {override!r}")
    *parents, last = path.split(".")
    for name in parents:
        if not isinstance(values := values.setdefault(name, {}), dict):
            raise ConfigError(f"override {override!r}: {name} has no keys below it")
    values[last] = parse_yaml(text, f"override {override!r}")
