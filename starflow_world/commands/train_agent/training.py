"""An agent that learns in a dream, judged in reality beside one that learned there.

Both learn by the same PPO from the same first frames for as many steps; neither ever sees the rooms they are judged in.
A random policy stands beside them. `out` gets the agents, their curves, a video, agents.json and report.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from starflow_world.agents.babyai.rooms import LIMIT, Room, Rooms, rooms_with
from starflow_world.agents.judging import PolicyScore, Start, episode_steps, score_policy
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.commands.train_agent.report import write_agent_report
from starflow_world.commands.train_agent.settings import AgentSettings
from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError
from starflow_world.io.files import claim, write_text
from starflow_world.io.media import VideoWriter, compared
from starflow_world.world import Starts, World

JUDGED_FROM = 10_000_000
"""The first seed of the rooms that agents are judged in; those they learn from begin at 0."""


@dataclass(frozen=True)
class AgentTask:
    """One mission in a world and in real rooms like those it was learned from: some to learn from, some to judge in."""

    world: World
    text: str
    learned: tuple[int, ...]
    judged: tuple[int, ...]

    def train_env(self, where: str, envs: int, trust: Trust | None = None) -> VectorEnv:
        """Many episodes at a time, from the rooms to learn from."""
        if where == "real":
            return Rooms(envs, self.learned)
        frames = first_frames(self.learned)
        world = World(self.world.networks, self.world.world_id, Starts(frames, (self.text,) * len(frames)))
        return WorldVectorEnv(
            world, envs, autoreset_mode="same_step", text=self.text, max_episode_steps=LIMIT, trust=trust,
            render_mode="rgb_array",
        )

    def judge(self, where: str, policy: Policy, *, progress: bool = False) -> PolicyScore:
        """The policy's score in the rooms to judge in, or in dreams of them."""
        bar = f"{policy.name}, {where}" if progress else None
        return score_policy(policy, self.env(where), self.starts(where), progress=bar)

    def env(self, where: str) -> Room | WorldEnv:
        """A single env."""
        return Room() if where == "real" else WorldEnv(self.world, text=self.text, max_episode_steps=LIMIT)

    def starts(self, where: str) -> list[Start]:
        """The rooms to judge in, as an env begins with them."""
        if where == "real":
            return [Start(seed) for seed in self.judged]
        frames = first_frames(self.judged).numpy()
        return [Start(seed, {"frames": frame, "text": self.text}) for seed, frame in enumerate(frames)]


def first_frames(rooms: Sequence[int]) -> torch.Tensor:
    """What rooms look like before anything was done, (N, H, W, 3) u8."""
    room = Room()
    return torch.from_numpy(np.stack([room.reset(seed=seed)[0] for seed in rooms]))


def make_task(world: str, text: str, *, starts: int, episodes: int) -> AgentTask:
    """The task; finding its rooms takes some 5 ms each."""
    learned = rooms_with(text, starts, progress=True)
    judged = rooms_with(text, episodes, begin=JUDGED_FROM, progress=True)
    return AgentTask(World.load(world), text, learned, judged)


def train_agent(settings: AgentSettings) -> Path:
    """Train, judge and report; returns the folder. ConfigError where it holds a run that is not to be resumed,
    DataError where that is another one."""
    out, trust = settings.out, settings.trust
    if not settings.resume and any(out.glob("*/agent.safetensors")):
        raise ConfigError(f"{out}: expected a new folder, found agents; pass --resume to go on with them")
    task = make_task(settings.world, settings.text, starts=settings.starts, episodes=settings.episodes)
    recipe = {"world_id": task.world.world_id, "trust": {} if trust is None else trust.limits, **settings.fixed}
    claim(out / "run.json", recipe)  # more steps and seeds may be asked for
    curves = {where: [_learn(task, where, settings, seed) for seed in range(settings.seeds)]
              for where in ("real", "dream")}
    figures = {
        "world": settings.world, "world_id": task.world.world_id, "plan": settings.plan, "curves": curves,
        "random": {where: task.judge(where, RandomPolicy(), progress=True).to_dict() for where in ("real", "dream")},
        "final": [_final(task, out, seed) for seed in range(settings.seeds)],
    }
    write_agent_video(task, out / "dream-0", out / "agent.mp4")
    write_text(out / "agents.json", json.dumps(figures, indent=1))
    write_agent_report(figures, out)
    return out


def _learn(task: AgentTask, where: str, settings: AgentSettings, seed: int) -> list[dict[str, float]]:
    """Train an agent, or go on with it, and return its curve."""
    from starflow_world.agents.ppo import PPOSettings, learn
    from starflow_world.agents.sb3 import SB3VecEnv

    def judged(policy: Policy) -> dict[str, float]:
        return task.judge("real", policy).to_dict()

    env = SB3VecEnv(task.train_env(where, settings.envs, settings.trust), actions=settings.actions or None)
    name = f"{where}-{seed}"
    return learn(env, settings.out / name, PPOSettings(), judged, steps=settings.steps_in(where), chunk=settings.chunk,
                 seed=seed, resume=True, name=name)


def _final(task: AgentTask, out: Path, seed: int) -> dict[str, dict[str, float]]:
    """An agent that learned in the dream, in dreams of the rooms to judge in and in those rooms."""
    from starflow_world.agents.ppo import load_policy

    policy = load_policy(out / f"dream-{seed}")
    return {where: task.judge(where, policy, progress=True).to_dict() for where in ("real", "dream")}


def write_agent_video(task: AgentTask, agent: Path, path: Path, episodes: int = 6) -> None:
    """The agent in dreams (left) and in reality (right), from the same first frames, each going its own way."""
    from starflow_world.agents.ppo import load_policy

    with VideoWriter(path, fps=6) as video:
        for index in range(min(episodes, len(task.judged))):
            shown = {where: list(episode_steps(load_policy(agent), task.env(where), task.starts(where)[index], index))
                     for where in ("dream", "real")}
            for step in range(max(len(one) for one in shown.values()) + 4):
                now = {where: one[min(step, len(one) - 1)] for where, one in shown.items()}
                ends = ["" if not over else "there" if gain > 0.5 else "time is up" for _, gain, over in now.values()]
                frames = {where: frame for where, (frame, _, _) in now.items()}
                video.add(compared(frames, [task.text, f"step {step}   {ends[0]:<12}  {ends[1]}"]))
