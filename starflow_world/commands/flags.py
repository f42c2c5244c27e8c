"""Flags: tyro rules for paths and JSON, flags of several verbs, hints for missing extras. Light to import."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from starflow_world.errors import ConfigError

if TYPE_CHECKING:
    from starflow_world.agents.environment import Environment
    from starflow_world.world import World

REGISTRY = ConstructorRegistry()

EXTRAS = {  # package: the extra that installs it, and what it is for
    "minigrid": ("envs", "BabyAI and MiniGrid environments"),
    "minatar": ("envs", "MinAtar's games"),
    "ale_py": ("envs", "Atari games"),
    "pygame": ("envs", "classic-control rendering, and render_mode human"),
    "stable_baselines3": ("sb3", "train-agent"),
    "ray": ("ray", "--actors and RayVectorEnv"),
    "minari": ("data", "Minari datasets"),
    "pyarrow": ("data", "LeRobot folders and Parquet tables"),
    "huggingface_hub": ("hub", "worlds on the Hugging Face hub"),
    "fastapi": ("play", "the page to play a world"),
    "uvicorn": ("play", "the page to play a world"),
    "diffusers": ("wan", "the Wan codec of STARFlow-V"),
}


@REGISTRY.primitive_rule
def path_or_json(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Return a tyro rule for paths, where "" is an error, and for dictionaries, which are JSON."""
    if kind.type is Path:
        return PrimitiveConstructorSpec(1, "PATH", _path, lambda value: isinstance(value, Path), lambda p: [str(p)])
    if kind.type_origin is dict:
        return PrimitiveConstructorSpec(1, "JSON", _json, lambda value: isinstance(value, dict), _text)
    return None


def read_wrappers(words: tuple[str, ...]) -> tuple[Any, ...]:
    """Parse wrappers: a word that is JSON is a pair of name and arguments, any other a name. Raises ConfigError."""
    try:
        return tuple(json.loads(word) if word.startswith("[") else word for word in words)
    except ValueError as error:
        raise ConfigError("wrappers: expected names, or JSON pairs such as '[\"gymnasium.wrappers.RepeatAction\", "
                          f"{{\"num_repeats\": 2}}]', found {' '.join(words)!r:.120} ({error})") from None


def _path(words: list[str]) -> Path:
    if not words[0].strip():
        raise ValueError("expected a path, found an empty text")
    return Path(words[0])


def _json(words: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(words[0])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object such as '{{\"max_steps\": 64}}', found {words[0]!r:.80}")
    return value


def _text(value: dict[str, Any]) -> list[str]:
    return [json.dumps(value)]


def missing_extra(error: ModuleNotFoundError) -> str:
    """Return how to install the missing package; "" if no extra provides it."""
    package = str(error.name or "").split(".")[0]
    if package not in EXTRAS:
        return ""
    extra, _ = EXTRAS[package]
    return f"{package}: expected it to be installed, found no such package; pip install 'starflow-world[{extra}]'"


@dataclass(frozen=True)
class RealEnvironment:
    """The environment that a world was learned from, or another one."""

    env: str = ""
    """Gymnasium id of the real environment, or module:Id; empty: the one in the world's card."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, as a JSON object; they replace those in the card."""

    wrappers: tuple[str, ...] = ()
    """Wrappers in this order, as for collect; they replace those in the card."""

    def source(self, world: "World", max_steps: int | None = None) -> "Environment":
        """Return the environment for a world. Raises ConfigError if neither flags nor card name one.

        max_steps: time limit; 0: the environment's own; None: the one in the card.
        """
        from starflow_world.agents.environment import source_environment

        source = source_environment(world, self.env or None)
        if self.env_kwargs:
            source = replace(source, env_kwargs=self.env_kwargs)
        if self.wrappers:
            source = replace(source, wrappers=read_wrappers(self.wrappers))
        return source if max_steps is None else replace(source, max_steps=max_steps or None)
