"""Checkpoints: a folder with config.json, model.safetensors and card.json; starts.safetensors holds the start set.

Large weights may lie in several files behind an index instead (shards.py); then the index is what config.json seals.

Loading is strict: names, shapes, dtypes, finiteness and the digests of weights and config are checked, and damage of
any kind is one `CheckpointError`. Nothing in a checkpoint can run code.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.config.reading import from_dict, to_dict
from starflow_world.config.world import WorldConfig
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.io.files import is_file, not_written, read_tensors, write_tensors, write_text
from starflow_world.io.shards import INDEX, file_digest, read_shards
from starflow_world.model.networks import Networks

FORMAT = 1
LARGEST_STARTS = 1 << 29
CONFIG, WEIGHTS, NEXT, CARD = "config.json", "model.safetensors", "next.safetensors", "card.json"
STARTS, TRAINING, PROMPTS = "starts.safetensors", "training.safetensors", "prompts"


def read_json(path: Path | str, most: int = 1 << 24) -> Any:
    """The content of a JSON file of at most `most` bytes."""
    path = Path(path)
    if not is_file(path):
        raise CheckpointError(f"{path}: expected a JSON file, found none")
    if path.stat().st_size > most:
        raise CheckpointError(f"{path}: expected at most {most} bytes, found {path.stat().st_size}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found damage: {error}; fetch it again") from None


def save_checkpoint(
    folder: Path | str, networks: Networks, card: Mapping[str, Any], half: tuple[str, ...] = ()
) -> None:
    """Write a checkpoint; parameters whose names begin with one of `half` are stored as float16. config.json names the
    digest of its weights, which lie beside the old ones until it is written: whenever the writer dies, the old
    checkpoint can be loaded or the new one."""
    folder = Path(folder)
    _finish(folder)
    tensors = {name: t.half() if half and name.startswith(half) else t for name, t in networks.state_dict().items()}
    write_tensors(folder / NEXT, tensors, {"format": str(FORMAT)})
    values = {"format": FORMAT, "weights": file_digest(folder / NEXT), "world": to_dict(networks.config)}
    try:
        write_text(folder / CARD, json.dumps(dict(card), indent=1) + "\n")
        write_text(folder / CONFIG, json.dumps({**values, "digest": _seal(values)}, indent=1) + "\n")
        (folder / NEXT).replace(folder / WEIGHTS)
    except OSError as error:
        raise CheckpointError(not_written(folder, error)) from None


def _finish(folder: Path) -> None:
    """Do the last step of a save that a dead process began."""
    with suppress(CheckpointError):  # no checkpoint there
        if _weights(folder, load_config(folder)[1]) == folder / NEXT:
            (folder / NEXT).replace(folder / WEIGHTS)


def _weights(folder: Path, expected: str) -> Path:
    """The file with the expected digest: weights, their index, or those that a dying writer did not put in place."""
    found = {path: file_digest(path) for path in (folder / WEIGHTS, folder / NEXT, folder / INDEX) if is_file(path)}
    for path, value in found.items():
        if value == expected:
            return path
    raise CheckpointError(
        f"{folder / WEIGHTS}: expected digest {expected[:12]}, found {found.get(folder / WEIGHTS, 'no file')[:12]}; "
        "the file is damaged or belongs to another checkpoint: fetch it again"
    )


def _seal(values: Mapping[str, Any]) -> str:
    """SHA-256 of what config.json holds."""
    content = {key: value for key, value in values.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_config(folder: Path | str) -> tuple[WorldConfig, str]:
    """The config of a checkpoint and the digest of its weights."""
    path = Path(folder) / CONFIG
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("weights"), str):
        raise CheckpointError(f"{path}: expected format {FORMAT} with the digest of the weights; "
                              "it was written by another version or is damaged")
    known = {"format", "weights", "world", "digest"}
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"{path}: expected {', '.join(sorted(known))}, found also {unknown!s:.80}")
    own = _seal(values)
    if (named := values.get("digest", own)) != own:
        raise CheckpointError(f"{path}: expected content of the digest {named!s:.12}, found {own:.12}; fetch it again")
    try:
        return from_dict(WorldConfig, values.get("world")), values["weights"]
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_networks(folder: Path | str) -> tuple[Networks, str]:
    """Networks with the weights of a checkpoint (on the CPU, in eval mode), and the digest of the weights."""
    folder = Path(folder)
    config, expected = load_config(folder)
    path = _weights(folder, expected)
    tensors = read_shards(folder, expected) if path.name == INDEX else read_tensors(path)[0]
    flow = config.flow
    if flow.shallow_blocks * flow.shallow_layers + flow.deep_layers + flow.denoiser_layers > len(tensors):
        raise CheckpointError(f"{path}: expected the layers that {CONFIG} describes, found only {len(tensors)} tensors")
    try:
        with torch.device("meta"):  # no memory, and no random numbers drawn
            networks = Networks(config)
    except (ConfigError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    tensors = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}  # stored `half`
    load_strictly(networks, tensors, path, assign=True)
    return networks.eval(), expected


def save_starts(folder: Path | str, frames: Tensor, texts: Sequence[str]) -> None:
    """Write a start set, frames (N, H, W, 3) u8 with texts; frames are kept as one zlib stream."""
    packed = torch.frombuffer(bytearray(zlib.compress(frames.numpy().tobytes(), 9)), dtype=torch.uint8)
    facts = {"format": str(FORMAT), "shape": json.dumps(list(frames.shape)), "texts": json.dumps(list(texts))}
    write_tensors(Path(folder) / STARTS, {"frames": packed}, facts, sealed=True)


def load_starts(folder: Path | str) -> tuple[Tensor, tuple[str, ...]] | None:
    """The start set of a checkpoint, or None where it has none."""
    path = Path(folder) / STARTS
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path, sealed=True)
    try:
        shape, texts = json.loads(metadata["shape"]), tuple(json.loads(metadata["texts"]))
        size = math.prod(shape)
        if len(shape) != 4 or len(texts) != shape[0] or min(shape) < 1 or size > LARGEST_STARTS:
            raise ValueError(f"shape {shape} with {len(texts)} texts")
        unpacked = zlib.decompressobj().decompress(tensors["frames"].numpy().tobytes(), size + 1)
        if len(unpacked) != size or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{len(unpacked)} bytes where {size} belong")
        return torch.frombuffer(bytearray(unpacked), dtype=torch.uint8).reshape(shape), texts
    except (KeyError, TypeError, ValueError, RecursionError, zlib.error) as error:
        raise CheckpointError(f"{path}: expected a start set, found damage: {error}; fetch it again") from None


def load_strictly(
    module: torch.nn.Module, tensors: Mapping[str, Tensor], where: Path | str, *, assign: bool = False
) -> None:
    """Load tensors whose names, shapes and kinds must be those of the module's state; `assign`: without a copy."""
    expected = module.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype} instead of {tuple(t.shape)} {t.dtype}"
        for name, t in expected.items() if name in tensors and not _alike(tensors[name], t)
    ]
    if problems:
        raise CheckpointError(f"{where}: {len(problems)} tensors do not fit: {'; '.join(problems[:5])}")
    module.load_state_dict(dict(tensors), strict=True, assign=assign)


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Equal shapes, and both floats or of the same dtype."""
    floats = found.is_floating_point() and expected.is_floating_point()
    return found.shape == expected.shape and (floats or found.dtype == expected.dtype)


def save_training(
    folder: Path | str, networks: torch.nn.Module, optimizers: list[torch.optim.Optimizer], facts: dict[str, Any]
) -> None:
    """Write all that a resumed run needs as one file: weights, optimizer states, and `facts` (JSON)."""
    tensors = training_tensors(networks, optimizers)
    write_tensors(Path(folder) / TRAINING, tensors, {"facts": json.dumps(facts)}, sealed=True)


def training_tensors(networks: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Weights and optimizer states, by names of their own."""
    tensors = {f"weights/{name}": t for name, t in networks.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for key, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer/{index}/{key}/{name}"] = torch.as_tensor(value)
    return tensors


def load_training(
    folder: Path | str, networks: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore what `save_training` wrote; returns its facts."""
    path = Path(folder) / TRAINING
    tensors, metadata = read_tensors(path)
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    load_strictly(networks, weights, path)
    try:
        for index, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, *rest = name.split("/")
                if kind == "optimizer" and int(rest[0]) == index:
                    state.setdefault(int(rest[1]), {})[rest[2]] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return json.loads(metadata["facts"])
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected the state of a training, found damage: {error!r}") from None


def training_facts(folder: Path | str) -> dict[str, Any]:
    """The facts that `save_training` was given."""
    path = Path(folder) / TRAINING
    try:
        return dict(json.loads(read_tensors(path)[1]["facts"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected the state of a training, found damage: {error!r}") from None
