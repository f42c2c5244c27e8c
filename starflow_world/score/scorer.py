"""The scorer: a world, what is normal under it, and thresholds; episodes in, scores out.

Per frame: what the world says (evidence.py) and what the frame looks like (background.py) are the parts; each part is
put on one scale, -log of how rare it is for its kind of action (tails.py); the largest, weighted, is the score; ranks
and sums of scores give p-values and alarms (calibration.py). All is fitted on normal episodes, thresholds on episodes
that the scales have not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor
from tqdm import tqdm

from starflow_world.data.episodes import Episode
from starflow_world.errors import ScorerError
from starflow_world.score import store
from starflow_world.score.background import distinct_patches, prototypes
from starflow_world.score.calibration import FRAMES_PER_RATE, Change, Memory, Ranks, check_support
from starflow_world.score.evidence import Evidence, gather
from starflow_world.score.normal import Fitted, Settings, check_episode, group_of, kinds, parts
from starflow_world.score.scores import PARTS, Scores, first_true
from starflow_world.score.tails import Tails
from starflow_world.world import World

SHARES = {
    "surprise": 0.3, "peak": 0.5, "against_action": 0.05, "novelty": 0.05, "residual": 0.05, "background": 0.05,
}
"""Of the false alarms, how many each part may cause (a weighted Bonferroni rule; Genovese et al. 2006). What has a
large share decides on weak anomalies; what has a small one is for frames so strange that they need none."""
COSTS = -np.log([SHARES[name] for name in PARTS])


class Episodes(Protocol):
    """A sequence of episodes; an EpisodeDataset is one."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int, /) -> Episode:
        """One of them."""


