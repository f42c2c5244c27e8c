"""A learned video world model with exact likelihoods, as a Gymnasium environment.

The public names are imported at their first use, so that `import starflow_world` stays quick. The import registers the
shipped worlds with Gymnasium, as StarflowWorld/<Name>-v0, and StarflowWorld/Custom-v0, which takes path=<folder>.

`agents`, `configs` and `envs` are symbolic links to the folders at the top of the repository. A package-dir mapping or
a shim that sets `__path__` would do at run time, but mypy and pyright resolve neither, and an editor does not find
definitions through them; moving the folders would hide them from the top level. Wheels and source distributions hold
plain folders. A checkout without links, as on Windows by default, is refused with one sentence.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from starflow_world.agents.collect import collect
    from starflow_world.check import check_world
    from starflow_world.data.dataset import EpisodeDataset
    from starflow_world.envs.episode import EnvState
    from starflow_world.envs.monitor import SurpriseMonitor, SurpriseVectorMonitor
    from starflow_world.envs.ray_vector_env import RayVectorEnv
    from starflow_world.envs.vector_env import WorldVectorEnv
    from starflow_world.envs.world_env import WorldEnv
    from starflow_world.errors import (
        ActionError,
        CheckpointError,
        ConfigError,
        DataError,
        ScorerError,
        StarflowError,
        StateError,
        WorkerError,
    )
    from starflow_world.score import Scorer, Scores
    from starflow_world.training import train
    from starflow_world.video.model import VideoModel
    from starflow_world.world import Starts, World
    from starflow_world.world.state import Transition, WorldState

__version__ = "0.1.0"

__all__ = [
    "ActionError", "CheckpointError", "ConfigError", "DataError", "EnvState", "EpisodeDataset", "RayVectorEnv",
    "Scorer", "ScorerError", "Scores", "StarflowError", "Starts", "StateError", "SurpriseMonitor",
    "SurpriseVectorMonitor", "Transition", "VideoModel", "WorkerError", "World", "WorldEnv", "WorldState",
    "WorldVectorEnv", "check_world", "collect", "train",
]

_ERRORS = (
    "ActionError", "CheckpointError", "ConfigError", "DataError", "ScorerError", "StarflowError", "StateError",
    "WorkerError",
)
_HOMES = dict.fromkeys(_ERRORS, "errors") | {
    "EnvState": "envs.episode", "EpisodeDataset": "data.dataset", "RayVectorEnv": "envs.ray_vector_env",
    "Scorer": "score", "Scores": "score", "Starts": "world",
    "SurpriseMonitor": "envs.monitor", "SurpriseVectorMonitor": "envs.monitor", "Transition": "world.state",
    "World": "world", "WorldEnv": "envs.world_env", "WorldState": "world.state", "WorldVectorEnv": "envs.vector_env",
    "check_world": "check", "collect": "agents.collect", "train": "training", "VideoModel": "video.model",
}

_ENV_NAMES = {
    "babyai-gotolocal": "BabyAI-GoToLocal", "cartpole-pixels": "CartPolePixels",
    "dynamic-obstacles": "DynamicObstacles", "babyai-firstperson": "BabyAI-FirstPerson",
    "minatar-breakout": "MinAtar-Breakout", "minatar-freeway": "MinAtar-Freeway",
    "minatar-space-invaders": "MinAtar-SpaceInvaders",
}
"""What Gymnasium calls a shipped world, where that is not the name of its folder."""


def _check_links(package: Path) -> None:
    """ImportError if Git wrote a link of the package as a text file."""
    for name in ("agents", "configs", "envs"):
        if (package / name).is_file():
            raise ImportError(
                f"{package / name}: expected a link to the folder ../{name}, found a text file, as Git writes without "
                "symbolic links; run `git config core.symlinks true` and `git checkout -- starflow_world` (on Windows "
                "in developer mode), or install the wheel"
            )


_check_links(Path(__file__).parent)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # also where a module of that name has just been set
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _compute_on_one_thread() -> None:
    """Limit torch to one thread in a forked child. OpenMP's worker threads exist in the parent only; a parallel region
    of the child would wait for them for ever."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_on_one_thread)


def _register(name: str, entry: str, limit: int | None, kwargs: dict[str, Any]) -> None:
    if (id := f"StarflowWorld/{name}-v0") not in registry:
        single, vector = f"{__name__}.envs.world_env:{entry}", f"{__name__}.envs.vector_env:WorldVectorEnv"
        register(id, single, vector_entry_point=vector, max_episode_steps=limit, kwargs=kwargs)


def _register_all() -> None:
    _register("Custom", "WorldEnv", None, {})
    if "CartPolePixels-v0" not in registry:
        register("CartPolePixels-v0", f"{__name__}.envs.cartpole_pixels:CartPolePixels", max_episode_steps=64)
    for config in sorted(Path(__file__).parent.glob("worlds/*/config.json")):
        name, limit = config.parent.name, json.loads(config.read_text(encoding="utf-8"))["world"]["max_episode_steps"]
        _register(_ENV_NAMES.get(name, name), "ShippedWorldEnv", limit, {"world": name})


_register_all()
