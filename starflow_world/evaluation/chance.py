"""Chance in a world against the known law of its environment (law.py).

Three measurements: nats of real frames beyond the entropy of the law; many draws of the next frame from given real
states (frequencies of random events, possible pictures, modes seen); and rollouts in open loop with random actions that
do not end the episode (possible transitions, objects that come or go, variance of positions).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.evaluation.fidelity import frame_excess, standard_error
from starflow_world.evaluation.intervals import Share
from starflow_world.evaluation.law import Frequencies, Law
from starflow_world.evaluation.tiles import UNREADABLE
from starflow_world.noise import make_key
from starflow_world.world import World
from starflow_world.world.state import WorldState

IMPOSSIBLE = "impossible"
DRAWS_PER_MODE = 4


@dataclass(frozen=True)
class ChanceSizes:
    """How much is measured: `draws` of the next frame from `states` real states in batches of `rows`, and `rollouts` of
    `steps` frames from `starts` states, against `real` rollouts of the law from each."""

    draws: int = 2000
    states: int = 20
    rows: int = 128
    rollouts: int = 64
    starts: int = 4
    steps: int = 64
    real: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Spot:
    """A real state: frames (T, H, W, 3) up to it and their actions (T, 1 + flat), the law's state, the next action."""

    frames: np.ndarray
    flat: Tensor
    text: str
    state: Any
    action: int

    def rows(self, world: World, keys: Sequence[int]) -> WorldState:
        """Return the world's state here, in as many rows as noise keys."""
        state, _ = world.start(self.frames[None], self.flat[None], text=world.texts_for([self.text]), seed=0)
        return state[[0] * len(keys)].with_keys(keys)


def chance_figures(
    world: World, episodes: Sequence[Episode], law: Law, sizes: ChanceSizes | None = None
) -> dict[str, Any]:
    """Return all figures of a world's chance on episodes of the law's environment."""
    sizes = sizes or ChanceSizes()
    figures: dict[str, Any] = law_excess(world, episodes, law, sizes.seed)
    figures |= draws(world, spots(world, episodes, law, sizes.states, sizes.seed), law, sizes)
    return figures | rollouts(world, spots(world, episodes, law, sizes.starts, sizes.seed + 1), law, sizes)


def law_excess(world: World, episodes: Sequence[Episode], law: Law, seed: int = 0) -> dict[str, Any]:
    """Return the entropy of the law, as its nats on the frames after the first, and what the world's excess nats on the
    same frames are above it (0 is perfect), with the standard error over episodes."""
    beyond, entropy, known = [], [], Share(0, 0)
    for episode, excess in zip(episodes, frame_excess(world, episodes, seed=seed), strict=True):
        state, pictures, nats = law.begin(episode), law.read(episode.frames), []
        for after, action in zip(pictures[1:], action_numbers(episode)[1:], strict=True):
            nats.append(-math.inf if state is None else law.nats(state, action, after))
            state = None if state is None else law.follow(state, action, after)
        possible = np.isfinite(nats)
        known += Share(int(possible.sum()), len(possible))
        entropy.append(-np.array(nats)[possible])
        beyond.append(excess[1:][possible] - entropy[-1])
    return {
        "law_nats": float(np.concatenate(entropy).mean()), "law_excess": float(np.concatenate(beyond).mean()),
        "law_excess_error": standard_error(beyond), "law_possible": known,
    }


def spots(world: World, episodes: Sequence[Episode], law: Law, count: int, seed: int) -> list[Spot]:
    """Return `count` real states, drawn evenly from all transitions of the episodes."""
    places = [(index, t) for index, episode in enumerate(episodes) for t in range(len(episode) - 1)]
    chosen = np.random.default_rng(seed).choice(len(places), min(count, len(places)), replace=False)
    return [_spot(world, episodes[places[place][0]], law, places[place][1]) for place in sorted(chosen)]


