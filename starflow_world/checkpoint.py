"""Checkpoints: a folder with config.json, model.safetensors and card.json; starts.safetensors holds the start set.

Loading is strict: names, shapes, dtypes, finiteness and the digest of the weights are checked, and damage of any kind is
one `CheckpointError`. Nothing in a checkpoint can run code.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import WorldConfig, from_dict, to_dict
from .errors import CheckpointError, ConfigError
from .files import read_tensors, write_tensors, write_text
from .networks import Networks

FORMAT = 1
LARGEST_STARTS = 1 << 29
CONFIG, WEIGHTS, CARD, STARTS, TRAINING = (
    "config.json", "model.safetensors", "card.json", "starts.safetensors", "training.safetensors",
)


def read_json(path: Path | str, most: int = 1 << 24) -> Any:
    """The content of a JSON file of at most `most` bytes."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a JSON file, found none")
    if path.stat().st_size > most:
        raise CheckpointError(f"{path}: expected at most {most} bytes, found {path.stat().st_size}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found damage: {error}; fetch it again") from None


def digest(path: Path | str) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path | str, networks: Networks, card: Mapping[str, Any]) -> None:
    """Write a checkpoint; config.json comes last and names the digest of the weights, so old and new never mix."""
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, networks.state_dict(), {"format": str(FORMAT)})
    write_text(folder / CARD, json.dumps(dict(card), indent=1) + "\n")
    values = {"format": FORMAT, "weights": digest(folder / WEIGHTS), "world": to_dict(networks.config)}
    write_text(folder / CONFIG, json.dumps(values, indent=1) + "\n")


def load_config(folder: Path | str) -> tuple[WorldConfig, str]:
    """The config of a checkpoint and the digest of its weights."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a checkpoint folder, found none")
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("weights"), str):
        raise CheckpointError(f"{folder / CONFIG}: expected format {FORMAT} with the digest of the weights; "
                              "it was written by another version or is damaged")
    try:
        return from_dict(WorldConfig, values.get("world")), values["weights"]
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def load_networks(folder: Path | str) -> tuple[Networks, str]:
    """Networks with the weights of a checkpoint (on the CPU, in eval mode), and the digest of the weights."""
    folder = Path(folder)
    config, expected = load_config(folder)
    found = digest(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else "no file"
    if found != expected:
        raise CheckpointError(f"{folder / WEIGHTS}: expected digest {expected[:12]}, found {found[:12]}; "
                              "the file is damaged or belongs to another checkpoint: fetch it again")
    tensors, _ = read_tensors(folder / WEIGHTS)
    try:
        networks = Networks(config)
    except (ConfigError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    load_strictly(networks, tensors, folder / WEIGHTS)
    return networks.eval(), expected


def save_starts(folder: Path | str, frames: Tensor, texts: Sequence[str]) -> None:
    """Write a start set, frames (N, H, W, 3) u8 with texts; frames are kept as one zlib stream."""
    packed = torch.frombuffer(bytearray(zlib.compress(frames.numpy().tobytes(), 9)), dtype=torch.uint8)
    facts = {"format": str(FORMAT), "shape": json.dumps(list(frames.shape)), "texts": json.dumps(list(texts))}
    write_tensors(Path(folder) / STARTS, {"frames": packed}, facts)


def load_starts(folder: Path | str) -> tuple[Tensor, tuple[str, ...]] | None:
    """The start set of a checkpoint, or None where it has none."""
    path = Path(folder) / STARTS
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    try:
        shape, texts = json.loads(metadata["shape"]), tuple(json.loads(metadata["texts"]))
        size = math.prod(shape)
        if len(shape) != 4 or len(texts) != shape[0] or min(shape) < 1 or size > LARGEST_STARTS:
            raise ValueError(f"shape {shape} with {len(texts)} texts")
        unpacked = zlib.decompressobj().decompress(tensors["frames"].numpy().tobytes(), size + 1)
        if len(unpacked) != size or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{len(unpacked)} bytes where {size} belong")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise CheckpointError(f"{path}: expected a start set, found damage: {error}; fetch it again") from None
    return torch.frombuffer(bytearray(unpacked), dtype=torch.uint8).reshape(shape), texts


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Load tensors whose names and shapes must be exactly those of the module's state."""
    expected = module.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(t.shape)}"
        for name, t in expected.items() if name in tensors and tensors[name].shape != t.shape
    ]
    if problems:
        raise CheckpointError(f"{where}: {len(problems)} tensors do not fit: {'; '.join(problems[:5])}")
    module.load_state_dict(dict(tensors), strict=True)


def save_training(folder: Path | str, networks: Networks, optimizers: list[torch.optim.Optimizer], facts: dict[str, Any]) -> None:
    """Write all that a resumed run needs as one file: weights, optimizer states, and `facts` (JSON)."""
    tensors = {f"weights/{name}": t for name, t in networks.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for key, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer/{index}/{key}/{name}"] = torch.as_tensor(value)
    write_tensors(Path(folder) / TRAINING, tensors, {"facts": json.dumps(facts)})


def load_training(folder: Path | str, networks: Networks, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Restore what `save_training` wrote; returns its facts."""
    path = Path(folder) / TRAINING
    tensors, metadata = read_tensors(path)
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    load_strictly(networks, weights, path)
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split("/")
            if kind == "optimizer" and int(rest[0]) == index:
                state.setdefault(int(rest[1]), {})[rest[2]] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads(metadata["facts"])
