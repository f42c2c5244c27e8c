"""A branch of an imagined episode: where it began, what was done since, and the moments that it can go back to."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from starflow_world.errors import StateError
from starflow_world.noise import make_key
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState

KEPT, EXACT = 256, 4
"""Moments that a branch can go back to, and how many of them keep their cache, and so continue to the same bytes."""
UNLIKELY = 24.0
"""Nats below the median of a frame's tokens at which a token is hottest in the heat map."""

Event = list[Any] | dict[str, Any]
"""The numbers of an action, {"luck": 7} for other noise, or {"text": "..."} for another prompt."""


@dataclass(frozen=True)
class Moment:
    """A moment of a branch: state (one row), frame (H, W, 3) u8, heat (h, w) u8, what the step said, and how many
    events of the branch's path led to it."""

    state: WorldState
    frame: np.ndarray
    heat: np.ndarray
    facts: dict[str, Any]
    events: int

    def clone(self) -> "Moment":
        """Return a copy whose state keeps its cache whatever becomes of this one's."""
        return replace(self, state=self.state.clone())


def moment_of(world: World, state: WorldState, transition: Transition, row: int, events: int) -> Moment:
    """Return the moment after a transition of which the branch is one row; `state` is that row alone."""
    nats = transition.token_nats[row].double().cpu().numpy()
    heat = ((np.median(nats) - nats) / UNLIKELY).clip(0, 1) * 255
    grid = world.config.grid
    heat = heat.astype(np.uint8).reshape(grid) if heat.size == math.prod(grid) else np.zeros((1, 1), np.uint8)
    facts = {
        "step": int(state.step[0]) - 1, "text": state.texts[0], "nats": finite(transition.nats[row]),
        "reward": finite(transition.reward[row]), "end_probability": finite(transition.end_probability[row]),
        "ended": bool(transition.end[row]), "sweeps": int(transition.sweeps[row]),
        "converged": bool(transition.converged[row]),
    }
    return Moment(state, transition.frames[row, -1].cpu().numpy(), heat, facts, events)


def finite(number: Any) -> float | None:
    """Return a number for JSON; None for NaN and infinities."""
    return float(number) if math.isfinite(float(number)) else None


class Branch:
    """A line of play. start: {"kind", "seed", "text"}, as in a link; path: the events since, of all kinds; apart: the
    first step whose frame differs from the real one beside it, if any."""

    def __init__(self, start: dict[str, Any], first: Moment, path: Sequence[Event] = ()) -> None:
        self.start, self.path = start, list(path)
        self.moments = deque([first], maxlen=KEPT)
        self.apart: int | None = None

    @property
    def now(self) -> Moment:
        """Return the newest moment."""
        return self.moments[-1]

    def add(self, event: Event, moment: Moment) -> None:
        """Append a step: its action and the moment that it led to."""
        self.path.append(event)
        self.moments.append(moment)
        if len(self.moments) > EXACT:
            self.moments[-EXACT - 1].state.take_cache()

    def change(self, world: World, event: dict[str, Any]) -> None:
        """Change the newest moment by an event that makes no frame: other luck, or another text."""
        now = self.now
        if "luck" in event:
            state = now.state.with_keys([make_key(event["luck"])])
        else:
            state = world.with_text(now.state, event["text"])
        self.path.append(event)
        self.moments[-1] = replace(now, state=state, events=len(self.path),
                                   facts={**now.facts, "text": state.texts[0]})

    def back(self, step: int) -> None:
        """Go back to the moment of a step. Raises StateError if it is not kept."""
        places = [index for index, moment in enumerate(self.moments) if moment.facts["step"] == step]
        if not places:
            kept = f"{self.moments[0].facts['step']} to {self.now.facts['step']}"
            raise StateError(f"back: expected a step that is kept, {kept}, found {step}")
        while len(self.moments) > places[-1] + 1:
            self.moments.pop()
        del self.path[self.now.events :]
        self.apart = None if self.apart is None or self.apart > step else self.apart

    def copy(self) -> "Branch":
        """Return a branch that continues from the same moment on its own."""
        other = Branch(self.start, self.now.clone(), self.path)
        other.moments, other.apart = deque([*list(self.moments)[:-1], other.now], maxlen=KEPT), self.apart
        return other

    def actions(self) -> list[list[Any]]:
        """Return the numbers of all actions so far."""
        return [event for event in self.path if isinstance(event, list)]


@torch.inference_mode()
def step_branches(world: World, branches: Sequence[Branch], actions: Sequence[Any]) -> list[Moment]:
    """Return the next moment of every branch, in one forward; the branches stay as they are."""
    states = [branch.now.state for branch in branches]
    whole = [world.dynamics.rebuilt(state) if state.cache is None else state for state in states]
    stacked = whole[0] if len(whole) == 1 else WorldState.stack(whole)
    after, transition = world.step(stacked, list(actions), reuse=len(whole) > 1)
    rows = [after] if len(whole) == 1 else [after[row] for row in range(len(whole))]
    return [moment_of(world, rows[row], transition, row, len(branch.path) + 1) for row, branch in enumerate(branches)]