def _spot(world: World, episode: Episode, law: Law, t: int) -> Spot:
    numbers, pictures, state = action_numbers(episode), law.read(episode.frames[: t + 1]), law.begin(episode)
    for past in range(1, t + 1):
        state = law.follow(state, numbers[past], pictures[past])
    history = slice(max(0, t + 2 - world.config.window), t + 1)
    return Spot(episode.frames[history], flat_actions(episode)[history], episode.text, state, numbers[t + 1])


def action_numbers(episode: Episode) -> list[int]:
    """Return the action that led to each frame, as a number of a Discrete space."""
    return [int(action) for action in episode.actions.argmax(-1)]


# ---- draws of the next frame -----------------------------------------------------------------------------------------


@torch.inference_mode()
def draws(world: World, some: Sequence[Spot], law: Law, sizes: ChanceSizes) -> dict[str, Any]:
    """Draw next frames from real states; return the shares of readable and possible ones, the total variation between
    drawn and true frequencies of events, and the share of modes that are seen in 4 draws per mode. `_of_law`: the same
    of as many draws of the law itself."""
    each, rng = max(1, sizes.draws // max(1, len(some))), np.random.default_rng(sizes.seed)
    known = legal = Share(0, 0)
    imagined, true, modes = _Events(), _Events(), _Modes()
    for place, spot in enumerate(tqdm(some, desc="draws of the next frame", unit="state")):
        pictures = _drawn(world, spot, law, each, [sizes.seed, place], sizes.rows)
        known += Share(int((pictures != UNREADABLE).all((1, 2)).sum()), each)
        possible = [law.nats(spot.state, spot.action, picture) > -math.inf for picture in pictures]
        legal += Share(sum(possible), each)
        imagined.count(law, spot, pictures)
        true.count(law, spot, [law.sample(spot.state, spot.action, rng) for _ in range(each)])
        modes.count(law, spot, pictures)
    if (few := modes.fewest(sizes.draws)) is not None:
        spot, count = few
        modes.count(law, spot, _drawn(world, spot, law, count, [sizes.seed, len(some)], sizes.rows))
    figures: dict[str, Any] = {"known_tiles_1": known, "legal_1": legal}
    for events, suffix in ((imagined, ""), (true, "_of_law")):
        figures |= {name + suffix: value for name, value in events.figures().items()}
    return figures | modes.figures()


def _drawn(world: World, spot: Spot, law: Law, count: int, seed: list[int], rows: int) -> np.ndarray:
    """Return the symbols (count, rows, columns) of next frames drawn from one state."""
    pictures = []
    for begin in range(0, count, rows):
        keys = [make_key([*seed, draw]) for draw in range(begin, min(begin + rows, count))]
        _, made = world.step(spot.rows(world, keys), [spot.action] * len(keys), reuse=True)
        pictures.append(law.read(made.frames[:, -1].cpu().numpy()))
    return np.concatenate(pictures)


class _Events:
    """Frequencies of random events in draws, and their distance from the law's."""

    def __init__(self) -> None:
        self.distances: list[float] = []
        self.seen, self.modes = 0, 0
        self.pooled: defaultdict[tuple[str, str], float] = defaultdict(float)

    def count(self, law: Law, spot: Spot, pictures: Sequence[np.ndarray] | np.ndarray) -> None:
        """Add the draws from one state."""
        expected = law.events(spot.state, spot.action)
        observed = [law.observed(spot.state, spot.action, picture) for picture in pictures]
        for event, frequencies in expected.items():
            drawn: defaultdict[str, float] = defaultdict(float)
            for one in observed:
                for value, share in ({IMPOSSIBLE: 1.0} if one is None else one[event]).items():
                    drawn[value] += share / len(observed)
            gaps = {value: drawn[value] - frequencies.get(value, 0.0) for value in drawn.keys() | frequencies.keys()}
            self.distances.append(0.5 * sum(abs(gap) for gap in gaps.values()))
            for value, gap in gaps.items():
                self.pooled[event.split()[0], value] += gap
            few = observed[: DRAWS_PER_MODE * len(frequencies)]
            self.modes += len(frequencies)
            self.seen += sum(any(_shows(one, event, value) for one in few) for value in frequencies)

    def figures(self) -> dict[str, Any]:
        """Return total variation (mean over states and events; of the frequencies pooled over them), and recall."""
        if not self.distances:
            return {}
        return {
            "event_distance": float(np.mean(self.distances)),
            "event_distance_pooled": 0.5 * sum(map(abs, self.pooled.values())) / len(self.distances),
            "event_recall": Share(self.seen, self.modes),
        }


def _shows(observed: Frequencies | None, event: str, value: str) -> bool:
    return observed is not None and observed[event].get(value, 0.0) >= 0.5


class _Modes:
    """Next pictures that the law allows, and how many of them are drawn, in states with 4 draws for each."""

    def __init__(self) -> None:
        self.seen, self.expected, self.modes = 0, 0.0, 0
        self.crowded: list[tuple[int, Spot]] = []

    def count(self, law: Law, spot: Spot, pictures: np.ndarray) -> None:
        """Add the draws from one state, or note that they are too few."""
        outcomes = law.outcomes(spot.state, spot.action)
        if not outcomes:
            return
        few = DRAWS_PER_MODE * len(outcomes)
        if few > len(pictures):
            self.crowded.append((few, spot))
            return
        self.modes += len(outcomes)
        self.seen += len({picture.tobytes() for picture in pictures[:few]} & outcomes.keys())
        self.expected += sum(1 - (1 - chance) ** few for chance in outcomes.values())

    def fewest(self, most: int) -> tuple[Spot, int] | None:
        """Return the state with the fewest modes and the draws it needs, at most `most`, if none has been counted."""
        if self.modes or not self.crowded:
            return None
        count, spot = min(self.crowded, key=lambda one: one[0])
        return (spot, count) if count <= most else None

    def figures(self) -> dict[str, Any]:
        """Return the share of modes seen, and that expected of the law's own draws."""
        if not self.modes:
            return {}
        return {"mode_recall": Share(self.seen, self.modes), "mode_recall_of_law": self.expected / self.modes}


# ---- open loop -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def rollouts(world: World, some: Sequence[Spot], law: Law, sizes: ChanceSizes) -> dict[str, Any]:
    """Imagine in open loop from real states; return the share of rollouts in which every transition is possible, the
    objects that came or went per 1,000 frames, and the ratio of the variances of positions, imagined / real."""
    horizons = sorted({1, min(16, sizes.steps), sizes.steps})
    legal, rng = Share(0, 0), np.random.default_rng(sizes.seed)
    ledgers = {horizon: np.zeros(4) for horizon in horizons}
    variances = {horizon: np.zeros(2) for horizon in horizons}
    each = max(2, sizes.rollouts // max(1, len(some)))
    for place, spot in enumerate(some):
        made = _Rollouts(law, spot, each, rng)
        state = spot.rows(world, [make_key([sizes.seed, place, row]) for row in range(each)])
        for step in tqdm(range(1, sizes.steps + 1), desc=f"rollouts from state {place}", unit="frame", leave=False):
            state, next_frame = world.step(state, actions := made.actions(), reuse=True)
            losses = made.follow(actions, law.read(next_frame.frames[:, -1].cpu().numpy()))
            ledgers[next(horizon for horizon in horizons if step <= horizon)] += losses
            if step in horizons:
                variances[step][0] += made.variance()
        legal += Share(sum(made.legal), each)
        real = _Rollouts(law, spot, sizes.real, rng)
        for step in range(1, sizes.steps + 1):
            real.play()
            if step in horizons:
                variances[step][1] += real.variance()
    figures: dict[str, Any] = {f"legal_rollouts_{sizes.steps}": legal}
    for horizon in horizons:
        *counts, frames = ledgers[horizon].tolist()
        names = ("duplicated", "vanished", "transmuted")
        figures[f"ledger_{horizon}"] = dict(zip(names, (1000 * c / max(1, frames) for c in counts), strict=True))
        figures[f"variance_ratio_{horizon}"] = float(variances[horizon][0] / max(variances[horizon][1], 1e-9))
    return figures


class _Rollouts:
    """Rollouts from one state, imagined or real, with the law's states beside them (None: not judged any more)."""

    def __init__(self, law: Law, spot: Spot, count: int, rng: np.random.Generator) -> None:
        self.law, self.rng = law, rng
        self.states: list[Any] = [spot.state] * count
        self.pictures: list[np.ndarray | None] = [None] * count
        self.legal = [True] * count

    def actions(self) -> list[int]:
        """Choose an action for each rollout that does not end it."""
        return [int(self.rng.choice(self.law.choices(state))) if state is not None else 0 for state in self.states]

    def follow(self, actions: Sequence[int], pictures: np.ndarray) -> np.ndarray:
        """Judge the next pictures; return the numbers of objects duplicated, vanished and transmuted, and of frames."""
        losses = np.zeros(4)
        for row, (state, action, picture) in enumerate(zip(self.states, actions, pictures, strict=True)):
            if state is None:
                continue
            self.legal[row] &= self.law.nats(state, action, picture) > -math.inf
            losses += [*ledger(self.law, picture, self.law.lawful(state, action)), 1]
            self._go(row, action, picture)
        return losses

    def play(self) -> None:
        """Let the law draw the next picture of each rollout."""
        for row, (state, action) in enumerate(zip(self.states, self.actions(), strict=True)):
            if state is not None:
                self._go(row, action, self.law.sample(state, action, self.rng))

    def _go(self, row: int, action: int, picture: np.ndarray) -> None:
        state = self.law.follow(self.states[row], action, picture)
        self.states[row] = None if state is None or self.law.ended(state) else state
        self.pictures[row] = picture if state is not None else None

    def variance(self) -> float:
        """Return the variance over rollouts of the mean row and column of each kind of mover, summed."""
        shown = [_middles(self.law, picture) for picture in self.pictures if picture is not None]
        if len(shown) < 2:
            return 0.0
        values = np.stack(shown)
        enough = (~np.isnan(values)).sum(0) >= 2
        return float(np.nanvar(values[:, enough], axis=0, ddof=1).sum())


def _middles(law: Law, picture: np.ndarray) -> np.ndarray:
    """Return the mean row and column of each kind of mover in a picture, NaN where there is none."""
    cells = [np.argwhere(np.isin(picture, law.kinds[kind])) for kind in law.movers]
    return np.concatenate([c.mean(0) if len(c) else np.full(2, np.nan) for c in cells])


def ledger(law: Law, picture: np.ndarray, lawful: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Return how many objects were duplicated, vanished, and transmuted in a picture beside the nearest lawful one.

    A cell without a known tile counts as an object of a kind of its own.
    """
    kinds = [*law.kinds.values(), (UNREADABLE,)]

    def counts(symbols: np.ndarray) -> np.ndarray:
        return np.array([int(np.isin(symbols, kind).sum()) for kind in kinds])

    gaps = [counts(picture) - counts(other) for other in lawful]
    return object_losses(min(gaps, key=lambda one: int(np.abs(one).sum())))


def object_losses(gap: np.ndarray) -> tuple[int, int, int]:
    """Return how many objects were duplicated, vanished, and transmuted, given by how many of each kind (K,) there are
    too many."""
    gained, lost = int(gap.clip(min=0).sum()), int(-gap.clip(max=0).sum())
    return gained - min(gained, lost), lost - min(gained, lost), min(gained, lost)
