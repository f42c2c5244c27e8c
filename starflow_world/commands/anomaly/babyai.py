"""The BabyAI part of the benchmark: ten kinds of anomalies in BabyAI-GoToLocal, played in the real environment.

The nominal twin is a copy of the simulator, made before each action. Without pixel noise the oracle is the twin's
frame: a frame is anomalous iff it differs. "Frozen" and "time reversed" change the simulator (it stands still, or
returns to its past states), so a frozen frame is positive exactly where the action should have changed it.
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
from starflow_world.commands.anomaly.figures import mean
from starflow_world.commands.anomaly.run import OWN
from starflow_world.commands.anomaly.twins import SHIFT, Scenario, TwinStep
from starflow_world.io.reports import Goal

OFTEN = 0.2
"""Probability, per frame, that a one-off fault acts after it was switched on."""
BACKWARDS = 12
"""Number of frames during which time runs backwards."""
HANDS = (1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 1.0)
"""Action weights of a policy that mostly picks up, drops and toggles objects."""
TILE = 8
REDRAWN = 30
"""Number of times that an action which would end the episode is resampled before it is taken."""
SIMPLE = ("frozen frames", "blank frames")
"""Kinds with such simple frames that a likelihood alone could rate them as normal."""
CONSTANT = ("observation_space", "action_space", "spec", "actions", "_np_random", "room_grid")


@dataclass(frozen=True)
class BabyAI(Scenario):
    """BabyAI-GoToLocal under the policy that recorded the world's data, without actions that end the episode."""

    frames: int = 48
    name: str = "babyai"
    world: str = "babyai-gotolocal"
    lasting: bool = False

    @property
    def about(self) -> str:
        return (
            f"{ENV}, the whole room at 64 x 64 pixels, {self.frames} frames. One-off faults act at the switch and "
            f"then on {100 * OFTEN:.0f} % of the frames; frozen, blank and swapped textures last. Frozen: the "
            "simulator stands still, so a frame is positive where the action should have changed it. Time "
            "reversed: the simulator goes back through its own states, under the actions that led out of them. "
            "The policy is that of the world's data, kept from ending its episodes; the other policies are "
            "uniform, the expert bot, and one that mostly picks up, drops and toggles. There is no pixel noise, so "
            "both oracles are the label itself."
        )

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        return {"all kinds": tuple(FAULTS)}

    def start(self, kind: str, seed: int, index: int) -> "BabyAIRun":
        return BabyAIRun(kind, seed, index, 4 * self.frames)

    def goals(self, figures: dict[str, Any]) -> list[Goal]:
        areas = {kind: cells[OWN]["auroc"] for kind, cells in figures["kinds"].items()}
        worst = min(areas, key=lambda kind: areas[kind])
        return [
            Goal("mean AUROC over kinds, per frame", mean(list(areas.values())), least=0.98),
            Goal("AUROC of the worst kind, per frame", areas[worst], least=0.95, note=worst),
            *(Goal(f"share of positive {kind} that are flagged", figures["flagged"][kind], least=0.5,
                   note=f"nats per dim {figures['nats'][kind]:.3f}, normal {figures['nats_normal']:.3f}")
              for kind in SIMPLE if kind in areas),
        ]


class BabyAIRun:
    """One episode. `world` is the bare simulator; faults change it in place, because policies refer to it."""

    over = False  # the caller ends the episode

    def __init__(self, kind: str, seed: int, index: int, limit: int) -> None:
        self.env = make_env(ENV, max_steps=limit)
        self.world: Any = self.env.unwrapped
        self.rng = np.random.default_rng((seed, index, 78))
        self.fault = FAULTS.get(kind)
        self.policy = _shifted_policy(index) if kind == SHIFT else MixedPolicy(careful=0.0)  # `choose` avoids ends
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
    def facts(self) -> tuple[str, str, spaces.Space]:
        return str(self.world.mission), self.policy.name, self.env.action_space

    def first(self) -> np.ndarray:
        return render_room(self.world)

    def step(self, spoiled: bool) -> TwinStep:
        action, twin = self.choose()
        if self.fault in (walk_through, reverse):  # they record another action than the policy chose
            self.past.append((self.fork(self.world), action))
        recorded = self.fault(self, action) if spoiled and self.fault is not None else self.play(action)
        if recorded != action:
            twin = self.before
            twin.step(recorded)
        frame, nominal = render_room(self.world), render_room(twin)
        frame = frame if self.looks is None else self.looks(frame)
        differs = bool((frame != nominal).any())
        self.acted |= differs
        return TwinStep(frame, nominal, recorded, float(differs), float(differs))

    def choose(self) -> tuple[int, Any]:
        """Return the policy's action, resampled if it would end the episode, and the copy that executed it."""
        action, twin, tries = int(self.policy(self.observation)), self.fork(self.world), 0
        while twin.step(action)[2] and tries < REDRAWN:
            action, twin, tries = int(self.redraw(self.observation)), self.fork(self.world), tries + 1
        self.policy.played(action)
        return action, twin

    def fork(self, world: Any) -> Any:
        """Copy a simulator; the copy shares its constant parts, which makes it far cheaper."""
        return copy.deepcopy(world, constant_parts(world))

    def restore(self, world: Any) -> None:
        """Set the simulator to the state of a copy."""
        self.world.__dict__.update(copy.deepcopy(world.__dict__, constant_parts(world) | {id(world): self.world}))
        self.observation = self.world.gen_obs()

    def play(self, action: int) -> int:
        """Execute the action without fault and return it."""
        self.observation = self.world.step(action)[0]
        return action

    def due(self) -> bool:
        """Return whether a one-off fault acts now: always until it has changed a frame, then with probability OFTEN."""
        return not self.acted or bool(self.rng.random() < OFTEN)

    def cells(self) -> list[tuple[int, int]]:
        """Return all cells (x, y)."""
        return [(x, y) for x in range(self.world.width) for y in range(self.world.height)]

    def empty(self) -> list[tuple[int, int]]:
        """Return the cells (x, y) without object or agent."""
        here = tuple(int(c) for c in self.world.agent_pos)
        return [cell for cell in self.cells() if self.world.grid.get(*cell) is None and cell != here]

    def things(self) -> list[tuple[int, int]]:
        """Return the cells (x, y) with objects."""
        return [cell for cell in self.cells() if getattr(self.world.grid.get(*cell), "type", None) in KINDS]

    def pick(self, cells: list[Any]) -> Any:
        """Return a random item."""
        return cells[int(self.rng.integers(len(cells)))]


