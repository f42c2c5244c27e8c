"""Training of worlds and of video models."""

from pathlib import Path

from starflow_world.config.train import Recipe, RecipeConfig
from starflow_world.errors import ConfigError
from starflow_world.training.distributed import ALONE, Processes
from starflow_world.training.world import train_world
from starflow_world.world import find_world

__all__ = ["train"]


def train(
    recipe: Recipe, data: Path | str, out: Path | str, *, valid: Path | str | None = None,
    starts: Path | str | None = None, resume: bool = False, init: Path | str | None = None, command: str = "",
    processes: Processes = ALONE, cache: Path | str | None = None,
) -> Path:
    """Train the model of a recipe on the folder `data`, write it to the folder `out`, and return that folder.

    A world learns from episodes (training/world.py); a video model from clips and pictures, or from episodes
    (training/video.py), without `valid` and `starts`. `resume` continues from the last save; `init`, a folder or the
    name of a shipped world, gives the initial weights; `cache` is the folder for uncompressed copies of episodes
    (default: .cache in the folder of each dataset). Raises ConfigError, DataError, CheckpointError.
    """
    init = None if init is None else find_world(init)
    if isinstance(recipe, RecipeConfig):
        return train_world(recipe, data, out, valid=valid, starts=starts, resume=resume, init=init, command=command,
                           processes=processes, cache=cache)
    from starflow_world.training.video import train_video  # needs the packages of the video extra

    for name, folder in (("valid", valid), ("starts", starts)):
        if folder is not None:
            raise ConfigError(f"{name}: expected none for a video model, found {folder}")
    return train_video(recipe, data, out, resume=resume, init=init, command=command, processes=processes, cache=cache)
