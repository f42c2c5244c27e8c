"""What an env shows and what it says its task is, as a world is told of it; the same for whoever records, plans or
watches."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from starflow_world.errors import DataError


def shown(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """What an env rendered or observed, checked and scaled to (height, width): (H, W, 3) u8."""
    import cv2

    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{getattr(frame, 'dtype', '')} {getattr(frame, 'shape', type(frame).__name__)}".strip()
        raise DataError(f"frame: expected (H, W, 3) uint8, found {found}; choose an env with render_mode='rgb_array'")
    if frame.shape[:2] == size:
        return frame
    return np.asarray(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA))


def is_minigrid(env: Any) -> bool:
    """Return whether an env is a MiniGrid, BabyAI's among them: only these are asked MiniGrid's questions."""
    kinds = type(getattr(env, "unwrapped", env)).__mro__
    return any((kind.__module__, kind.__name__) == ("minigrid.minigrid_env", "MiniGridEnv") for kind in kinds)


def mission(env: Any, observation: Any, info: Mapping[str, Any]) -> str:
    """The task in words, where it is given: in the observation, by the env itself, or in the info of its reset."""
    given = observation.get("mission") if isinstance(observation, Mapping) else None
    if given is None and is_minigrid(env):
        given = env.unwrapped.mission
    given = info.get("text") if given is None else given
    return given if isinstance(given, str) else ""
