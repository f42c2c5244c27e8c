"""The scorer: maps episodes to anomaly scores under a world.

The statistics of a frame come from the world's evidence (evidence.py) and from the frame alone (background.py). Each is
mapped to a common scale, -log of its tail probability after the same action (tails.py). The score is the maximum of the
weighted statistics; ranks and sums of scores give p-values and alarms (calibration.py). Scales are fitted on some
normal episodes, thresholds on others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor
from tqdm import tqdm

from starflow_world.data.episodes import Episode
from starflow_world.errors import ScorerError
from starflow_world.score.background import distinct_patches, prototypes
from starflow_world.score.calibration import FRAMES_PER_RATE, Change, Memory, Ranks, check_support
from starflow_world.score.evidence import Evidence, episode_evidence
from starflow_world.score.normal import Fitted, Settings, check_episode, frame_statistics, group_count, group_of
from starflow_world.score.scores import PARTS, Scores, first_true
from starflow_world.score.store import read_scorer, write_scorer
from starflow_world.score.tails import Tails
from starflow_world.world import World

SHARES = {
    "surprise": 0.3, "peak": 0.5, "against_action": 0.05, "novelty": 0.05, "residual": 0.05, "background": 0.05,
}
"""Share of the false alarms that each statistic may cause (weighted Bonferroni rule; Genovese et al. 2006). Statistics
with a large share detect weak anomalies; those with a small share detect only strong anomalies."""
COSTS = -np.log([SHARES[name] for name in PARTS])


class Episodes(Protocol):
    """Interface of a sequence of episodes, such as an EpisodeDataset."""

    def __len__(self) -> int:
        """Return the number of episodes."""

    def __getitem__(self, index: int, /) -> Episode:
        """Return the episode at an index."""


class Scorer:
    """Anomaly scorer of episodes under a world, created by `fit` or `load`."""

    def __init__(self, world: World, settings: Settings, fitted: Fitted) -> None:
        self.world, self.settings, self.fitted = world, settings, fitted

    @property
    def false_alarms(self) -> float:
        """Return the share of normal frames that may be flagged."""
        return self.settings.false_alarms

    @property
    def run_length(self) -> int:
        """Return the mean number of normal frames between false alarms of the change detector."""
        return self.settings.run_length

    # ---- fitting -------------------------------------------------------------------------------------------------

    @staticmethod
    def fit(
        world: World, normal_episodes: Episodes, *, calibration_episodes: Episodes | None = None,
        false_alarms: float = 0.01, run_length: int = 1000, draws: int = 1, seed: int = 0, window: int = 8,
        batch: int = 8, progress: bool = False,
    ) -> "Scorer":
        """Fit scales on some normal episodes and thresholds on others.

        Without `calibration_episodes`, half of the normal episodes, drawn by `seed`, set the thresholds. `draws`: noise
        draws that are averaged, with seeds seed, seed + 1, ...; `window`: frames of the windowed statistics; `batch`:
        windows per forward pass. Raises ScorerError if there are too few calibration frames for the rate.
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
        tails = Tails.fit(values, group, group_count(world))
        change = Change.fit(values[:, 0], group, group_count(world), window)
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
        """Return the scores of one episode."""
        return self.score([episode])[0]

    def score(self, episodes: Episodes, *, batch: int = 8) -> list[Scores]:
        """Return the scores of each episode, with `batch` windows per forward pass."""
        scores = []
        for start in range(0, len(episodes), 4 * batch):
            some = [episodes[index] for index in range(start, min(start + 4 * batch, len(episodes)))]
            for episode in some:
                check_episode(self.world, episode)
            seen = episode_evidence(self.world, some, seeds=self.settings.seeds, batch=batch)
            scores += [self._scores(episode, one) for episode, one in zip(some, seen, strict=True)]
        return scores

    def _scores(self, episode: Episode, evidence: Evidence) -> Scores:
        group, age = group_of(self.world, episode.actions), np.arange(len(episode))
        values, heat = frame_statistics(self.world, episode.frames, evidence, self.fitted.known)
        return self.judge(values, heat, self.nats_per_dim(evidence), group, age, Memory())[0]

    def nats_per_dim(self, evidence: Evidence) -> np.ndarray:
        """Return the log-likelihood of each frame in nats per dimension, (T,)."""
        return evidence.nats.sum(1) / (evidence.nats.shape[1] * self.world.config.channels)

    def judge(
        self, values: np.ndarray, heat: np.ndarray, nats: np.ndarray, group: np.ndarray, age: np.ndarray, memory: Memory
    ) -> tuple[Scores, Memory]:
        """Score frames from statistics (T, K), heat (T, h, w), nats per dimension, groups and ages (T,); `memory` is
        the change detector's state before them. Returns the scores and the state after them."""
        score, detector = _combined(self.fitted.tails, values, group), self.fitted.change
        drift = detector.standardised(values[:, 0], group)
        windowed, cusum = np.empty(len(values)), np.empty(len(values))
        for t in range(len(values)):
            memory, windowed[t] = detector.step(memory, float(drift[t]), float(score[t]))
            cusum[t] = memory.cusum
        p, whole = self.fitted.ranks(score, age), _episode_score(score)
        alarm, change = p <= self.false_alarms, cusum > detector.threshold
        higher = len(self.fitted.episodes) - np.searchsorted(self.fitted.episodes, whole, side="left")
        return Scores(
            score=score, p=p, alarm=alarm, windowed=windowed, typicality=np.abs(windowed), cusum=cusum, change=change,
            nats_per_dim=nats, action_ratio=-values[:, PARTS.index("against_action")], values=values, heat=heat,
            episode={
                "score": whole, "p": float(1 + higher) / (1 + len(self.fitted.episodes)),
                "nats_per_dim": float(nats.mean()), "alarms": float(alarm.sum()), "change": float(first_true(change)),
            },
        ), memory

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Write the scorer as scorer.json and scorer.safetensors."""
        write_scorer(folder, self.world, self.settings, self.fitted)

    @staticmethod
    def load(folder: Path | str, world: World) -> "Scorer":
        """Read a scorer of `world`. Raises ScorerError for damage or for a different world, size, codec or format."""
        return Scorer(world, *read_scorer(folder, world))


def _split(normal: Episodes, kept: Episodes | None, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Return the episodes that fit the scales and those that set the thresholds; split `normal` if `kept` is None."""
    if kept is None:
        order, kept = np.random.default_rng(seed).permutation(len(normal)).tolist(), normal
        first, second = order[::2], order[1::2]
    else:
        first, second = list(range(len(normal))), list(range(len(kept)))
    if not first or not second:
        raise ScorerError("normal episodes: expected at least one to fit and one to calibrate, found "
                          f"{len(first)} and {len(second)}; give more")
    return [normal[index] for index in first], [kept[index] for index in second]


