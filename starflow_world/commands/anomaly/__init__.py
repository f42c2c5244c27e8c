"""The verb anomaly-bench: how well a world's scores find anomalies in real environments, beside simple detectors.

Real environments play twin runs with a label for every frame (twins.py, babyai.py, cartpole.py); a scorer and the
baselines are fitted on nominal episodes and score all others (run.py); figures.py and goals.py summarise, report.py and
pictures.py write one report of all parts.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starflow_world.commands.anomaly.settings import AnomalySettings
from starflow_world.errors import ConfigError

if TYPE_CHECKING:
    from starflow_world.commands.anomaly.twins import Stage
    from starflow_world.world import World


class AnomalyBench(AnomalySettings):
    """Play real environments in which something goes wrong; report how well scores find it, beside baselines."""

    def run(self) -> None:
        """Measure a world on the part, and print the goals and the path of the report."""
        from starflow_world.io.reports import number
        from starflow_world.world import World

        stage = find_stage(self.part)
        for goal in self.measure(stage, World.load(self.world or stage.world))["goals"]:
            print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['name']}: {number(goal['value'])}  {goal['note']}")
        print(self.out / "README.md")

    def measure(self, stage: "Stage", world: "World") -> dict[str, Any]:
        """Evaluate a world on a part with all seeds, write the report into `out` and return its figures."""
        from starflow_world.commands.anomaly.figures import summary
        from starflow_world.commands.anomaly.goals import judged
        from starflow_world.commands.anomaly.report import write
        from starflow_world.commands.anomaly.run import evaluated

        seeds = [evaluated(stage, world, self, seed) for seed in range(self.seeds)]
        figures = summary(stage, seeds)
        figures["plan"] = {name: getattr(self, name) for name in ("episodes", "seeds", "predictor_steps")}
        figures["about"] = stage.about
        figures["goals"] = judged(figures)
        write(figures, seeds, self.out)
        return figures


def stages() -> "Mapping[str, Stage]":
    """The parts of the benchmark by name, in the order of the report."""
    from starflow_world.commands.anomaly.babyai import BabyAI
    from starflow_world.commands.anomaly.cartpole import CartPole

    return {stage.name: stage for stage in (BabyAI(), CartPole())}


def find_stage(part: str) -> "Stage":
    """Return a part of the benchmark. Raises ConfigError for an unknown name."""
    known = stages()
    if part not in known:
        raise ConfigError(f"anomaly-bench: expected a part of {', '.join(known)}, found {part!r}")
    return known[part]
