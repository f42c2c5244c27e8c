"""Training of agents in a world and in the real environment, and their evaluation in the latter.

Both use the same PPO, first frames and number of steps; the evaluation episodes are never used in training. A random
policy is the baseline. `out` gets the agents, their curves, a video, agents.json and report.md.
"""

import json
from dataclasses import replace
from pathlib import Path

from starflow_world.agents.judging import episode_steps
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.commands.train_agent.report import write_agent_report
from starflow_world.commands.train_agent.settings import AgentSettings
from starflow_world.commands.train_agent.task import AgentTask, in_babyai, make_task
from starflow_world.errors import ConfigError
from starflow_world.io.files import claim, write_text
from starflow_world.io.media import VideoWriter, compared
from starflow_world.world import World


def train_agent(settings: AgentSettings) -> Path:
    """Train, evaluate and report; return the folder. Raises ConfigError if it holds a run and `resume` is not set,
    DataError if that run is another one."""
    out, trust = settings.out, settings.trust
    if not settings.resume and any(out.glob("*/agent.safetensors")):
        raise ConfigError(f"{out}: expected a new folder, found agents; pass --resume to go on with them")
    import starflow_world.agents.ppo  # noqa: F401  (a missing package is found before anything is played)

    world = World.load(settings.world)
    source = settings.environment.source(world)
    settings = replace(settings, actions=settings.offered(babyai=in_babyai(source)))
    task = make_task(world, source, settings.text, starts=settings.starts, episodes=settings.episodes)
    settings = replace(settings, text=task.real.text)
    recipe = {"world_id": task.world.world_id, "trust": {} if trust is None else trust.limits, **settings.fixed}
    if not in_babyai(source):
        recipe["environment"] = task.real.source.to_dict()
    claim(out / "run.json", recipe)  # a resumed run may add steps and seeds
    curves = {where: [_learn(task, where, settings, seed) for seed in range(settings.seeds)]
              for where in ("real", "dream")}
    figures = {
        "world": settings.world, "world_id": task.world.world_id, "env": source.env,
        "limit": task.real.source.max_steps, "plan": settings.plan, "curves": curves,
        "random": {where: task.judge(where, RandomPolicy(), progress=True).to_dict() for where in ("real", "dream")},
        "final": [_final(task, out, seed) for seed in range(settings.seeds)],
    }
    write_agent_video(task, out / "dream-0", out / "agent.mp4")
    write_text(out / "agents.json", json.dumps(figures, indent=1))
    write_agent_report(figures, out)
    return out


def _learn(task: AgentTask, where: str, settings: AgentSettings, seed: int) -> list[dict[str, float]]:
    """Train an agent, or resume its training, and return its learning curve."""
    from starflow_world.agents.ppo import PPOSettings, learn
    from starflow_world.agents.sb3 import SB3VecEnv

    def judged(policy: Policy) -> dict[str, float]:
        return task.judge("real", policy).to_dict()

    env = SB3VecEnv(task.train_env(where, settings.envs, settings.trust), actions=settings.actions or None)
    name = f"{where}-{seed}"
    return learn(env, settings.out / name, PPOSettings(), judged, steps=settings.steps_in(where), chunk=settings.chunk,
                 seed=seed, resume=True, name=name)


def _final(task: AgentTask, out: Path, seed: int) -> dict[str, dict[str, float]]:
    """Evaluate an agent trained in the world, in the evaluation episodes and in dreams that start as they do."""
    from starflow_world.agents.ppo import load_policy

    policy = load_policy(out / f"dream-{seed}")
    return {where: task.judge(where, policy, progress=True).to_dict() for where in ("real", "dream")}


def write_agent_video(task: AgentTask, agent: Path, path: Path, episodes: int = 6) -> None:
    """Write a video of the agent in dreams (left) and in the real environment (right), from the same first frames."""
    from starflow_world.agents.ppo import load_policy

    with VideoWriter(path, fps=6) as video:
        for index in range(min(episodes, len(task.judged))):
            shown = {where: list(episode_steps(load_policy(agent), task.env(where), task.starts(where)[index], index))
                     for where in ("dream", "real")}
            for step in range(max(len(one) for one in shown.values()) + 4):
                now = {where: one[min(step, len(one) - 1)] for where, one in shown.items()}
                ends = ["" if not over else "there" if gain > 0.5 else "time is up" for _, gain, over in now.values()]
                frames = {where: frame for where, (frame, _, _) in now.items()}
                video.add(compared(frames, [task.real.text, f"step {step}   {ends[0]:<12}  {ends[1]}"]))
