"""The real environment of a data set or a world: how to make it and record its episodes, as card.json stores it."""

import difflib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from io import StringIO
from typing import Any

import gymnasium

from starflow_world.envs.observation import is_minigrid, shown
from starflow_world.errors import ActionError, ConfigError
from starflow_world.model.actions import space_to_json
from starflow_world.world import World

WRAPPERS = (  # allowed gymnasium.wrappers: arguments in JSON, no statistics across episodes
    "AtariPreprocessing", "ClipAction", "ClipReward", "DelayObservation", "DiscretizeAction", "DtypeObservation",
    "FilterObservation", "FlattenObservation", "FrameStackObservation", "GrayscaleObservation",
    "MaxAndSkipObservation", "RepeatAction", "RescaleAction", "RescaleObservation", "ReshapeObservation",
    "ResizeObservation", "StickyAction", "TimeAwareObservation", "TimeLimit",
)
OWN_VIEW = "minigrid.wrappers.RGBImgPartialObsWrapper"
"""Wrapper that draws what the agent of a MiniGrid sees; argument tile_size, the pixels of a cell."""
REWARDS, VIEWS = ("event", "raw"), ("render", "observation")
PACKAGES_OF_IDS = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "MinAtar/": "minatar", "ALE/": "ale_py"}
"""Packages of the extra `envs` that register environments, by the beginnings of their ids."""


