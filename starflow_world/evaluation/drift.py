"""Drift of a long rollout: what changes with the number of steps, measured on the files of the rollout alone.

Every step has a row of numbers: nats, mean and variance of the latents, sharpness (mean difference between neighbouring
pixels, in grey levels), change (mean difference from the frame before), and, where the transition law is known, whether
the frame is legal, its transition being possible, and whether it keeps its objects. (A room with one obstacle too few
is impossible ever after, but may go on to keep what it has.) Rows are averaged over horizons: the steps up to 100,
those up to 1,000, and each further 1,000. Broken pictures are found by rules that the first frame of each start passes:

* blank: less than BLANK grey levels of standard deviation, or less than a quarter of the first frames' least;
* saturated: more values at the ends of the range than half-way from the first frames' share to all;
* frozen: FROZEN frames after another, within `tiles.RIGHT` grey levels of each other, under several actions.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from starflow_world.data.episodes import Episode
from starflow_world.errors import DataError
from starflow_world.evaluation.chance import ledger
from starflow_world.evaluation.law import Law
from starflow_world.evaluation.tiles import RIGHT, UNREADABLE
from starflow_world.flow.windows import spans

BLANK, FROZEN = 2.0, 64
EXTREMES = (2, 253)
NEAR, FAR = 100, 1000
GUESSES = 64
"""Seeds of resets among which a first frame is looked for, where the law depends on more than it shows."""
LEDGER = ("duplicated", "vanished", "transmuted")
SERIES = ("nats", "latent_mean", "latent_variance", "sharpness", "change", "legal", "readable", "kept", *LEDGER)
RATIOS = ("legal", "kept")
JUMPS = ("nats", "change")


@dataclass
class Drift:
    """Rows of numbers of the steps of a stream; NaN where a number is not known."""

    window: int
    context: int
    law: Law | None = None
    rows: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SERIES})
    slides: list[bool] = field(default_factory=list)
    late: list[bool] = field(default_factory=list)
    """Whether the window had been full before, since the start."""
    contrast: list[float] = field(default_factory=list)
    extreme: list[float] = field(default_factory=list)
    still: list[int] = field(default_factory=list)
    """Frames before this one that look like it, and under several actions."""
    first: list[tuple[float, float]] = field(default_factory=list)
    """Contrast and share of extreme values of the first frames."""
    starts: int = 0
    ends: int = 0

    def add(self, episode: Episode) -> None:
        """Add the steps of the next file."""
        info = episode.info
        if not info["since_start"]:
            self.starts += 1
            self.first.append((_contrast(episode.frames[0]), _extreme(episode.frames[0])))
            self._calm: tuple[np.ndarray, int, set[bytes]] = (episode.frames[0], 0, set())
            self._state = self._begin(episode.frames[0], GUESSES)
        self.ends += bool(episode.terminated[-1])
        pictures = None if self.law is None else self.law.read(episode.frames)
        actions = episode.actions.argmax(-1).tolist()
        slid = {span.known for span in spans(info["since_start"] + len(episode), self.window, self.context)} - {0}
        for t in range(1, len(episode)):
            since = info["since_start"] + t
            self.slides.append(since in slid)
            self.late.append(since >= self.window)
            row = {name: info[name][t] for name in ("nats", "latent_mean", "latent_variance")}
            row |= self._picture(episode.frames[t - 1], episode.frames[t], episode.actions[t])
            if pictures is not None:
                row |= self._judge(actions[t], pictures[t], episode.frames[t])
            for name in SERIES:
                self.rows[name].append(row.get(name, math.nan))

    def _picture(self, before: np.ndarray, frame: np.ndarray, action: np.ndarray) -> dict[str, float]:
        like, count, actions = self._calm
        if np.abs(frame.astype(np.int16) - like).max() <= RIGHT:
            self._calm = like, count + 1, actions | {action.tobytes()}
        else:
            self._calm = frame, 0, set()
        self.still.append(self._calm[1] if len(self._calm[2]) > 1 else 0)
        self.contrast.append(_contrast(frame))
        self.extreme.append(_extreme(frame))
        grey = frame.astype(np.float32)
        return {
            "sharpness": float(sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1)),
            "change": float(np.abs(grey - before).mean()),
        }

    def _begin(self, frame: np.ndarray, guesses: int) -> Any | None:
        """Return the law's state at a frame, as after a reset with one of so many seeds; None if it knows none."""
        if self.law is None:
            return None
        none, nothing = np.zeros((1, 1), np.float32), np.zeros(1, bool)
        first = Episode(frame[None], none, none[0], nothing, nothing)
        for seed in range(guesses):
            try:
                return self.law.begin(replace(first, info={"env_seed": seed}))
            except DataError:
                continue
        return None

    def _judge(self, action: int, picture: np.ndarray, frame: np.ndarray) -> dict[str, float]:
        """Return what the law says of a transition; nothing while it does not know the state."""
        law, state = self.law, self._state
        assert law is not None
        row = {"readable": float((picture != UNREADABLE).all())}
        if state is not None and law.ended(state):
            state = None
        if state is not None:
            row["legal"] = float(law.nats(state, action, picture) > -math.inf)
            lost = ledger(law, picture, law.lawful(state, action))
            row["kept"] = float(not any(lost))
            row |= dict(zip(LEDGER, map(float, lost), strict=True))
            state = law.follow(state, action, picture)
        self._state = self._begin(frame, 1) if state is None else state
        return row

    # ---- figures -------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Return the figures of the stream, for JSON."""
        steps = len(self.slides)
        edges = sorted({0, min(NEAR, steps), *range(FAR, steps, FAR), steps})
        horizons = [self._horizon(begin, end) for begin, end in pairwise(edges)]
        figures: dict[str, Any] = {"steps": steps, "starts": self.starts, "ends": self.ends, "horizons": horizons}
        for name in RATIOS:
            first, last = (part.get(name, math.nan) for part in (horizons[0], horizons[-1]))
            if first and not math.isnan(last / first):
                figures[f"{name}_last_over_first"] = last / first
        figures["slides"] = {name: self._jump(np.array(self.rows[name])) for name in JUMPS}
        return figures | {"broken": self.broken()}

    def _horizon(self, begin: int, end: int) -> dict[str, float]:
        """Return the means over the steps from `begin` + 1 to `end`; objects that come and go per 1,000 frames."""
        means: dict[str, float] = {"from": begin + 1, "to": end}
        for name in SERIES:
            values = np.array(self.rows[name][begin:end])
            if (known := ~np.isnan(values)).any():
                scale = 1000.0 if name in LEDGER else 1.0
                means[name] = scale * float(values[known].mean())
                if name == "legal":
                    means["judged"] = int(known.sum())
        return means

    def _jump(self, values: np.ndarray) -> dict[str, float]:
        """Compare steps at which the window slid with the others after the first slide."""
        at, other = (values[np.array(self.late, bool) & mask] for mask in
                     (np.array(self.slides, bool), ~np.array(self.slides, bool)))
        if min(len(at), len(other)) < 2:
            return {}
        error = math.sqrt(at.var(ddof=1) / len(at) + other.var(ddof=1) / len(other))
        gap = float(at.mean() - other.mean())
        return {"at_slides": float(at.mean()), "elsewhere": float(other.mean()), "slides": len(at), "error": error,
                "in_errors": gap / error if error else 0.0}

    def broken(self) -> dict[str, dict[str, int]]:
        """Return how many frames are blank, saturated and frozen, and the step of the first; {} for a whole stream."""
        flat, ends = (np.array(part) for part in zip(*self.first, strict=True))
        still = np.array(self.still)
        masks = {
            "blank": np.array(self.contrast) < max(BLANK, flat.min() / 4),
            "saturated": np.array(self.extreme) > (1 + ends.max()) / 2,
            "frozen": still >= FROZEN,
        }
        return {name: {"frames": int(mask.sum()), "first": int(mask.argmax()) + 1}
                for name, mask in masks.items() if mask.any()}


