"""Episodes in which the colour of a square tells episode and time, and recipes of tiny worlds that learn from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from gymnasium import spaces

from starflow_world.config.train import RecipeConfig, TrainConfig
from starflow_world.config.world import WorldConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, episode_path, write_episode
from starflow_world.model.actions import space_to_json
from tests.worlds import TINY

SIDE = 8
FAST = TrainConfig(steps=6, frames=16, lengths=(2, 4), starts=4, precision="f32", warmup=1, save_minutes=0.0)
SMALL = replace(TINY, height=SIDE, width=SIDE)


def world_config(**changes: object) -> WorldConfig:
    return replace(SMALL, action_space=space_to_json(spaces.Discrete(4)), **changes)  # type: ignore[arg-type]


def recipe(world: WorldConfig = SMALL, **changes: object) -> RecipeConfig:
    return RecipeConfig(world, replace(FAST, **changes))  # type: ignore[arg-type]


def episode(index: int, length: int) -> Episode:
    """Action t leads to frame t."""
    frames = np.zeros((length, SIDE, SIDE, 3), np.uint8)
    for t in range(length):
        frames[t, t % 4 * 2 : t % 4 * 2 + 2, index % 4 * 2 : index % 4 * 2 + 2] = (10 * index, 10 * t, 200)
        frames[t, SIDE - 1, SIDE - 1] = (index, t, 0)
    actions = np.eye(4, dtype=np.float32)[(np.arange(length) + index) % 4]
    actions[0] = 0
    rewards = (np.arange(length) == length - 1).astype(np.float32) * (length > 1)
    end = np.arange(length) == length - 1
    space = space_to_json(spaces.Discrete(4))
    return Episode(frames, actions, rewards, end, np.zeros(length, bool), f"row {index % 4}", space)


def fill(folder: Path, lengths: tuple[int, ...]) -> Path:
    """Write episodes of these lengths."""
    for index, length in enumerate(lengths):
        write_episode(episode_path(folder, index), episode(index, length))
    EpisodeDataset(folder).memory_map()
    return folder
