"""Reference STARFlow-V checkpoints -> our folder: shards, their index, and video.json.

torch.load is allowed in this room only, with weights_only. Loading is strict: what nothing reads is dropped by name,
every other tensor must fit. Layouts stay; names change (names.py) and, where the caller says so, the dtype. One tensor
is in memory at a time.
"""

from pathlib import Path

import torch
from torch import Tensor

from starflow_world.config.video import VideoConfig
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.flow import Flow
from starflow_world.io.files import is_file, is_folder
from starflow_world.io.shards import TensorSource, misfits, refuse
from starflow_world.model.video_checkpoint import empty_flow, write_model
from starflow_world.video.convert.names import infer, reference_name, reference_shapes
from starflow_world.video.convert.sources import open_reference

__all__ = ["convert"]


def convert(
    source: Path | str, folder: Path | str, config: VideoConfig | None = None, *, dtype: torch.dtype | None = None,
    head_width: int = 64, text_length: int = 256, position_scale: float = 32.0, denoiser_window: int = 10,
    denoiser_look_ahead: int = 1,
) -> VideoConfig:
    """Write the flow of a reference checkpoint (sources.py) to `folder`, new or empty; returns its config.

    With `config` the tensors must be those that it says. Without, sizes come from the shapes, and what no shape tells
    from the numbers given here. `dtype` of the weights in the folder; none: that of the source. Raises CheckpointError.
    """
    path, folder = Path(source), Path(folder)
    if is_file(folder) or (is_folder(folder) and any(folder.iterdir())):
        raise CheckpointError(f"{folder}: expected a new or empty folder, found files; choose another")
    found = open_reference(path)
    if config is None:
        try:
            flow = infer(found.shapes, head_width, text_length, position_scale, denoiser_window, denoiser_look_ahead)
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from None
        config = VideoConfig(path.stem, flow)
    empty = empty_flow(config)
    refuse(path, misfits(found.shapes, reference_shapes(empty)))
    write_model(folder, config, _ours(path, empty, found, dtype))
    return config


def _ours(path: Path, flow: Flow, found: TensorSource, dtype: torch.dtype | None) -> TensorSource:
    """The tensors of a reference under our names, in our shapes and in `dtype`, found finite as they are read."""
    shapes = {name: tuple(t.shape) for name, t in flow.state_dict().items()}
    names = {name: reference_name(name, flow.config.shallow_blocks) for name in shapes}
    dtypes = {name: dtype or found.dtypes[names[name]] for name in shapes}

    def read(name: str) -> Tensor:
        tensor = found.read(names[name]).reshape(shapes[name]).to(dtypes[name])
        if not bool(torch.isfinite(tensor.sum(dtype=torch.float64))):  # without a mask as large as the tensor
            refuse(path, [f"{names[name]} is not finite"])
        return tensor

    return TensorSource(shapes, dtypes, read)
