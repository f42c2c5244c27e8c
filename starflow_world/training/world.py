"""Training of worlds: the flow by maximum likelihood, the denoiser by score matching, the reward head by cross-entropy.

All random numbers of step s are a function of (seed, s), so a resumed run gives the same weights as an uninterrupted
run. A step with a loss or gradient that is not finite is skipped and counted; ten in a row end the run. In distributed
training (distributed.py) each process holds a share of every batch and a shard of the weights.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starflow_world.config.train import RecipeConfig, TrainConfig
from starflow_world.config.world import WorldConfig
from starflow_world.data.dataset import EpisodeDataset, Windows, origin
from starflow_world.flow.density import MixtureHead
from starflow_world.io.plots import write_curves
from starflow_world.model import checkpoint
from starflow_world.model.networks import Networks
from starflow_world.training.batches import Batch, Sampler
from starflow_world.training.distributed import ALONE, Processes, checkpoint_activations, full_tensor, shard_module
from starflow_world.training.loop import METRICS, Trainer, begun_recipe, cut_metrics, freeze_outside, open_folder
from starflow_world.training.objective import Losses, event_loss, losses
from starflow_world.training.optimizers import world_optimizers
from starflow_world.training.precision import resolve_precision
from starflow_world.training.recipe import check_data, check_init, complete_recipe, data_facts, print_facts
from starflow_world.training.state import STATE

DENOISER_EVERY = 4
MOST_STARTS = 1000
TIMED_STEPS, FOR_STEPS = 16, 0.95
"""Steps that are timed for `train.minutes`, and the share of the time for steps; saves and validation take the rest."""


class WorldTrainer(Trainer[RecipeConfig]):
    """Trainer of a world; `card` is written to its card.json."""

    may_change = ("train.steps", "train.minutes", "train.save_minutes", "train.valid_every", "train.checkpointing",
                  "world.action_space")

    def __init__(
        self, world: WorldConfig, config: TrainConfig, windows: Windows, *, starts: Windows | None = None,
        init: Path | str | None = None, processes: Processes = ALONE, card: Mapping[str, Any] | None = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.networks = networks = Networks(world)
        if init is not None:
            _initialise(networks, init)
        freeze_outside(networks, config.parts)
        self.sampler = Sampler(windows, config, processes, patch=world.codec.patch)
        opening = replace(config, lengths=(1,), reappearing=0.0)
        self.openings = self.sampler if starts is None else Sampler(starts, opening, processes)
        if config.checkpointing:
            checkpoint_activations(networks)
        networks.to(processes.device)
        config = replace(config, precision=resolve_precision(config.precision, processes, networks))
        self.world, self.config, self.card = world, config, {**(card or {}), "precision": config.precision}
        flow = networks.flow
        for part in networks.children():
            called = ("nats", "describe", "denoiser_output") if part is flow else ()
            shard_module(part, processes, config.precision, called)
        self.tables = flow.tables(world.grid, max(config.lengths))
        clipped = [*flow.children(), *(part for part in networks.children() if part is not flow)]
        super().__init__(
            networks, world_optimizers(networks, config), clipped, RecipeConfig(world, config), processes,
            sharded=processes.mesh is not None,
        )

    def fit_codec(self, most: int = 4096) -> None:
        """Fit codec and codebook to at most `most` frames, evenly spaced over the dataset."""
        frames, codec, head = self.sampler.windows.frames, self.networks.codec, self.networks.flow.deep.head
        index = torch.linspace(0, len(frames) - 1, min(most, len(frames))).long().numpy()
        some = torch.from_numpy(frames[index]).to(self.processes.device)
        codec.fit(some)
        if isinstance(head, MixtureHead):
            latents = codec.encode(some[None])[0]
            head.codebook.fit(latents.reshape(-1, head.codebook.size), self.world.noise_level)

    def advance(self) -> dict[str, float]:
        """Take one training step; return its figures."""
        self.begin()
        denoiser = self.step % DENOISER_EVERY == 0 and self.networks.flow.denoiser is not None
        lost = self._backward(self.sampler.batch(self.step), 0, 1.0, denoiser=denoiser)
        figures = {
            "nats_per_dim": float(lost.nats_per_dim), "outcome": lost.outcome.item(), "denoiser": lost.denoiser.item(),
        }
        if lost.excess.shape[1] > 1:
            figures["excess"] = float(lost.excess[:, 1:].mean())
        if self.config.starts:
            share = self.config.start_weight * self.config.starts / self.config.frames
            first = self._backward(self.openings.starts(self.step), 1, share, denoiser=denoiser)
            figures["start_excess"] = float(first.excess.mean())
        events = self.sampler.events(self.step) if self.networks.outcome is not None else None
        if events is not None:
            figures["event"] = self._learn_events(events)
        return self.finish(figures)

    def _learn_events(self, batch: Batch) -> float:
        """Add the gradient of the reward head on events, as if they were frames of the step's batch; return the mean
        weighted loss."""
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) * 2 + 1)
        noise, batch, networks = self.noise(batch, generator), batch.to(self.processes.device), self.networks
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            lost = event_loss(networks, batch, noise, self.tables)
        share = self.config.outcome_weight * self.processes.count / self.config.frames
        if lost.requires_grad:
            (share * lost).backward()
        return lost.item() / len(batch)

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw standard normal noise (B, T, n, c) for this process's share of a batch."""
        n, c, rows = self.world.grid[0] * self.world.grid[1], self.world.channels, len(batch) * self.processes.count
        drawn = torch.randn(rows, batch.frames.shape[1], n, c, generator=generator)
        return drawn[self.processes.part(rows)].to(self.processes.device)

    def _backward(self, batch: Batch, stream: int, weight: float, *, denoiser: bool) -> Losses:
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) * 2 + stream)
        noise, batch, networks = self.noise(batch, generator), batch.to(self.processes.device), self.networks
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            lost = losses(networks, batch, noise, self.tables, self.config, denoiser=denoiser,
                          processes=self.processes)
        if lost.total.requires_grad:
            (weight * lost.total).backward()
        return lost

    @torch.no_grad()
    def validate(self, held_out: Sampler, batches: int = 4) -> dict[str, float]:
        """Return the mean excess nats per frame of held-out windows, for first frames of episodes and for later frames.
        """
        later: list[Tensor] = []
        first: list[Tensor] = []
        # Validation runs in float32, except for sharded matrices inside layers, which are gathered in bfloat16.
        mixed = self.sharded and self.config.precision == "bf16"
        for index in range(batches):
            generator = torch.Generator().manual_seed(index)
            draws = [(held_out.batch(held_out.config.steps + index), later)]
            if held_out.config.starts:
                draws.append((held_out.starts(index), first))
            for batch, excess in draws:
                noise, batch = self.noise(batch, generator), batch.to(self.processes.device)
                with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=mixed):
                    lost = losses(self.networks, batch, noise, self.tables, self.config, denoiser=False,
                                  processes=self.processes)
                excess.append((lost.excess[:, 1:] if lost.excess.shape[1] > 1 else lost.excess).flatten())
        figures = {"valid_excess": later, "valid_start_excess": first}
        return self.processes.means({name: float(torch.cat(part).mean()) for name, part in figures.items() if part})

    def write_model(self, out: Path) -> None:
        """Write the checkpoint and its card."""
        networks = self._whole()
        if self.processes.main:
            checkpoint.save_checkpoint(out, networks, {**self.card, "steps": self.step}, self.config.half)

    def _whole(self) -> Networks:
        """Return unsharded networks, with weights on the main process and without data on the other processes."""
        if self.processes.mesh is None:
            return self.networks
        where = "cpu" if self.processes.main else "meta"
        tensors = {name: full_tensor(t).to(where) for name, t in self.networks.state_dict().items()}
        with torch.device("meta"):
            networks = Networks(self.world)
        networks.load_state_dict(tensors, assign=True)
        return networks