class Scorer:
    """Scores episodes under a world; made by `fit` or `load`."""

    def __init__(self, world: World, settings: Settings, fitted: Fitted) -> None:
        self.world, self.settings, self.fitted = world, settings, fitted

    @property
    def false_alarms(self) -> float:
        """The share of normal frames that may be flagged."""
        return self.settings.false_alarms

    @property
    def run_length(self) -> int:
        """Normal frames between two false alarms of the change detector, on average."""
        return self.settings.run_length

    # ---- fitting -------------------------------------------------------------------------------------------------

    @staticmethod
    def fit(
        world: World, normal_episodes: Episodes, *, calibration_episodes: Episodes | None = None,
        false_alarms: float = 0.01, run_length: int = 1000, draws: int = 1, seed: int = 0, window: int = 8,
        batch: int = 8, progress: bool = False,
    ) -> "Scorer":
        """Fit scales on some normal episodes and thresholds on others.

        Without `calibration_episodes` a half of the normal ones, drawn by `seed`, is kept for the thresholds. draws:
        noise draws that are averaged, of seeds seed, seed + 1, ...; window: frames of the windowed statistics; batch:
        windows per forward pass. ScorerError where the calibration frames cannot support the rate.
        """
        settings = Settings(false_alarms, run_length, draws, seed, window)
        normal, kept = _split(normal_episodes, calibration_episodes, seed)
        check_support(sum(len(episode) for episode in kept), false_alarms)
        for episode in (*normal, *kept):
            check_episode(world, episode)
        seen = _evidence(world, normal, settings, batch, "fit", progress)
        known = _patches(world, seen)
        others = [_patches(world, seen[1 - k :: 2] or seen) for k in (0, 1)]
        halves = [_described(world, normal[k::2], seen[k::2], others[k]) for k in (0, 1)]
        values, group = (np.concatenate(part) for part in zip(*halves[0], *halves[1], strict=True))
        tails = Tails.fit(values, group, kinds(world))
        change = Change.fit(values[:, 0], group, kinds(world), window)
        seen = _evidence(world, kept, settings, batch, "calibrate", progress)
        described = _described(world, kept, seen, known)
        scores = [_combined(tails, values, group) for values, group in described]
        drifts = [change.standardised(values[:, 0], group) for values, group in described]
        change = change.fitted(drifts, scores, run_length)
        ranks = Ranks.fit(scores, int(np.ceil(FRAMES_PER_RATE / false_alarms)))
        episodes = np.sort([_episode_score(one) for one in scores])
        return Scorer(world, settings, Fitted(known, tails, ranks, change, episodes))

    # ---- scoring -------------------------------------------------------------------------------------------------

    def __call__(self, episode: Episode) -> Scores:
        """The scores of one episode."""
        return self.score([episode])[0]

    def score(self, episodes: Episodes, *, batch: int = 8) -> list[Scores]:
        """The scores of episodes, in their order, `batch` windows per forward pass."""
        found = []
        for start in range(0, len(episodes), 4 * batch):
            some = [episodes[index] for index in range(start, min(start + 4 * batch, len(episodes)))]
            for episode in some:
                check_episode(self.world, episode)
            seen = gather(self.world, some, seeds=self.settings.seeds, batch=batch)
            found += [self._scores(episode, one) for episode, one in zip(some, seen, strict=True)]
        return found

    def _scores(self, episode: Episode, evidence: Evidence) -> Scores:
        values, heat = parts(self.world, episode.frames, evidence, self.fitted.known)
        judged = self.judge(values, group_of(self.world, episode.actions), np.arange(len(values)), Memory())
        nats = evidence.nats.sum(1) / (evidence.nats.shape[1] * self.world.config.channels)
        alarm, change = judged.p <= self.false_alarms, judged.cusum > self.fitted.change.threshold
        whole = _episode_score(judged.score)
        higher = len(self.fitted.episodes) - np.searchsorted(self.fitted.episodes, whole, side="left")
        return Scores(
            score=judged.score, p=judged.p, alarm=alarm, windowed=judged.windowed, typicality=np.abs(judged.windowed),
            cusum=judged.cusum, change=change, nats_per_dim=nats,
            action_ratio=-values[:, PARTS.index("against_action")], values=values, heat=heat,
            episode={
                "score": whole, "p": float(1 + higher) / (1 + len(self.fitted.episodes)),
                "nats_per_dim": float(nats.mean()), "alarms": float(alarm.sum()), "change": float(first_true(change)),
            },
        )

    def judge(self, values: np.ndarray, group: np.ndarray, age: np.ndarray, memory: Memory) -> "Judged":
        """Frames with parts (T, K), groups (T,) and ages (T,), behind those that `memory` remembers."""
        score, change = _combined(self.fitted.tails, values, group), self.fitted.change
        drift = change.standardised(values[:, 0], group)
        windowed, cusum = np.empty(len(values)), np.empty(len(values))
        for t in range(len(values)):
            memory, windowed[t] = change.step(memory, float(drift[t]), float(score[t]))
            cusum[t] = memory.cusum
        return Judged(score, self.fitted.ranks(score, age), windowed, cusum, memory)

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Write the scorer as scorer.json and scorer.safetensors."""
        store.write(folder, self.world, self.settings, self.fitted)

    @staticmethod
    def load(folder: Path | str, world: World) -> "Scorer":
        """Read a scorer of `world`; ScorerError for another world, size, codec, noise level, version, or damage."""
        return Scorer(world, *store.read(folder, world))


@dataclass(frozen=True)
class Judged:
    """The judgement of frames in their order, (T,) each, and the memory behind them."""

    score: np.ndarray
    p: np.ndarray
    windowed: np.ndarray
    cusum: np.ndarray
    memory: Memory


def _split(normal: Episodes, kept: Episodes | None, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Episodes for the scales, and others for the thresholds."""
    first = [normal[index] for index in range(len(normal))]
    if kept is not None:
        first, second = first, [kept[index] for index in range(len(kept))]
    else:
        order = np.random.default_rng(seed).permutation(len(first)).tolist()
        first, second = [first[index] for index in order[::2]], [first[index] for index in order[1::2]]
    if not first or not second:
        raise ScorerError("normal episodes: expected at least one to fit and one to calibrate, found fewer; give more")
    return first, second


def _patches(world: World, seen: Sequence[Evidence]) -> Tensor:
    """What normal frames are made of. Frames are new beside the patches of others only: scales come from two halves."""
    return prototypes(distinct_patches([one.latents for one in seen], world.config.codec.merge))


def _described(
    world: World, episodes: Sequence[Episode], seen: Sequence[Evidence], known: Tensor
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parts (T, K) and groups (T,) of each episode."""
    pairs = zip(episodes, seen, strict=True)
    return [(parts(world, e.frames, one, known)[0], group_of(world, e.actions)) for e, one in pairs]


def _combined(tails: Tails, values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The score (T,) of parts (T, K) in groups (T,)."""
    return np.asarray((tails(values, group) - COSTS).max(1))


def _evidence(
    world: World, episodes: Sequence[Episode], settings: Settings, batch: int, title: str, progress: bool
) -> list[Evidence]:
    """What the world says of episodes, a few at a time."""
    found: list[Evidence] = []
    for start in tqdm(range(0, len(episodes), 4 * batch), desc=title, unit="batch", disable=not progress):
        found += gather(world, episodes[start : start + 4 * batch], seeds=settings.seeds, batch=batch)
    return found


def _episode_score(score: np.ndarray) -> float:
    """log of the mean of exp(score): one very strange frame counts, and so do many slightly strange ones."""
    highest = float(score.max())
    return highest + float(np.log(np.exp(score - highest).mean()))
