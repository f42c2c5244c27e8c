"""`starflow-world train`: a world on episodes, or a video model on clips or episodes."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class TrainWorld:
    """Train a world on collected episodes, or a video model on clips (with actions: on episodes). Started by torchrun,
    all its processes train together."""

    config: Positional[Path]
    """Recipe, such as configs/babyai-gotolocal.yaml; for a video model configs/starflow_v_train.yaml (clips) or
    configs/starflow_v_actions.yaml (episodes)."""
    data: Path
    """Folder of episodes; or of clips and pictures, with captions in .txt files of their names."""
    out: Path
    """Folder for the checkpoint, metrics.jsonl and curves.png."""
    overrides: Positional[tuple[str, ...]] = ()
    """Changes to the recipe as section.key=value, such as train.steps=100."""
    valid: Path | None = None
    """Folder of held-out episodes."""
    starts: Path | None = None
    """Folder of episodes of which only the first frames are learned, instead of those of `data`: many short ones cost
    little and show a world more first frames."""
    resume: bool = False
    """Go on with an interrupted run in `out`."""
    init: Path | None = None
    """Checkpoint folder or name of a shipped world to start from; or a folder that convert wrote."""
    minutes: float = 0.0
    """Time that the whole training of a world may take on this machine: sets the number of steps from the time of some
    real ones. 0: as the recipe says. A resumed run keeps its steps."""
    cache: Path | None = None
    """Folder for uncompressed copies of the episodes; none: .cache in their own folders."""

    def run(self) -> None:
        """Train by the recipe."""
        from starflow_world.cli import environment
        from starflow_world.config.train import load_recipe
        from starflow_world.training import train
        from starflow_world.training.distributed import torchrun_processes

        overrides = (*self.overrides, f"train.minutes={self.minutes}") if self.minutes else self.overrides
        recipe, command = load_recipe(self.config, overrides), f"starflow-world train {' '.join(sys.argv[2:])}"
        with torchrun_processes(environment()) as processes:
            train(recipe, self.data, self.out, valid=self.valid, starts=self.starts, resume=self.resume,
                  init=self.init, command=command, processes=processes, cache=self.cache)
        if processes.main:
            print(self.out)
