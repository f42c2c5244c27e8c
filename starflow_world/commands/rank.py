"""`starflow-world rank`: compare the ranks of policies in a world and in the real environment.

Policies of different quality play from the same first frames in the world and in the real environment. Success
saturates among good policies, so the discounted reward (higher for earlier success) is ranked as well.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Positional

from starflow_world.commands.flags import RealEnvironment

if TYPE_CHECKING:
    from starflow_world.agents.policy import Policy

NOISES = (0.95, 0.85, 0.6, 0.0)
RANKED = ("success", "discounted")


@dataclass(frozen=True)
class RankPolicies:
    """Let policies of different quality play in the dream and in reality, and compare their ranks."""

    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    environment: OmitArgPrefixes[RealEnvironment] = field(default_factory=RealEnvironment)
    """The real environment"""
    text: str = ""
    """Mission; empty: "go to the red ball" in BabyAI, any elsewhere."""
    agents: Path | None = None
    """Folder of train-agent, whose agents are ranked as well."""
    episodes: int = 100
    """Episodes of each policy, in both."""
    out: Path = Path("out/rank")
    """Folder for rank.json and rank.md."""

    def run(self) -> None:
        """Play, and write the table."""
        rank_policies(self)
        print(self.out)


def rank_policies(settings: RankPolicies) -> dict[str, Any]:
    """Score a random policy, scripted ones with different noise, and the agents in a folder, in the world and in the
    real environment; write rank.json and rank.md, and return the figures."""
    from starflow_world.agents.judging import spearman
    from starflow_world.commands.train_agent.task import in_babyai, make_task
    from starflow_world.io.files import write_text
    from starflow_world.world import World

    world = World.load(settings.world)
    source = settings.environment.source(world)
    task = make_task(world, source, settings.text, starts=1, episodes=settings.episodes)
    text = task.real.text
    scores = {
        policy.name: {where: task.judge(where, policy, progress=True).to_dict() for where in ("dream", "real")}
        for policy in candidates(text if in_babyai(source) else "", settings.agents)
    }
    agreement = {key: spearman(*([score[where][key] for score in scores.values()] for where in ("dream", "real")))
                 for key in RANKED}
    figures = {
        "world": settings.world, "world_id": world.world_id, "text": text or source.env, "episodes": settings.episodes,
        "scores": scores,
        "spearman": {key: None if math.isnan(value) else value for key, value in agreement.items()},
    }
    write_text(settings.out / "rank.json", json.dumps(figures, indent=1))
    write_text(settings.out / "rank.md", rank_markdown(figures))
    return figures


def candidates(mission: str, agents: Path | None) -> "Sequence[Policy]":
    """Return a random policy, scripted ones for a mission of BabyAI, and all agents that train-agent saved in a folder.

    Raises ConfigError or DataError if there is nothing to rank.
    """
    from starflow_world.agents.babyai.scripted import ScriptedPolicy
    from starflow_world.agents.policy import RandomPolicy
    from starflow_world.errors import ConfigError, DataError

    scripted = [ScriptedPolicy(mission, noise, f"scripted, {noise:.0%} random") for noise in NOISES if mission]
    policies: list[Policy] = [RandomPolicy(), *scripted]
    if agents is None and not scripted:
        raise ConfigError("agents: expected agents to rank beside a random policy, found none; pass --agents")
    if agents is None:
        return policies
    from starflow_world.agents.ppo import AGENT, load_policy

    folders = [file.parent for file in sorted(Path(agents).rglob(AGENT))]
    if not folders:
        raise DataError(f"agents: {agents}: expected {AGENT} somewhere below, found none; run train-agent first")
    return [*policies, *(load_policy(folder, f"PPO {_label(folder, Path(agents))}") for folder in folders)]


def _label(folder: Path, agents: Path) -> str:
    """Return the shortest name that distinguishes an agent's folder from others below `agents`."""
    below = folder.relative_to(agents)
    return str(below) if below.parts else folder.resolve().name


def rank_markdown(figures: dict[str, Any]) -> str:
    """Return the table of scores and ranks in Markdown."""
    lines = [
        f"# \"{figures['text']}\": {len(figures['scores'])} policies in the dream and in reality", "",
        f"World `{figures['world']}` ({figures['world_id'][:12]}), {figures['episodes']} episodes of each policy in "
        "both.", "", "| policy | success, dream | real | discounted, dream | real | steps, dream | real |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, score in figures["scores"].items():
        cells = (f"{score[where][key]:.2f}" for key in (*RANKED, "length") for where in ("dream", "real"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    agreement = ", ".join(f"{key} {value}" if value is None else f"{key} {value:.2f}"
                          for key, value in figures["spearman"].items())
    return "\n".join([*lines, "", f"Spearman's rank correlation (wanted >= 0.9): {agreement}.", ""])
