"""One task in a world and in its real environment: training and evaluation episodes that begin and look the same.

In both, observations are frames (H, W, 3) u8 of the view, size and wrappers in the world's card, rewards are those that
were recorded (raw or events), and episodes are truncated after the same number of steps.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from starflow_world.agents.environment import Environment
from starflow_world.agents.judging import PolicyScore, Start, score_in_dreams, score_policy
from starflow_world.agents.policy import Policy
from starflow_world.envs.observation import mission, shown
from starflow_world.envs.trust import Trust
from starflow_world.envs.vector_env import WorldVectorEnv
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError, DataError
from starflow_world.world import Starts, World

JUDGED_FROM = 10_000_000
"""First seed of the evaluation episodes; those of training episodes start at 0."""
PATIENCE = 2000
ROWS = 64
"""Most dreams that are judged at a time."""


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
class AgentTask:
    """A world, its real environment, the mission (empty: any), and the seeds for training and for evaluation."""

    world: World
    source: Environment
    text: str
    learned: tuple[int, ...]
    judged: tuple[int, ...]

    def train_env(self, where: str, envs: int, trust: Trust | None = None) -> VectorEnv:
        """Make a vector env, "real" or "dream", whose episodes start as the training episodes do."""
        if where == "dream":
            return self._dreams(envs, trust)
        make: Callable[[], gymnasium.Env] = lambda: PictureEnv(self.source, self.learned)  # noqa: E731
        return SyncVectorEnv([make] * envs, autoreset_mode=AutoresetMode.SAME_STEP)

    def judge(self, where: str, policy: Policy, *, progress: bool = False) -> PolicyScore:
        """Return the policy's score in the evaluation episodes, or in dreams that start as they do."""
        bar, starts = f"{policy.name}, {where}" if progress else None, self.starts(where)
        if where == "real":
            return score_policy(policy, self.env(where), starts, progress=bar)
        dreams = self._dreams(min(ROWS, len(starts)))
        return score_in_dreams(policy, dreams, self.env(where), starts, progress=bar)

    def env(self, where: str) -> gymnasium.Env:
        """Make one environment, "real" or "dream"."""
        if where == "real":
            return PictureEnv(self.source)
        return WorldEnv(self.world, text=self.text or None, max_episode_steps=self.source.max_steps)

    def starts(self, where: str) -> list[Start]:
        """Return the starts of the evaluation episodes."""
        return [Start(seed) for seed in self.judged] if where == "real" else self._dreamed_starts

    @cached_property
    def _learned_frames(self) -> Starts:
        return self._starts_of(self.learned)

    @cached_property
    def _dreamed_starts(self) -> list[Start]:
        starts = self._starts_of(self.judged)
        return [Start(seed, {"frames": frame, "text": text})
                for seed, (frame, text) in enumerate(zip(starts.frames.numpy(), starts.texts, strict=True))]

    def _starts_of(self, seeds: Sequence[int]) -> Starts:
        """Return the first frames of real episodes as a start set of the world, with texts if it reads them."""
        frames, texts = first_frames(self.source, seeds)
        return Starts(frames, tuple(self.world.texts_for(texts)))

    def _dreams(self, envs: int, trust: Trust | None = None) -> WorldVectorEnv:
        world = World(self.world.networks, self.world.world_id, self._learned_frames, self.world.folder)
        return WorldVectorEnv(world, envs, autoreset_mode="same_step", text=self.text or None, trust=trust,
                              max_episode_steps=self.source.max_steps, render_mode="rgb_array")


def first_frames(source: Environment, seeds: Sequence[int]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return the first frames (N, H, W, 3) u8 and the texts of the real episodes with these seeds."""
    env = PictureEnv(source)
    starts = [env.reset(seed=seed) for seed in seeds]
    return torch.from_numpy(np.stack([frame for frame, _ in starts])), tuple(info["text"] for _, info in starts)


def seeds_with(source: Environment, text: str, count: int, begin: int) -> tuple[int, ...]:
    """Return the first `count` seeds from `begin` on whose episode has the mission `text` (empty: any). Raises
    DataError if it does not occur in 2,000 episodes in a row."""
    if not text:
        return tuple(range(begin, begin + count))
    seeds: list[int] = []
    env, last, seed = source.make(), begin, begin
    while len(seeds) < count:
        with redirect_stdout(StringIO()):
            said = mission(env, *env.reset(seed=seed))
        if said == text:
            seeds.append(seed)
            last = seed
        elif seed - last > PATIENCE:
            raise DataError(f"text: expected a mission of {source.env}, such as {said!r}, found {text!r:.80}")
        seed += 1
    return tuple(seeds)


def make_task(world: World, source: Environment, text: str, *, starts: int, episodes: int) -> AgentTask:
    """Make the task of a world in its real environment. Raises ConfigError, before playing, if they do not fit.

    text: the mission; empty: the most frequent one of the world's starts, if the world reads texts, else any.
    """
    config = world.config
    source = replace(source, max_steps=source.max_steps or config.max_episode_steps)
    if not text and world.networks.text is not None and world.starts is not None:
        text = Counter(world.starts.texts).most_common(1)[0][0]
    if world.networks.outcome is None:
        raise ConfigError(f"world {config.name}: expected one that predicts rewards, found none; train it with rewards")
    env = PictureEnv(source)
    size = (config.height, config.width, 3)
    if env.action_space != world.action_space:
        raise ConfigError(f"world {config.name}: expected the actions of {source.env}, {env.action_space}, found "
                          f"{world.action_space}; choose another world or --env")
    if env.observation_space.shape != size:
        raise ConfigError(f"world {config.name}: expected frames of {source.env}, {env.observation_space.shape}, found "
                          f"{size}; choose another world or --env")
    return AgentTask(world, source, text, seeds_with(source, text, starts, 0),
                     seeds_with(source, text, episodes, JUDGED_FROM))


def data_steps(world: World) -> dict[str, Any]:
    """Return the number of real env steps that a world was trained on, from its card: `steps`, None if unknown, and
    `exact`, False where the card names episodes only and `steps` is the most that they can have."""
    card = world.card
    if isinstance(card.get("real_steps"), int):
        return {"steps": card["real_steps"], "exact": True}
    episodes, limit = card.get("episodes"), card.get("max_steps") or world.config.max_episode_steps
    if not isinstance(episodes, int):
        return {"steps": None, "exact": False}
    return {"steps": episodes * limit + int(card.get("starts", 0)), "exact": False}
