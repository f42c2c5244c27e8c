"""Likelihood-based anomaly scores of trajectories: fitted on normal episodes, calibrated, saved beside a world."""

from starflow_world.score.scorer import Scorer
from starflow_world.score.scores import PARTS, Scores
from starflow_world.score.stream import Stream, Verdict

__all__ = ["PARTS", "Scorer", "Scores", "Stream", "Verdict"]
