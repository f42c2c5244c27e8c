"""Scorers on disk: scorer.safetensors holds arrays and metadata under a checksum; scorer.json repeats the metadata."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starflow_world.errors import CheckpointError, ScorerError
from starflow_world.io.files import read_tensors, write_tensors, write_text
from starflow_world.score.calibration import Change, Ranks
from starflow_world.score.normal import Fitted, Settings, group_count
from starflow_world.score.scores import PARTS
from starflow_world.score.tails import KNOTS, Tails
from starflow_world.world import World

FORMAT = 2
FACTS, NUMBERS = "scorer.json", "scorer.safetensors"
ARRAYS = {"tails": ("knots", "shape", "spread"), "ranks": ("scores", "starts", "ages"), "change": ("mean", "deviation")}
"""Arrays of each field of Fitted; the tensor of array NAME of field PART is called PART.NAME."""


def world_facts(world: World) -> dict[str, Any]:
    """Return the properties by which a scorer is tied to a world, by name, so that an error can name a mismatch."""
    config = world.config
    codec = {name: getattr(config.codec, name) for name in ("kind", "patch", "components", "merge")}
    return {
        "size": [config.height, config.width], "codec": codec, "noise_level": config.noise_level,
        "world": config.name, "world_id": world.world_id,
    }


def write_scorer(folder: Path | str, world: World, settings: Settings, fitted: Fitted) -> None:
    """Write scorer.safetensors and scorer.json. Raises ScorerError."""
    facts = {
        "format": FORMAT, **world_facts(world), "settings": asdict(settings), "parts": list(PARTS),
        "calibration_frames": len(fitted.ranks.scores), "calibration_episodes": len(fitted.episodes),
        "change": {name: getattr(fitted.change, name) for name in ("calm", "spread", "threshold")},
    }
    text = json.dumps(facts, indent=1, sort_keys=True)
    arrays = {"episodes": fitted.episodes}
    for part, names in ARRAYS.items():
        arrays |= {f"{part}.{name}": getattr(getattr(fitted, part), name) for name in names}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    write_tensors(Path(folder) / NUMBERS, {"known": fitted.known, **tensors}, {"facts": text}, sealed=True,
                  error=ScorerError)
    write_text(Path(folder) / FACTS, text)


def read_scorer(folder: Path | str, world: World) -> tuple[Settings, Fitted]:
    """Read a scorer of `world`. Raises ScorerError that names the damage or the mismatch with this world."""
    path = Path(folder) / NUMBERS
    tensors, metadata = read_tensors(path, ScorerError, sealed=True)
    try:
        facts = json.loads(metadata["facts"])
        shown = json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))
        version = facts["format"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ScorerError(f"{folder}: expected a whole scorer, found damage: {error!r:.120}; calibrate again") from None
    if version != FORMAT:
        raise ScorerError(f"{path}: expected a scorer of format {FORMAT}, found {version!r:.20}; calibrate again")
    if facts != shown:
        differ = [name for name in facts if not isinstance(shown, dict) or shown.get(name) != facts[name]]
        raise ScorerError(f"{folder}: expected {FACTS} and {NUMBERS} of one scorer, found different values of "
                          f"{', '.join(differ) or 'other facts'}; calibrate again")
    for name, expected in world_facts(world).items():
        if facts.get(name) != expected:
            raise ScorerError(f"{folder}: {name}: expected a scorer for {expected!s:.100}, found one for "
                              f"{facts.get(name)!s:.100}; calibrate one for this world")
    try:
        return Settings(**facts["settings"]), _fitted(tensors, facts, world)
    except (KeyError, TypeError, ValueError, RuntimeError, CheckpointError) as error:
        raise ScorerError(f"{path}: expected a whole scorer, found damage: {error!r:.120}; calibrate again") from None


def _fitted(tensors: dict[str, Tensor], facts: dict[str, Any], world: World) -> Fitted:
    groups, count = group_count(world), len(PARTS)
    size = len(tensors["ranks.ages"])
    shapes = {
        "tails.knots": (groups, count, KNOTS), "tails.shape": (groups, count), "tails.spread": (groups, count),
        "change.mean": (groups,), "change.deviation": (groups,), "ranks.starts": (size + 1,),
    }
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, found {tuple(tensors[name].shape)}")
    arrays = ([tensors[f"{part}.{name}"].numpy() for name in names] for part, names in ARRAYS.items())
    tails, ranks, (mean, deviation) = arrays
    return Fitted(
        tensors["known"], Tails(*tails), Ranks(*ranks),
        Change(mean, deviation, facts["settings"]["window"], **facts["change"]), tensors["episodes"].numpy(),
    )
