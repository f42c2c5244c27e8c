"""Folders of converted video models: shards, their index, video.json and the action adapter."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starflow_world.config.reading import from_dict, to_dict
from starflow_world.config.video import VideoConfig
from starflow_world.config.world import NO_ACTIONS
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.flow import Flow
from starflow_world.flow.precision import run_in, running_dtypes
from starflow_world.io.files import TEMPORARY, is_file, write_text
from starflow_world.io.shards import TensorSource, misfits, open_shards, refuse, write_shards
from starflow_world.model.actions import ActionEncoder, same_space, space_from_json
from starflow_world.model.checkpoint import CARD, FORMAT, read_json
from starflow_world.model.networks import Networks
from starflow_world.model.rates import inference_precision

CONFIG = "video.json"
ADAPTER = "action.project.weight"
"""Beside the tensors of the flow, where a model has learned from actions."""


def write_model(
    folder: Path, config: VideoConfig, tensors: TensorSource, card: Mapping[str, Any] | None = None
) -> None:
    """Write the tensors of a flow (and ADAPTER, if there is one), its config and its card to `folder`; what is there
    is replaced when all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent)) for _ in range(2))
    try:
        digest = write_shards(scratch, tensors)
        values = {"format": FORMAT, "weights": digest, "video": to_dict(config)}
        write_text(scratch / CONFIG, json.dumps(values, indent=1) + "\n")
        if card is not None:
            write_text(scratch / CARD, json.dumps(dict(card), indent=1) + "\n")
        scratch.chmod(0o755)
        if folder.exists():
            folder.replace(old)
        scratch.replace(folder)
    finally:
        for leftover in (scratch, old):
            shutil.rmtree(leftover, ignore_errors=True)


def load_video(folder: Path | str) -> tuple[VideoConfig, str]:
    """The config of a folder that `convert` wrote, and the digest of its weights."""
    path = Path(folder) / CONFIG
    if not is_file(path):
        raise CheckpointError(f"{path}: expected the config of a converted video model, found none; see convert")
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("weights"), str):
        raise CheckpointError(f"{path}: expected format {FORMAT}; it is damaged or of another version")
    try:
        return from_dict(VideoConfig, values.get("video")), values["weights"]
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_flow(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Flow:
    """The flow that `convert` wrote to `folder`, in eval mode.

    In the dtype of its weights, or ready to run in `dtype` under autocast: then the products have their weights in
    `dtype`, and norms, start tokens and heads theirs in float32, as affine maps and residuals are.
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
    """The action adapter (d, 1 + flat) in float32 for the model and the actions of `config`: the one in `folder`, or
    zeros where the model there has learned from no actions yet. Raises CheckpointError for one of other actions."""
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


def load_as_networks(folder: Path | str) -> tuple[Networks, str]:
    """The flow that `convert` wrote to `folder`, in the dtype of its weights, and its action adapter in the networks of
    a world; and the digest of the weights."""
    config, digest = load_video(folder)
    try:
        with torch.device("meta"):
            networks = Networks(config.world())
    except ConfigError as error:
        raise CheckpointError(f"{Path(folder) / CONFIG}: {error}") from None
    networks.flow = load_flow(folder)
    networks.action.project.weight = nn.Parameter(load_adapter(folder, config))
    return networks.eval(), digest


def to_running(networks: Networks, prompts: Path, device: torch.device, dtype: torch.dtype | None) -> None:
    """Move a published model to a device, its flow ready to run in `dtype` as `load_flow` says (None: the precision
    that `inference_precision` measures), its codec and text encoder loaded."""
    dtype = dtype or inference_precision(networks.to(device).flow, device)
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"dtype: expected float32 or bfloat16, as published models run in, found {dtype}")
    networks.to(device)
    networks.attach(prompts, device, dtype)
    run_in(networks.flow, dtype)


def empty_flow(config: VideoConfig) -> Flow:
    """A flow of shapes only, without memory for its weights."""
    with torch.device("meta"):
        return Flow(config.flow)
