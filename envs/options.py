"""Checks of the arguments of `reset` (options, seeds, mask of rows), of render modes and of texts.

Shapes: T frames of a start, N rows of a vector env.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from starflow_world.errors import ActionError, ConfigError, DataError, StateError
from starflow_world.world import World

OPTIONS = ("text", "frames", "actions", "state")


@dataclass(frozen=True)
class StartCondition:
    """Start condition of a row: nothing (use the start set), a text, or frames (T, H, W, 3) u8 with or without their
    actions (T, the first usually None) and a text."""

    text: str | None = None
    frames: np.ndarray | None = None
    actions: list[Any] | None = None


def check_options(options: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """Return the options that are not None. Raises ConfigError with the nearest known key for an unknown key."""
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ConfigError(f"options: expected a dict with keys of {', '.join(known)}, found {type(options).__name__}")
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"options: unknown key {key!r:.60}; {hint}")
    given = {key: value for key, value in options.items() if value is not None}
    if "state" in given and (more := sorted(given.keys() & {"text", "frames", "actions"})):
        raise ConfigError("options: expected `state` alone, because a state has its text and frames, "
                          f"found {', '.join(more)} with it")
    return given


def check_condition(world: World, text: Any, frames: Any, actions: Any) -> StartCondition:
    """Return the checked condition of one row; frames are (H, W, 3) or (T, H, W, 3) u8."""
    if text is not None:
        check_text(text)
    if frames is None:
        if actions is not None:
            raise ConfigError("options: expected `actions` with the `frames` that they led to, found no frames")
        return StartCondition(text)
    clip = _check_frames(frames, (world.config.height, world.config.width, 3))
    if actions is None:
        return StartCondition(text, clip)
    count = world.dynamics.frames.count(len(clip))
    if not isinstance(actions, Sequence | np.ndarray) or isinstance(actions, str) or len(actions) != count:
        expected = f"a list of {count}, one per latent frame (the first may be None)"
        raise ActionError(f"options: actions: expected {expected}, found {actions!r:.80}")
    return StartCondition(text, clip, list(actions))


def _check_frames(frames: Any, size: tuple[int, int, int]) -> np.ndarray:
    try:
        array = frames.numpy(force=True).copy() if isinstance(frames, Tensor) else np.array(frames)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"frames: expected one uint8 array, found {type(frames).__name__}: {error}") from None
    clip = array[None] if array.ndim == 3 else array
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[1:] != size or not len(clip):
        raise DataError(f"frames: expected uint8 {size} or (T, {str(size)[1:]}, found {array.dtype} {array.shape}; "
                        "convert and resize them to the world's size")
    return clip


def check_text(text: Any) -> str:
    """Return the text. Raises DataError if it is not a string."""
    if not isinstance(text, str):
        raise DataError(f"text: expected a string, found {type(text).__name__}")
    return text


def check_render_mode(render_mode: str | None, known: Sequence[str]) -> str | None:
    """Return the render mode. Raises ConfigError for an unknown mode."""
    if render_mode is not None and render_mode not in known:
        raise ConfigError(f"render_mode: expected None or one of {', '.join(known)}, found {render_mode!r:.60}")
    return render_mode


# ---- for all rows of a vector env ------------------------------------------------------------------------------------


def masked_rows(mask: Any, num_envs: int) -> np.ndarray:
    """Return the indices of the rows to reset, (k,) int64; all rows for None."""
    if mask is None:
        return np.arange(num_envs)
    right = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (num_envs,)
    if not right or not mask.any():
        expected = f"a bool array ({num_envs},) with at least one True"
        raise ConfigError(f"reset_mask: expected {expected}, found {mask!r:.120}")
    return np.flatnonzero(mask)


def read_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """Return the seed of each row; None: the row keeps its generator."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(num_envs)]
    if not hasattr(seed, "__len__") or len(seed) != num_envs:
        raise ConfigError(f"seed: expected an integer or {num_envs}, one per row, found {seed!r:.80}")
    return [None if part is None else int(part) for part in seed]


def split_options(options: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Return the `text`, `frames` and `actions` of every row; a single text is used for all rows."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in options.items():
        parts = [value] * num_envs if key == "text" and isinstance(value, str) else value
        if not hasattr(parts, "__len__") or len(parts) != num_envs:
            raise ConfigError(f"options: {key}: expected one for each of {num_envs} rows, found {value!r:.80}")
        for row, part in zip(rows, parts, strict=True):
            row[key] = part
    return rows


def select_options(options: dict[str, Any], rows: np.ndarray, num_envs: int) -> dict[str, Any]:
    """Return the reset options of `rows` (k,) out of `num_envs`."""
    selected: dict[str, Any] = {}
    for key, value in options.items():
        inner = getattr(value, "world", value)  # an EnvState has as many rows as its WorldState
        if key == "text" and isinstance(value, str):
            selected[key] = value
        elif not hasattr(inner, "__len__") or len(inner) != num_envs:
            error = StateError if key == "state" else ConfigError
            raise error(f"options: {key}: expected one for each of {num_envs} rows, found {value!r:.80}")
        else:
            selected[key] = value[rows] if key == "state" else [value[row] for row in rows.tolist()]
    return selected
