"""A maze whose world is known by heart: the same rules as a real env and as a World, so that planning can be judged.

16 x 16 pixels show 4 x 4 cells; actions 0-3 go right, down, left, up; a wall or an edge stops. The reward of a goal is
1 and ends the episode, a trap ends it without one.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState
from tests.worlds import no_text, tiny_world

MOVES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
Cell = tuple[int, int]


@dataclass(frozen=True)
class Rules:
    """Where what is."""

    goals: Collection[Cell] = ((3, 0),)
    walls: Collection[Cell] = ((1, 0), (1, 1), (1, 2))
    traps: Collection[Cell] = ()

    def move(self, cell: Cell, action: int) -> Cell:
        x, y = (int(number) for number in np.array(cell) + MOVES[action])
        return (x, y) if 0 <= x < 4 and 0 <= y < 4 and (x, y) not in self.walls else cell


def draw(cell: Cell, rules: Rules) -> np.ndarray:
    """What a cell looks like to who stands there: (16, 16, 3) u8."""
    frame = np.full((16, 16, 3), 40, np.uint8)
    for place, color in [*((wall, (120, 120, 120)) for wall in rules.walls), (cell, (250, 0, 0))]:
        frame[4 * place[1] : 4 * place[1] + 4, 4 * place[0] : 4 * place[0] + 4] = color
    return frame


def find(frame: np.ndarray) -> Cell:
    """The cell in a frame, whose pixels may be off by some grey levels."""
    y, x = np.unravel_index(frame[::4, ::4, 0].argmax(), (4, 4))
    return int(x), int(y)


class MazeEnv(gymnasium.Env):
    """The real one; `slips`: the steps (from 0) at which nothing moves."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(self, rules: Rules | None = None, slips: Collection[int] = (), render_mode: str | None = None) -> None:
        self.rules, self.slips, self.render_mode = rules or Rules(), slips, render_mode
        self.observation_space, self.action_space = spaces.Discrete(16), spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.cell, self.count = (0, 0), 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.cell = self.cell if self.count in self.slips else self.rules.move(self.cell, action)
        self.count += 1
        good = self.cell in self.rules.goals
        return 0, float(good), good or self.cell in self.rules.traps, False, {}

    def render(self) -> np.ndarray:
        return draw(self.cell, self.rules)


class MazeWorld(World):
    """The imagined one: real states, in whose tokens the cell stands; pixels vary by a grey level.

    risk: the predicted chance that a trap ends the episode. luck: cells from which going up leads to a goal one time in
    four. `widths` are the rows of each step, `told` the actions that were observed.
    """

    def __init__(self, rules: Rules | None = None, risk: float = 1.0, luck: Collection[Cell] = ()) -> None:
        tiny = tiny_world(**no_text())
        super().__init__(tiny.networks)
        self.rules, self.risk, self.luck = rules or Rules(), risk, luck
        self.widths: list[int] = []
        self.told: list[Any] = []
        self.dynamics.frames.picture = self._picture  # type: ignore[method-assign]

    def start(self, frames: Any, *args: Any, seed: Any = 0, **kwargs: Any) -> tuple[WorldState, None]:
        state = replace(self.empty([""], [0]), cache=None)
        return self._at(state, [find(np.asarray(frames)[0, 0])]), None

    def observe(self, state: WorldState, action: Any, frames: Any, **kwargs: Any) -> tuple[WorldState, None]:
        self.told += action
        return self._at(state, [find(np.asarray(frames)[0])]), None

    def step(self, state: WorldState, action: Any, **kwargs: Any) -> tuple[WorldState, Transition]:
        self.widths.append(len(state))
        ways = zip(self.cells(state), action, state.key.tolist(), strict=True)
        cells = [self._move(cell, a, lucky=key % 4 == 0) for cell, a, key in ways]
        state = self._at(state, cells)
        reward = torch.tensor([float(cell in self.rules.goals) for cell in cells])
        end = reward + self.risk * torch.tensor([float(cell in self.rules.traps) for cell in cells])
        none = torch.zeros(len(cells))
        picture = self._picture(state)
        return state, Transition(picture, none, none, reward, end, end > 0.5, none, none, none, none, none == 0)

    def _move(self, cell: Cell, action: Any, *, lucky: bool) -> Cell:
        flies = lucky and cell in self.luck and action == 3
        return next(iter(self.rules.goals)) if flies else self.rules.move(cell, action)

    def cells(self, state: WorldState) -> list[Cell]:
        return [(int(x), int(y)) for x, y in state.tokens[:, 0, 0, :2].tolist()]

    def _at(self, state: WorldState, cells: list[Cell]) -> WorldState:
        tokens = state.tokens.clone()
        tokens[:, 0, 0, :2] = torch.tensor(cells).float()
        return replace(state, tokens=tokens, step=state.step + 1)

    def _picture(self, state: WorldState) -> torch.Tensor:
        frames = np.stack([draw(cell, self.rules) for cell in self.cells(state)])
        frames += np.array([key % 2 for key in state.key.tolist()], np.uint8)[:, None, None, None]
        return torch.from_numpy(frames)[:, None]


def begun(world: MazeWorld, cell: Cell = (0, 0)) -> WorldState:
    """A state at a cell."""
    return world.start(draw(cell, world.rules)[None, None])[0]


def played_out(world: MazeWorld, actions: Iterable[int], cell: Cell = (0, 0)) -> list[Cell]:
    """The cells that actions lead through."""
    return list(accumulate(actions, world.rules.move, initial=cell))[1:]
