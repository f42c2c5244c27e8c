"""Baselines of a world with chance, on its data and of its size: what they show of the law of the environment.

    python -m tests.benchmarks.baselines configs/dynamic-obstacles.yaml --data DIR --valid DIR --minutes 20

Three ways to the next frame from the last one and the action: repeat it; a deterministic network (mean squared error);
a diffusion in the preconditioning of Karras et al. 2022, as DIAMOND has it, in a few Euler steps. The networks are a
transformer of the deep block's size over all tokens of the frame at once, told the same features as the deep block. The
flow with one normal per channel is the recipe itself with `world.flow.components=1`.
"""

import json
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tyro.conf import Positional

from starflow_world.agents.environment import Environment
from starflow_world.agents.laws import law_of
from starflow_world.commands.evaluate.measure import first_episodes, json_figures
from starflow_world.config.train import RecipeConfig, load_recipe
from starflow_world.config.world import WorldConfig
from starflow_world.data.dataset import EpisodeDataset, Windows, origin
from starflow_world.evaluation.chance import ChanceSizes, draws, rollouts, spots
from starflow_world.flow.density import AffineHead
from starflow_world.flow.features import Features
from starflow_world.flow.layers import FinalNorm, Layer, grid_positions, rotary_table
from starflow_world.io.files import write_text
from starflow_world.model.actions import ActionEncoder, flatten_actions, space_from_json
from starflow_world.model.networks import Networks
from starflow_world.noise import normals
from starflow_world.training.batches import Sampler
from starflow_world.training.optimizers import Muon

STEPS, SMALLEST, LARGEST, RHO = 8, 0.002, 20.0, 7.0


class NextFrame(nn.Module):
    """Transformer over all tokens of a frame: maps (x, noise level, last frame, action) to a frame (B, n, c)."""

    def __init__(self, config: WorldConfig, space: str) -> None:
        super().__init__()
        flow = replace(config.flow, components=1)
        self.grid, d = config.grid, flow.deep_width
        self.features = Features(flow, AffineHead(d, flow.channels))
        self.action = ActionEncoder(space_from_json(space), d)
        self.project_in, self.level = nn.Linear(flow.channels, d), nn.Linear(1, d)
        self.layers = nn.ModuleList(Layer(d, flow.head_width) for _ in range(flow.deep_layers))
        self.norm, self.head = FinalNorm(d), nn.Linear(d, flow.channels)
        table = rotary_table(grid_positions(1, self.grid, flow.position_scale), flow.head_width)[None]
        self.register_buffer("rotary", table, persistent=False)

    def forward(self, x: Tensor, level: Tensor, last: Tensor, flat: Tensor) -> Tensor:
        """Return a frame (B, n, c); level (B,), flat (B, 1 + flat)."""
        action = self.action(flat)
        told = self.features(last, action, self.grid) + action[:, None] + self.level(level[:, None])[:, None]
        hidden = self.project_in(x) + told
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        for layer in self.layers:
            hidden = layer(hidden, self.rotary, seen)
        return self.head(self.norm(hidden))


@dataclass
class Baseline:
    """A way to draw the next frame: "repeat", "deterministic" or "diffusion", with the parts of a World that the
    measures of chance call."""

    kind: str
    networks: Networks
    net: NextFrame
    spread: float

    @property
    def config(self) -> WorldConfig:
        """Return the config of the recipe's world."""
        return self.networks.config

    def texts_for(self, texts: list[str]) -> list[str]:
        """Return empty texts: baselines read none."""
        return [""] * len(texts)

    def start(self, frames: np.ndarray, actions: Any, **_: Any) -> tuple["Rows", None]:
        """Start rows from the last of frames (B, T, H, W, 3)."""
        last = self.networks.codec.encode(torch.as_tensor(frames)[:, -1:])[0][:, 0]
        return Rows(last, [0] * len(last), 0), None

    def step(self, rows: "Rows", actions: list[int], **_: Any) -> tuple["Rows", Any]:
        """Draw the next frame of every row."""
        space = space_from_json(self.config.action_space)
        latents = self.draw(rows, flatten_actions(space, actions))
        frames = self.networks.codec.decode(latents[:, None])[0]
        last = self.networks.codec.encode(frames)[0][:, 0]
        return Rows(last, rows.keys, rows.age + 1), SimpleNamespace(frames=frames)

    def draw(self, rows: "Rows", flat: Tensor) -> Tensor:
        """Return latents (B, n, c) of the next frames."""
        last = rows.last
        if self.kind == "repeat":
            return last
        if self.kind == "deterministic":
            return self.net(torch.zeros_like(last), torch.zeros(len(last)), last, flat)
        ramp = torch.linspace(0, 1, STEPS)
        levels = (LARGEST ** (1 / RHO) + ramp * (SMALLEST ** (1 / RHO) - LARGEST ** (1 / RHO))) ** RHO
        levels = torch.cat((levels, torch.zeros(1)))
        keys = torch.tensor(rows.keys)
        x = levels[0] * normals(keys, torch.full_like(keys, rows.age), "prior", last.shape[1:])
        for high, low in pairwise(levels):
            clean = denoised(self, x, high.expand(len(x)), last, flat)
            x = x + (low - high) * (x - clean) / high
        return x


