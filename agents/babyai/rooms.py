"""The real BabyAI rooms that an agent is judged in: one mission, observed as pictures, many in one process.

Beside a dream they look alike: the same observations, actions, rewards and time limit as a `WorldVectorEnv` of a world
that was learned from such rooms. A room is drawn cell by cell as it changes, which makes steps some 50 times cheaper
than `render`, and equal to it to the pixel.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from tqdm import tqdm

from starflow_world.agents.environment import make_env
from starflow_world.envs.options import read_seeds
from starflow_world.errors import ConfigError, DataError

ENV, LIMIT, TILE = "BabyAI-GoToLocalS8N4-v0", 64, 8
PATIENCE = 2000


class Room(gymnasium.Wrapper[np.ndarray, int, Any, int]):
    """One room: observations (H, W, 3) u8, reward 1 at success and else 0, truncated after `max_steps` steps.

    drawn: pictures of cells that rooms share.
    """

    def __init__(self, *, max_steps: int = LIMIT, drawn: dict[Any, np.ndarray] | None = None) -> None:
        super().__init__(make_env(ENV, max_steps=max_steps, frame_size=64))
        inner: Any = self.env.unwrapped
        inner.gen_obs = dict  # nobody looks at the agent's own view, which takes most of a step
        self.inner, size = inner, (inner.height * TILE, inner.width * TILE, 3)
        self.observation_space = spaces.Box(0, 255, size, np.uint8)
        self.frame = np.zeros(size, np.uint8)
        self._drawn = {} if drawn is None else drawn

    @property
    def text(self) -> str:
        """The mission of this episode."""
        return str(self.inner.mission)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode: the same room as the plain env's under this seed."""
        with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
            self.inner.reset(seed=seed, options=options)
        for x in range(self.inner.width):
            for y in range(self.inner.height):
                self._draw(x, y)
        return self.frame.copy(), {"text": self.text}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; what may change is the agent's cell, the one before it and the one it moves to."""
        touched = {tuple(self.inner.agent_pos), tuple(self.inner.front_pos)}
        _, gain, terminated, truncated, _ = self.inner.step(action)
        for x, y in touched:
            self._draw(x, y)
        return self.frame.copy(), float(gain > 0), bool(terminated), bool(truncated), {"text": self.text}

    def _draw(self, x: int, y: int) -> None:
        cell = self.inner.grid.get(x, y)
        here = (x, y) == tuple(self.inner.agent_pos)
        key = (self.inner.agent_dir if here else None, None if cell is None else cell.encode())
        if key not in self._drawn:
            draw = type(self.inner.grid).render_tile
            self._drawn[key] = draw(cell, agent_dir=key[0], highlight=False, tile_size=TILE)
        self.frame[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] = self._drawn[key]


def rooms_with(text: str, count: int, *, begin: int = 0, progress: bool = False) -> tuple[int, ...]:
    """The first `count` seeds from `begin` on whose room has this mission; DataError after 2,000 without a new one."""
    room, seed, last = Room(), begin, begin
    found: list[int] = []
    with tqdm(total=count, desc=f"rooms: {text}", unit="room", disable=not progress, leave=False) as bar:
        while len(found) < count:
            with redirect_stdout(StringIO()):
                room.inner.reset(seed=seed)
            if room.text == text:
                found.append(seed)
                last = seed
                bar.update()
            elif seed - last > PATIENCE:
                raise DataError(f"text: expected a mission of {ENV}, such as {room.text!r}, found {text!r:.80}")
            seed += 1
    return tuple(found)


class Rooms(VectorEnv[np.ndarray, Any, np.ndarray]):
    """N rooms whose episodes begin in one of `seeds`, each drawn anew, in mode same_step.

    As `WorldVectorEnv` has it: observations (N, H, W, 3) u8, `final_obs` and `final_info` in the infos.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"], "render_fps": 10, "autoreset_mode": AutoresetMode.SAME_STEP
    }

    def __init__(self, num_envs: int, seeds: Sequence[int], *, max_steps: int = LIMIT) -> None:
        self.num_envs, self.seeds, self.render_mode = num_envs, tuple(seeds), "rgb_array"
        shared: dict[Any, np.ndarray] = {}
        self.rooms = [Room(max_steps=max_steps, drawn=shared) for _ in range(num_envs)]
        self.single_observation_space = self.rooms[0].observation_space
        self.single_action_space = self.rooms[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all episodes. seed: of the choice of rooms, s for s, s + 1, ... or one (or None) for each row."""
        if options:
            raise ConfigError(f"options: expected none, a room follows from its seed alone, found {options!r:.80}")
        for row, one in enumerate(read_seeds(seed, self.num_envs)):
            if one is not None:
                self._generators[row] = seeding.np_random(one)[0]
        infos: dict[str, Any] = {}
        return np.stack([self._begin(row, infos) for row in range(self.num_envs)]), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every room: observations, rewards (N,) float64, terminations, truncations, infos."""
        frames, rewards = np.empty(self.observation_space.shape or (), np.uint8), np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        infos: dict[str, Any] = {}
        for row, room in enumerate(self.rooms):
            frames[row], rewards[row], terminated[row], truncated[row], info = room.step(int(actions[row]))
            if terminated[row] or truncated[row]:
                infos = self._add_info(infos, {"final_obs": frames[row].copy(), "final_info": info}, row)
                frames[row] = self._begin(row, infos)
        return frames, rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...]:
        """The present frames, N of (H, W, 3) u8."""
        return tuple(room.frame.copy() for room in self.rooms)

    def _begin(self, row: int, infos: dict[str, Any]) -> np.ndarray:
        seed = self.seeds[int(self._generators[row].integers(len(self.seeds)))]
        frame, info = self.rooms[row].reset(seed=seed)
        infos.update(self._add_info(infos, info, row))
        return frame