def train_world(
    recipe: RecipeConfig, data: Path | str, out: Path | str, *, valid: Path | str | None = None,
    starts: Path | str | None = None, resume: bool = False, init: Path | str | None = None, command: str = "",
    processes: Processes = ALONE, cache: Path | str | None = None,
) -> Path:
    """Train a world on the episodes in `data`, write it to the folder `out`, and return that folder.

    `starts` has episodes of which only the first frames are learned, instead of those in `data`. `resume` continues
    from the last save; `init` is a checkpoint with initial weights. Learning curves are JSON lines in
    `out`/metrics.jsonl, with figures of the held-out episodes in `valid`. `cache`: folder for uncompressed copies of
    the episodes (default: .cache in the folder of each dataset). All `processes` must call this with the same
    arguments; on SIGINT or SIGTERM they save and raise KeyboardInterrupt. Raises DataError before the first step if
    episodes or `init` do not fit the recipe, ConfigError if `out` holds another run.
    """
    out, data, dataset = Path(out), Path(data), EpisodeDataset(data)
    open_folder(out, (checkpoint.CONFIG, checkpoint.TRAINING, STATE), processes, resume=resume)
    begun = begun_recipe(out, RecipeConfig, sharded=processes.mesh is not None) if resume else None
    windows = processes.in_turn(lambda: dataset.memory_map(cache))
    facts, before = data_facts(dataset, windows), None if init is None or resume else checkpoint.load_config(init)[0]
    recipe = complete_recipe(recipe, facts, windows, init=before, begun=begun)
    check_data(recipe.world, facts, "the recipe")
    held_out = opening = None
    if valid is not None:
        silent = replace(recipe.train, action_dropout=0.0, text_dropout=0.0, reappearing=0.0)
        held_out = Sampler(_fitting(recipe, valid, cache, data, processes), silent, processes)
    if starts is not None:
        opening = _fitting(recipe, starts, cache, data, processes)
    if init is not None and before is not None:
        check_init(recipe.world, before, init, data)
    if processes.main:
        print_facts(recipe.world, facts)
    card = {"data": data.name, "episodes": len(dataset), **origin(data), "seed": recipe.train.seed, "command": command}
    card["real_steps"] = int((windows.lengths - 1).sum())
    if opening is not None:
        card["starts"] = len(opening.lengths)
        card["real_steps"] += int((opening.lengths - 1).sum())
    if recipe.train.minutes:
        steps = begun.train.steps if begun else steps_in_time(recipe, windows, processes)
        recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    trainer = WorldTrainer(
        recipe.world, recipe.train, windows, starts=opening, init=None if resume else init, processes=processes,
        card=card,
    )
    if resume:
        trainer.resume(out)
        trainer.write_model(out)  # the run may have been killed between its last two writes
    elif init is None:
        trainer.fit_codec()
    if processes.main:
        cut_metrics(out, trainer.step)
        _write_starts(out, windows, texts=trainer.networks.text is not None)

    def judge() -> dict[str, float]:
        due = trainer.step % recipe.train.valid_every == 0 or trainer.step == recipe.train.steps
        return trainer.validate(held_out) if held_out and due else {}

    trainer.run(out, judge)
    if processes.main:
        write_curves(out / METRICS, out / "curves.png")
    return out


