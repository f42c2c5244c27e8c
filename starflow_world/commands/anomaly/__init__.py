"""How well a world's scores find what goes wrong in real environments, beside simple detectors and the oracle.

Real environments play twin runs with labels for every frame (twins.py, babyai.py, cartpole.py), a scorer and the
baselines are fitted on nominal episodes (run.py), figures follow from what they say (figures.py, goals.py), and one
report is written of all parts (report.py, pictures.py).
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starflow_world.commands.anomaly.babyai import BabyAI
from starflow_world.commands.anomaly.cartpole import CartPole
from starflow_world.commands.anomaly.figures import summary
from starflow_world.commands.anomaly.goals import judged
from starflow_world.commands.anomaly.report import write
from starflow_world.commands.anomaly.run import Plan, evaluated
from starflow_world.commands.anomaly.twins import Stage
from starflow_world.errors import ConfigError
from starflow_world.world import World

__all__ = ["STAGES", "BabyAI", "CartPole", "Plan", "Stage", "anomaly_bench", "find_stage"]

STAGES: dict[str, Callable[[], Stage]] = {"babyai": BabyAI, "cartpole": CartPole}


def find_stage(part: str) -> Stage:
    """A part of the benchmark by its name."""
    if part not in STAGES:
        raise ConfigError(f"anomaly-bench: expected a part of {', '.join(STAGES)}, found {part!r}")
    return STAGES[part]()


def anomaly_bench(stage: Stage, world: World, out: Path, work: Path, plan: Plan) -> dict[str, Any]:
    """Evaluate a part with all seeds and write the report into `out`; returns the figures.

    What is done stays in `work`, so that an interrupted run goes on with the next seed.
    """
    seeds = [evaluated(stage, world, plan, seed, work) for seed in range(plan.seeds)]
    found = summary(stage, seeds)
    found["plan"], found["about"] = asdict(plan), stage.about
    found["goals"] = judged(found)
    write(found, seeds, out)
    return found
