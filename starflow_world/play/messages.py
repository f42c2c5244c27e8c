"""The protocol between page and server: what a page may ask, checked, and frames as binary messages.

A page sends JSON objects with a key `do`, or the bytes of one frame (H, W, 3) to begin from. The server answers with
JSON objects with a key `say`, or with binary messages: the length of a JSON header (4 bytes, little-endian), the
header, and the bytes that the header's `panes` name, frame and heat map of each in turn.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from starflow_world.errors import DataError

LONGEST = 1 << 16
"""Bytes of the longest JSON message."""
LONGEST_TEXT, LONGEST_PATH, LARGEST_SEED = 1_000, 4_096, (1 << 53) - 1
STARTS = ("set", "text", "real", "state", "frame")

Check = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SEED


def _flag(value: Any) -> bool:
    return type(value) is bool


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and _encodes(value)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 256 and all(type(number) in (int, float) for number in value)


def _event(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) == 1 and ((_whole(value.get("luck"))) or _text(value.get("text")))
    return _numbers(value)


def _path(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= LONGEST_PATH and all(_event(event) for event in value)


def _beginning(value: Any) -> bool:
    """Whether this is a start that a link can name: {"kind": "set", "seed": 3, "text": null}."""
    return (isinstance(value, dict) and value.keys() <= {"kind", "seed", "text"} and value.get("kind") in STARTS[:3]
            and _whole(value.get("seed")) and (value.get("text") is None or _text(value["text"])))


COMMANDS: Mapping[str, Mapping[str, Check]] = {
    "start": {"kind": lambda value: value in STARTS[:4], "seed": _whole, "text": lambda v: v is None or _text(v),
              "name": _text},
    "replay": {"start": _beginning, "path": _path},
    "step": {"action": _numbers}, "other": {"action": _numbers},
    "back": {"to": _whole}, "mark": {}, "goto": {"id": _whole}, "forget": {"id": _whole},
    "branch": {"luck": _whole, "beside": _flag}, "alone": {"keep": lambda value: value in (0, 1)},
    "text": {"text": _text}, "beside": {"on": _flag}, "record": {"on": _flag, "overlay": _flag},
    "save": {}, "link": {},
}


def read_message(text: str) -> dict[str, Any]:
    """Return the command of a JSON message. Raises DataError for anything that COMMANDS does not describe."""
    try:
        values = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DataError(f"message: expected a JSON object of at most {LONGEST} bytes, found {text!r:.80}")
    checks = COMMANDS.get(values["do"]) if isinstance(values.get("do"), str) else None
    if checks is None:
        raise DataError(f"message: expected do: one of {', '.join(COMMANDS)}, found {values.get('do')!r:.80}")
    if set(values) != {"do", *checks}:
        found = sorted(set(values) - {"do"})
        raise DataError(f"{values['do']}: expected the keys {sorted(checks)}, found {found!s:.120}")
    for key, check in checks.items():
        if not check(values[key]):
            raise DataError(f"{values['do']}: {key}: expected a value of the protocol, found {values[key]!r:.80}")
    return values


def say(kind: str, **values: Any) -> str:
    """Return a JSON message to a page."""
    return json.dumps({"say": kind, **values}, allow_nan=False)


def pack(header: Mapping[str, Any], parts: Sequence[np.ndarray]) -> bytes:
    """Return a binary message: header, then uint8 arrays."""
    text = json.dumps(header, allow_nan=False).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *(part.tobytes() for part in parts)])


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and bytes of a binary message."""
    end = 4 + int.from_bytes(message[:4], "little")
    return json.loads(message[4:end]), message[end:]