def steps_in_time(recipe: RecipeConfig, windows: Windows, processes: Processes = ALONE) -> int:
    """Return the number of steps that `train.minutes` allow on this machine, and print it. They are timed, after some
    for warm-up, with a trainer that is thrown away."""
    trainer = WorldTrainer(recipe.world, recipe.train, windows, processes=processes)
    for _ in range(DENOISER_EVERY):
        trainer.advance()
    begun = time.monotonic()
    for index in range(TIMED_STEPS):
        trainer.step = index * recipe.train.steps // TIMED_STEPS  # windows grow in the course of a training
        trainer.advance()
    each = processes.means({"seconds": (time.monotonic() - begun) / TIMED_STEPS})["seconds"]
    steps = max(1, int(60 * recipe.train.minutes * FOR_STEPS / each))
    if processes.main:
        print(f"train: {steps} steps of {each:.3g} seconds in {recipe.train.minutes:g} minutes", file=sys.stderr)
    return steps


def _fitting(
    recipe: RecipeConfig, folder: Path | str, cache: Path | str | None, data: Path, processes: Processes
) -> Windows:
    """Return the episodes of a further folder. Raises DataError unless they fit the world that learns from `data`."""
    episodes = EpisodeDataset(folder)
    windows = processes.in_turn(lambda: episodes.memory_map(cache))
    check_data(recipe.world, data_facts(episodes, windows), f"the world that learns from {data}")
    return windows


def _write_starts(out: Path, windows: Windows, *, texts: bool, most: int = MOST_STARTS) -> None:
    """Write the start set: first frames of at most `most` episodes, evenly spaced over the dataset, and their texts."""
    chosen = sorted(set(torch.linspace(0, len(windows.lengths) - 1, min(most, len(windows.lengths))).long().tolist()))
    frames = torch.from_numpy(windows.frames[windows.offsets[chosen]])
    checkpoint.save_starts(out, frames, [windows.texts[index] if texts else "" for index in chosen])


def _initialise(networks: Networks, init: Path | str) -> None:
    checkpoint.load_strictly(networks, checkpoint.load_networks(init)[0].state_dict(), init)
