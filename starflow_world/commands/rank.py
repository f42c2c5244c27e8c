"""`starflow-world rank`: compare the ranks of policies in a world and in the real environment.

Policies of different quality play from the same first frames in the world and in the real environment. Where a reward
ends the episode the return saturates among good policies, so the discounted return (higher for an earlier reward) is
ranked as well.
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

SHARES = (0.9, 0.75, 0.5, 0.25)
"""Shares of random actions of the policies that are mixed from a good one."""
RANKED = ("reward", "discounted")


@dataclass(frozen=True)
class RankPolicies:
    """Let policies of different quality play in the dream and in reality, and compare their ranks."""

    world: Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world."""
    environment: OmitArgPrefixes[RealEnvironment] = field(default_factory=RealEnvironment)
    """The real environment"""
    text: str = ""
    """Mission; empty: the most frequent one of the world's starts where the world reads texts, any elsewhere."""
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
    """Score policies in the world and in the real environment; write rank.json and rank.md, and return the figures."""
    from starflow_world.agents.judging import spearman
    from starflow_world.agents.task import make_task
    from starflow_world.io.files import write_text
    from starflow_world.world import World

    world = World.load(settings.world)
    source = settings.environment.source(world)
    task = make_task(world, source, settings.text, starts=1, episodes=settings.episodes)
    scores = {
        policy.name: {where: task.judge(where, policy, progress=True).to_dict() for where in ("dream", "real")}
        for policy in candidates(source.env, task.text, settings.agents)
    }
    agreement = {key: spearman(*([score[where][key] for score in scores.values()] for where in ("dream", "real")))
                 for key in RANKED}
    figures = {
        "world": settings.world, "world_id": world.world_id, "env": source.env, "text": task.text,
        "episodes": settings.episodes, "scores": scores,
        "spearman": {key: None if math.isnan(value) else value for key, value in agreement.items()},
    }
    write_text(settings.out / "rank.json", json.dumps(figures, indent=1))
    write_text(settings.out / "rank.md", rank_markdown(figures))
    return figures


def candidates(env: str, text: str, agents: Path | None) -> "Sequence[Policy]":
    """Return at least six policies of different quality: a random one; a good one mixed with random actions, in four
    shares; and good ones: all agents that train-agent saved in a folder, and one that plays by the frames where one is
    known. The one that is mixed is the latter, else the first agent.

    Raises ConfigError or DataError if there is nothing to rank.
    """
    from starflow_world.agents.policy import PartlyRandom, RandomPolicy
    from starflow_world.agents.registry import watching_policy
    from starflow_world.errors import ConfigError

    scripted = watching_policy(env, text)
    good: list[Policy] = [*([scripted] if scripted else []), *(_trained(agents) if agents else [])]
    if not good:
        raise ConfigError(f"agents: expected agents of {env} to rank beside a random policy, found none; run "
                          "train-agent and pass --agents with its folder")
    return [RandomPolicy(), *(PartlyRandom(good[0], share) for share in SHARES), *good]


def _trained(agents: Path) -> "list[Policy]":
    from starflow_world.agents.learning import AGENT, load_agent
    from starflow_world.errors import DataError

    folders = [file.parent for file in sorted(agents.rglob(AGENT))]
    if not folders:
        raise DataError(f"agents: {agents}: expected {AGENT} somewhere below, found none; run train-agent first")
    return [load_agent(folder, f"agent {_label(folder, agents)}") for folder in folders]


def _label(folder: Path, agents: Path) -> str:
    """Return the shortest name that distinguishes an agent's folder from others below `agents`."""
    below = folder.relative_to(agents)
    return str(below) if below.parts else folder.resolve().name


def rank_markdown(figures: dict[str, Any]) -> str:
    """Return the table of scores and ranks in Markdown."""
    from starflow_world.io.reports import markdown_table

    task = f'"{figures["text"]}"' if figures["text"] else figures["env"]
    names = ("return", "discounted", "steps")
    head = ["policy", *(f"{name}, {where}" for name in names for where in ("dream", "real"))]
    rows = [[name, *(f"{score[where][key]:.3g}" for key in (*RANKED, "length") for where in ("dream", "real"))]
            for name, score in figures["scores"].items()]
    found = [figures["spearman"][key] for key in RANKED]
    agreement = ", ".join(f"{name} {'undefined' if value is None else format(value, '.2f')}"
                          for name, value in zip(names, found, strict=False))
    return "\n".join([
        f"# {task}: {len(rows)} policies in the dream and in reality", "",
        f"World `{figures['world']}` ({figures['world_id'][:12]}), {figures['episodes']} episodes of each policy in "
        "both, from the same first frames.", "", markdown_table(head, rows), "",
        f"Spearman's rank correlation (wanted >= 0.9): {agreement}.", "",
    ])