def _patches(world: World, seen: Sequence[Evidence]) -> Tensor:
    """Return the prototype patches (K, k) of the latents of normal episodes."""
    return prototypes(distinct_patches([one.latents for one in seen], world.config.codec.merge))


def _described(
    world: World, episodes: Sequence[Episode], seen: Sequence[Evidence], known: Tensor
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return statistics (T, K) and groups (T,) of each episode."""
    pairs = zip(episodes, seen, strict=True)
    return [(frame_statistics(world, e.frames, one, known)[0], group_of(world, e.actions)) for e, one in pairs]


def _combined(tails: Tails, values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return scores (T,): the maximum of the weighted rarities of statistics (T, K) in groups (T,)."""
    return np.asarray((tails(values, group) - COSTS).max(1))


def _evidence(
    world: World, episodes: Sequence[Episode], settings: Settings, batch: int, title: str, progress: bool
) -> list[Evidence]:
    """Return the evidence on each episode, with a progress bar."""
    evidence: list[Evidence] = []
    for start in tqdm(range(0, len(episodes), 4 * batch), desc=title, unit="batch", disable=not progress):
        evidence += episode_evidence(world, episodes[start : start + 4 * batch], seeds=settings.seeds, batch=batch)
    return evidence


def _episode_score(score: np.ndarray) -> float:
    """Return log of the mean of exp(score), which is high for one very anomalous frame or many slightly anomalous ones.
    """
    highest = float(score.max())
    return highest + float(np.log(np.exp(score - highest).mean()))
