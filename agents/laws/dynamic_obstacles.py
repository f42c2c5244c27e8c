"""The transition law of MiniGrid-Dynamic-Obstacles, by enumeration.

The obstacles move one after another, each to a random empty cell of its 3x3 neighbourhood: not its own, the goal, the
agent's, or one that another obstacle is in at that moment; it stays if there is none. Then the agent acts, and is
blocked by an obstacle that has moved in front of it. All obstacles look the same, so a picture does not show in which
order they move: the law is the average over all orders. (Long histories hint at it, as it never changes; who knows it
has about 0.1 nats less entropy per frame.)
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starflow_world.agents.environment import Environment
from starflow_world.data.episodes import Episode
from starflow_world.evaluation.law import Frequencies
from starflow_world.evaluation.tiles import nearest_tiles

FLOOR, WALL, GOAL, BALL, AGENT, AGENT_ON_GOAL = 0, 1, 2, 3, 4, 8
"""Symbols; the agent's four directions are AGENT + 0 to 3: right, down, left, up."""
FORWARD = 2


@dataclass(frozen=True)
class _Room:
    """Cells of obstacles and agent, as indices row * side + column, and the agent's direction."""

    balls: tuple[int, ...]
    agent: int
    direction: int


class DynamicObstaclesLaw:
    """Law of a room with `side` x `side` cells, drawn in tiles of `tile` pixels; its states are symbols."""

    def __init__(self, side: int, balls: int, tile: int) -> None:
        self.kinds: dict[str, tuple[int, ...]] = {
            "agent": tuple(range(AGENT, AGENT + 8)), "ball": (BALL,), "goal": (GOAL, *range(AGENT_ON_GOAL, 12)),
            "wall": (WALL,),
        }
        self.movers: tuple[str, ...] = ("ball",)
        self.side, self.balls, self.tiles = side, balls, _pictures(tile)
        inside = [row * side + column for row in range(1, side - 1) for column in range(1, side - 1)]
        self.goal = inside[-1]
        around = [row * side + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]
        open_cells = set(inside) - {self.goal}
        self.near = {cell: [cell + step for step in around if cell + step in open_cells] for cell in inside}
        self.empty = np.full(side * side, WALL, np.int8)
        self.empty[inside] = FLOOR
        self.empty[self.goal] = GOAL

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Return the symbols (B, side, side) of frames (B, H, W, 3) u8."""
        return nearest_tiles(frames, self.tiles)

    def draw(self, symbols: np.ndarray) -> np.ndarray:
        """Return the frames (B, H, W, 3) u8 of symbols (B, side, side)."""
        size = self.side * self.tiles.shape[1]
        return self.tiles[symbols].swapaxes(2, 3).reshape(len(symbols), size, size, 3)

    def begin(self, episode: Episode) -> np.ndarray:
        """Return the symbols of an episode's first frame."""
        return self.read(episode.frames[:1])[0]

    def follow(self, state: np.ndarray, action: int, after: np.ndarray) -> np.ndarray:
        """Return `after`: a picture shows everything but the order of the obstacles."""
        return after

    def ended(self, state: np.ndarray) -> bool:
        """Return whether the agent is on the goal."""
        return bool((state >= AGENT_ON_GOAL).any())

    def choices(self, state: np.ndarray) -> Sequence[int]:
        """Return the turns, and the step forward if the cell ahead is empty."""
        room = self._room(state)
        clear = room is not None and state.flat[self._ahead(room)] == FLOOR
        return (0, 1, FORWARD) if clear else (0, 1)

    def nats(self, state: np.ndarray, action: int, after: np.ndarray) -> float:
        """Return the log-probability of the next picture."""
        chance = sum(self._ways(state, action, after).values())
        return math.log(chance) if chance else -math.inf

    def outcomes(self, state: np.ndarray, action: int) -> dict[bytes, float]:
        """Return the probability of each next picture, by the bytes of its symbols."""
        room, found = self._room(state), defaultdict[bytes, float](float)
        for balls, chance in self._moves(room).items() if room else ():
            assert room is not None
            found[self._picture(self._acted(room, balls, action)).tobytes()] += chance
        return dict(found)

    def sample(self, state: np.ndarray, action: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the next picture; one that is no picture of a room stays as it is."""
        room = self._room(state)
        if room is None:
            return state
        balls = list(room.balls)
        for ball in rng.permutation(len(balls)):
            free = [cell for cell in self.near[balls[ball]] if cell != room.agent and cell not in balls]
            balls[ball] = free[rng.integers(len(free))] if free else balls[ball]
        return self._picture(self._acted(room, tuple(balls), action))

    def events(self, state: np.ndarray, action: int) -> Frequencies:
        """Return the frequencies of the directions of each obstacle, numbered from the top left."""
        room = self._room(state)
        return {} if room is None else self._directions(room, self._moves(room))

    def observed(self, state: np.ndarray, action: int, after: np.ndarray) -> Frequencies | None:
        """Return the same given the next picture, which may leave open which obstacle went where."""
        room, ways = self._room(state), self._ways(state, action, after)
        return self._directions(room, ways) if room is not None and ways else None

    def lawful(self, state: np.ndarray, action: int) -> Sequence[np.ndarray]:
        """Return the picture itself: no object comes or goes."""
        return (state,)

    # ---- enumeration ---------------------------------------------------------------------------------------------

    def _room(self, symbols: np.ndarray) -> _Room | None:
        """Return what a picture shows; None for a picture that this room cannot show."""
        flat = symbols.ravel()
        agents, balls = np.flatnonzero(flat >= AGENT), np.flatnonzero(flat == BALL)
        if len(agents) != 1 or len(balls) != self.balls:
            return None
        room = _Room(tuple(balls.tolist()), int(agents[0]), int(flat[agents[0]]) % 4)
        return room if (self._picture(room) == symbols).all() else None

    def _picture(self, room: _Room) -> np.ndarray:
        flat = self.empty.copy()
        flat[list(room.balls)] = BALL
        flat[room.agent] = (AGENT_ON_GOAL if room.agent == self.goal else AGENT) + room.direction
        return flat.reshape(self.side, self.side)

    def _ahead(self, room: _Room) -> int:
        return room.agent + (1, self.side, -1, -self.side)[room.direction]

    def _acted(self, room: _Room, balls: tuple[int, ...], action: int) -> _Room:
        """Return the room after the agent's action, which follows the moves of the obstacles to `balls`."""
        ahead, turn = self._ahead(room), {0: 3, 1: 1, FORWARD: 0}.get(action, 3)
        blocked = action != FORWARD or ahead in balls or self.empty[ahead] == WALL
        return _Room(balls, room.agent if blocked else ahead, (room.direction + turn) % 4)

    def _ways(self, state: np.ndarray, action: int, after: np.ndarray) -> dict[tuple[int, ...], float]:
        """Return the probability of each way to place the obstacles of `state` that gives the picture `after`."""
        room, coming = self._room(state), self._room(after)
        if room is None or coming is None:
            return {}
        acted = self._acted(room, coming.balls, action)
        if (acted.agent, acted.direction) != (coming.agent, coming.direction):
            return {}
        ways = self._moves(room, frozenset(coming.balls))
        return {balls: chance for balls, chance in ways.items() if tuple(sorted(balls)) == coming.balls}

    def _moves(self, room: _Room, targets: Collection[int] | None = None) -> dict[tuple[int, ...], float]:
        """Return the probability of each new place of the obstacles, in the order of `room.balls`.

        targets: cells outside which no obstacle may end; such ways are left out.
        """
        near = {cell: [c for c in cells if c != room.agent] for cell, cells in self.near.items()}
        ways = {((1 << len(room.balls)) - 1, room.balls): 1.0}
        for left in range(len(room.balls), 0, -1):
            moved = defaultdict[tuple[int, tuple[int, ...]], float](float)
            for (waiting, balls), chance in ways.items():
                for ball, cell in enumerate(balls):
                    if not waiting >> ball & 1:
                        continue
                    free = [c for c in near.get(cell, ()) if c not in balls] or [cell]
                    share = chance / (left * len(free))
                    for place in free:
                        if targets is None or place in targets:
                            moved[waiting ^ 1 << ball, (*balls[:ball], place, *balls[ball + 1 :])] += share
            ways = moved
        return {balls: chance for (_, balls), chance in ways.items()}

    def _directions(self, room: _Room, ways: dict[tuple[int, ...], float]) -> Frequencies:
        total, found = sum(ways.values()), [defaultdict[str, float](float) for _ in room.balls]
        for balls, chance in ways.items():
            for counted, start, end in zip(found, room.balls, balls, strict=True):
                rows, columns = end // self.side - start // self.side, end % self.side - start % self.side
                counted[f"{rows:+d} {columns:+d}"] += chance / total
        return {f"ball {index}": dict(counted) for index, counted in enumerate(found)}


def dynamic_obstacles_law(environment: Environment) -> DynamicObstaclesLaw | None:
    """Return the law of a MiniGrid-Dynamic-Obstacles environment; None if its frames are not made of whole tiles."""
    env: Any = environment.make()
    env.reset(seed=0)
    inner, (height, width) = env.unwrapped, environment.size
    side, balls, tile = inner.width, len(inner.obstacles), inner.tile_size
    whole = height == width == side * tile and not inner.highlight and not environment.wrappers
    env.close()
    return DynamicObstaclesLaw(side, balls, tile) if whole else None


def _pictures(size: int) -> np.ndarray:
    """Return the tiles (12, size, size, 3) u8 in the order of their symbols."""
    from minigrid.core.grid import Grid
    from minigrid.core.world_object import Ball, Goal, Wall

    def tile(thing: Any, direction: int | None = None) -> np.ndarray:
        image = Grid.render_tile(thing, agent_dir=direction, highlight=False, tile_size=size)
        return np.asarray(image).astype(np.uint8)  # as a frame is made of it

    alone = [tile(None), tile(Wall()), tile(Goal()), tile(Ball())]
    return np.stack([*alone, *(tile(None, d) for d in range(4)), *(tile(Goal(), d) for d in range(4))])
