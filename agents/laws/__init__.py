"""Laws: the transition probabilities of environments whose chance is known, for the metrics of chance."""

from starflow_world.agents.environment import Environment
from starflow_world.agents.laws.dynamic_obstacles import dynamic_obstacles_law
from starflow_world.evaluation.law import Law

__all__ = ["Law", "law_of"]


def law_of(environment: Environment) -> Law | None:
    """Return the law of an environment, or None if it is not known."""
    name = environment.env.rpartition(":")[2]
    if name.startswith("MiniGrid-Dynamic-Obstacles-"):
        return dynamic_obstacles_law(environment)
    return None
