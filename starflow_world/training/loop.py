"""Training loop shared by worlds and video models: steps, saves, resumed runs and learning curves."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from starflow_world.config.reading import from_dict, to_dict
from starflow_world.config.train import RecipeConfig, VideoRecipe
from starflow_world.errors import ConfigError, StarflowError
from starflow_world.io.files import remove_leftovers, write_text
from starflow_world.model.checkpoint import load_training, save_training, training_facts
from starflow_world.training.distributed import Processes, clip_gradients, interruptions, reshard
from starflow_world.training.optimizers import schedule
from starflow_world.training.state import load_sharded, save_sharded, sharded_facts

R = TypeVar("R", RecipeConfig, VideoRecipe)
MOST_SKIPPED = 10
SHOWN = ("nats_per_dim", "excess", "start_excess")
METRICS = "metrics.jsonl"


class Trainer(ABC, Generic[R]):
    """Training run: networks, their optimizers and the number of the next step, which a resumed run restores.

    `clipped`: modules whose gradient norms are clipped separately. `sharded`: save the state as shards, else a file."""

    may_change: tuple[str, ...]
    """Prefixes of the recipe keys that may change when a run is resumed."""
    recipe: R

    def __init__(
        self, networks: nn.Module, optimizers: list[torch.optim.Optimizer], clipped: Sequence[nn.Module], recipe: R,
        processes: Processes, *, sharded: bool,
    ) -> None:
        self.optimizers, self.recipe, self.processes, self.sharded = optimizers, recipe, processes, sharded
        self._networks, self._clipped = networks, clipped
        self.step = self.skipped = self.skipped_in_a_row = 0

    @abstractmethod
    def advance(self) -> dict[str, float]:
        """Take one training step; return its figures."""

    @abstractmethod
    def write_model(self, out: Path) -> None:
        """Write the model checkpoint for use outside training; all processes must call it."""

    def begin(self) -> None:
        """Clear all gradients and set the learning rates of this step."""
        share = schedule(self.step, self.recipe.train)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share

    def finish(self, figures: dict[str, float]) -> dict[str, float]:
        """Update the weights if figures and gradients are finite on all processes; return the figures' means."""
        reshard(self._networks)
        figures = {**self.processes.means(figures), "norm": float(self._clip())}
        self._update(all(map(math.isfinite, figures.values())))
        self.step += 1
        return {"step": self.step, **figures, "skipped": self.skipped}

    def _clip(self) -> Tensor:
        """Clip the gradients of each module to norm 1, since modules differ in scale; return the largest norm."""
        learning = ([p for p in module.parameters() if p.grad is not None] for module in self._clipped)
        norms = [clip_gradients(parameters, 1.0) for parameters in learning if parameters]
        return torch.stack(norms).amax() if norms else torch.zeros(())

    def _update(self, finite: bool) -> None:
        if finite:
            self.skipped_in_a_row = 0
            for optimizer in self.optimizers:
                optimizer.step()
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise StarflowError(
                f"training: expected finite losses, found {MOST_SKIPPED} steps in a row without, up to {self.step}; "
                "lower train.learning_rate or look at the data"
            )

    def save(self, out: Path) -> None:
        """Write the state that a resumed run needs; all processes must call it."""
        skips = {"skipped": self.skipped, "in_a_row": self.skipped_in_a_row}
        facts = {"step": self.step, **skips, "recipe": to_dict(self.recipe)}
        if self.sharded:
            save_sharded(out, self._networks, self.optimizers, facts, self.processes)
        else:
            save_training(out, self._networks, self.optimizers, facts)

    def resume(self, out: Path) -> None:
        """Restore the state that `save` wrote. Raises ConfigError if a recipe key outside `may_change` differs."""
        facts = sharded_facts(out) if self.sharded else training_facts(out)
        before, now = (_flat(to_dict(r)) for r in (from_dict(type(self.recipe), facts.get("recipe")), self.recipe))
        changed = [key for key in now if not key.startswith(self.may_change) and before.get(key) != now[key]]
        if changed:
            differences = ", ".join(f"{key}={now[key]!r:.60} instead of {before.get(key)!r:.60}" for key in changed)
            raise ConfigError(f"{out}: expected the recipe that the run began with, found {differences}")
        (load_sharded if self.sharded else load_training)(out, self._networks, self.optimizers)
        self.step, self.skipped, self.skipped_in_a_row = facts["step"], facts["skipped"], facts.get("in_a_row", 0)

    def run(self, out: Path, judge: Callable[[], dict[str, float]] = dict) -> None:
        """Train to the last step; each step appends its figures and those of `judge` to metrics.jsonl. All processes
        save every `save_minutes`, at the end, and when a process gets SIGINT or SIGTERM, on which all raise
        KeyboardInterrupt."""
        processes, train, saved = self.processes, self.recipe.train, time.monotonic()
        with (
            tqdm(total=train.steps, initial=self.step, desc=f"train {self.recipe.name}", unit="step",
                 disable=not processes.main) as bar,
            interruptions(processes) as interrupted,
        ):
            while self.step < train.steps:
                figures = self.advance()
                figures |= judge()
                if processes.main:
                    with (out / METRICS).open("a") as file:
                        file.write(json.dumps(figures) + "\n")
                bar.update()
                bar.set_postfix({key: f"{figures[key]:.3f}" for key in SHOWN if key in figures})
                stop, due = interrupted(), processes.any(time.monotonic() - saved > 60 * train.save_minutes)
                if stop or due or self.step == train.steps:
                    self.save(out)
                    self.write_model(out)
                    saved = time.monotonic()
                if stop:
                    raise KeyboardInterrupt


def begun_recipe(out: Path, kind: type[R], *, sharded: bool) -> R:
    """Return the recipe of the run that was saved in `out`."""
    return from_dict(kind, (sharded_facts(out) if sharded else training_facts(out)).get("recipe"))


def open_folder(out: Path, kept: Sequence[str], processes: Processes, *, resume: bool) -> None:
    """Raise ConfigError if a folder holds a run (any of the files `kept`), unless resumed; remove temporary files."""
    there = [name for name in kept if (out / name).exists()]
    if there and not resume:
        raise ConfigError(f"{out}: expected an empty folder, found {there[0]}; add --resume or choose another folder")
    processes.once(lambda: remove_leftovers(out))


def cut_metrics(out: Path, step: int) -> None:
    """Remove the metrics of steps after `step`, which a resumed run repeats, and an incomplete last line."""
    out.mkdir(parents=True, exist_ok=True)
    metrics = out / METRICS
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
        write_text(metrics, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def freeze_outside(networks: nn.Module, parts: Sequence[str]) -> None:
    """Freeze every parameter outside `parts`, dotted names of modules or parameters. Empty `parts`: train all. Raises
    ConfigError for a name that the networks do not have."""
    learning: set[int] = set()
    modules, parameters = dict(networks.named_modules()), dict(networks.named_parameters())
    for part in (part.removesuffix(".") for part in parts):
        chosen = [parameters[part]] if part in parameters else list(modules.get(part, nn.Module()).parameters())
        if not chosen:
            known = ", ".join(name for name, child in networks.named_children() if list(child.parameters()))
            raise ConfigError(f"train.parts: expected modules such as {known}, found {part!r:.80}")
        learning |= {id(p) for p in chosen}
    for p in parameters.values():
        p.requires_grad_(not parts or id(p) in learning)


def _flat(values: dict[str, object], where: str = "") -> dict[str, object]:
    """Flatten nested dictionaries into one with dotted keys."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return flat
