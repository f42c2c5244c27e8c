"""Laws: the transition probabilities of environments whose chance is known, for the metrics of chance."""

from starflow_world.agents.environment import Environment
from starflow_world.agents.laws.dynamic_obstacles import dynamic_obstacles_law
from starflow_world.agents.laws.minatar import GAMES, minatar_law
from starflow_world.evaluation.law import Law

__all__ = ["Law", "law_of"]


def law_of(environment: Environment) -> Law | None:
    """Return the law of an environment, or None if it is not known."""
    name = environment.env.rpartition(":")[2]
    if name.startswith("MiniGrid-Dynamic-Obstacles-"):
        return dynamic_obstacles_law(environment)
    game = name.removeprefix("MinAtar/").rpartition("-")[0]
    return minatar_law(environment) if name.startswith("MinAtar/") and game in GAMES else None
