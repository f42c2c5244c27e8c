"""Recipes, configs/*.yaml: a world, its data and its training.

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
    """How a world is trained; a batch: `frames` frames in windows of one of `lengths`, and `starts` first frames."""

    steps: int = 1000
    frames: int = 256
    parts: tuple[str, ...] = ()
    """Modules or parameters that are trained, by their dotted names, such as flow.shallow; empty: all."""
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    starts: int = 32
    denoiser_target: str = "score"
    """score: the flow's gradient (flow-score matching); noise: the noise itself (Vincent 2011), which costs no pass
    backwards through the flow."""
    start_weight: float = 0.1
    """Weight of true first frames in the flow's loss, against 1 for the frames that follow."""
    start_rate: float = 0.3
    """Share of windows that begin at a true episode start."""
    end_rate: float = 0.3
    """Share of windows that end with the last frame of their episode."""
    action_dropout: float = 0.1
    text_dropout: float = 0.1
    learning_rate: float = 2e-3
    site_learning_rate: float = 2e-2
    """That of the networks that look at sites, and of the action encoder."""
    motion_beta: float = 1.0
    """Where the motion alone is trained: how much more its uncertain dimensions count at first; falls to 0."""
    warmup: int = 100
    outcome_weight: float = 0.05
    denoiser_weight: float = 0.1
    seed: int = 0
    precision: str = "auto"
    """Of products: bf16, f32, or auto, the faster of both on this machine when the run begins. Weights, sums over
    processes and losses are float32."""
    checkpointing: bool = False
    """Activation checkpointing: compute what is inside a layer again in the backward pass instead of keeping it."""
    half: tuple[str, ...] = ()
    """Beginnings of the names of the parameters that checkpoints store as float16."""
    save_minutes: float = 5.0
    valid_every: int = 200

    def __post_init__(self) -> None:
        one_of(self, "precision", ("auto", "bf16", "f32"))
        one_of(self, "denoiser_target", ("score", "noise"))
        between(self, 1, math.inf, "steps", "frames", "valid_every")
        between(self, 0, math.inf, "starts", "warmup", "seed", "save_minutes")
        between(self, 0, math.inf, "start_weight", "outcome_weight", "denoiser_weight", "motion_beta")
        between(self, 0, 1, "start_rate", "end_rate", "action_dropout", "text_dropout")
        positive(self, "learning_rate")
        positive(self, "site_learning_rate")
        if self.start_rate + self.end_rate > 1:
            raise ConfigError(f"start_rate + end_rate: expected at most 1, found {self.start_rate + self.end_rate}")
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths: expected window lengths >= 1, found {self.lengths}")


@dataclass(frozen=True)
class VideoTrainConfig:
    """How a text-to-video model is trained: a step is one of clips or one of pictures; or, where data are episodes with
    actions, of windows of them."""

    steps: int = 100_000
    parts: tuple[str, ...] = ()
    """As for worlds: action is the adapter alone."""
    clips: int = 8
    """Rows of a step of clips (or windows), on all processes together."""
    frames: int = 81
    """Of a clip or a window, 1 + 4k."""
    pictures: int = 64
    """Rows of a step of pictures."""
    picture_rate: float = 0.2
    """Share of steps that are of pictures."""
    rows_at_once: int = 1
    """Rows that go through the model of a process at once; the rest follow before the step is taken."""
    aspect: str = "16:9"
    caption_dropout: float = 0.1
    image_dropout: float = 0.25
    """Share of steps of clips in which the first latent frame is dropped and the prompt says to extend; the prompt of a
    world, whose windows slide, does not say so."""
    start_rate: float = 0.3
    """Share of windows that begin at a true episode start."""
    action_dropout: float = 0.1
    """Of every latent frame on its own."""
    learning_rate: float = 5e-5
    denoiser_learning_rate: float = 1e-4
    action_learning_rate: float = 1e-3
    warmup: int = 1000
    seed: int = 0
    precision: str = "auto"
    """As for worlds; models for `generate` are written in it."""
    checkpointing: bool = True
    """As for worlds."""
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
    """A file that describes a text-to-video model and its training."""

    video: VideoConfig
    train: VideoTrainConfig = field(default_factory=VideoTrainConfig)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.video.name


@dataclass(frozen=True)
class RecipeConfig:
    """A file in configs/: the world and its training."""

    world: WorldConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    follow: tuple[str, ...] = ()
    """Keys of `world` that training takes from its data, see FOLLOW."""

    @property
    def name(self) -> str:
        """Name of the world."""
        return self.world.name

    def __post_init__(self) -> None:
        if unknown := set(self.follow) - set(FOLLOW):
            raise ConfigError(f"follow: expected some of {', '.join(FOLLOW)}, found {sorted(unknown)[0]!r:.80}")


FOLLOW = ("name", "height", "width", "max_episode_steps", "reward", "outcome.largest_reward")
"""Keys of `world` that a recipe may leave out (or set to 0, largest_reward only) and that then come from its data."""


Recipe = RecipeConfig | VideoRecipe


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read the recipe of a world (key `world`) or of a video model (key `video`), such as configs/*.yaml.

    `overrides` are `section.key=value` strings such as `train.steps=100`. Raises ConfigError.
    """
    values = read_yaml(path)
    for override in overrides:
        _override(values, override)
    return _video_recipe(values) if "video" in values else _world_recipe(values)


def _world_recipe(values: dict[str, Any]) -> RecipeConfig:
    """Keys of FOLLOW that the file leaves out have their defaults, and are listed in `follow`."""
    if isinstance(world := values.get("world"), dict):
        outcome = world.get("outcome", {})
        if isinstance(outcome, dict) and outcome.get("largest_reward") == 0:
            world = {**world, "outcome": (outcome := {key: outcome[key] for key in outcome if key != "largest_reward"})}
        said = {*world, *(f"outcome.{key}" for key in outcome)} if isinstance(outcome, dict) else {*world}
        follow = [key for key in FOLLOW if key not in said]
        values = {"follow": follow, **values, "world": {"name": "", **world}}
    return from_dict(RecipeConfig, values)


def _video_recipe(values: dict[str, Any]) -> VideoRecipe:
    """`like` in `video` names the config that has the keys which are left out."""
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
