"""Likelihood-based anomaly scores of trajectories: fitted on normal episodes, calibrated, saved beside a world."""

from .scorer import Scorer
from .scores import PARTS, Scores
from .stream import Stream, Verdict

__all__ = ["PARTS", "Scorer", "Scores", "Stream", "Verdict"]
