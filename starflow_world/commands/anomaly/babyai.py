"""What can go wrong in BabyAI-GoToLocal: ten kinds of anomalies, played in the real environment.

The state is the simulator itself: a copy of it, taken before each action, is the nominal twin. There is no pixel noise,
so the oracle is the twin's frame: what differs is anomalous, and nothing else is.
Frozen and time reversed act on the state as it is shown (the simulator stands still, or goes back through its own
states), so a frozen frame is positive exactly where the action should have changed the picture.
"""

import copy
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from gymnasium import spaces

from starflow_world.agents.babyai.bot import FORWARD, STEPS, BotPolicy, MixedPolicy
from starflow_world.agents.babyai.tiles import ENV, KINDS, tiles
from starflow_world.agents.collect import seeds
from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.commands.anomaly.twins import SHIFT, Course, Shown

OFTEN = 0.2
"""How often a one-off fault acts on a frame, once it has been switched on."""
BACKWARDS = 12
"""Frames for which time runs backwards."""
HANDS = (1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 1.0)
TILE = 8
REDRAWN = 30
"""How often an action is drawn again that would end the episode."""
CONSTANT = ("observation_space", "action_space", "spec", "actions", "_np_random", "room_grid")


@dataclass(frozen=True)
class BabyAI:
    """The part of the benchmark; the policy is the one the world's data were collected with, without early ends."""

    frames: int = 48
    name: str = "babyai"
    world: str = "babyai-gotolocal"
    lasting: bool = False

    @property
    def about(self) -> str:
        """For the report."""
        return (
            f"{ENV}, the whole room at 64 x 64 pixels, {self.frames} frames. One-off faults act at the switch and "
            f"then on {100 * OFTEN:.0f} % of the frames; frozen, blank and swapped textures last. Frozen: the "
            "simulator stands still, so a frame is positive where the action should have changed it. Time "
            "reversed: the simulator goes back through its own states, under the actions that led out of them. "
            "The policy is that of the world's data, kept from ending its episodes; the other policies are "
            "uniform, the expert bot, and one that mostly picks up, drops and toggles."
        )

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """All in one group."""
        return {"all kinds": tuple(FAULTS)}

    def course(self, kind: str, seed: int, index: int) -> Course:
        """An episode of its own environment."""
        return BabyAICourse(kind, seed, index, 4 * self.frames)


class BabyAICourse:
    """One episode. `world` is the bare simulator, which faults change in place: policies hold on to it."""

    def __init__(self, kind: str, seed: int, index: int, limit: int) -> None:
        self.env = make_env(ENV, max_steps=limit)
        self.world: Any = self.env.unwrapped
        self.rng = np.random.default_rng((seed, index, 78))
        self.fault = FAULTS.get(kind)
        self.policy = other_policy(index) if kind == SHIFT else MixedPolicy(careful=0.0)  # `choose` takes care
        self.redraw = RandomPolicy()
        self.past: list[tuple[Any, int]] = []
        self.before: Any = None
        self.acted, self.back = False, 0
        self.looks: Callable[[np.ndarray], np.ndarray] | None = None
        env_seed, policy_seed = seeds(seed, index)
        with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
            self.observation, _ = self.env.reset(seed=env_seed)
        for policy in (self.policy, self.redraw):
            policy.reset(policy_seed, self.env)

    @property
    def over(self) -> bool:
        """Never: the caller ends the episode."""
        return False

    @property
    def facts(self) -> tuple[str, str, spaces.Space]:
        """Mission, policy, action space."""
        return str(self.world.mission), self.policy.name, self.env.action_space

    def first(self) -> np.ndarray:
        """The first frame."""
        return self.picture()

    def picture(self) -> np.ndarray:
        """The frame (64, 64, 3) u8 of the present state, and of no camera fault."""
        return picture(self.world)

    def step(self, spoiled: bool) -> Shown:
        """Choose an action, ask a copy of the simulator what it leads to, and let the fault act."""
        action, twin = self.choose()
        if self.fault in (walk_through, reverse):  # which record another action than was chosen
            self.past.append((self.fork(self.world), action))
        recorded = self.fault(self, action) if spoiled and self.fault is not None else self.play(action)
        if recorded != action:
            twin = self.before
            twin.step(recorded)
        frame, nominal = self.picture(), picture(twin)
        frame = frame if self.looks is None else self.looks(frame)
        differs = bool((frame != nominal).any())
        self.acted |= differs
        return Shown(frame, nominal, recorded, float(differs), float(differs))

    def choose(self) -> tuple[int, Any]:
        """The policy's action, drawn again while it would end the episode, and the copy that has played it."""
        action, twin, tries = int(self.policy(self.observation)), self.fork(self.world), 0
        while twin.step(action)[2] and tries < REDRAWN:
            action, twin, tries = int(self.redraw(self.observation)), self.fork(self.world), tries + 1
        self.policy.played(action)
        return action, twin

    def fork(self, world: Any) -> Any:
        """A copy of a simulator that shares what never changes, which makes it far cheaper."""
        return copy.deepcopy(world, shared(world))

    def restore(self, world: Any) -> None:
        """Set the simulator to the state of a copy."""
        self.world.__dict__.update(copy.deepcopy(world.__dict__, shared(world) | {id(world): self.world}))
        self.observation = self.world.gen_obs()

    def play(self, action: int) -> int:
        """The nominal step; returns the action."""
        self.observation = self.world.step(action)[0]
        return action

    def due(self) -> bool:
        """Whether a one-off fault acts now: until it has first been seen at every frame, then now and then."""
        return not self.acted or bool(self.rng.random() < OFTEN)

    def empty(self) -> list[tuple[int, int]]:
        """Cells with nothing in them, nor the agent."""
        cells = [(x, y) for x in range(self.world.width) for y in range(self.world.height)]
        here = tuple(int(c) for c in self.world.agent_pos)
        return [cell for cell in cells if self.world.grid.get(*cell) is None and cell != here]

    def things(self) -> list[tuple[int, int]]:
        """Cells with objects, in sight."""
        cells = [(x, y) for x in range(self.world.width) for y in range(self.world.height)]
        return [cell for cell in cells if getattr(self.world.grid.get(*cell), "type", None) in KINDS]

    def pick(self, cells: list[Any]) -> Any:
        """One of them."""
        return cells[int(self.rng.integers(len(cells)))]


