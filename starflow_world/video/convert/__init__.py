"""Conversion of reference STARFlow-V checkpoints to our folder: shards, their index, and video.json.

torch.load is allowed in this folder only, with weights_only. Loading is strict: entries that the model does not use are
dropped by name, every other tensor must fit. Layouts are kept; names (names.py) and, on request, the dtype change. One
tensor is in memory at a time.
"""

from pathlib import Path

import torch
from torch import Tensor

from starflow_world.config.video import VideoConfig
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.flow import Flow
from starflow_world.io.files import is_file, is_folder
from starflow_world.io.shards import TensorSource, misfits, refuse
from starflow_world.model.checkpoint import empty_flow, save_video
from starflow_world.video.convert.names import infer_config, reference_name, reference_shapes
from starflow_world.video.convert.sources import open_reference

__all__ = ["convert"]


def convert(
    checkpoint: Path | str, folder: Path | str, config: VideoConfig | None = None, *, dtype: torch.dtype | None = None,
    head_width: int = 64, text_length: int = 256, position_scale: float = 32.0, denoiser_window: int = 10,
    denoiser_look_ahead: int = 1,
) -> VideoConfig:
    """Write the flow of a reference checkpoint (sources.py) to `folder`, new or empty; return its config.

    With `config` the tensors must be those of the config. Without, sizes are inferred from the shapes, and those that
    no shape determines are taken from the arguments. `dtype`: of the written weights; None: that of the source. Raises
    CheckpointError.
    """
    path, folder = Path(checkpoint), Path(folder)
    if is_file(folder) or (is_folder(folder) and any(folder.iterdir())):
        present = folder.name if is_file(folder) else next(folder.iterdir()).name
        raise CheckpointError(f"{folder}: expected a new or empty folder, found {present}; choose another")
    source = open_reference(path)
    if config is None:
        try:
            flow = infer_config(
                source.shapes, head_width, text_length, position_scale, denoiser_window, denoiser_look_ahead
            )
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from None
        config = VideoConfig(path.stem, flow)
    empty = empty_flow(config)
    refuse(path, misfits(source.shapes, reference_shapes(empty)))
    save_video(folder, config, _renamed(path, empty, source, dtype))
    return config


def _renamed(path: Path, flow: Flow, source: TensorSource, dtype: torch.dtype | None) -> TensorSource:
    """Return the tensors of a reference under our names, in our shapes and in `dtype`. Raises for non-finite values."""
    shapes = {name: tuple(t.shape) for name, t in flow.state_dict().items()}
    names = {name: reference_name(name, flow.config.shallow_blocks) for name in shapes}
    dtypes = {name: dtype or source.dtypes[names[name]] for name in shapes}

    def read(name: str) -> Tensor:
        tensor = source.read(names[name]).reshape(shapes[name]).to(dtypes[name])
        if not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):  # without a mask as large as the tensor
            refuse(path, [f"{names[name]} is not finite"])
        return tensor

    return TensorSource(shapes, dtypes, read)