@dataclass
class Rows:
    """Last latents (B, n, c), noise keys and age of rows."""

    last: Tensor
    keys: list[int]
    age: int

    def __getitem__(self, rows: list[int]) -> "Rows":
        return Rows(self.last[rows], [self.keys[row] for row in rows], self.age)

    def with_keys(self, keys: list[int]) -> "Rows":
        """Return the same rows with other keys."""
        return Rows(self.last, list(keys), self.age)


def denoised(made: Baseline, x: Tensor, level: Tensor, last: Tensor, flat: Tensor) -> Tensor:
    """Return the preconditioned estimate of the clean frame from x (B, n, c) with noise of size level (B,)."""
    s, wide = made.spread, level[:, None, None]
    total = (wide**2 + s**2).sqrt()
    out = made.net(x / total, level.log() / 4, last, flat)
    return s**2 / total**2 * x + wide * s / total * out


def fit(made: Baseline, windows: Windows, recipe: RecipeConfig, minutes: float) -> int:
    """Train the network of a baseline for `minutes`; return the number of steps."""
    settings = replace(recipe.train, lengths=(2,), action_dropout=0.0, events=0)
    sampler, generator = Sampler(windows, settings), torch.Generator().manual_seed(0)
    inside = {id(p) for layer in made.net.layers for p in layer.parameters() if p.ndim == 2}
    matrices = [p for p in made.net.parameters() if id(p) in inside]
    others = [p for p in made.net.parameters() if id(p) not in inside]
    optimizers = [Muon([{"params": matrices, "lr": 0.0}]), torch.optim.AdamW(others, lr=0.0)]
    begin, step = time.monotonic(), 0
    while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * min(1.0, (step + 1) / 100, 1.0 - share)
            optimizer.zero_grad(set_to_none=True)
        batch = sampler.batch(step)
        latents = made.networks.codec.encode(batch.frames)[0]
        last, clean, flat = latents[:, 0], latents[:, 1], batch.actions[:, 1]
        last = last + made.config.noise_level * torch.randn(last.shape, generator=generator)
        if made.kind == "deterministic":
            guess, weight = made.net(torch.zeros_like(last), torch.zeros(len(last)), last, flat), 1.0
        else:
            level = (1.2 * torch.randn(len(last), generator=generator) - 0.4).exp()
            x = clean + level[:, None, None] * torch.randn(clean.shape, generator=generator)
            guess = denoised(made, x, level, last, flat)
            weight = ((level**2 + made.spread**2) / (level * made.spread) ** 2)[:, None, None]
        (weight * (guess - clean).square()).mean().backward()
        torch.nn.utils.clip_grad_norm_(made.net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
    return step


def main(recipe: Positional[Path], *, data: Path, valid: Path, minutes: float = 20.0,
         out: Path = Path("out/baselines.json")) -> None:
    """Train the baselines of a recipe for `minutes` each, and measure them against the law of the environment."""
    loaded, source = load_recipe(recipe), origin(data)
    assert isinstance(loaded, RecipeConfig)
    windows = EpisodeDataset(data).memory_map()
    world = replace(loaded.world, action_space=windows.action_space_json)
    networks = Networks(world).eval()
    networks.codec.fit(torch.from_numpy(windows.frames[:: max(1, len(windows.frames) // 4096)]))
    spread = float(networks.codec.encode(torch.from_numpy(windows.frames[:64])[None])[0].std())
    law = law_of(Environment(**source))
    assert law is not None, f"{source.get('env')}: no law is known"
    episodes, sizes, figures = first_episodes(valid, 100), ChanceSizes(), {}
    for kind in ("repeat", "deterministic", "diffusion"):
        torch.manual_seed(0)
        made = Baseline(kind, networks, NextFrame(world, windows.action_space_json), spread)
        steps = 0 if kind == "repeat" else fit(made, windows, loaded, minutes)
        made.net.eval()
        found = draws(made, spots(made, episodes, law, sizes.states, 0), law, sizes)  # type: ignore[arg-type]
        found |= rollouts(made, spots(made, episodes, law, sizes.starts, 1), law, sizes)  # type: ignore[arg-type]
        figures[kind] = {"steps": steps, **json_figures(found)}
        print(kind, json.dumps(figures[kind], indent=1), flush=True)
        write_text(out, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
