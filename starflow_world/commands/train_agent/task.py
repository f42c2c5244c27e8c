"""One task in a world and in its real environment: training episodes and evaluation episodes."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from starflow_world.agents.babyai import rooms
from starflow_world.agents.environment import Environment
from starflow_world.agents.judging import PolicyScore, Start, score_policy
from starflow_world.agents.policy import Policy
from starflow_world.envs.observation import mission, shown
from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError, DataError
from starflow_world.world import Starts, World

JUDGED_FROM = 10_000_000
"""First seed of the evaluation episodes; those of training episodes start at 0."""
MISSION = "go to the red ball"
"""Default mission in BabyAI."""
PATIENCE = 2000


class PictureEnv(gymnasium.Wrapper[np.ndarray, Any, Any, Any]):
    """A real environment with frames (H, W, 3) u8 as observations, and rewards as they are recorded.

    seeds: an episode starts with one of these, drawn by the seed of `reset`; empty: with that seed itself.
    """

    def __init__(self, source: Environment, seeds: Sequence[int] = ()) -> None:
        super().__init__(source.make())
        self.source, self.seeds, self._generator = source, tuple(seeds), np.random.default_rng()
        self.observation_space = spaces.Box(0, 255, (*source.size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode; `text` in the info is the mission, if there is one."""
        if self.seeds:
            self._generator = self._generator if seed is None else np.random.default_rng(seed)
            seed = int(self._generator.choice(self.seeds))
        with redirect_stdout(StringIO()):  # BabyAI prints its rejected samples
            observation, info = self.env.reset(seed=seed, options=options)
        return self._frame(), {"text": mission(self.env, observation, info)}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step; return the frame, reward, terminated, truncated and info."""
        _, gain, terminated, truncated, _ = self.env.step(action)
        reward = float(float(gain) > 0) if self.source.reward == "event" else float(gain)
        return self._frame(), reward, bool(terminated), bool(truncated), {}

    def _frame(self) -> np.ndarray:
        return shown(self.env.render(), self.source.size)


@dataclass(frozen=True)
class RealEpisodes:
    """Episodes of a real environment, identified by their seeds; with `text` only those of that mission."""

    source: Environment
    text: str

    def single(self) -> gymnasium.Env:
        """Make one environment."""
        return PictureEnv(self.source)

    def many(self, count: int, seeds: Sequence[int]) -> VectorEnv:
        """Make a vector env of `count` environments whose episodes start with `seeds`."""
        make: Callable[[], gymnasium.Env] = lambda: PictureEnv(self.source, seeds)  # noqa: E731
        return SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)

    def seeds(self, count: int, begin: int) -> tuple[int, ...]:
        """Return the first `count` seeds from `begin` on with the mission. Raises DataError if it does not occur."""
        if not self.text:
            return tuple(range(begin, begin + count))
        seeds: list[int] = []
        env, last, seed = self.single(), begin, begin
        while len(seeds) < count:
            text = env.reset(seed=seed)[1]["text"]
            if text == self.text:
                seeds.append(seed)
                last = seed
            elif seed - last > PATIENCE:
                raise DataError(f"text: expected a mission of {self.source.env}, such as {text!r}, found "
                                f"{self.text!r:.80}")
            seed += 1
        return tuple(seeds)


class BabyAIRooms(RealEpisodes):
    """Episodes of BabyAI-GoToLocalS8N4, drawn about 50 times as fast as by the simulator's renderer."""

    def single(self) -> gymnasium.Env:
        """Make one room."""
        return rooms.Room(max_steps=self.source.max_steps or rooms.LIMIT)

    def many(self, count: int, seeds: Sequence[int]) -> VectorEnv:
        """Make a vector env of `count` rooms whose episodes start with `seeds`."""
        return rooms.Rooms(count, seeds, max_steps=self.source.max_steps or rooms.LIMIT)

    def seeds(self, count: int, begin: int) -> tuple[int, ...]:
        """Return the first `count` seeds >= `begin` whose room has the mission."""
        return rooms.rooms_with(self.text, count, begin=begin, progress=True)


@dataclass(frozen=True)
class AgentTask:
    """A world, its real episodes, and the seeds for training and for evaluation."""

    world: World
    real: RealEpisodes
    learned: tuple[int, ...]
    judged: tuple[int, ...]

    def train_env(self, where: str, envs: int, trust: Trust | None = None) -> VectorEnv:
        """Make a vector env, "real" or "dream", whose episodes start as the training episodes do."""
        if where == "real":
            return self.real.many(envs, self.learned)
        frames, texts = first_frames(self.real, self.learned)
        world = World(self.world.networks, self.world.world_id, Starts(frames, texts), self.world.folder)
        return WorldVectorEnv(
            world, envs, autoreset_mode="same_step", text=self.real.text or None, trust=trust,
            max_episode_steps=self.real.source.max_steps, render_mode="rgb_array",
        )

    def judge(self, where: str, policy: Policy, *, progress: bool = False) -> PolicyScore:
        """Return the policy's score in the evaluation episodes, or in dreams that start as they do."""
        bar = f"{policy.name}, {where}" if progress else None
        return score_policy(policy, self.env(where), self.starts(where), progress=bar)

    def env(self, where: str) -> gymnasium.Env:
        """Make one environment, "real" or "dream"."""
        if where == "real":
            return self.real.single()
        return WorldEnv(self.world, text=self.real.text or None, max_episode_steps=self.real.source.max_steps)

    def starts(self, where: str) -> list[Start]:
        """Return the starts of the evaluation episodes."""
        if where == "real":
            return [Start(seed) for seed in self.judged]
        frames, texts = first_frames(self.real, self.judged)
        return [Start(seed, {"frames": frame, "text": text})
                for seed, (frame, text) in enumerate(zip(frames.numpy(), texts, strict=True))]


def first_frames(real: RealEpisodes, seeds: Sequence[int]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return the first frames (N, H, W, 3) u8 and the texts of the episodes with these seeds."""
    env = real.single()
    starts = [env.reset(seed=seed) for seed in seeds]
    return torch.from_numpy(np.stack([frame.copy() for frame, _ in starts])), tuple(i["text"] for _, i in starts)


def in_babyai(source: Environment) -> bool:
    """Return whether the fast rooms can replace an environment."""
    return source.env == rooms.ENV and not source.env_kwargs and not source.wrappers


def make_task(world: World, source: Environment, text: str, *, starts: int, episodes: int) -> AgentTask:
    """Make the task of a world in its real environment. Raises ConfigError, before playing, if they do not fit."""
    config = world.config
    source = replace(source, max_steps=source.max_steps or config.max_episode_steps)
    real = BabyAIRooms(source, text or MISSION) if in_babyai(source) else RealEpisodes(source, text)
    if world.networks.outcome is None:
        raise ConfigError(f"world {config.name}: expected one that predicts rewards, found none; train it with rewards")
    env = real.single()
    size, actions = (config.height, config.width, 3), env.action_space
    if not isinstance(actions, spaces.Discrete) or actions != world.action_space:
        raise ConfigError(f"world {config.name}: expected the Discrete actions of {source.env}, {actions}, found "
                          f"{world.action_space}; choose another world or --env")
    if env.observation_space.shape != size:
        raise ConfigError(f"world {config.name}: expected frames of {source.env}, {env.observation_space.shape}, found "
                          f"{size}; choose another world or --env")
    return AgentTask(world, real, real.seeds(starts, 0), real.seeds(episodes, JUDGED_FROM))
