"""How a visitor steers a world: the numbers of an action, the names of actions, and the keys that stand for them."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from starflow_world.errors import ActionError

KEYS = {  # part of an action's name: the key for it, as KeyboardEvent.code names keys
    "left": "ArrowLeft", "right": "ArrowRight", "up": "ArrowUp", "forward": "ArrowUp", "down": "ArrowDown",
    "backward": "ArrowDown", "fire": "Space", "toggle": "Space", "pickup": "KeyP", "drop": "KeyO", "done": "Enter",
    "noop": "",
}
LETTERS = {"n": "noop", "l": "left", "u": "up", "r": "right", "d": "down", "f": "fire"}
"""MinAtar's names of actions."""
WIDEST = 10.0
"""Largest number that a slider of an unbounded Box gives."""


def control_fields(space: spaces.Space) -> list[dict[str, Any]]:
    """Return the numbers that make an action, in order: a choice below `n`, or a slider from `low` to `high`."""
    if isinstance(space, spaces.Discrete):
        return [{"kind": "choice", "n": int(space.n)}]
    if isinstance(space, spaces.MultiDiscrete):
        return [{"kind": "choice", "n": int(n)} for n in space.nvec.reshape(-1)]
    if isinstance(space, spaces.MultiBinary):
        return [{"kind": "choice", "n": 2}] * math.prod(space.shape)
    if isinstance(space, spaces.Box):
        low, high = (np.nan_to_num(side.astype(float), posinf=WIDEST, neginf=-WIDEST).reshape(-1).tolist()
                     for side in (space.low, space.high))
        return [{"kind": "slider", "low": a, "high": b} for a, b in zip(low, high, strict=True)]
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return [field for part in parts for field in control_fields(part)]
    raise ActionError(f"action space: expected one made of choices and numbers, found {space}")


def action_of(space: spaces.Space, numbers: Any) -> Any:
    """Return the action that these numbers make, one per field of `control_fields`. Raises ActionError."""
    fields = control_fields(space)
    right = isinstance(numbers, list) and len(numbers) == len(fields)
    if not right or not all(_within(number, field) for number, field in zip(numbers, fields, strict=True)):
        raise ActionError(f"action: expected {len(fields)} numbers, each within its range, found {numbers!r:.80}")
    return _built(space, iter(numbers))


def _within(number: Any, field: dict[str, Any]) -> bool:
    if field["kind"] == "choice":
        return type(number) is int and 0 <= number < field["n"]
    return type(number) in (int, float) and field["low"] <= number <= field["high"]


def _built(space: spaces.Space, numbers: Iterator[Any]) -> Any:
    if isinstance(space, spaces.Discrete):
        return int(space.start) + next(numbers)
    if isinstance(space, spaces.Dict):
        return {name: _built(part, numbers) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_built(part, numbers) for part in space.spaces)
    shape = space.shape or ()
    values = np.array([next(numbers) for _ in range(math.prod(shape))]).reshape(shape)
    if isinstance(space, spaces.MultiDiscrete):
        values = values + space.start
    elif isinstance(space, spaces.Box):
        values = values.clip(space.low, space.high)
    return values.astype(space.dtype)


def action_names(env: Any, space: spaces.Space) -> list[str]:
    """Return the names of the actions of a Discrete space, as the real environment (or None) calls them; [] if it
    names none: `get_action_meanings()` of ALE, the enumeration `actions` of MiniGrid, the letters of MinAtar."""
    inner = getattr(env, "unwrapped", None)
    names: Sequence[str] = ()
    if callable(meanings := getattr(inner, "get_action_meanings", None)):
        names = meanings()
    elif members := getattr(getattr(inner, "actions", None), "__members__", None):
        names = list(members)
    elif letters := getattr(getattr(getattr(inner, "game", None), "env", None), "action_map", None):
        chosen = getattr(inner, "action_set", range(len(letters)))
        names = [LETTERS.get(letters[index], letters[index]) for index in chosen]
    count = int(space.n) if isinstance(space, spaces.Discrete) else 0
    return [str(name).lower().replace("_", " ") for name in names][:count] if len(names) >= count else []


def keys_of(name: str) -> list[str] | None:
    """Return the keys that are held together for an action: ["ArrowUp", "ArrowRight"] for "upright", [] for "noop",
    None for a name without keys."""
    if name in KEYS:
        return [KEYS[name]] if KEYS[name] else []
    parts = re.findall("up|down|left|right|fire", name)
    return [KEYS[part] for part in parts] if parts and "".join(parts) == name else None
