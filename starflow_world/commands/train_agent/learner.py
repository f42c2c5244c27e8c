"""Training of one agent of a task, in the world or in the real environment."""

from pathlib import Path

from starflow_world.agents.policy import Policy
from starflow_world.agents.task import AgentTask
from starflow_world.commands.train_agent.settings import AgentSettings

Curve = list[dict[str, float]]


def train_one(
    task: AgentTask, where: str, settings: AgentSettings, folder: Path, steps: int, seed: int, name: str
) -> Curve:
    """Train the agent in a folder until it has `steps` steps. A point of its curve has its score in reality and, for an
    agent that dreams, the return that it imagines (`imagined`)."""
    from starflow_world.agents.algorithms import default_settings
    from starflow_world.agents.learning import learn
    from starflow_world.agents.sb3 import SB3VecEnv

    def judged(policy: Policy) -> dict[str, float]:
        figures = task.judge("real", policy).to_dict()
        return figures | ({"imagined": task.judge("dream", policy).reward} if where == "dream" else {})

    env = SB3VecEnv(task.train_env(where, settings.envs, settings.trust), actions=settings.actions or None)
    return learn(env, folder, default_settings(settings.algorithm), judged, steps=steps, chunk=settings.chunk,
                 seed=seed, resume=True, name=name)
