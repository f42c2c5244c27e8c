"""Encoding of actions from any Gymnasium space as vectors.

An action is stored as (1 + flat,) numbers: 1, then `gymnasium.spaces.flatten`. All zeros mean no action, which differs
from a Box action of zeros. The projection has no bias and starts at zero, so an untrained encoder has no effect.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from starflow_world.config.world import ActionScale
from starflow_world.errors import ActionError, ConfigError


def space_to_json(space: spaces.Space) -> str:
    """Return a Discrete, Box, MultiDiscrete, MultiBinary, Dict or Tuple space as JSON."""
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
    """Return the space that `space_to_json` described."""
    try:
        return _build(json.loads(text))
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"action space: expected the JSON of a Gymnasium space, found {text:.200} ({error!r})"
        ) from None


def same_space(one: str, other: str) -> bool:
    """Return whether two JSON descriptions are of the same space, however they are written."""
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


def fit_action(space: spaces.Space, action: Any) -> Any:
    """Convert an action to the types of its space: lists, torch tensors and arrays of other dtypes become arrays of the
    space's dtype. Values for a float Box are rounded to its dtype; no other number changes."""
    action = action.numpy(force=True) if isinstance(action, Tensor) else action
    match space:
        case spaces.Dict() if isinstance(action, Mapping) and action.keys() == space.keys():
            return {key: fit_action(part, action[key]) for key, part in space.items()}
        case spaces.Tuple() if isinstance(action, list | tuple) and len(action) == len(space):
            return tuple(fit_action(part, value) for part, value in zip(space, action, strict=True))
        case spaces.Dict() | spaces.Tuple():
            return action
    numbers = np.asarray(action)
    if isinstance(space, spaces.Discrete):
        return int(numbers) if numbers.ndim == 0 and numbers.dtype.kind in "biu" else action
    if numbers.dtype.kind not in "biuf" or space.dtype is None:
        return numbers
    with np.errstate(all="ignore"):
        cast = numbers.astype(space.dtype)
    return cast if cast.dtype.kind == "f" or np.array_equal(cast, numbers) else numbers


def flatten_action(space: spaces.Space, action: Any) -> np.ndarray:
    """Flatten one action to (1 + flat,) float32; zeros for None. Raises ActionError for an action outside the space."""
    size = 1 + spaces.flatdim(space)
    if action is None:
        return np.zeros(size, np.float32)
    given = action
    try:
        action = fit_action(space, given)
        valid = space.contains(action)
    except Exception:
        valid = False
    if not valid:
        found = f"{given!r:.120} of type {getattr(given, 'dtype', type(given).__name__)}"
        raise ActionError(f"action: expected an element of {space}, found {found}; try action_space.sample()")
    with np.errstate(over="ignore"):
        flat = np.concatenate(([1.0], np.asarray(spaces.flatten(space, action), np.float64))).astype(np.float32)
    if not np.isfinite(flat).all():
        raise ActionError(f"action: expected numbers that float32 can hold, found {action!r:.120}; use smaller ones")
    return flat


def flatten_actions(space: spaces.Space, actions: Sequence[Any]) -> Tensor:
    """Flatten a list with one action, or None, per row to (B, 1 + flat)."""
    return torch.from_numpy(np.stack([flatten_action(space, action) for action in actions]))


FAR = 1e4
"""Ratio of a bound to the largest action in the data above which the bound is ignored for scaling."""


def action_scale(space: spaces.Space, actions: np.ndarray, first: np.ndarray) -> ActionScale | None:
    """Return the scale that maps Box actions to about -1 to 1, or None if flattened actions are in that range already.

    Taken from the bounds of the space; if it has none, or the data stay far below them, from mean and standard
    deviation of the data. actions (N, flat): flattened; first: indices of first frames, which have no action.
    """
    low, high = _bounds(space)
    offset, scale = np.zeros(len(low)), np.ones(len(low))
    for k in np.flatnonzero(~np.isnan(low)):
        values = np.delete(actions[:, k], first).astype(np.float64)
        bounded = np.isfinite((low[k], high[k])).all() and low[k] < high[k]
        middle, half = ((low[k] + high[k]) / 2, (high[k] - low[k]) / 2) if bounded else (0.0, 0.0)
        reach = np.abs(values - middle).max(initial=0.0)
        if bounded and (not reach or half < FAR * reach):
            offset[k], scale[k] = middle, half
        elif len(values) and values.std():
            offset[k], scale[k] = values.mean(), values.std()
    if not offset.any() and (scale == 1).all():
        return None
    return ActionScale(tuple(offset.tolist()), tuple(scale.tolist()))


def _bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest and highest flattened actions (flat,) in float64; NaN for parts that are no Box."""
    if isinstance(space, spaces.Box):
        return space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        lows, highs = zip(*map(_bounds, parts), strict=True)
        return np.concatenate(lows), np.concatenate(highs)
    return (np.full(spaces.flatdim(space), np.nan),) * 2


def every_action(space: spaces.Space, most: int) -> list[int]:
    """Return all actions of a Discrete space, if there are at most `most`; [] for other spaces."""
    if not isinstance(space, spaces.Discrete) or space.n > most:
        return []
    return [int(space.start) + place for place in range(int(space.n))]


class ActionEncoder(nn.Module):
    """Map flattened actions (..., 1 + flat) to vectors (..., d) that are added to the deep block's inputs.

    With a `scale` the numbers of present actions are read as (action - offset) / scale.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, space: gymnasium.Space, width: int, scale: ActionScale | None = None) -> None:
        super().__init__()
        size = spaces.flatdim(space)
        self.project = nn.Linear(1 + size, width, bias=False)
        nn.init.zeros_(self.project.weight)
        self.scaled = scale is not None
        for name, values in vars(scale or ActionScale((), ())).items():
            if scale is not None and len(values) != size:
                raise ConfigError(f"action_scale.{name}: expected {size} numbers for {space}, found {len(values)}")
            numbers = torch.tensor(values, dtype=torch.float32, device="cpu")  # real values even on the meta device
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, actions: Tensor) -> Tensor:
        """Return (..., d) in the dtype of the weights for actions (..., 1 + flat)."""
        with torch.autocast(actions.device.type, enabled=False):
            if self.scaled:
                present, numbers = actions[..., :1], actions[..., 1:]
                numbers = ((numbers - self.offset) / self.scale).to(actions.dtype)
                actions = torch.cat((present, present * numbers), dim=-1)
            return self.project(actions)
