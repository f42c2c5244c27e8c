"""The scores of an episode."""

from dataclasses import dataclass

import numpy as np

from starflow_world.io.reports import csv_text

PARTS = ("surprise", "peak", "against_action", "novelty", "residual", "background")
"""The statistics of a frame, in nats (`residual` in grey levels); higher is more anomalous.

surprise: nats by which the prediction of the frame falls short of a perfect one. peak: surprise of the two worst
tokens. against_action: log p without the frame's action - log p with it; above 0, the frame contradicts the action.
novelty: largest distance of a patch to the patches of normal frames. residual: reconstruction error of the codec at the
worst token. background: surprise - compressed size of the frame (Serra et al. 2020).
"""

COLUMNS = ("score", "p", "alarm", "cusum", "change", "windowed", "typicality", "nats_per_dim", "action_ratio")


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of T frames; index t belongs to frames[t], which actions[t] led to.

    score (T,): all statistics combined, about -log of the share of normal frames that are as anomalous; higher is more
    anomalous. p (T,): its split-conformal p-value. alarm (T,) bool: p <= the scorer's false-alarm rate.
    windowed (T,): standardised mean log surprise of the last frames; typicality (T,): its magnitude, since frames that
    are too likely are anomalous too. cusum (T,): cumulative sum of evidence for a change; change (T,) bool: cusum above
    its threshold. nats_per_dim (T,): log-likelihood given history and action (higher: more likely).
    action_ratio (T,), nats: log p(x|h,a) - log p(x|h,none), 0 for the first frame. values (T, len(PARTS)): `parts` as
    columns. heat (T, h, w): surprise per token.
    episode: `score` (log of the mean of exp(score), the harmonic mean p-value of Wilson 2019 on the frames' scale), its
    `p`, `nats_per_dim` (mean), `alarms` (count), `change` (first frame of a change, -1: none).
    """

    score: np.ndarray
    p: np.ndarray
    alarm: np.ndarray
    windowed: np.ndarray
    typicality: np.ndarray
    cusum: np.ndarray
    change: np.ndarray
    nats_per_dim: np.ndarray
    action_ratio: np.ndarray
    values: np.ndarray
    heat: np.ndarray
    episode: dict[str, float]

    def __len__(self) -> int:
        return len(self.score)

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """Return the statistics by name, (T,) each."""
        return dict(zip(PARTS, self.values.T, strict=True))

    @property
    def first_alarm(self) -> int:
        """Return the index of the first flagged frame, or -1."""
        return first_true(self.alarm)

    def to_csv(self) -> str:
        """Return CSV text with a line per frame: the scores in COLUMNS and the statistics in PARTS."""
        columns = [getattr(self, name) for name in COLUMNS] + list(self.values.T)
        rows = ([str(t), *(f"{float(column[t]):.9g}" for column in columns)] for t in range(len(self)))
        return csv_text(("frame", *COLUMNS, *PARTS), rows)


def first_true(flags: np.ndarray) -> int:
    """Return the index of the first True, or -1."""
    return int(flags.argmax()) if flags.any() else -1