def picture(world: Any) -> np.ndarray:
    """What `render` gives without highlight, without the agent's view, which takes most of its time."""
    return np.asarray(world.grid.render(world.tile_size, world.agent_pos, world.agent_dir))


def shared(world: Any) -> dict[int, Any]:
    """The parts of a simulator that never change, as `deepcopy` wants to hear of them; its walls are among them."""
    walls = {id(cell): cell for cell in world.grid.grid if cell is not None and cell.type == "wall"}
    return walls | {id(part): part for part in (getattr(world, name, None) for name in CONSTANT)}


# ---- faults: each plays the step and returns the action that is recorded ---------------------------------------------


def wrong_action(course: BabyAICourse, action: int) -> int:
    """Another action is executed than the one recorded."""
    course.play(course.pick([other for other in range(7) if other != action]) if course.due() else action)
    return action


def teleport(course: BabyAICourse, action: int) -> int:
    """The agent is put on an empty cell."""
    course.play(action)
    if course.due():
        course.world.agent_pos = course.pick(course.empty())
    return action


def vanish(course: BabyAICourse, action: int) -> int:
    """An object is gone."""
    course.play(action)
    if course.due() and course.things():
        course.world.grid.set(*course.pick(course.things()), None)
    return action


def appear(course: BabyAICourse, action: int) -> int:
    """An object comes out of nothing."""
    from minigrid.core.constants import COLOR_NAMES
    from minigrid.core.world_object import Ball, Box, Key

    course.play(action)
    if course.due() and course.empty():
        thing, cell = course.pick([Ball, Box, Key])(course.pick(list(COLOR_NAMES))), course.pick(course.empty())
        thing.init_pos = thing.cur_pos = np.array(cell)
        course.world.grid.set(*cell, thing)
    return action


def recolour(course: BabyAICourse, action: int) -> int:
    """An object changes its colour."""
    from minigrid.core.constants import COLOR_NAMES

    course.play(action)
    if course.due() and course.things():
        thing = course.world.grid.get(*course.pick(course.things()))
        thing.color = course.pick([color for color in COLOR_NAMES if color != thing.color])
    return action


def walk_through(course: BabyAICourse, action: int) -> int:
    """The agent walks onto objects, and through a wall in at the opposite one; in front of either it goes on."""
    world = course.world
    ahead = tuple(int(c) for c in world.front_pos)
    blocker = world.grid.get(*ahead)
    if blocker is None or blocker.can_overlap() or not course.due():
        course.play(action)
        return action
    course.before, _ = course.past[-1]
    course.play(FORWARD)
    if blocker.type == "wall":
        dx, dy = STEPS[world.agent_dir]
        x, y = (int(c) for c in world.agent_pos)
        ahead = (x - dx * (world.width - 3), y - dy * (world.height - 3))
    world.agent_pos = ahead
    return FORWARD


def reverse(course: BabyAICourse, action: int) -> int:
    """The states of the past come again, last first, each under the action that once led out of it."""
    if course.back >= BACKWARDS or len(course.past) < 2:
        course.play(action)
        return action
    course.back += 1
    course.before, _ = course.past.pop()
    state, recorded = course.past.pop()
    course.restore(state)
    return recorded


def freeze(course: BabyAICourse, action: int) -> int:
    """Nothing moves any more, whatever is done."""
    return action


def retexture(course: BabyAICourse, action: int) -> int:
    """Floor or wall is drawn otherwise."""
    course.play(action)
    if course.looks is None:
        old = tiles(TILE)[course.pick(["floor", "wall"])].astype(np.uint8)
        new = course.rng.integers(0, 2, (TILE, TILE, 1)) * course.rng.integers(40, 200, 3)
        course.looks = lambda frame: with_tile(frame, old, new.astype(np.uint8))
    return action


def blank(course: BabyAICourse, action: int) -> int:
    """The picture is one colour."""
    course.play(action)
    if course.looks is None:
        level = course.pick([0, 128, 255])
        course.looks = lambda frame: np.full_like(frame, level)
    return action


def with_tile(frame: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The frame (H, W, 3) in which every tile `old` (8, 8, 3) is drawn as `new`."""
    side = len(old)
    cells = frame.reshape(frame.shape[0] // side, side, frame.shape[1] // side, side, 3).swapaxes(1, 2).copy()
    cells[(cells == old).all((2, 3, 4))] = new
    return cells.swapaxes(1, 2).reshape(frame.shape)


FAULTS: dict[str, Callable[[BabyAICourse, int], int]] = {
    "wrong action": wrong_action, "teleport": teleport, "object vanishes": vanish, "object appears": appear,
    "object changes colour": recolour, "walks through": walk_through, "time reversed": reverse,
    "frozen frames": freeze, "texture swap": retexture, "blank frames": blank,
}


def other_policy(index: int) -> Policy:
    """For the policy shift, in turns: uniform, the bot, and one that mostly uses its hands, which no data show."""
    return (RandomPolicy(), BotPolicy(), RandomPolicy(HANDS, "hands"))[index % 3]
