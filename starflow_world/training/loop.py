"""What all trainings share: steps that are taken or skipped, a run that is saved and goes on, its learning curve."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from starflow_world.config.reading import from_dict, to_dict
from starflow_world.config.train import TrainConfig, VideoTrainConfig
from starflow_world.errors import ConfigError, StarflowError
from starflow_world.io.files import write_text
from starflow_world.model.checkpoint import load_training, save_training, training_facts
from starflow_world.training.distributed import Processes, clip, interruptions, settle
from starflow_world.training.optimizers import rate
from starflow_world.training.state import load_sharded, save_sharded, sharded_facts

MOST_SKIPPED = 10
SHOWN = ("nats_per_dim", "excess", "start")
METRICS = "metrics.jsonl"


class Steps(ABC):
    """Networks, optimizers and the number of the next step: all that a resumed run needs. `sharded`: saved as the
    shards of every process, else as one file."""

    def __init__(
        self, networks: nn.Module, optimizers: list[torch.optim.Optimizer], config: TrainConfig | VideoTrainConfig,
        processes: Processes, *, sharded: bool,
    ) -> None:
        self.optimizers, self.processes, self.sharded = optimizers, processes, sharded
        self._networks, self._config = networks, config
        self.step = self.skipped = self.skipped_in_a_row = 0

    @abstractmethod
    def advance(self) -> dict[str, float]:
        """One training step; returns its figures."""

    def begin(self) -> None:
        """No gradients, and the learning rates of this step."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(self.step, self._config)

    def finish(self, figures: dict[str, float]) -> dict[str, float]:
        """Take the step if figures and gradients are finite on all processes; returns their means."""
        settle(self._networks)
        figures = {**self.processes.means(figures), "norm": float(self._clip())}
        self._update(all(map(math.isfinite, figures.values())))
        self.step += 1
        return {"step": self.step, **figures, "skipped": self.skipped}

    def _clip(self) -> Tensor:
        """Clip the gradients of each part (shallow, deep, motion, denoiser, text, ...) to norm 1, each on its own:
        their scales differ by far and change in their own ways. Returns the largest norm."""
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self._networks.named_parameters():
            if parameter.grad is not None:  # the norm of nothing lies on the CPU, wherever the others are
                part = ".".join(name.split(".")[: 2 if name.startswith("flow.") else 1])
                parts.setdefault(part, []).append(parameter)
        norms = [clip(part, 1.0) for part in parts.values()]
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

    def save(self, out: Path, recipe: Any) -> None:
        """Write all that a resumed run needs; all processes call it."""
        skips = {"skipped": self.skipped, "in_a_row": self.skipped_in_a_row}
        facts = {"step": self.step, **skips, "recipe": to_dict(recipe)}
        if self.sharded:
            save_sharded(out, self._networks, self.optimizers, facts, self.processes)
        else:
            save_training(out, self._networks, self.optimizers, facts)

    def resume(self, out: Path, recipe: Any, may_change: tuple[str, ...]) -> None:
        """Go on from what `save` wrote, under the recipe it was written with but for `may_change`."""
        facts = sharded_facts(out) if self.sharded else training_facts(out)
        before, now = (_flat(to_dict(r)) for r in (from_dict(type(recipe), facts.get("recipe")), recipe))
        changed = [key for key in now if not key.startswith(may_change) and before[key] != now[key]]
        if changed:
            raise ConfigError(f"{out}: expected the config that the run began with, found other {', '.join(changed)}")
        (load_sharded if self.sharded else load_training)(out, self._networks, self.optimizers)
        self.step, self.skipped, self.skipped_in_a_row = facts["step"], facts["skipped"], facts.get("in_a_row", 0)


def choose(networks: nn.Module, parts: tuple[str, ...]) -> None:
    """From now on only the parameters whose names begin with one of `parts` learn; none: all. Raises ConfigError."""
    unknown = [part for part in parts if not any(name.startswith(part) for name, _ in networks.named_parameters())]
    if unknown:
        raise ConfigError(f"train.parts: expected beginnings of parameter names, found {unknown[0]!r:.80}")
    for name, parameter in networks.named_parameters():
        parameter.requires_grad_(not parts or name.startswith(parts))


def _flat(values: dict[str, object], where: str = "") -> dict[str, object]:
    """Nested dictionaries as one, with dotted keys."""
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found


def run(
    trainer: Steps, config: TrainConfig | VideoTrainConfig, name: str, save: Callable[[], None]
) -> Iterator[dict[str, float]]:
    """Advance to the last step; yields the figures of every step. All processes `save` now and then, at the end, and
    when one of them is told to stop (SIGINT, SIGTERM); then all raise KeyboardInterrupt."""
    processes, saved = trainer.processes, time.monotonic()
    with (
        tqdm(total=config.steps, initial=trainer.step, desc=f"train {name}", unit="step",
             disable=not processes.main) as bar,
        interruptions(processes) as told_to_stop,
    ):
        while trainer.step < config.steps:
            figures = trainer.advance()
            yield figures
            bar.update()
            bar.set_postfix({key: f"{figures[key]:.3f}" for key in SHOWN if key in figures})
            stop, due = told_to_stop(), processes.any(time.monotonic() - saved > 60 * config.save_minutes)
            if stop or due or trainer.step == config.steps:
                save()
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt


def keep_until(metrics: Path, step: int) -> None:
    """Drop the lines of steps that will be done again, and a line that a killed run did not finish."""
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
        write_text(metrics, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def note(metrics: Path, figures: dict[str, float]) -> None:
    """One more line of JSON."""
    with metrics.open("a") as file:
        file.write(json.dumps(figures) + "\n")
