"""How much data and how much time a world needs: held-out excess against episodes and against minutes of training.

    python -m tests.benchmarks.curves configs/minatar-breakout.yaml --data DIR --valid DIR --minutes 10

Trains the recipe from nothing for `--minutes` on the first 100, 300, 1,000, ... episodes, and on all of them for a
half, a quarter, ... of that time and for twice as long, each a whole training with its schedules. A run that is whole
is not done again, one that was interrupted goes on. Writes curves.json and curves.png.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure
from tyro.conf import Positional

from starflow_world.config.train import RecipeConfig, load_recipe
from starflow_world.data.dataset import COLLECTION, EpisodeDataset
from starflow_world.io.files import write_text
from starflow_world.io.plots import saved
from starflow_world.model.checkpoint import TRAINING
from starflow_world.training import train

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Curves:
    """Measure held-out excess against episodes of data and minutes of training."""

    recipe: Positional[Path]
    """Recipe of the world."""
    data: Path
    """Folder of episodes."""
    valid: Path
    """Folder of held-out episodes."""
    minutes: float = 10.0
    """Minutes of each training on a part of the data."""
    episodes: tuple[int, ...] = (100, 300, 1000, 3000, 10000)
    """Sizes of the parts; those beyond the data are left out."""
    times: tuple[float, ...] = (0.25, 0.5, 2.0)
    """Times of the trainings on all episodes, as multiples of `minutes`."""
    out: Path = Path("out/curves")
    """Folder for runs, curves.json and curves.png."""

    def run(self) -> None:
        """Train, print and plot."""
        whole = len(EpisodeDataset(self.data))
        pairs = [(size, self.minutes) for size in self.episodes if size < whole]
        pairs += [(whole, self.minutes * time) for time in sorted({1.0, *self.times})]
        found = []
        for size, minutes in pairs:
            found.append(self.trained(size, minutes))
            print(json.dumps(found[-1]), flush=True)
            write_text(self.out / "curves.json", json.dumps(found, indent=1) + "\n")
        plot(found, whole, self.minutes, self.out / "curves.png")

    def trained(self, size: int, minutes: float) -> dict[str, Any]:
        """Train on the first episodes for some minutes; return what was used and the last held-out excess."""
        out = self.out / f"{size}-episodes-{minutes:g}-minutes"
        recipe = load_recipe(self.recipe, (f"train.minutes={minutes}", "train.valid_every=1000000"))
        assert isinstance(recipe, RecipeConfig)
        if not finished(out):
            train(recipe, first_episodes(self.data, size, self.out / f"{size}-episodes"), out, valid=self.valid,
                  resume=(out / TRAINING).exists())
        last = json.loads((out / METRICS).read_text().splitlines()[-1])
        figures = {key: last[key] for key in ("valid_excess", "valid_start_excess")}
        return {"episodes": size, "minutes": minutes, "steps": last["step"], **figures}


def finished(out: Path) -> bool:
    """Return whether a run is whole: its last line has held-out figures."""
    lines = (out / METRICS).read_text().splitlines() if (out / METRICS).exists() else []
    return bool(lines) and "valid_excess" in json.loads(lines[-1])


def first_episodes(data: Path, size: int, out: Path) -> Path:
    """Return a folder of copies of the first episodes of `data`, and of their record."""
    out.mkdir(parents=True, exist_ok=True)
    for path in [data / COLLECTION, *EpisodeDataset(data).paths[:size]]:
        if path.exists() and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    return out


def plot(found: list[dict[str, Any]], whole: int, minutes: float, path: Path) -> None:
    """Plot held-out excess against episodes, and against minutes on all episodes."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_size = [run for run in found if run["minutes"] == minutes]
    by_time = [run for run in found if run["episodes"] == whole]
    for axis, runs, key in zip(figure.subplots(1, 2), (by_size, by_time), ("episodes", "minutes"), strict=True):
        for figure_name, style in (("valid_excess", "o-"), ("valid_start_excess", "s--")):
            axis.plot([run[key] for run in runs], [run[figure_name] for run in runs], style, label=figure_name)
        axis.set(xscale="log", yscale="log", xlabel=key, ylabel="nats per frame above the floor of the noise")
        axis.grid(alpha=0.3)
        axis.legend()
    saved(figure, path)


if __name__ == "__main__":
    tyro.cli(Curves).run()
