"""Training of agents in a world and in the real environment, and their evaluation in the latter.

Both use the same algorithm, network, first frames and rewards; the evaluation episodes are never used in training. A
random policy is the baseline. `out` gets the agents, their curves, a video, agents.json and report.md.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from starflow_world.agents.judging import episode_steps
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.agents.task import AgentTask, data_steps, make_task
from starflow_world.commands.train_agent.learner import Curve, train_one
from starflow_world.commands.train_agent.report import write_agent_report
from starflow_world.commands.train_agent.rounds import online_loop
from starflow_world.commands.train_agent.rounds_report import write_rounds_report
from starflow_world.commands.train_agent.settings import AgentSettings
from starflow_world.errors import ConfigError
from starflow_world.io.files import claim, write_text
from starflow_world.io.media import VideoWriter, compared
from starflow_world.world import World


def train_agent(settings: AgentSettings) -> Path:
    """Train, evaluate and report; return the folder. Raises ConfigError if it holds a run and `resume` is not set,
    DataError if that run is another one."""
    from starflow_world.agents.algorithms import check_actions, default_settings

    out, trust = settings.out, settings.trust
    if not settings.resume and any(out.rglob("agent.safetensors")):
        raise ConfigError(f"{out}: expected a new folder, found agents; pass --resume to go on with them")
    default_settings(settings.algorithm)
    world = World.load(settings.world)
    check_actions(settings.algorithm, world.action_space)
    source = settings.environment.source(world)
    known = data_steps(world)
    settings = with_steps(settings, known)
    task = make_task(world, source, settings.text, starts=settings.starts, episodes=settings.episodes)
    settings = replace(settings, text=task.text)
    limits = {} if trust is None else trust.limits
    claim(out / "run.json", {"world_id": world.world_id, "environment": task.source.to_dict(), "trust": limits,
                             **settings.fixed})  # a resumed run may add steps, seeds and rounds
    figures: dict[str, Any] = {
        "world": settings.world, "world_id": world.world_id, "env": source.env, "limit": task.source.max_steps,
        "plan": settings.plan, "data_steps": known,
        "random": {where: task.judge(where, RandomPolicy(), progress=True).to_dict() for where in ("real", "dream")},
        "curves": {"real": [learned(task, "real", settings, seed) for seed in range(settings.seeds)]},
    }
    if settings.rounds:
        figures["rounds"] = [online_loop(task, settings, seed, known) for seed in range(settings.seeds)]
    else:
        figures["curves"]["dream"] = [learned(task, "dream", settings, seed) for seed in range(settings.seeds)]
        write_agent_video(task, out / "dream-0", out / "agent.mp4")
    write_text(out / "agents.json", json.dumps(figures, indent=1))
    (write_rounds_report if settings.rounds else write_agent_report)(figures, out)
    return out


def with_steps(settings: AgentSettings, known: dict[str, Any]) -> AgentSettings:
    """Return the settings with numbers of steps that are 0 filled in. Raises ConfigError if the data's is unknown."""
    if settings.steps == 0 and known["steps"] is None:
        raise ConfigError("steps: expected a number, as the world's card does not say how many steps its data have, "
                          "found 0; pass --steps")
    steps = settings.steps or int(known["steps"])
    return replace(settings, steps=steps, dream_steps=settings.dream_steps or steps)


def learned(task: AgentTask, where: str, settings: AgentSettings, seed: int) -> Curve:
    """Train an agent in "dream" or "real", or resume its training, and return its learning curve."""
    steps = settings.dream_steps * settings.overtime if where == "dream" else settings.steps
    name = f"{where}-{seed}"
    return train_one(task, where, settings, settings.out / name, steps, seed, name)


def write_agent_video(task: AgentTask, agent: Path, path: Path, episodes: int = 6, most: int = 200) -> None:
    """Write a video of the agent in dreams (left) and in the real environment (right), from the same first frames, at
    most `most` steps of each episode."""
    from starflow_world.agents.learning import load_agent

    policy = load_agent(agent)
    with VideoWriter(path, fps=6) as video:
        for index in range(min(episodes, len(task.judged))):
            shown = {where: _shown(task, policy, where, index, most) for where in ("dream", "real")}
            for step in range(max(len(one) for one in shown.values()) + 4):
                now = {where: one[min(step, len(one) - 1)] for where, one in shown.items()}
                said = [f"return {total:.2f}{', over' if over else ''}" for _, total, over in now.values()]
                frames = {where: frame for where, (frame, _, _) in now.items()}
                video.add(compared(frames, [task.text, f"step {step}", f"{said[0]:<24} {said[1]}"]))


def _shown(task: AgentTask, policy: Policy, where: str, index: int, most: int) -> list[tuple[Any, float, bool]]:
    """Return frame, return so far and whether the episode has ended, at each step of an evaluation episode."""
    steps, total = [], 0.0
    for frame, reward, over in episode_steps(policy, task.env(where), task.starts(where)[index], index):
        total += reward
        steps.append((frame, total, over))
        if len(steps) > most:
            break
    return steps
