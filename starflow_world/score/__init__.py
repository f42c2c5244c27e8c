"""Likelihood-based anomaly scores of episodes, fitted and calibrated on normal episodes of a world."""

from starflow_world.score.scorer import Scorer
from starflow_world.score.scores import PARTS, Scores
from starflow_world.score.stream import ScoreStream, Verdict

__all__ = ["PARTS", "ScoreStream", "Scorer", "Scores", "Verdict"]
