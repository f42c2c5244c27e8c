"""Training: the flow by maximum likelihood, the denoiser by flow-score matching, outcomes by cross-entropy.

Everything drawn in step s follows from (seed, s), so a run that was killed and resumed has the weights of one that was
not. A step with a loss or gradient that is not finite is skipped and counted; ten in a row end the run. Processes that
train together (distributed.py) share the rows of every batch and the weights, and take every decision together.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from starflow_world.config.train import RecipeConfig, TrainConfig
from starflow_world.config.world import WorldConfig
from starflow_world.data.dataset import EpisodeDataset, Windows, origin
from starflow_world.errors import ConfigError
from starflow_world.io.files import remove_leftovers
from starflow_world.io.plots import write_curves
from starflow_world.model.checkpoint import CONFIG, TRAINING, load_networks, load_strictly, save_checkpoint, save_starts
from starflow_world.model.networks import Networks
from starflow_world.training.batches import Batch, Sampler
from starflow_world.training.distributed import ALONE, Processes, recompute, shard, whole
from starflow_world.training.loop import METRICS, Steps, choose, keep_until, note, run
from starflow_world.training.objective import Losses, losses, motion_losses, outcome_losses, start_losses
from starflow_world.training.optimizers import make_optimizers
from starflow_world.training.state import STATE

DENOISER_EVERY = 4
MOST_STARTS = 1000
MAY_CHANGE = (
    "train.steps", "train.save_minutes", "train.valid_every", "train.checkpointing", "world.action_space",
)


def objective(parts: tuple[str, ...], *, history: bool = True) -> str:
    """What a run minimises: the loss of the start diffusion where only that is trained, the nats of the motion where
    only that is, rewards and ends where only a head without history is, and else all."""
    for alone in ("start",) if history else ("start", "outcome"):
        if parts and all(part.startswith(alone) for part in parts):
            return alone
    moving = [part for part in parts if part.startswith(("flow.motion", "flow.carry"))]
    return "motion" if moving and all(part in moving or part.startswith("action") for part in parts) else "all"


class Trainer(Steps):
    """The training of a world."""

    def __init__(
        self, world: WorldConfig, config: TrainConfig, windows: Windows, *, init: Path | str | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.world, self.config = world, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.networks = Networks(world)
        if init is not None:
            _initialise(self.networks, init)
        choose(self.networks, config.parts)
        self.objective = objective(config.parts, history=world.outcome.history)
        self.sampler = Sampler(windows, config, processes)
        if config.checkpointing:
            recompute(self.networks)
        self.networks.to(processes.device)
        called = {"flow": ("condition",) if self.objective == "motion" else ("nats", "denoiser_output")}
        for name, part in self.networks.named_children():
            shard(part, processes, config.precision, called.get(name, ("loss",) if name == "start" else ()))
        self.tables = self.networks.flow.tables(world.grid, max(config.lengths))
        optimizers = make_optimizers(self.networks, config)
        super().__init__(self.networks, optimizers, config, processes, sharded=processes.mesh is not None)

    def fit_codec(self, most: int = 4096) -> None:
        """Fit the codec to frames spread over the dataset."""
        frames = self.sampler.windows.frames
        index = torch.linspace(0, len(frames) - 1, min(most, len(frames))).long().numpy()
        self.networks.codec.fit(torch.from_numpy(frames[index]).to(self.processes.device))

    def advance(self) -> dict[str, float]:
        """One training step; returns its figures."""
        self.begin()
        if self.objective == "start":
            first = self._backward(self.sampler.starts(self.step), 1, 1.0, denoiser=False)
            return self.finish({"start": first.start.item()})
        often = DENOISER_EVERY if self.config.denoiser_target == "score" else 1
        denoiser = self.step % often == 0 and self.networks.flow.denoiser is not None
        beta = self.config.motion_beta * (1 - self.step / self.config.steps)
        found = self._backward(self.sampler.batch(self.step), 0, 1.0, denoiser=denoiser, beta=beta)
        figures = {
            "nats_per_dim": float(found.nats_per_dim), "outcome": found.outcome.item(),
            "denoiser": found.denoiser.item(),
        }
        if found.excess.shape[1] > 1:
            figures["excess"] = float(found.excess[:, 1:].mean())
        if self.config.starts and self.objective == "all":
            share = self.config.start_weight * self.config.starts / self.config.frames
            first = self._backward(self.sampler.starts(self.step), 1, share, denoiser=denoiser)
            figures["start_excess"] = float(first.excess.mean())
            if self.networks.start is not None:
                figures["start"] = first.start.item()
        return self.finish(figures)

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Standard normals (B, T, n, c) for this process's rows of a batch."""
        n, c, rows = self.world.grid[0] * self.world.grid[1], self.world.channels, len(batch) * self.processes.count
        drawn = torch.randn(rows, batch.frames.shape[1], n, c, generator=generator)
        return drawn[self.processes.part(rows)].to(self.processes.device)

    def _backward(self, batch: Batch, stream: int, weight: float, *, denoiser: bool, beta: float = 0.0) -> Losses:
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) * 2 + stream)
        noise, batch, processes = self.noise(batch, generator), batch.to(self.processes.device), self.processes
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            if self.objective == "start":
                found = start_losses(self.networks, batch, noise, processes)
            elif self.objective == "outcome":
                found = outcome_losses(self.networks, batch, noise, self.config)
            elif self.objective == "motion":
                found = motion_losses(self.networks, batch, noise, self.tables, beta)
            else:
                found = losses(
                    self.networks, batch, noise, self.tables, self.config, denoiser=denoiser, processes=processes
                )
        if found.total.requires_grad:
            (weight * found.total).backward()
        return found

    def whole(self) -> Networks:
        """The networks with all their weights, on the main process; on the others their shapes."""
        if self.processes.mesh is None:
            return self.networks
        where = "cpu" if self.processes.main else "meta"
        tensors = {name: whole(t).to(where) for name, t in self.networks.state_dict().items()}
        with torch.device("meta"):
            networks = Networks(self.world)
        networks.load_state_dict(tensors, assign=True)
        return networks


