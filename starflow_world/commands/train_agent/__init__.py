"""`starflow-world train-agent`: train agents in a world, evaluate them in the real environment."""

from starflow_world.commands.train_agent.settings import AgentSettings


class TrainAgent(AgentSettings):
    """Train agents in the dream only, judge them in reality beside agents that learned there, and write a report."""

    def run(self) -> None:
        """Train, evaluate and report."""
        from starflow_world.commands.train_agent.training import train_agent

        print(train_agent(self))
