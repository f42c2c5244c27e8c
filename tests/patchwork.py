"""Episodes of random pictures that are made of twelve patches: what the tests of scores judge."""

import numpy as np
from gymnasium import spaces

from starflow_world.data.episodes import Episode
from starflow_world.model.actions import space_to_json

ACTIONS = spaces.Discrete(4)


def episode(length: int, seed: int = 0, *, size: int = 8, text: str = "go") -> Episode:
    """Pictures at random, made of 12 patches."""
    rng = np.random.default_rng(seed)
    actions = np.zeros((length, 4), np.float32)
    actions[np.arange(1, length), rng.integers(0, 4, length - 1)] = 1
    patches = np.random.default_rng(9).integers(0, 256, (12, 2, 2, 3), dtype=np.uint8)
    cells = patches[rng.integers(0, 12, (length, size // 2, size // 2))]
    frames, ends = cells.swapaxes(2, 3).reshape(length, size, size, 3), np.zeros(length, bool)
    return Episode(frames, actions, np.zeros(length, np.float32), ends, ends, text, space_to_json(ACTIONS))


def some(count: int, seed: int = 0) -> list[Episode]:
    """Short ones, of two texts."""
    return [episode(8 + index % 5, seed + index, text="ab"[index % 2]) for index in range(count)]
