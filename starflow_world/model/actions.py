"""Conditions: actions of any Gymnasium space as vectors, text as T5 states.

An action is stored as (1 + flat,) numbers: 1, then `gymnasium.spaces.flatten`. All zeros mean that there is no
action, so that a Box action of zeros is not none. The projection has no bias and starts at zero: a fresh encoder
changes nothing.
"""

import json
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from starflow_world.errors import ActionError, ConfigError


def space_to_json(space: spaces.Space) -> str:
    """A Discrete, Box, MultiDiscrete, MultiBinary, Dict or Tuple space as JSON."""
    return json.dumps(_describe(space), sort_keys=True)


def _describe(space: spaces.Space) -> dict[str, Any]:
    match space:
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.Box():
            bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
            return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
        case spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "n": list(space.shape) if len(space.shape) > 1 else int(space.shape[0])}
        case spaces.Dict() if all(isinstance(key, str) for key in space.spaces):
            return {"type": "Dict", "spaces": [[key, _describe(part)] for key, part in space.spaces.items()]}
        case spaces.Tuple():
            return {"type": "Tuple", "spaces": [_describe(part) for part in space.spaces]}
    raise ConfigError(
        f"action space: expected Discrete, Box, MultiDiscrete, MultiBinary, Dict (of strings) or Tuple, found {space}"
    )


def space_from_json(text: str) -> spaces.Space:
    """The space that `space_to_json` described."""
    try:
        return _build(json.loads(text))
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, OverflowError, RecursionError) as error:
        found = f"{text:.200} ({error!r})"
        raise ConfigError(f"action space: expected the JSON of a Gymnasium space, found {found}") from None


def same_space(one: str, other: str) -> bool:
    """Whether two such descriptions, however they are written, are of one space."""
    return space_to_json(space_from_json(one)) == space_to_json(space_from_json(other))


def _build(values: dict[str, Any]) -> spaces.Space:
    match values["type"]:
        case "Discrete":
            return spaces.Discrete(values["n"], start=values.get("start", 0))
        case "Box":
            dtype = np.dtype(values["dtype"])
            low, high = np.array(values["low"], dtype), np.array(values["high"], dtype)
            return spaces.Box(low, high, tuple(values["shape"]), dtype.type)
        case "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(values["nvec"]), start=np.array(values["start"]))
        case "MultiBinary":
            return spaces.MultiBinary(values["n"])
        case "Dict":
            return spaces.Dict([(str(key), _build(part)) for key, part in values["spaces"]])  # flattened in this order
        case "Tuple":
            return spaces.Tuple([_build(part) for part in values["spaces"]])
    raise ValueError(f"unknown type {values['type']!r}")


def flatten_action(space: spaces.Space, action: Any) -> np.ndarray:
    """(1 + flat,) float32 for one action; zeros for None. Raises ActionError for what is not in the space."""
    size = 1 + spaces.flatdim(space)
    if action is None:
        return np.zeros(size, np.float32)
    try:
        valid = space.contains(action)
    except Exception:
        valid = False
    if not valid:
        found = f"{action!r:.120} of type {type(action).__name__}"
        raise ActionError(f"action: expected an element of {space}, found {found}; try action_space.sample()")
    with np.errstate(over="ignore"):
        flat = np.concatenate(([1.0], np.asarray(spaces.flatten(space, action), np.float64))).astype(np.float32)
    if not np.isfinite(flat).all():
        raise ActionError(f"action: expected numbers that float32 can hold, found {action!r:.120}; use smaller ones")
    return flat


def flatten_actions(space: spaces.Space, actions: Sequence[Any]) -> Tensor:
    """(B, 1 + flat) for a list with one action, or None, per row."""
    return torch.from_numpy(np.stack([flatten_action(space, action) for action in actions]))


class ActionEncoder(nn.Module):
    """Flattened actions (..., 1 + flat) -> what is added to the deep block's inputs (..., d)."""

    def __init__(self, space: gymnasium.Space, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(1 + spaces.flatdim(space), width, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, actions: Tensor) -> Tensor:
        """(..., 1 + flat) -> (..., d), in the dtype of the weights."""
        with torch.autocast(actions.device.type, enabled=False):
            return self.project(actions)
