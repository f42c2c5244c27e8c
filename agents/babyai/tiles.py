"""Recognition of tiles in BabyAI frames, and metrics of a BabyAI world that use it."""

import copy
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from starflow_world.agents.babyai.memory import needs_memory
from starflow_world.agents.environment import make_env
from starflow_world.data.episodes import Episode
from starflow_world.evaluation.fidelity import actions_of, frames_right
from starflow_world.evaluation.intervals import Share
from starflow_world.evaluation.tiles import RIGHT
from starflow_world.world import World

ENV = "BabyAI-GoToLocalS8N4-v0"
KINDS = ("ball", "box", "key")


def tiles(size: int = 8) -> dict[str, np.ndarray]:
    """Return the image (size, size, 3) u8 of every tile by its name: floor, wall, agent 0-3, "red ball", ..."""
    from minigrid.core.constants import COLOR_NAMES
    from minigrid.core.grid import Grid
    from minigrid.core.world_object import Ball, Box, Key, Wall

    def draw(thing: Any, direction: int | None = None) -> np.ndarray:
        return Grid.render_tile(thing, agent_dir=direction, highlight=False, tile_size=size)

    images = {"floor": draw(None), "wall": draw(Wall())}
    images |= {f"agent {direction}": draw(None, direction) for direction in range(4)}
    for kind, make in zip(KINDS, (Ball, Box, Key), strict=True):
        images |= {f"{color} {kind}": draw(make(color)) for color in COLOR_NAMES}
    return images


def read_tiles(frame: np.ndarray, known: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Return the names of the tiles (rows, columns) of a frame (H, W, 3) u8; "?" for a tile not in `known`."""
    known = tiles() if known is None else known
    names = np.array([*known, "?"])
    pictures = np.stack(list(known.values())).astype(np.float32)
    rows, columns = frame.shape[0] // 8, frame.shape[1] // 8
    cells = frame.reshape(rows, 8, columns, 8, 3).swapaxes(1, 2).astype(np.float32)
    error = np.sqrt(((cells[:, :, None] - pictures) ** 2).mean(axis=(-3, -2, -1)))
    return names[np.where(error.min(-1) <= RIGHT, error.argmin(-1), len(known))]


def named_object(mission: str) -> str:
    """Return the object of a mission: "go to the red ball" -> "red ball"."""
    return " ".join(mission.split()[-2:])


def is_valid(names: np.ndarray, objects: int = 4) -> bool:
    """Return whether every cell is a known tile, with one agent and `objects` objects."""
    agents = sum(str(name).startswith("agent") for name in names.flat)
    things = sum(str(name).endswith(KINDS) for name in names.flat)
    return "?" not in names and agents == 1 and things == objects


@torch.inference_mode()
def text_starts(
    world: World, missions: Sequence[str], *, seed: int = 0
) -> tuple[dict[str, Share], np.ndarray]:
    """Sample first frames from missions; return shares (named object shown, frame valid) and the frames."""
    _, first = world.start(None, text=list(missions), seed=[seed + i for i in range(len(missions))])
    frames = first.frames[:, 0].cpu().numpy()
    seen = [read_tiles(frame) for frame in frames]
    named = sum(named_object(text) in names for text, names in zip(missions, seen, strict=True))
    valid = sum(is_valid(names) for names in seen)
    return {"text_named_object": Share(named, len(seen)), "text_valid_frames": Share(valid, len(seen))}, frames


@torch.inference_mode()
def changed_actions(world: World, episodes: Sequence[Episode], every: int = 12, seed: int = 0) -> Share:
    """Return the share of imagined frames equal to the real env's after an action that the episode did not take."""
    rng, count = np.random.default_rng(seed), min(len(e) for e in episodes)
    flat, equal = actions_of(episodes, count), Share(0, 0)
    envs = [_Replayed(e, count) for e in episodes]
    frames = np.stack([e.frames[:count] for e in episodes])
    beyond = np.stack([needs_memory(e, world.config.context)[:count] for e in episodes])
    state, _ = world.start(frames[:, :1], flat[:, :1], text=[e.text for e in episodes], seed=seed)
    for t in tqdm(range(1, count), desc="changed actions", unit="frame"):
        if t % every == 0:
            others = [int(rng.choice([a for a in range(7) if a != e.actions[t].argmax()])) for e in episodes]
            _, imagined = world.step(state, others)
            real = np.stack([env.what_if(other) for env, other in zip(envs, others, strict=True)])
            fair = ~(beyond[:, t] | np.array([env.hands_full_of_the_past(world.config.context) for env in envs]))
            right = frames_right(world, imagined.frames[:, 0].cpu().numpy(), real)
            equal += Share(float(right[fair].sum()), int(fair.sum()))
        for env, episode in zip(envs, episodes, strict=True):
            env.advance(int(episode.actions[t].argmax()))
        state, _ = world.observe(state, flat[:, t], frames[:, t], reuse=True)
    return equal


class _Replayed:
    """A real env that replays an episode and can render the frame after another action."""

    def __init__(self, episode: Episode, count: int) -> None:
        self.env: gymnasium.Env = make_env(ENV, max_steps=2 * count)
        with redirect_stdout(StringIO()):
            self.env.reset(seed=episode.info["env_seed"])
        self.carried = 0

    def advance(self, action: int) -> None:
        self.env.step(action)
        carrying = self.env.unwrapped.carrying is not None  # type: ignore[attr-defined]
        self.carried = self.carried + 1 if carrying else 0

    def what_if(self, action: int) -> np.ndarray:
        other = copy.deepcopy(self.env.unwrapped)
        other.step(action)
        return np.asarray(other.render())

    def hands_full_of_the_past(self, context: int) -> bool:
        return self.carried > context - 2
