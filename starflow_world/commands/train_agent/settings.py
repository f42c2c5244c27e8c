"""The flags of `starflow-world train-agent`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from starflow_world.commands.flags import RealEnvironment
from starflow_world.errors import ConfigError

if TYPE_CHECKING:
    from starflow_world.envs.trust import Trust

FIXED = ("algorithm", "text", "envs", "starts", "episodes", "chunk", "actions")
LOOP = ("dream_steps", "collected", "collector", "world_steps", "recipe", "data")
PLANNED = (*FIXED, "steps", "dream_steps", "overtime", "seeds", "rounds", "collected", "collector", "world_steps")
COLLECTORS = ("agent", "random")
LEAST = {"steps": 0, "dream_steps": 0, "actions": 0, "rounds": 0} | dict.fromkeys(
    ("overtime", "envs", "seeds", "starts", "episodes", "chunk", "collected", "world_steps"), 1)


@dataclass(frozen=True)
class AgentSettings:
    """Settings of train-agent."""

    world: str = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    algorithm: str = "ppo"
    """How the agents learn: ppo, dqn (Discrete actions) or sac (Box actions)."""
    environment: OmitArgPrefixes[RealEnvironment] = field(default_factory=RealEnvironment)
    """The real environment"""
    text: str = ""
    """Mission; empty: the most frequent one of the world's starts where the world reads texts, any elsewhere."""
    steps: int = 65_536
    """Env steps of every agent that learns in reality; 0: as many as the world's data have."""
    dream_steps: int = 0
    """Env steps of the agents that learn in the dream (in each round); 0: as many as --steps."""
    overtime: int = 1
    """Train on in the dream to so many times these steps, and report what happens to imagined and real return."""
    envs: int = 64
    """Episodes that are played at a time."""
    seeds: int = 5
    """Agents that learn in the dream, and as many in reality."""
    starts: int = 2000
    """Real first frames that episodes begin with, in both."""
    episodes: int = 100
    """Real episodes, never seen in training, in which agents are judged, and as many dreams that start alike."""
    chunk: int = 8192
    """Env steps between two judgements; the agent is saved after each."""
    actions: int = 0
    """Offer only the first so many of the world's Discrete actions, in both; 0: all."""
    round_trip: float = 0.0
    """Truncate a dream where this signal is above the limit (see Trust); 0: never."""
    disagreement: float = 0.0
    """Likewise; it doubles the price of a step."""
    rounds: int = 0
    """Rounds of the online loop: collect with the agent, train the world further, train the agent in it; 0: the world
    stays as it is."""
    collected: int = 200
    """Real episodes that each round collects."""
    collector: str = "agent"
    """Who collects them: agent, or random for comparison."""
    world_steps: int = 500
    """Training steps of the world in each round."""
    recipe: Path | None = None
    """Recipe with which the world is trained further; None: the one that ships under the world's name."""
    data: Path | None = None
    """Folder of the episodes that the world was trained on, which are learned further with the new ones; None: new
    ones only."""
    out: Path = Path("out/agent")
    """Folder for agents, curves.png, agent.mp4, agents.json and report.md."""
    resume: bool = False
    """Go on with an interrupted run in `out`, or add steps, seeds or rounds to one."""

    def __post_init__(self) -> None:
        for name, low in LEAST.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: expected a number >= {low}, found {getattr(self, name)}")
        if self.collector not in COLLECTORS:
            raise ConfigError(f"collector: expected one of {', '.join(COLLECTORS)}, found {self.collector!r:.60}")
        if self.rounds and self.overtime > 1:
            raise ConfigError(f"overtime: expected 1 with rounds, in which the world changes, found {self.overtime}")

    @property
    def fixed(self) -> dict[str, object]:
        """Return the settings that cannot change when a run is resumed."""
        names = FIXED + LOOP * bool(self.rounds)
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
                if name in names}

    @property
    def plan(self) -> dict[str, object]:
        """Return the settings that the report lists."""
        return {name: value for name, value in asdict(self).items() if name in PLANNED}

    @property
    def trust(self) -> "Trust | None":
        """Return the limits that truncate a dream; None without limits."""
        from starflow_world.envs.trust import Trust

        limits = Trust(round_trip=self.round_trip or None, disagreement=self.disagreement or None)
        return limits if limits.limits else None
