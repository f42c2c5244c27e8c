"""Frames and task texts of any env in the form that a world reads; shared by recorders, planners and monitors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from starflow_world.errors import DataError


def shown(frame: Any, size: tuple[int, int] | None) -> np.ndarray:
    """Return a rendered or observed frame as a new array (H, W, 3) u8, scaled to (height, width); None: not scaled.

    Accepts grey (H, W) or (H, W, 1), RGB, and RGBA, whose alpha is dropped; channels may come first. Integers range
    from 0 to 255, floats and bools from 0 to 1. Raises DataError.
    """
    import cv2

    pixels = _eight_bit(_channels_last(frame))
    if pixels is None:
        found = f"{getattr(frame, 'dtype', '')} {getattr(frame, 'shape', type(frame).__name__)}".strip()
        if getattr(frame, "size", 0) and np.issubdtype(getattr(frame, "dtype", object), np.number):
            found += f" from {np.min(frame):g} to {np.max(frame):g}"
        raise DataError("frame: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), integers from 0 to 255 or floats "
                        f"from 0 to 1, found {found}; choose an env with render_mode='rgb_array'")
    if size is None or pixels.shape[:2] == size:
        return pixels.copy()  # environments may draw all frames into one buffer
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=cv2.INTER_AREA))


def _channels_last(frame: Any) -> np.ndarray | None:
    """Return the frame as (H, W, 3), or None for anything else."""
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3) or 0 in frame.shape:
        return None
    planes = frame[..., None] if frame.ndim == 2 else frame
    if planes.shape[2] not in (1, 3, 4) and planes.shape[0] in (1, 3, 4):
        planes = planes.transpose(1, 2, 0)
    if planes.shape[2] not in (1, 3, 4):
        return None
    return np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes[..., :3]


def _eight_bit(planes: np.ndarray | None) -> np.ndarray | None:
    """Return the frame as uint8, or None if its numbers are out of range."""
    if planes is None or planes.dtype == np.uint8:
        return planes
    if planes.dtype.kind not in "biuf":
        return None
    most = 255 if planes.dtype.kind in "iu" else 1
    if not (planes.min() >= 0 and planes.max() <= most):  # also true for NaN
        return None
    return (planes.astype(np.float64) * (255 // most)).round().astype(np.uint8)


def is_minigrid(env: Any) -> bool:
    """Return whether an env is a MiniGrid (as BabyAI's are): only these have MiniGrid's attributes."""
    kinds = type(getattr(env, "unwrapped", env)).__mro__
    return any((kind.__module__, kind.__name__) == ("minigrid.minigrid_env", "MiniGridEnv") for kind in kinds)


def mission(env: Any, observation: Any, info: Mapping[str, Any]) -> str:
    """Return the task text from the observation, from a MiniGrid env, or from the info of its reset; else ""."""
    given = observation.get("mission") if isinstance(observation, Mapping) else None
    if given is None and is_minigrid(env):
        given = env.unwrapped.mission
    given = info.get("text") if given is None else given
    return given if isinstance(given, str) else ""