def train(
    recipe: RecipeConfig, data: Path | str, out: Path | str, *, valid: Path | str | None = None, resume: bool = False,
    init: Path | str | None = None, command: str = "", processes: Processes = ALONE,
) -> Path:
    """Train a world on the episodes in `data` into the folder `out`; returns it.

    `resume` goes on where a killed run saved last; `init` starts from the weights of a checkpoint. Learning curves are
    JSON lines in `out`/metrics.jsonl, figures of held-out episodes (`valid`) among them. All `processes` call this
    alike; told to stop (SIGINT, SIGTERM) they save and raise KeyboardInterrupt.
    """
    out, dataset = Path(out), EpisodeDataset(data)
    world = replace(recipe.world, action_space=dataset.action_space_json)
    windows = processes.in_turn(dataset.memory_map)
    trainer = Trainer(world, recipe.train, windows, init=None if resume else init, processes=processes)
    metrics = out / METRICS
    card = {"data": str(Path(data).name), "episodes": len(dataset), **origin(data)}
    card |= {"seed": recipe.train.seed, "command": command}
    processes.once(lambda: remove_leftovers(out))
    if resume:
        trainer.resume(out, recipe, MAY_CHANGE)
        # The run may have died between its last two files.
        _save_checkpoint(trainer, out, card)
    elif any((out / name).exists() for name in (CONFIG, TRAINING, STATE)):
        raise ConfigError(f"{out}: expected an empty folder, found a checkpoint; add --resume or choose another folder")
    elif init is None:
        trainer.fit_codec()
    if processes.main:
        out.mkdir(parents=True, exist_ok=True)
        keep_until(metrics, trainer.step)
        _write_starts(out, trainer.sampler.windows)
    held_out = None
    if valid is not None:
        undropped = replace(recipe.train, action_dropout=0.0, text_dropout=0.0)
        held_out = Sampler(processes.in_turn(EpisodeDataset(valid).memory_map), undropped, processes)
    for figures in run(trainer, trainer.config, world.name, lambda: _save(trainer, out, recipe, card)):
        due = trainer.step % recipe.train.valid_every == 0 or trainer.step == recipe.train.steps
        if held_out and due and trainer.objective in ("all", "motion"):
            figures |= validate(trainer, held_out)
        if processes.main:
            note(metrics, figures)
    if processes.main:
        write_curves(metrics, out / "curves.png")
    return out


def _write_starts(out: Path, windows: Windows, most: int = MOST_STARTS) -> None:
    """The start set: first frames and texts of episodes spread over the dataset."""
    chosen = sorted(set(torch.linspace(0, len(windows.lengths) - 1, min(most, len(windows.lengths))).long().tolist()))
    frames = torch.from_numpy(windows.frames[windows.offsets[chosen]])
    save_starts(out, frames, [windows.texts[index] for index in chosen])


def _save(trainer: Trainer, out: Path, recipe: RecipeConfig, card: dict[str, object]) -> None:
    trainer.save(out, recipe)
    _save_checkpoint(trainer, out, card)


def _save_checkpoint(trainer: Trainer, out: Path, card: dict[str, object]) -> None:
    networks = trainer.whole()
    if trainer.processes.main:
        save_checkpoint(out, networks, {**card, "steps": trainer.step}, trainer.config.half)


def _initialise(networks: Networks, init: Path | str) -> None:
    found, _ = load_networks(init)
    tensors = found.state_dict()
    if found.start is None:  # a start diffusion may be added to a world that has none
        tensors |= {name: t for name, t in networks.state_dict().items() if name.startswith("start.")}
    load_strictly(networks, tensors, init)


@torch.no_grad()
def validate(trainer: Trainer, held_out: Sampler, batches: int = 4) -> dict[str, float]:
    """Excess nats per frame on held-out windows: first frames of true starts, and frames after the first."""
    excess: list[Tensor] = []
    first: list[Tensor] = []
    # Outside of layers this is float32; their matrices are gathered in what they are trained in.
    mixed = trainer.sharded and trainer.config.precision == "bf16"
    for index in range(batches):
        generator = torch.Generator().manual_seed(index)
        parts = ((held_out.batch(index), excess), (held_out.starts(index), first))
        for batch, found in parts[: 1 if trainer.objective == "motion" else 2]:
            noise, batch = trainer.noise(batch, generator), batch.to(trainer.processes.device)
            if trainer.objective == "motion":
                found.append(motion_losses(trainer.networks, batch, noise, trainer.tables, 0.0).excess[:, 1:].flatten())
                continue
            with torch.autocast(trainer.processes.device.type, torch.bfloat16, enabled=mixed):
                part = losses(
                    trainer.networks, batch, noise, trainer.tables, trainer.config, denoiser=False,
                    processes=trainer.processes,
                )
            found.append(part.excess[:, 1:].flatten() if part.excess.shape[1] > 1 else part.excess.flatten())
    figures = {"valid_excess": float(torch.cat(excess).mean())}
    return trainer.processes.means(figures | ({"valid_start_excess": float(torch.cat(first).mean())} if first else {}))
