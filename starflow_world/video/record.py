"""What a result follows from, as JSON: the request, and the digests of all that it was made with.

A run that is resumed must have the same record. The file NAME.json beside a result holds it with figures of the run;
`generate --from` reads it, and refuses a model or a source with other digests.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starflow_world.config.reading import from_dict
from starflow_world.errors import ConfigError
from starflow_world.io.files import is_file
from starflow_world.io.shards import file_digest
from starflow_world.model.checkpoint import read_json
from starflow_world.video.model import ModelOrigin
from starflow_world.video.request import Request

PARTS = ("request", "made_with", "sources")
SOURCES = ("image", "video")
PLACES = ("model", "text", "vae")
"""Fields of a ModelOrigin that say where something is; the others say what it is."""


def request_record(request: Request, origin: ModelOrigin) -> dict[str, Any]:
    """Return what a result follows from: settings and digests, without the places of files."""
    fields = asdict(request) | {name: _digest(getattr(request, name)) for name in SOURCES}
    return fields | {name: value for name, value in asdict(origin).items() if name not in PLACES}


def result_record(request: Request, origin: ModelOrigin, figures: Mapping[str, Any]) -> str:
    """Return the content of the JSON beside a result."""
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()}
    digests = {name: _digest(getattr(request, name)) for name in SOURCES}
    record = {"request": fields, "made_with": asdict(origin), "sources": digests, "figures": dict(figures)}
    return json.dumps(record, indent=1) + "\n"


def read_record(path: Path) -> tuple[Request, ModelOrigin]:
    """Return the request of a result, and what made it, from the JSON beside it. Raises ConfigError, CheckpointError;
    ConfigError also for a source whose content is another one now."""
    values = read_json(path)
    if not isinstance(values, dict) or not all(isinstance(values.get(key), dict) for key in PARTS):
        raise ConfigError(f"{path}: expected the JSON that generate writes beside a result, found {values!r:.60}")
    request = from_dict(Request, values["request"], "request.")
    for name in SOURCES:
        old, new = values["sources"].get(name), _digest(getattr(request, name))
        if old != new:
            source = getattr(request, name)
            raise ConfigError(f"{path}: {name}: expected {source} of the digest {old!s:.12}, found {new or 'none':.12}")
    return request, from_dict(ModelOrigin, values["made_with"], "made_with.")


def is_made(out: Path, request: Request, origin: ModelOrigin) -> bool:
    """Return whether a result is complete at `out`. Raises ConfigError if it is that of another request."""
    path = out.with_suffix(".json")
    if not is_file(path) or not is_file(out):
        return False
    found, wanted = request_record(*read_record(path)), request_record(request, origin)
    for key in wanted:
        if found[key] != wanted[key]:
            expected = f"{wanted[key]!r:.80}, as is asked now"
            raise ConfigError(f"{path}: {key}: expected {expected}, found {found[key]!r:.80}; choose a new folder")
    return True


def refuse_other_parts(path: Path, old: ModelOrigin, new: ModelOrigin) -> None:
    """Raise ConfigError if a result that says it was made by `old` would now be made by other weights."""
    for name in ("weights", "text_digest", "vae_digest"):
        if getattr(old, name) != getattr(new, name):
            raise ConfigError(f"{path}: {name}: expected {getattr(old, name):.12}, as the result was made with, found "
                              f"{getattr(new, name):.12}; name the model, --text and --vae that it was made with")


def _digest(path: Path | None) -> str:
    """Return the SHA-256 of a file; "" for none."""
    return file_digest(path) if path is not None and is_file(path) else ""
