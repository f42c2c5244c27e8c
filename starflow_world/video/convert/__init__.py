"""Conversion of reference STARFlow-V checkpoints to our folder: shards, their index, and video.json.

torch.load is allowed in this folder only, with weights_only. Loading is strict: buffers that the model does not use are
dropped by name once their shapes agree with the config, every other tensor must fit. Layouts are kept; names (names.py)
and, on request, the dtype change. One tensor is in memory at a time.
"""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.config.video import VideoConfig, load_video_config
from starflow_world.config.world import FlowConfig
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.flow import Flow
from starflow_world.io.files import is_file, is_folder
from starflow_world.io.shards import TensorSource, misfits, refuse
from starflow_world.model.checkpoint import empty_flow, save_video
from starflow_world.video.convert.buffers import STATED_BY, stated_sizes, unused_names
from starflow_world.video.convert.names import axis, block_layers, infer_config, reference_name, reference_shapes
from starflow_world.video.convert.sources import open_reference

__all__ = ["convert"]

DENOISER_WINDOW, DENOISER_LOOK_AHEAD = 10, 1
"""Those of the published model, if neither config nor arguments say others."""


def convert(
    checkpoint: Path | str, folder: Path | str, config: VideoConfig | Path | str | None = None, *,
    dtype: torch.dtype | None = None, weights: str = "", head_width: int | None = None, text_length: int | None = None,
    position_scale: float | None = None, denoiser_window: int | None = None, denoiser_look_ahead: int | None = None,
) -> VideoConfig:
    """Write the flow of a reference checkpoint (sources.py) to `folder`, new or empty; return its config.

    With `config` (its file or name, ours or the published program's) the tensors must be those of the config. Without,
    sizes are those that the shapes of tensors and of unused buffers state. The other arguments say what they do not,
    and must agree with config and buffers. `dtype`: of the written weights; None: the widest of the source. `weights`:
    which set, such as ema, where there are several. Raises CheckpointError, ConfigError.
    """
    path, folder = Path(checkpoint), Path(folder)
    if is_file(folder) or (is_folder(folder) and any(folder.iterdir())):
        present = folder.name if is_file(folder) else next(folder.iterdir()).name
        raise CheckpointError(f"{folder}: expected a new or empty folder, found {present}; choose another")
    source = open_reference(path, weights)
    said = {
        "head_width": head_width, "text_length": text_length, "position_scale": position_scale,
        "denoiser_window": denoiser_window, "denoiser_look_ahead": denoiser_look_ahead,
    }
    try:
        config = _config(path, source, config, {name: value for name, value in said.items() if value is not None})
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    blocks = config.flow.shallow_blocks + 1
    read = {name: name for name in source.shapes if name not in unused_names(blocks)}
    source, empty = source.renamed(read), empty_flow(config)
    refuse(path, misfits(source.shapes, reference_shapes(empty)))
    save_video(folder, config, _renamed(path, empty, source, dtype))
    return config


def _config(
    path: Path, source: TensorSource, config: VideoConfig | Path | str | None, said: Mapping[str, float]
) -> VideoConfig:
    """Return the given config, or one inferred from shapes, after a comparison of all that states a size."""
    shapes = source.shapes
    blocks = len(block_layers(shapes)[0])
    deep = f"blocks.{blocks - 1}"
    text_width = axis(shapes, f"{deep}.proj_txt.weight", 1, 0)
    stated: dict[str, float] = dict(stated_sizes(path, shapes, blocks, axis(shapes, f"{deep}.proj_in.weight", 1, 1)))
    if not text_width:
        stated.pop("text_length", None)
    if isinstance(config, Path | str):
        config = load_video_config(config, text_width)
    if config is not None:
        _compare(_sizes(config.flow), stated)
        _compare(said, _sizes(config.flow), "the config says")
        return config
    _compare(said, stated)
    sizes = {"denoiser_window": DENOISER_WINDOW, "denoiser_look_ahead": DENOISER_LOOK_AHEAD, **stated, **said}
    for name in ("head_width", "position_scale", *(["text_length"] if text_width else [])):
        if name not in sizes:
            raise ConfigError(f"{name}: expected it from the shape of {STATED_BY[name]}, found no such buffer; say "
                              f"--{name.replace('_', '-')}")
    flow = infer_config(
        shapes, int(sizes["head_width"]), int(sizes.get("text_length", 0)), float(sizes["position_scale"]),
        int(sizes["denoiser_window"]), int(sizes["denoiser_look_ahead"]),
    )
    return VideoConfig(path.stem, flow)


def _compare(found: Mapping[str, Any], expected: Mapping[str, Any], who: str = "") -> None:
    """Raise ConfigError for a size that is said twice, differently. `who` says the expected ones (empty: buffers)."""
    for name, value in found.items():
        if name in expected and value != expected[name]:
            by = who or f"the shape of {STATED_BY[name]} in the checkpoint says"
            raise ConfigError(f"{name}: expected {expected[name]}, as {by}, found {value}; correct it or leave it out")


def _sizes(flow: FlowConfig) -> dict[str, Any]:
    """Return the sizes of a config that the shapes of weights do not state."""
    ahead = set(flow.denoiser_look_ahead or [0])
    return {
        "head_width": flow.head_width, "text_length": flow.text_length, "position_scale": flow.position_scale,
        "denoiser_window": flow.denoiser_window,
        "denoiser_look_ahead": flow.denoiser_look_ahead if len(ahead) > 1 else ahead.pop(),
    }


def _renamed(path: Path, flow: Flow, source: TensorSource, dtype: torch.dtype | None) -> TensorSource:
    """Return the tensors of a reference under our names, in our shapes and in `dtype`. Raises for non-finite values."""
    shapes = {name: tuple(t.shape) for name, t in flow.state_dict().items()}
    names = {name: reference_name(name, flow.config.shallow_blocks) for name in shapes}
    kind = dtype or reduce(torch.promote_types, source.dtypes.values())

    def read(name: str) -> Tensor:
        tensor = source.read(names[name]).reshape(shapes[name]).to(kind)
        if not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):  # without a mask as large as the tensor
            refuse(path, [f"{names[name]} is not finite"])
        return tensor

    return TensorSource(shapes, dict.fromkeys(shapes, kind), read)