@dataclass(frozen=True)
class Environment:
    """A Gymnasium environment and how its episodes are recorded; fields are keys of collection.json and card.json.

    env: its id, or `module:Id` for an id that importing `module` registers. env_kwargs: arguments of `gymnasium.make`.
    wrappers: applied in this order, each a dotted name (`gymnasium.wrappers.ClipAction`) or a pair of name and
    arguments. frame_size: side of square frames in pixels, or (height, width). max_steps: time limit of an episode;
    None: the environment's own. reward: "raw", or "event" for 1 where a reward is positive and else 0. view: "render",
    frames are what `render()` returns, or "observation", the image that is the observation or in it.
    """

    env: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: tuple[Any, ...] = ()
    frame_size: int | tuple[int, ...] = 64
    max_steps: int | None = None
    reward: str = "event"
    view: str = "render"

    def __post_init__(self) -> None:
        height, width = height_width(self.frame_size)
        object.__setattr__(self, "frame_size", height if height == width else (height, width))
        object.__setattr__(self, "wrappers", tuple(self.wrappers))
        for wrapper in self.wrappers:
            name_and_arguments(wrapper)
        if not isinstance(self.env, str) or not self.env:
            raise ConfigError(f"env: expected the id of a Gymnasium environment, found {self.env!r:.80}")
        if self.max_steps is not None and (type(self.max_steps) is not int or self.max_steps < 1):
            raise ConfigError(f"max_steps: expected a number >= 1, or None for the env's own limit, "
                              f"found {self.max_steps!r}")
        if self.reward not in REWARDS:
            raise ConfigError(f"reward: expected one of {', '.join(REWARDS)}, found {self.reward!r}")
        if self.view not in VIEWS:
            raise ConfigError(f"view: expected one of {', '.join(VIEWS)}, found {self.view!r:.80}")
        try:
            json.dumps([self.env_kwargs, self.wrappers])
            dict(**self.env_kwargs)
        except (TypeError, ValueError) as error:
            found = f"{self.env_kwargs!r:.120} and {self.wrappers!r:.120} ({error})"
            raise ConfigError(f"env_kwargs and wrappers: expected values that JSON can hold, found {found}") from None

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the frames."""
        return height_width(self.frame_size)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; wrappers and view only if they are not the default, as in older records."""
        left_out = {key for key, default in (("wrappers", ()), ("view", "render")) if getattr(self, key) == default}
        values = dict(json.loads(json.dumps(asdict(self))))
        return {key: value for key, value in values.items() if key not in left_out}

    def make(self) -> gymnasium.Env:
        """Make the environment; its `render` returns the frames of `view`. Raises ConfigError with a one-line message.

        A MiniGrid is drawn without highlight, in tiles that fill the frame.
        """
        os.putenv("SDL_NO_SIGNAL_HANDLERS", "1")  # else pygame's SDL swallows SIGTERM, and nothing ends this process
        kwargs = {**self.env_kwargs, "disable_env_checker": True}
        if self.view == "render":
            kwargs["render_mode"] = "rgb_array"
        package = next((package for begin, package in PACKAGES_OF_IDS.items() if self.env.startswith(begin)), "")
        if package and not _register(package):
            raise ConfigError(f"env: expected the package {package} for {self.env:.80}, found none; "
                              "pip install 'starflow-world[envs]'")
        if package == "minigrid" and self.max_steps is not None:
            kwargs.setdefault("max_steps", self.max_steps)
        try:
            env = gymnasium.make(self.env, max_episode_steps=None if self.max_steps is None else -1, **kwargs)
        except Exception as error:  # an environment is foreign code
            raise ConfigError(f"env: expected an environment that gymnasium.make can make, found {self.env!r:.80} "
                              f"({type(error).__name__}: {_in_one_line(error)}); {_hint(self.env)}") from error
        for wrapper in self.wrappers:
            env = _wrapped(env, wrapper)
            if self.view == "observation" and isinstance(env, gymnasium.wrappers.FrameStackObservation):
                raise ConfigError(f"wrappers: expected observations that are one image each, found the stacks of "
                                  f"FrameStackObservation, {env.observation_space!s:.80}; leave it out: a world has a "
                                  "memory of its own")
        if self.max_steps is not None:
            env = gymnasium.wrappers.TimeLimit(env, self.max_steps)
        if package == "minatar":
            env = _Fresh(env)
        if self.view == "observation":
            return _Observed(env, self)
        if is_minigrid(env):
            world: Any = env.unwrapped
            rows, columns = self.size
            world.tile_size = kwargs.get("tile_size", max(1, min(rows // world.height, columns // world.width)))
            world.highlight = kwargs.get("highlight", False)
        return env


class _Fresh(gymnasium.Wrapper):
    """MinAtar game that forgets the last action of the episode before, which the first step may repeat."""

    def reset(self, **kwargs: Any) -> Any:
        world: Any = self.env.unwrapped
        world.game.last_action = 0
        return self.env.reset(**kwargs)


class _Observed(gymnasium.Wrapper):
    """Environment whose `render` returns the image of the last observation."""

    render_mode = "rgb_array"

    def __init__(self, env: gymnasium.Env, source: Environment) -> None:
        super().__init__(env)
        if is_minigrid(env) and OWN_VIEW not in [name_and_arguments(wrapper)[0] for wrapper in source.wrappers]:
            raise ConfigError(f"view: expected an observation that is an image, found the symbols of {source.env}; add "
                              f"the wrapper {OWN_VIEW} (--wrappers)")
        self._seen: Any = None

    def reset(self, **kwargs: Any) -> Any:
        self._seen, info = self.env.reset(**kwargs)
        return self._seen, info

    def step(self, action: Any) -> Any:
        self._seen, *rest = self.env.step(action)
        return self._seen, *rest

    def render(self) -> Any:
        if isinstance(self._seen, Mapping):
            return next((value for value in self._seen.values() if getattr(value, "ndim", 0) == 3), None)
        return self._seen


def height_width(frame_size: Any) -> tuple[int, int]:
    """Return (height, width) of frames given the side of a square or both. Raises ConfigError."""
    sides = tuple(frame_size) if isinstance(frame_size, list | tuple) else (frame_size,)
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ConfigError(f"frame_size: expected pixels >= 1, or a height and a width, found {frame_size!r}")
    return sides


def check_env(env: Any, size: tuple[int, int]) -> None:
    """Raise an error unless episodes of this env can be recorded; resets it and checks one frame."""
    check_single(env)
    with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
        env.reset(seed=0)
    try:
        frame = env.render()
    except Exception as error:
        raise ConfigError(f"env: expected one that renders RGB frames, found {type(error).__name__} from render() of "
                          f"{env} ({_in_one_line(error)}); choose another, or --view observation") from error
    shown(frame, size)


def check_single(env: Any) -> str:
    """Return the JSON of an env's action space. Raises for a vector env and an env without actions."""
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"env: expected a single gymnasium.Env, found {type(env).__name__}; take one env of it")
    space = space_to_json(env.action_space)
    if gymnasium.spaces.flatdim(env.action_space) == 0:
        raise ActionError(f"action space: expected at least one number to choose, found {env.action_space}")
    return space


def make_env(env_id: str, *, env_kwargs: dict[str, Any] | None = None, max_steps: int | None = None,
             frame_size: int | tuple[int, ...] = 64) -> gymnasium.Env:
    """Make an environment by its id, as `Environment.make` does."""
    return Environment(env_id, env_kwargs or {}, frame_size=frame_size, max_steps=max_steps).make()


def source_environment(world: World, env: str | None = None) -> Environment:
    """Return the environment that a world was trained on, from its card; `env` replaces the id in the card.

    Raises ConfigError if neither names one, or if the card's entry is invalid.
    """
    card = world.card
    if env is not None and env != card.get("env"):
        return Environment(env, frame_size=(world.config.height, world.config.width))
    if "env" not in card:
        raise ConfigError(f"world {world.config.name} names no environment in its card (key `env` of card.json), and "
                          "this needs the real one; name it with --env, or add env and env_kwargs to the card")
    values: dict[str, Any] = {"frame_size": (world.config.height, world.config.width)}
    values |= {key.name: card[key.name] for key in fields(Environment) if card.get(key.name) is not None}
    return Environment(**values)


def _wrapped(env: gymnasium.Env, wrapper: Any) -> gymnasium.Env:
    """Apply a wrapper. Raises ConfigError for arguments that it does not take."""
    name, kwargs = name_and_arguments(wrapper)
    try:
        module, _, short = name.rpartition(".")
        return getattr(import_module(module), short)(env, **kwargs)
    except Exception as error:
        raise ConfigError(f"wrappers: expected arguments of {name}, found {kwargs!r:.120} ({_in_one_line(error)})"
                          ) from error


def name_and_arguments(wrapper: Any) -> tuple[str, dict[str, Any]]:
    """Return the dotted name of a wrapper and its arguments, given the name or a pair of both. Raises ConfigError with
    the nearest name for one that is not allowed."""
    pair = (wrapper, {}) if isinstance(wrapper, str) else wrapper
    name, kwargs = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, {})
    known = {OWN_VIEW, *(f"gymnasium.wrappers.{short}" for short in WRAPPERS)}
    if name not in known or not isinstance(kwargs, dict):
        near = difflib.get_close_matches(str(name), known, 1)
        all_known = f"known are gymnasium.wrappers.({', '.join(WRAPPERS)}) and {OWN_VIEW}"
        hint = f"did you mean {near[0]}?" if near and name not in known else all_known
        raise ConfigError(f"wrappers: expected a name, or a pair of name and arguments, found {wrapper!r:.120}; {hint}")
    return str(name), kwargs


def _hint(env_id: str) -> str:
    """Return a hint: the registered environment with the nearest id, or how to name one's own."""
    module, name = env_id.rpartition(":")[::2]
    for package in set(PACKAGES_OF_IDS.values()):
        _register(package)
    near = difflib.get_close_matches(name, gymnasium.registry, 1)
    if name in gymnasium.registry:
        return "check env_kwargs and the packages that it needs"
    if near and (not module or module in sys.modules):
        return f"did you mean {near[0]!r}?"
    return "name your own as module:Id, with the module's folder on PYTHONPATH"


def _register(package: str) -> bool:
    """Register the environments of a package of PACKAGES_OF_IDS; return whether it is installed."""
    with suppress(ModuleNotFoundError):
        if package != "minatar":
            import_module(package)  # registers its environments
        elif not any(name.startswith("MinAtar/") for name in gymnasium.registry):
            import_module("minatar.gym").register_envs()
        return True
    return False


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
