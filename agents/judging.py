"""How good a policy is: episodes from given starts, in a dream or in reality, and whether both rank policies alike."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from starflow_world.agents.policy import Policy

DISCOUNT = 0.95
SUCCESS = 0.5


@dataclass(frozen=True)
class EpisodeResult:
    """One episode: its rewards added up, the same discounted by 0.95 a step, its steps, and whether a step of it was
    rewarded with more than 0.5."""

    reward: float
    discounted: float
    steps: int
    success: bool


@dataclass(frozen=True)
class PolicyScore:
    """Means over episodes: success (a share), reward, discounted (finer than success: sooner is better), steps."""

    episodes: int
    success: float
    reward: float
    discounted: float
    length: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Start:
    """What an episode begins with: the arguments of `env.reset`."""

    seed: int
    options: dict[str, Any] | None = None


def episode_steps(
    policy: Policy, env: gymnasium.Env, start: Start, seed: int
) -> Iterator[tuple[Any, float, bool]]:
    """Yield observation, reward and whether the episode is over: first of the start, then after every step."""
    observation, _ = env.reset(seed=start.seed, options=start.options)
    policy.reset(seed, env)
    over = False
    yield observation, 0.0, over
    while not over:
        action = policy(observation)
        policy.played(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        over = bool(terminated or truncated)
        yield observation, float(reward), over


def episode_result(policy: Policy, env: gymnasium.Env, start: Start, seed: int) -> EpisodeResult:
    """Play one episode to its end; all the policy draws follows from `seed`."""
    rewards = np.array([reward for _, reward, _ in episode_steps(policy, env, start, seed)][1:])
    discounted = float((rewards * DISCOUNT ** np.arange(len(rewards))).sum())
    return EpisodeResult(float(rewards.sum()), discounted, len(rewards), bool((rewards > SUCCESS).any()))


def score_policy(
    policy: Policy, env: gymnasium.Env, starts: Sequence[Start], *, seed: int = 0, progress: str | None = None
) -> PolicyScore:
    """Play an episode from each start; `progress` names a bar."""
    bar = tqdm(starts, desc=progress, unit="episode", disable=progress is None, leave=False)
    found = [episode_result(policy, env, start, seed + index) for index, start in enumerate(bar)]
    mean = {name: float(np.mean([getattr(one, name) for one in found])) for name in ("success", "reward", "discounted")}
    return PolicyScore(len(found), **mean, length=float(np.mean([one.steps for one in found])))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation of two lists; equal values share the mean of their ranks; NaN where one list is all equal."""
    ranks = np.stack([_ranks(np.asarray(values, float)) for values in (first, second)])
    ranks -= ranks.mean(1, keepdims=True)
    spread = np.sqrt((ranks**2).sum(1).prod())
    return float(ranks.prod(0).sum() / spread) if spread > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal - 1) / 2
