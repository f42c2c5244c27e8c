"""Folders of models, written and read strictly; loading finds the kind from the folder.

    world            config.json, model.safetensors (or shards and their index), card.json, starts.safetensors
    video model      video.json, shards and their index, card.json; written by `convert` and by its training

Names, shapes, dtypes, finiteness and the digests of weights and config are checked; damage of any kind is one
`CheckpointError`. Nothing in a checkpoint can run code.
"""

import hashlib
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starflow_world.config.reading import from_dict, to_dict
from starflow_world.config.video import VideoConfig
from starflow_world.config.world import NO_ACTIONS, WorldConfig
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.flow import Flow
from starflow_world.flow.precision import running_dtypes
from starflow_world.io.files import TEMPORARY, is_file, not_written, read_tensors, write_tensors, write_text
from starflow_world.io.shards import (
    INDEX,
    TensorSource,
    file_digest,
    misfits,
    open_shards,
    read_shards,
    refuse,
    write_shards,
)
from starflow_world.model.actions import ActionEncoder, same_space, space_from_json
from starflow_world.model.networks import Networks

FORMAT = 1
LARGEST_STARTS = 1 << 29
CONFIG, WEIGHTS, NEXT, CARD = "config.json", "model.safetensors", "next.safetensors", "card.json"
VIDEO = "video.json"
ADAPTER = "action.project.weight"
"""Name of the action adapter, stored beside the flow's tensors if a video model has learned from actions."""
STARTS, TRAINING, PROMPTS = "starts.safetensors", "training.safetensors", "prompts"


