"""Real BabyAI rooms of one mission with frames as observations, many in one process.

They have the observations, actions, rewards and time limit of a `WorldVectorEnv` of a world that was trained on them.
Only the cells that change are redrawn: steps are about 50 times faster than with `render`, with equal frames.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tqdm import tqdm

from starflow_world.agents.environment import make_env
from starflow_world.envs.options import read_seeds
from starflow_world.errors import ConfigError, DataError

ENV, LIMIT, TILE = "BabyAI-GoToLocalS8N4-v0", 64, 8
PATIENCE = 2000


class Room(gymnasium.Wrapper[np.ndarray, int, Any, int]):
    """One room: observations (H, W, 3) u8, reward 1 at success and else 0, truncated after `max_steps` steps.

    seeds: room seeds of which each episode draws one, by a generator that the seed of a reset sets; empty: use the seed
    of the reset itself. drawn: cached frames of cells, which rooms may share.
    """

    def __init__(
        self, seeds: Sequence[int] = (), *, max_steps: int = LIMIT, drawn: dict[Any, np.ndarray] | None = None
    ) -> None:
        super().__init__(make_env(ENV, max_steps=max_steps, frame_size=64))
        inner: Any = self.env.unwrapped
        inner.gen_obs = dict  # the agent's own view, which is not used, takes most of a step
        self.inner, size = inner, (inner.height * TILE, inner.width * TILE, 3)
        self.observation_space = spaces.Box(0, 255, size, np.uint8)
        self.frame = np.zeros(size, np.uint8)
        self.seeds, self._generator = tuple(seeds), seeding.np_random()[0]
        self._drawn = {} if drawn is None else drawn

    @property
    def text(self) -> str:
        """Return the mission of this episode."""
        return str(self.inner.mission)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode, in the same room as the plain env with this seed (without `seeds`)."""
        if self.seeds:
            self._generator = self._generator if seed is None else seeding.np_random(seed)[0]
            seed = self.seeds[int(self._generator.integers(len(self.seeds)))]
        with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
            self.inner.reset(seed=seed, options=options)
        for x in range(self.inner.width):
            for y in range(self.inner.height):
                self._draw(x, y)
        return self.frame.copy(), {"text": self.text}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step and redraw the cells that may have changed: the agent's old and new cell and the cell ahead."""
        touched = {tuple(self.inner.agent_pos), tuple(self.inner.front_pos)}
        _, gain, terminated, truncated, _ = self.inner.step(int(action))
        for x, y in touched:
            self._draw(x, y)
        return self.frame.copy(), float(gain > 0), bool(terminated), bool(truncated), {"text": self.text}

    def render(self) -> Any:
        """Return the current frame (H, W, 3) u8."""
        return self.frame.copy()

    def _draw(self, x: int, y: int) -> None:
        cell = self.inner.grid.get(x, y)
        here = (x, y) == tuple(self.inner.agent_pos)
        key = (self.inner.agent_dir if here else None, None if cell is None else cell.encode())
        if key not in self._drawn:
            draw = type(self.inner.grid).render_tile
            self._drawn[key] = draw(cell, agent_dir=key[0], highlight=False, tile_size=TILE)
        self.frame[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] = self._drawn[key]


def rooms_with(text: str, count: int, *, begin: int = 0, progress: bool = False) -> tuple[int, ...]:
    """Return the first `count` seeds >= `begin` of rooms with this mission. DataError after 2,000 misses in a row."""
    room, seed, last = Room(), begin, begin
    seeds: list[int] = []
    with tqdm(total=count, desc=f"rooms: {text}", unit="room", disable=not progress, leave=False) as bar:
        while len(seeds) < count:
            with redirect_stdout(StringIO()):
                room.inner.reset(seed=seed)
            if room.text == text:
                seeds.append(seed)
                last = seed
                bar.update()
            elif seed - last > PATIENCE:
                raise DataError(f"text: expected a mission of {ENV}, such as {room.text!r}, found {text!r:.80}")
            seed += 1
    return tuple(seeds)


class Rooms(SyncVectorEnv):
    """Vector env of N rooms with room seeds from `seeds`, autoreset mode same_step, and Gymnasium's infos."""

    def __init__(self, num_envs: int, seeds: Sequence[int], *, max_steps: int = LIMIT) -> None:
        drawn: dict[Any, np.ndarray] = {}
        super().__init__([lambda: Room(seeds, max_steps=max_steps, drawn=drawn)] * num_envs,
                         autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all episodes. seed: of the choice of rooms, s for s, s + 1, ... or one (or None) per row."""
        if options:
            raise ConfigError(f"options: expected none, a room follows from its seed alone, found {options!r:.80}")
        return super().reset(seed=list(read_seeds(seed, self.num_envs)))
