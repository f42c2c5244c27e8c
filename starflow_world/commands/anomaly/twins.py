"""Twin runs: episodes of a real environment in which something goes wrong, with a label for every frame.

A frame is positive iff it differs from the frame that the nominal simulator, set to the same state, gives for the same
action. The anomaly is switched on at a random time. A one-off event is one positive frame: the frames after it follow
the normal dynamics from the new state, so they are negative; what changes no pixel is negative too.
Everything follows from (seed, index).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.model.actions import space_to_json

NOMINAL, SHIFT = "nominal", "other policy"
TRIES = 40


@dataclass(frozen=True, eq=False)
class Twin:
    """An episode of T frames; `positive` (T,) bool: frames that the nominal simulator would not have given.

    `begin` is when the anomaly was switched on (T for normal episodes). The true simulator behind the same pixel noise
    is the oracle: `blind` (T,) how much each frame surprises it, `oracle` (T,) how much more than if it knew what goes
    wrong (NaN in normal episodes, where nothing does).
    """

    kind: str
    episode: Episode
    positive: np.ndarray
    begin: int
    oracle: np.ndarray
    blind: np.ndarray

    @property
    def event(self) -> int:
        """The first positive frame; T where there is none."""
        return int(self.positive.argmax()) if self.positive.any() else len(self.positive)


@dataclass(frozen=True, eq=False)
class Shown:
    """What a course showed: the frame (H, W, 3) u8, its nominal twin, the action it is recorded with."""

    frame: np.ndarray
    twin: np.ndarray
    action: Any
    oracle: float
    blind: float


class Course(Protocol):
    """An episode under way, in a real environment that an anomaly may spoil."""

    def first(self) -> np.ndarray:
        """The first frame (H, W, 3) u8."""

    def step(self, spoiled: bool) -> Shown:
        """Play one action, spoiled or not."""

    @property
    def over(self) -> bool:
        """Whether the episode has come to its end."""

    @property
    def facts(self) -> tuple[str, str, spaces.Space]:
        """Text of the task, name of the policy, action space."""


class Stage(Protocol):
    """One part of the benchmark: a real environment and what can go wrong in it."""

    @property
    def name(self) -> str:
        """What the part is called."""

    @property
    def world(self) -> str:
        """The shipped world of this environment."""

    @property
    def about(self) -> str:
        """What is played and what goes wrong, for the report."""

    @property
    def frames(self) -> int:
        """Frames of an episode, at the most."""

    @property
    def lasting(self) -> bool:
        """Whether anomalies last, so that means over several frames tell more than single ones."""

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """What can go wrong: kinds by the names of the groups that are averaged together."""

    def course(self, kind: str, seed: int, index: int) -> Course:
        """Episode `index` of a kind, NOMINAL and SHIFT among them, before its first frame."""


def record(stage: Stage, kind: str, seed: int, index: int) -> Twin:
    """Play one episode. An anomaly begins at a time drawn from the second quarter to the third of the longest episode,
    or later, when it first can act."""
    course, rng = stage.course(kind, seed, index), np.random.default_rng((seed, index, 77))
    normal = kind in (NOMINAL, SHIFT)
    begin = stage.frames if normal else int(rng.integers(stage.frames // 4, 3 * stage.frames // 4))
    frames, actions, positive, oracle = [course.first()], [None], [False], [(0.0, 0.0)]
    while len(frames) < stage.frames and not course.over:
        shown = course.step(len(frames) >= begin)
        frames.append(shown.frame)
        actions.append(shown.action)
        positive.append(bool((shown.frame != shown.twin).any()))
        oracle.append((shown.oracle, shown.blind))
    text, policy, space = course.facts
    zero = np.zeros(spaces.flatdim(space), np.float32)
    flat = np.stack([zero if a is None else np.asarray(spaces.flatten(space, a), np.float32) for a in actions])
    last = np.arange(1, len(frames) + 1) == len(frames)
    episode = Episode(
        np.stack(frames), flat, np.zeros(len(frames), np.float32), last & False, last, text, space_to_json(space),
        {"seed": seed, "index": index, "kind": kind, "policy": policy},
    )
    return Twin(kind, episode, np.array(positive), min(begin, len(frames)), *np.array(oracle).T)


def gather(stage: Stage, kind: str, count: int, seed: int, *, progress: bool = True) -> list[Twin]:
    """`count` episodes of a kind; anomalous ones in which the anomaly never came to act are played again."""
    found: list[Twin] = []
    bar = tqdm(total=count, desc=f"{stage.name}: {kind}", unit="episode", leave=False, disable=not progress)
    for index in range(count * TRIES):
        twin = record(stage, kind, seed, index)
        if kind in (NOMINAL, SHIFT) or twin.positive.any():
            found.append(twin)
            bar.update()
        if len(found) == count:
            bar.close()
            return found
    raise DataError(f"{stage.name}: expected {count} episodes in which {kind!r} acts, found {len(found)} in "
                    f"{count * TRIES}; ask for fewer or longer ones")