def read_json(path: Path | str, most: int = 1 << 24) -> Any:
    """Return the content of a JSON file of at most `most` bytes. Raises CheckpointError."""
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
    digest of its weights and is written last, beside the old weights: if the process dies at any time, the old
    checkpoint or the new one can be loaded."""
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
    """Complete a save whose process died before its last step."""
    with suppress(CheckpointError):  # no checkpoint there
        if find_weights(folder, load_config(folder)[1]) == folder / NEXT:
            (folder / NEXT).replace(folder / WEIGHTS)


def find_weights(folder: Path, expected: str) -> Path:
    """Return the file with the expected digest: weights, their index, or those that an interrupted save left."""
    digests = {path: file_digest(path) for path in (folder / WEIGHTS, folder / NEXT, folder / INDEX) if is_file(path)}
    for path, value in digests.items():
        if value == expected:
            return path
    raise CheckpointError(
        f"{folder / WEIGHTS}: expected digest {expected[:12]}, found {digests.get(folder / WEIGHTS, 'no file')[:12]}; "
        "the file is damaged or belongs to another checkpoint: fetch it again"
    )


def _seal(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of config.json."""
    content = {key: value for key, value in values.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _header(path: Path) -> dict[str, Any]:
    """Read a config file, and check its format and that it names the digest of the weights."""
    values = read_json(path)
    values = values if isinstance(values, dict) else {}
    if values.get("format") != FORMAT or not isinstance(values.get("weights"), str):
        raise CheckpointError(f"{path}: expected format {FORMAT} with the digest of the weights, found format "
                              f"{values.get('format')!r:.20}; it was written by another version or is damaged")
    return values


def load_config(folder: Path | str) -> tuple[WorldConfig, str]:
    """Return the config of the world in a folder of either kind, and the digest of its weights."""
    if is_file(path := Path(folder) / VIDEO):
        config, digest = load_video(folder)
        try:
            return config.world(), digest
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from None
    values = _header(path := Path(folder) / CONFIG)
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


def load_video(folder: Path | str) -> tuple[VideoConfig, str]:
    """Return the config of a converted video model, and the digest of its weights."""
    path = Path(folder) / VIDEO
    if not is_file(path):
        raise CheckpointError(f"{path}: expected the config of a converted video model, found none; see convert")
    values = _header(path)
    try:
        return from_dict(VideoConfig, values.get("video")), values["weights"]
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def describe(folder: Path | str) -> dict[Path, dict[str, Any]]:
    """Return the content of config and card (if there is one) of a folder of either kind, by path."""
    config, card = Path(folder) / (VIDEO if is_file(Path(folder) / VIDEO) else CONFIG), Path(folder) / CARD
    return {path: read_json(path) for path in (config, card) if path == config or is_file(path)}


def load_networks(folder: Path | str) -> tuple[Networks, str]:
    """Return the networks in a folder of either kind (on the CPU, in eval mode) and the digest of their weights.

    The flow of a video model keeps the dtype of its weights.
    """
    folder = Path(folder)
    config, expected = load_config(folder)
    video = is_file(folder / VIDEO)
    tensors = {} if video else _read_weights(folder, expected, config)
    try:
        with torch.device("meta"):  # no memory, and no random numbers drawn
            networks = Networks(config)
    except (ConfigError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{folder / (VIDEO if video else CONFIG)}: {error}") from None
    if video:
        networks.flow = load_flow(folder)
        networks.action.project.weight = nn.Parameter(load_adapter(folder, load_video(folder)[0]))
    else:
        load_strictly(networks, tensors, folder / WEIGHTS, assign=True)
    return networks.eval(), expected


def _read_weights(folder: Path, expected: str, config: WorldConfig) -> dict[str, Tensor]:
    """Read the tensors of a world; those stored as float16 are converted to float32."""
    path, flow = find_weights(folder, expected), config.flow
    tensors = read_shards(folder, expected) if path.name == INDEX else read_tensors(path)[0]
    if sum(flow.shallow_depths) + flow.deep_layers + flow.denoiser_layers > len(tensors):
        raise CheckpointError(f"{path}: expected the layers that {CONFIG} describes, found only {len(tensors)} tensors")
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


def save_video(
    folder: Path, config: VideoConfig, tensors: TensorSource, card: Mapping[str, Any] | None = None
) -> None:
    """Write the tensors of a flow (and ADAPTER, if there is one), its config and its card to `folder`; existing files
    are replaced when all are written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent)) for _ in range(2))
    try:
        digest = write_shards(scratch, tensors)
        values = {"format": FORMAT, "weights": digest, "video": to_dict(config)}
        write_text(scratch / VIDEO, json.dumps(values, indent=1) + "\n")
        if card is not None:
            write_text(scratch / CARD, json.dumps(dict(card), indent=1) + "\n")
        scratch.chmod(0o755)
        if folder.exists():
            folder.replace(old)
        scratch.replace(folder)
    finally:
        for leftover in (scratch, old):
            shutil.rmtree(leftover, ignore_errors=True)


def load_flow(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Flow:
    """Return the flow of a converted video model, in eval mode.

    dtype None: that of its weights. Else the flow runs in `dtype` under autocast: linear layers keep their weights in
    `dtype`; norms, start tokens and heads are float32, as are affine maps and residuals.
    """
    config, digest = load_video(folder)
    source = open_shards(folder, digest=digest)
    flow = empty_flow(config)
    expected = {name: tuple(t.shape) for name, t in flow.state_dict().items()}
    refuse(folder, misfits({name: shape for name, shape in source.shapes.items() if name != ADAPTER}, expected))
    kinds = {} if dtype is None else running_dtypes(flow, dtype)
    tensors = {name: source.read(name).to(device, kinds.get(name)) for name in expected}
    flow.load_state_dict(tensors, strict=True, assign=True)
    return flow.eval()


def load_adapter(folder: Path | str, config: VideoConfig) -> Tensor:
    """Return the action adapter (d, 1 + flat) in float32 for the model and the actions of `config`: the one in
    `folder`, or zeros if that model has not learned from actions. Raises CheckpointError for another action space."""
    known, digest = load_video(folder)
    with torch.device("meta"):
        fresh = ActionEncoder(space_from_json(config.action_space), config.flow.deep_width).project.weight
    same, source = same_space(known.action_space, config.action_space), open_shards(folder, digest=digest)
    if not same and not same_space(known.action_space, NO_ACTIONS):
        raise CheckpointError(
            f"{folder}: expected a model of the actions {config.action_space:.200}, found {known.action_space:.200}"
        )
    if not same or ADAPTER not in source.shapes:
        return torch.zeros(fresh.shape)
    refuse(folder, misfits({ADAPTER: source.shapes[ADAPTER]}, {ADAPTER: tuple(fresh.shape)}))
    return source.read(ADAPTER).float()


def empty_flow(config: VideoConfig) -> Flow:
    """Return a flow on the meta device: shapes only, no memory for weights."""
    with torch.device("meta"):
        return Flow(config.flow)


def save_starts(folder: Path | str, frames: Tensor, texts: Sequence[str]) -> None:
    """Write a start set, frames (N, H, W, 3) u8 with texts; frames are kept as one zlib stream."""
    packed = torch.frombuffer(bytearray(zlib.compress(frames.numpy().tobytes(), 9)), dtype=torch.uint8)
    facts = {"format": str(FORMAT), "shape": json.dumps(list(frames.shape)), "texts": json.dumps(list(texts))}
    write_tensors(Path(folder) / STARTS, {"frames": packed}, facts, sealed=True)


def load_starts(folder: Path | str) -> tuple[Tensor, tuple[str, ...]] | None:
    """Return the start set of a checkpoint, frames (N, H, W, 3) u8 and texts, or None if there is none."""
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
    """Load tensors whose names, shapes and dtype kinds must equal the module's; `assign`: do not copy."""
    expected = module.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype} instead of {tuple(t.shape)} {t.dtype}"
        for name, t in expected.items() if name in tensors and not _same_form(tensors[name], t)
    ]
    if problems:
        raise CheckpointError(f"{where}: {len(problems)} tensors do not fit: {'; '.join(problems[:5])}")
    module.load_state_dict(dict(tensors), strict=True, assign=assign)


def _same_form(tensor: Tensor, like: Tensor) -> bool:
    """Return whether shapes are equal, and both are floats or of the same dtype."""
    floats = tensor.is_floating_point() and like.is_floating_point()
    return tensor.shape == like.shape and (floats or tensor.dtype == like.dtype)


def save_training(
    folder: Path | str, networks: torch.nn.Module, optimizers: list[torch.optim.Optimizer], facts: dict[str, Any]
) -> None:
    """Write the state of a training run to one file: weights, optimizer states, and `facts` (JSON)."""
    tensors = training_tensors(networks, optimizers)
    write_tensors(Path(folder) / TRAINING, tensors, {"facts": json.dumps(facts)}, sealed=True)


def training_tensors(networks: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return weights and optimizer states by names under weights/ and optimizer/."""
    tensors = {f"weights/{name}": t for name, t in networks.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for key, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer/{index}/{key}/{name}"] = torch.as_tensor(value)
    return tensors


def load_training(
    folder: Path | str, networks: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore what `save_training` wrote and return its facts. Raises CheckpointError."""
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
    """Return the facts that `save_training` was given. Raises CheckpointError."""
    path = Path(folder) / TRAINING
    try:
        return dict(json.loads(read_tensors(path)[1]["facts"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected the state of a training, found damage: {error!r}") from None
