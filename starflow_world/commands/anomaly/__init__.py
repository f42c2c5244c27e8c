"""The verb anomaly-bench: how well a world's scores detect anomalies in real environments, compared with baselines.

Real environments play twin runs with a label for every frame (twins.py, babyai.py, cartpole.py); a scorer and the
baselines are fitted on nominal episodes and score all others (run.py); figures.py computes the figures; report.py and
pictures.py write one report of all parts.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starflow_world.commands.anomaly.settings import AnomalySettings
from starflow_world.errors import ConfigError

if TYPE_CHECKING:
    from starflow_world.commands.anomaly.twins import Scenario
    from starflow_world.world import World


class AnomalyBench(AnomalySettings):
    """Play real environments in which something goes wrong; report how well scores find it, beside baselines."""

    def run(self) -> None:
        """Measure a world on a part of the benchmark; print its goals and the path of the report."""
        from starflow_world.io.reports import number
        from starflow_world.world import World

        scenario = find_scenario(self.part)
        for goal in self.measure(scenario, World.load(self.world or scenario.world))["goals"]:
            met = "met   " if goal["met"] else "MISSED"
            print(f"{met} {goal['name']}: {number(goal['value'])}  {goal['note']}")
        print(self.out / "README.md")

    def measure(self, scenario: "Scenario", world: "World") -> dict[str, Any]:
        """Evaluate a world with all seeds, write the report into `out` and return its figures."""
        from starflow_world.commands.anomaly.figures import anomaly_figures, common_goals
        from starflow_world.commands.anomaly.report import write_anomaly_report
        from starflow_world.commands.anomaly.run import evaluate_seed

        seeds = [evaluate_seed(scenario, world, self, seed) for seed in range(self.seeds)]
        figures = anomaly_figures(scenario, seeds)
        figures["plan"] = {name: getattr(self, name) for name in ("episodes", "seeds", "predictor_steps")}
        figures["about"] = scenario.about
        figures["goals"] = [goal.as_json() for goal in [*scenario.goals(figures), *common_goals(figures)]]
        write_anomaly_report(figures, seeds, self.out, list(scenarios()))
        return figures


def scenarios() -> "Mapping[str, Scenario]":
    """Return the parts of the benchmark by name, in the order of the report."""
    from starflow_world.commands.anomaly.babyai import BabyAI
    from starflow_world.commands.anomaly.cartpole import CartPole

    return {scenario.name: scenario for scenario in (BabyAI(), CartPole())}


def find_scenario(part: str) -> "Scenario":
    """Return a part of the benchmark. Raises ConfigError for an unknown name."""
    known = scenarios()
    if part not in known:
        raise ConfigError(f"anomaly-bench: expected a part of {', '.join(known)}, found {part!r}")
    return known[part]
