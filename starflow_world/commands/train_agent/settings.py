"""The flags of `starflow-world train-agent`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from starflow_world.commands.flags import RealEnvironment
from starflow_world.errors import ConfigError

if TYPE_CHECKING:
    from starflow_world.envs.trust import Trust

FIXED = ("text", "envs", "starts", "episodes", "chunk", "actions")


@dataclass(frozen=True)
class AgentSettings:
    """Settings of train-agent."""

    world: str = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    algo: str = "ppo"
    """How the agents learn: ppo."""
    environment: OmitArgPrefixes[RealEnvironment] = field(default_factory=RealEnvironment)
    """The real environment"""
    text: str = ""
    """Mission; empty: "go to the red ball" in BabyAI, any elsewhere."""
    steps: int = 65_536
    """Env steps of every agent."""
    dream_steps: int = 0
    """Env steps of the agents that learn in the dream; 0: as many as --steps."""
    envs: int = 64
    """Episodes that are played at a time."""
    seeds: int = 3
    """Agents that learn in the dream, and as many in reality."""
    starts: int = 2000
    """Real first frames that episodes begin with, in both."""
    episodes: int = 200
    """Real episodes, never seen in training, in which agents are judged."""
    chunk: int = 8192
    """Env steps between two judgements; the agent is saved after each."""
    actions: int | None = None
    """Offer only the first so many of the world's actions, in both; 0: all; None: 3 in BabyAI (left, right, forward),
    all elsewhere."""
    round_trip: float = 0.0
    """Truncate a dream where this signal is above the limit (see Trust); 0: never."""
    disagreement: float = 0.0
    """Likewise; it doubles the price of a step."""
    out: Path = Path("out/agent")
    """Folder for agents, curves.png, agent.mp4, agents.json and report.md."""
    resume: bool = False
    """Go on with an interrupted run in `out`, or add steps or seeds to one."""

    def __post_init__(self) -> None:
        if self.algo != "ppo":
            raise ConfigError(f"algo: expected ppo, the only one there is, found {self.algo!r:.60}")
        for name in ("steps", "dream_steps", "envs", "seeds", "starts", "episodes", "chunk", "actions"):
            low = 0 if name in ("dream_steps", "actions") else 1
            if (getattr(self, name) or 0) < low:
                raise ConfigError(f"{name}: expected a number >= {low}, found {getattr(self, name)}")

    @property
    def fixed(self) -> dict[str, object]:
        """Return the settings that cannot change when a run is resumed."""
        return {name: value for name, value in asdict(self).items() if name in FIXED}

    @property
    def plan(self) -> dict[str, object]:
        """Return the settings that the report lists."""
        return {name: value for name, value in asdict(self).items()
                if name in (*FIXED, "steps", "dream_steps", "seeds")}

    @property
    def trust(self) -> "Trust | None":
        """Return the limits that truncate a dream; None without limits."""
        from starflow_world.envs.trust import Trust

        limits = Trust(round_trip=self.round_trip or None, disagreement=self.disagreement or None)
        return limits if limits.limits else None

    def offered(self, *, babyai: bool) -> int:
        """Return the number of actions that the agent may use; 0: all."""
        return (3 if babyai else 0) if self.actions is None else self.actions

    def steps_in(self, where: str) -> int:
        """Return the env steps of the agents trained in "dream" or "real"."""
        return self.dream_steps or self.steps if where == "dream" else self.steps