def render_room(world: Any) -> np.ndarray:
    """Render the frame (64, 64, 3) u8 without the agent's view, which takes most of the time of `render`."""
    return np.asarray(world.grid.render(world.tile_size, world.agent_pos, world.agent_dir))


def constant_parts(world: Any) -> dict[int, Any]:
    """Return the parts of a simulator that never change, walls included, as a memo for `deepcopy`."""
    walls = {id(cell): cell for cell in world.grid.grid if cell is not None and cell.type == "wall"}
    return walls | {id(part): part for part in (getattr(world, name, None) for name in CONSTANT)}


# Faults: each plays a step and returns the action to record.


def wrong_action(run: BabyAIRun, action: int) -> int:
    """Execute another action than the recorded one."""
    run.play(run.pick([other for other in range(7) if other != action]) if run.due() else action)
    return action


def teleport(run: BabyAIRun, action: int) -> int:
    """Move the agent to an empty cell."""
    run.play(action)
    if run.due():
        run.world.agent_pos = run.pick(run.empty())
    return action


def vanish(run: BabyAIRun, action: int) -> int:
    """Remove an object."""
    run.play(action)
    if run.due() and run.things():
        run.world.grid.set(*run.pick(run.things()), None)
    return action


def appear(run: BabyAIRun, action: int) -> int:
    """Add a new object."""
    from minigrid.core.constants import COLOR_NAMES
    from minigrid.core.world_object import Ball, Box, Key

    run.play(action)
    if run.due() and run.empty():
        thing, cell = run.pick([Ball, Box, Key])(run.pick(list(COLOR_NAMES))), run.pick(run.empty())
        thing.init_pos = thing.cur_pos = np.array(cell)
        run.world.grid.set(*cell, thing)
    return action


def recolour(run: BabyAIRun, action: int) -> int:
    """Change the colour of an object."""
    from minigrid.core.constants import COLOR_NAMES

    run.play(action)
    if run.due() and run.things():
        thing = run.world.grid.get(*run.pick(run.things()))
        thing.color = run.pick([color for color in COLOR_NAMES if color != thing.color])
    return action


def walk_through(run: BabyAIRun, action: int) -> int:
    """Let the agent walk onto objects, and through a wall to the opposite side of the room."""
    world = run.world
    ahead = tuple(int(c) for c in world.front_pos)
    blocker = world.grid.get(*ahead)
    if blocker is None or blocker.can_overlap() or not run.due():
        run.play(action)
        return action
    run.before, _ = run.past[-1]
    run.play(FORWARD)
    if blocker.type == "wall":
        dx, dy = STEPS[world.agent_dir]
        x, y = (int(c) for c in world.agent_pos)
        ahead = (x - dx * (world.width - 3), y - dy * (world.height - 3))
    world.agent_pos = ahead
    return FORWARD


def reverse(run: BabyAIRun, action: int) -> int:
    """Return to past states, the latest first, each under the action that originally followed it."""
    if run.back >= BACKWARDS or len(run.past) < 2:
        run.play(action)
        return action
    run.back += 1
    run.before, _ = run.past.pop()
    state, recorded = run.past.pop()
    run.restore(state)
    return recorded


def freeze(run: BabyAIRun, action: int) -> int:
    """Leave the state unchanged under any action."""
    return action


def retexture(run: BabyAIRun, action: int) -> int:
    """Change the texture of floor or wall."""
    run.play(action)
    if run.looks is None:
        old = tiles(TILE)[run.pick(["floor", "wall"])].astype(np.uint8)
        new = run.rng.integers(0, 2, (TILE, TILE, 1)) * run.rng.integers(40, 200, 3)
        run.looks = lambda frame: replace_tile(frame, old, new.astype(np.uint8))
    return action


def blank(run: BabyAIRun, action: int) -> int:
    """Show a frame of one colour."""
    run.play(action)
    if run.looks is None:
        level = run.pick([0, 128, 255])
        run.looks = lambda frame: np.full_like(frame, level)
    return action


def replace_tile(frame: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Replace every tile `old` (8, 8, 3) of a frame (H, W, 3) by `new`."""
    side = len(old)
    cells = frame.reshape(frame.shape[0] // side, side, frame.shape[1] // side, side, 3).swapaxes(1, 2).copy()
    cells[(cells == old).all((2, 3, 4))] = new
    return cells.swapaxes(1, 2).reshape(frame.shape)


FAULTS: dict[str, Callable[[BabyAIRun, int], int]] = {
    "wrong action": wrong_action, "teleport": teleport, "object vanishes": vanish, "object appears": appear,
    "object changes colour": recolour, "walks through": walk_through, "time reversed": reverse,
    "frozen frames": freeze, "texture swap": retexture, "blank frames": blank,
}


def _shifted_policy(index: int) -> Policy:
    """Return a policy for the policy shift: uniform, the bot, or one that mostly picks up, drops and toggles."""
    return (RandomPolicy(), BotPolicy(), RandomPolicy(HANDS, "hands"))[index % 3]