def drift_lines(figures: dict[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    lines = [f"{figures['steps']} steps, {figures['starts']} starts, {figures['ends']} ends"]
    for name in ("blank", "saturated", "frozen"):
        if found := figures["broken"].get(name):
            lines.append(f"WARNING: {found['frames']} {name} frames, the first at step {found['first']}")
    if not figures["broken"]:
        lines.append("no blank, saturated or frozen frame")
    for part in figures["horizons"]:
        said = [f"{name} {part[name]:.4g}" for name in SERIES if name in part]
        lines.append(f"steps {part['from']} to {part['to']}: {', '.join(said)}")
    for name in RATIOS:
        if (ratio := figures.get(f"{name}_last_over_first")) is not None:
            lines.append(f"{name} frames, last over first: {100 * ratio:.1f} %")
    for name, jump in figures["slides"].items():
        if jump:
            lines.append(f"{name} at {jump['slides']} slides: {jump['at_slides']:.4g}, elsewhere "
                         f"{jump['elsewhere']:.4g} ({jump['in_errors']:+.1f} standard errors)")
    return lines


def measure_drift(episodes: Iterable[Episode], window: int, context: int, law: Law | None = None) -> Drift:
    """Return the drift of a stream, given its files in their order; one is in memory at a time."""
    drift = Drift(window, context, law)
    for episode in episodes:
        drift.add(episode)
    return drift


def _contrast(frame: np.ndarray) -> float:
    """Return the standard deviation of the pixels of a frame (H, W, 3) u8 around their mean colour, in grey levels."""
    return float(np.sqrt(frame.reshape(-1, 3).astype(np.float32).var(0).mean()))


def _extreme(frame: np.ndarray) -> float:
    return float(((frame <= EXTREMES[0]) | (frame >= EXTREMES[1])).mean())
