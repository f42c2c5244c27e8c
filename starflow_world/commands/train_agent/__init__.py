"""`starflow-world train-agent`: agents that learn in a dream, judged in reality."""

from starflow_world.commands.train_agent.settings import AgentSettings


class TrainAgent(AgentSettings):
    """Train agents in the dream only, judge them in reality beside agents that learned there, and write a report."""

    def run(self) -> None:
        """Train, judge and report."""
        from starflow_world.commands.train_agent.training import train_agent

        print(train_agent(self))
