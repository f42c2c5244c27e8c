"""Recipes, configs/*.yaml: a world, its data and its training.

Unknown keys, wrong types and values out of range raise `ConfigError`; nothing is interpolated or evaluated.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import WorldConfig, between, from_dict, one_of, positive
from .errors import ConfigError
from .plain_yaml import parse_yaml, read_yaml


@dataclass(frozen=True)
class DataConfig:
    """What `starflow-world collect` gathers for this world."""

    env: str
    episodes: int = 4000
    policy: str = "mixed"
    seed: int = 0
    max_steps: int = 64

    def __post_init__(self) -> None:
        between(self, 1, math.inf, "episodes", "max_steps")
        between(self, 0, math.inf, "seed")


@dataclass(frozen=True)
class TrainConfig:
    """How a world is trained; a batch: `frames` frames in windows of one of `lengths`, and `starts` first frames."""

    steps: int = 1000
    frames: int = 256
    parts: tuple[str, ...] = ()
    """Beginnings of the names of the parameters that are trained, such as flow.shallow; empty: all."""
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
    precision: str = "bf16"
    half: tuple[str, ...] = ()
    """Beginnings of the names of the parameters that checkpoints store as float16."""
    save_minutes: float = 5.0
    valid_every: int = 200

    def __post_init__(self) -> None:
        one_of(self, "precision", ("bf16", "f32"))
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
class RecipeConfig:
    """A file in configs/: the world, its data and its training."""

    world: WorldConfig
    data: DataConfig
    train: TrainConfig = field(default_factory=TrainConfig)


def load_recipe(path: Path | str, overrides: tuple[str, ...] = ()) -> RecipeConfig:
    """Read configs/*.yaml; `overrides` are `section.key=value` strings such as `train.steps=100`."""
    values = read_yaml(path)
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
