"""`starflow-world rank`: does a world rank policies as reality does?

Policies of different quality play from the same first frames in the dream and in reality. Success saturates among good
policies, so ranks are taken of the discounted reward as well (sooner is better).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starflow_world.agents.babyai.scripted import ScriptedPolicy
from starflow_world.agents.judging import spearman
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.commands.train_agent import make_task
from starflow_world.errors import DataError
from starflow_world.io.files import write_text

NOISES = (0.95, 0.85, 0.6, 0.0)
RANKED = ("success", "discounted")


def rank(world: str, out: Path, text: str, *, agents: Path | None = None, episodes: int = 100) -> Path:
    """Score a random policy, scripted ones with more and less noise, and the agents found in `agents` in both; write
    rank.json and rank.md into `out`."""
    out = Path(out)
    task, policies = make_task(world, text, starts=1, episodes=episodes), candidates(text, agents)
    scores = {
        policy.name: {where: task.judge(where, policy, progress=True).to_dict() for where in ("dream", "real")}
        for policy in policies
    }
    agreement = {key: spearman(*([one[where][key] for one in scores.values()] for where in ("dream", "real")))
                 for key in RANKED}
    figures = {
        "world": world, "world_id": task.world.world_id, "text": text, "episodes": episodes, "scores": scores,
        "spearman": {key: None if math.isnan(value) else value for key, value in agreement.items()},
    }
    write_text(out / "rank.json", json.dumps(figures, indent=1))
    write_text(out / "rank.md", markdown(figures))
    return out


def candidates(text: str, agents: Path | None) -> Sequence[Policy]:
    """A random policy, scripted ones, and every agent that train-agent saved below a folder."""
    scripted = [ScriptedPolicy(text, noise, f"scripted, {noise:.0%} random") for noise in NOISES]
    found: list[Policy] = [RandomPolicy(), *scripted]
    if agents is None:
        return found
    from starflow_world.agents.ppo import AGENT, load_policy

    folders = [file.parent for file in sorted(Path(agents).rglob(AGENT))]
    if not folders:
        raise DataError(f"agents: {agents}: expected {AGENT} somewhere below, found none; run train-agent first")
    return [*found, *(load_policy(folder, f"PPO {_label(folder, Path(agents))}") for folder in folders)]


def _label(folder: Path, agents: Path) -> str:
    """What tells an agent's folder from the others below `agents`."""
    below = folder.relative_to(agents)
    return str(below) if below.parts else folder.resolve().name


def markdown(figures: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"# \"{figures['text']}\": {len(figures['scores'])} policies in the dream and in reality", "",
        f"World `{figures['world']}` ({figures['world_id'][:12]}), {figures['episodes']} episodes of each policy in "
        "both.", "", "| policy | success, dream | real | discounted, dream | real | steps, dream | real |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in figures["scores"].items():
        cells = (f"{one[where][key]:.2f}" for key in (*RANKED, "length") for where in ("dream", "real"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    agreement = ", ".join(f"{key} {value}" if value is None else f"{key} {value:.2f}"
                          for key, value in figures["spearman"].items())
    return "\n".join([*lines, "", f"Spearman's rank correlation (wanted >= 0.9): {agreement}.", ""])
