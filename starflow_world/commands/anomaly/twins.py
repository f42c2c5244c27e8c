"""Twin runs: episodes of a real environment with an anomaly, and a label for every frame.

A frame is positive iff it differs from the frame of the nominal simulator, set to the same state, under the same
action. The anomaly is switched on at a random time. A one-off event makes one positive frame: later frames follow the
normal dynamics from the new state, so they are negative; an anomaly that changes no pixel is negative too. Everything
is determined by (seed, index).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.io.reports import Goal
from starflow_world.model.actions import space_to_json

NOMINAL, SHIFT = "nominal", "other policy"
TRIES = 40


@dataclass(frozen=True, eq=False)
class Twin:
    """A labelled episode of T frames; `positive` (T,) bool: frames that differ from the nominal simulator's.

    `begin`: frame at which the anomaly was switched on (T in normal episodes). The oracle is the true simulator with
    the same pixel noise: `blind` (T,) is its surprise at each frame, `oracle` (T,) that surprise minus the surprise of
    an oracle that knows the anomaly (NaN in normal episodes).
    """

    kind: str
    episode: Episode
    positive: np.ndarray
    begin: int
    oracle: np.ndarray
    blind: np.ndarray

    @property
    def event(self) -> int:
        """Return the index of the first positive frame; T if there is none."""
        return int(self.positive.argmax()) if self.positive.any() else len(self.positive)


@dataclass(frozen=True, eq=False)
class TwinStep:
    """One step of a twin run: frame (H, W, 3) u8, frame of the nominal twin, recorded action, scores of the oracles."""

    frame: np.ndarray
    twin: np.ndarray
    action: Any
    oracle: float
    blind: float


class TwinRun(Protocol):
    """Interface of a running episode in a real environment."""

    def first(self) -> np.ndarray:
        """Return the first frame (H, W, 3) u8."""

    def step(self, spoiled: bool) -> TwinStep:
        """Execute one action, with the anomaly if `spoiled`."""

    @property
    def over(self) -> bool:
        """Return whether the episode has ended."""

    @property
    def facts(self) -> tuple[str, str, spaces.Space]:
        """Return the text of the task, the name of the policy, and the action space."""


@dataclass(frozen=True)
class Scenario(ABC):
    """One part of the benchmark: a real environment, its anomalies and its goals.

    `frames`: longest episode. `world`: the shipped world of the environment. `lasting`: whether anomalies last, so that
    means over several frames are meaningful.
    """

    frames: int
    name: str
    world: str
    lasting: bool

    @property
    @abstractmethod
    def about(self) -> str:
        """Return a description of environment and anomalies for the report."""

    @property
    @abstractmethod
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the kinds of anomalies by group; the report averages figures over each group."""

    @abstractmethod
    def start(self, kind: str, seed: int, index: int) -> TwinRun:
        """Start episode `index` of a kind; NOMINAL and SHIFT are kinds too."""

    @abstractmethod
    def goals(self, figures: dict[str, Any]) -> list[Goal]:
        """Return the goals that are specific to this part."""


def play_twin(scenario: Scenario, kind: str, seed: int, index: int) -> Twin:
    """Play one episode. The anomaly is switched on in the second or third quarter of the longest episode."""
    run, rng = scenario.start(kind, seed, index), np.random.default_rng((seed, index, 77))
    normal = kind in (NOMINAL, SHIFT)
    begin = scenario.frames if normal else int(rng.integers(scenario.frames // 4, 3 * scenario.frames // 4))
    frames, actions, positive, oracle = [run.first()], [None], [False], [(0.0, 0.0)]
    while len(frames) < scenario.frames and not run.over:
        step = run.step(len(frames) >= begin)
        frames.append(step.frame)
        actions.append(step.action)
        positive.append(bool((step.frame != step.twin).any()))
        oracle.append((step.oracle, step.blind))
    text, policy, space = run.facts
    zero = np.zeros(spaces.flatdim(space), np.float32)
    flat = np.stack([zero if a is None else np.asarray(spaces.flatten(space, a), np.float32) for a in actions])
    last = np.arange(1, len(frames) + 1) == len(frames)
    episode = Episode(
        np.stack(frames), flat, np.zeros(len(frames), np.float32), last & False, last, text, space_to_json(space),
        {"seed": seed, "index": index, "kind": kind, "policy": policy},
    )
    return Twin(kind, episode, np.array(positive), min(begin, len(frames)), *np.array(oracle).T)


def play_twins(scenario: Scenario, kind: str, count: int, seed: int, *, progress: bool = True) -> list[Twin]:
    """Play `count` episodes of a kind; an episode whose anomaly changed no frame is replaced by another one.

    Raises DataError if too few anomalies change a frame.
    """
    twins: list[Twin] = []
    bar = tqdm(total=count, desc=f"{scenario.name}: {kind}", unit="episode", leave=False, disable=not progress)
    for index in range(count * TRIES):
        twin = play_twin(scenario, kind, seed, index)
        if kind in (NOMINAL, SHIFT) or twin.positive.any():
            twins.append(twin)
            bar.update()
        if len(twins) == count:
            bar.close()
            return twins
    raise DataError(f"{scenario.name}: expected {count} episodes in which {kind!r} acts, found {len(twins)} in "
                    f"{count * TRIES}; ask for fewer or longer ones")
