"""Conditions: actions of any Gymnasium space as vectors, text as T5 states.

An action is stored as (1 + flat,) numbers: 1, then `gymnasium.spaces.flatten`. All zeros mean that there is no action,
so that a Box action of zeros is not none. The projection has no bias and starts at zero: a fresh encoder changes nothing.
"""

import json
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from .config import TextConfig
from .errors import ActionError, ConfigError, DataError


def space_to_json(space: spaces.Space) -> str:
    """A Discrete, Box, MultiDiscrete, MultiBinary, Dict or Tuple space as JSON."""
    return json.dumps(_describe(space), sort_keys=True)


def _describe(space: spaces.Space) -> dict[str, Any]:
    kind = type(space).__name__
    match space:
        case spaces.Discrete():
            return {"type": kind, "n": int(space.n), "start": int(space.start)}
        case spaces.Box():
            bounds = {"low": space.low.astype(float).tolist(), "high": space.high.astype(float).tolist()}
            return {"type": kind, **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
        case spaces.MultiDiscrete():
            return {"type": kind, "nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        case spaces.MultiBinary():
            return {"type": kind, "n": list(space.shape) if len(space.shape) > 1 else int(space.shape[0])}
        case spaces.Dict():
            return {"type": kind, "spaces": {key: _describe(part) for key, part in space.spaces.items()}}
        case spaces.Tuple():
            return {"type": kind, "spaces": [_describe(part) for part in space.spaces]}
    raise ConfigError(f"action space: expected Discrete, Box, MultiDiscrete, MultiBinary, Dict or Tuple, found {space}")


def space_from_json(text: str) -> spaces.Space:
    """The space that `space_to_json` described."""
    try:
        return _build(json.loads(text))
    except (KeyError, TypeError, ValueError, AssertionError, RecursionError) as error:
        raise ConfigError(f"action space: expected the JSON of a Gymnasium space, found {text:.200} ({error!r})") from None


def _build(values: dict[str, Any]) -> spaces.Space:
    match values["type"]:
        case "Discrete":
            return spaces.Discrete(values["n"], start=values.get("start", 0))
        case "Box":
            dtype = np.dtype(values["dtype"])
            low, high = np.array(values["low"], dtype), np.array(values["high"], dtype)
            return spaces.Box(low, high, tuple(values["shape"]), dtype.type)  # type: ignore[arg-type]
        case "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(values["nvec"]), start=np.array(values["start"]))
        case "MultiBinary":
            return spaces.MultiBinary(values["n"])
        case "Dict":
            return spaces.Dict({key: _build(part) for key, part in values["spaces"].items()})
        case "Tuple":
            return spaces.Tuple([_build(part) for part in values["spaces"]])
    raise ValueError(f"unknown type {values['kind']!r}")


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
        raise ActionError(f"action: expected an element of {space}, found {found}; sample one with action_space.sample()")
    return np.concatenate(([1.0], np.asarray(spaces.flatten(space, action), np.float32))).astype(np.float32)


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
        """(..., 1 + flat) -> (..., d)."""
        return self.project(actions)


class TextEncoder(nn.Module):
    """Strings -> (B, L, width) by a T5 encoder over bytes (ByT5's tokens), trained with the world.

    Padding rows are zero vectors. Text that does not fit in L tokens is refused, never cut.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

        self.config = config
        self.tokenizer = ByT5Tokenizer(extra_ids=0)
        sizes = T5Config(
            vocab_size=len(self.tokenizer), d_model=config.width, d_kv=config.width // config.heads,
            d_ff=4 * config.width, num_layers=config.layers, num_heads=config.heads, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
        self.model = T5EncoderModel(sizes).encoder

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Texts (B) -> states (B, L, width)."""
        length = self.config.length
        tokens = [self.tokenizer(text)["input_ids"] for text in texts]
        for text, ids in zip(texts, tokens, strict=True):
            if len(ids) > length:
                raise DataError(f"text: expected at most {length - 1} bytes, found {len(ids) - 1} in {text:.60!r}; shorten it")
        device = self.model.device
        ids = torch.tensor([row + [0] * (length - len(row)) for row in tokens], device=device)
        present = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens], device=device)
        states = self.model(input_ids=ids, attention_mask=present).last_hidden_state
        return states * present[:, :, None]
