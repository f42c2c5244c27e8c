"""What recordings hold: counts, sizes, actions, rewards, texts, ends, and the keys of a recipe that fit them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from starflow_world.recordings.importing import source_size
from starflow_world.recordings.source import Source, action_space, flat_actions_of

SHOWN = 5
MOST_NUMBERS = 16
LEAST_STEPS = 64


@dataclass
class Totals:
    """Sums over all recordings. low, high (A,): the smallest and largest numbers of flattened actions."""

    lengths: list[int] = field(default_factory=list)
    texts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    rewards: Counter[float] = field(default_factory=Counter)
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    taken: np.ndarray | None = None

    def add(self, actions: np.ndarray) -> None:
        """Add the flattened actions (T, A) of one recording."""
        if not len(actions):
            return
        low, high, taken = actions.min(axis=0), actions.max(axis=0), actions.sum(axis=0, dtype=np.float64)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.taken = taken if self.taken is None else self.taken + taken


def summary(source: Source, *, space: spaces.Space | None = None, progress: bool = True) -> dict[str, Any]:
    """Read all numbers of a source, and no frame but the first, and return what it holds. Raises DataError naming file
    and row of what does not fit, as an import would."""
    space, totals = action_space(source) if space is None else space, Totals()
    for recording in tqdm(source, total=len(source), desc="inspect", unit="recording", disable=not progress):
        totals.lengths.append(recording.length)
        totals.texts[recording.text] += 1
        totals.ends["terminated" if recording.terminated else "truncated" if recording.truncated else "cut"] += 1
        totals.rewards.update(recording.rewards.astype(np.float32).tolist())
        totals.add(flat_actions_of(recording, space)[1:])
    height, width = source_size(source)
    lengths, frames = np.array(totals.lengths), sum(totals.lengths)
    found: dict[str, Any] = {
        "source": f"{source.folder} ({source.kind})",
        "recordings": f"{len(lengths)}, {frames} frames",
        "lengths": f"{lengths.min()} to {lengths.max()} frames, median {np.median(lengths):g}",
        "frames": f"{height} x {width}" + (f", {source.fps:g} per second" if source.fps else ""),
    }
    if source.cameras:
        found["cameras"] = ", ".join(f"{camera} (chosen)" if camera == source.camera else camera
                                     for camera in source.cameras)
    found |= {"action space": space, "actions": _actions(space, totals), "rewards": _rewards(totals),
              "texts": _texts(totals), "ends": ", ".join(f"{count} {end}" for end, count in totals.ends.most_common())}
    return found | {"recipe": recipe_keys(totals, source)}


def recipe_keys(totals: Totals, source: Source) -> dict[str, str]:
    """Return keys of a recipe and the values that fit what was seen."""
    longest = max(len(text.encode()) for text in totals.texts)
    paid, lengths = set(totals.rewards) - {0.0}, np.array(totals.lengths)
    window = int(np.quantile(lengths, 0.2))
    steps = max(int(lengths.max()) - 1, LEAST_STEPS if totals.ends["terminated"] == len(lengths) else 1)
    learned = paid or totals.ends["terminated"]
    keys = {"world.reward": "event" if paid <= {1.0} else "raw"} if learned else {}
    return keys | {
        "world.text": f"{{kind: t5, length: {longest + 1} or more}}" if longest else "{kind: none}",
        "world.outcome": "{width: 32, layers: 1}" if learned else "{width: 0}, as there are no rewards and ends",
        "world.max_episode_steps": f"{steps}",
        "train.lengths": f"at most {max(window, 2)}: four recordings of five are as long",
    }


def _actions(space: spaces.Space, totals: Totals) -> str:
    if totals.low is None or totals.high is None or totals.taken is None:
        return "none"
    if isinstance(space, spaces.Discrete):
        shares = totals.taken / max(totals.taken.sum(), 1)
        return "shares " + " ".join(f"{int(space.start) + k}: {share:.3f}" for k, share in enumerate(shares))
    ranges = [f"{low:.4g} to {high:.4g}" for low, high in zip(totals.low, totals.high, strict=True)]
    more = f" and {len(ranges) - MOST_NUMBERS} more" if len(ranges) > MOST_NUMBERS else ""
    return f"{len(ranges)} numbers: {', '.join(ranges[:MOST_NUMBERS])}{more}"


def _rewards(totals: Totals) -> str:
    paid = sum(count for reward, count in totals.rewards.items() if reward)
    if not paid:
        return "none"
    return f"{min(totals.rewards):.4g} to {max(totals.rewards):.4g}, {paid} that are not 0"


def _texts(totals: Totals) -> str:
    if not any(totals.texts):
        return "none"
    longest = max(len(text.encode()) for text in totals.texts)
    some = ", ".join(repr(text[:80]) for text, _ in totals.texts.most_common(SHOWN))
    return f"{len(totals.texts)} different, {longest} bytes at most: {some}"
