"""Conversion of plain data to frozen dataclasses, with strict checks, and back."""

import dataclasses
import difflib
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from starflow_world.errors import ConfigError

T = TypeVar("T")


def between(config: Any, least: float, most: float, *names: str) -> None:
    for name in names:
        if not least <= getattr(config, name) <= most:
            limit = f">= {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{name}: expected a number {limit}, found {getattr(config, name)}")


def positive(config: Any, name: str) -> None:
    if not 0 < getattr(config, name) < math.inf:
        raise ConfigError(f"{name}: expected a positive number, found {getattr(config, name)}")


def one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(config, name) not in allowed:
        raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(config, name)!r}")


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `kind` from plain data. ConfigError for unknown or missing keys and wrong types."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where or kind.__name__}: expected a mapping, found {type(values).__name__}")
    hints, names = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key)[:80], names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(names)}"
            raise ConfigError(f"unknown key {where}{key!s:.80}{hint}")
    for name, spec in names.items():
        if name not in values and spec.default is spec.default_factory:  # both are MISSING
            raise ConfigError(f"{where}{name}: expected a value, found none")
    return kind(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, f"{where}.")  # type: ignore[arg-type]
    if type(None) in typing.get_args(kind):
        return None if value is None else _convert(typing.get_args(kind)[0], value, where)
    if isinstance(kind, types.UnionType):  # a number, or a list of them
        kind = typing.get_args(kind)[isinstance(value, list | tuple)]
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {value!r:.80}")
        return tuple(_convert(typing.get_args(kind)[0], item, where) for item in value)
    if kind is Any:
        return value
    if kind is Path and type(value) is str:
        return Path(value)
    if typing.get_origin(kind) is dict:
        kind = dict
    if kind is float and type(value) is int and abs(value) < 1 << 1000:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r:.80}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config to plain data for JSON. Absent optional parts are left out, so that the digest of a world does
    not change when the config format gains a part."""
    return json.loads(json.dumps(dataclasses.asdict(config)), object_hook=_without_none)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
