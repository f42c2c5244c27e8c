"""Evaluation of policies: scores over episodes from given starts, and rank correlation of two lists of scores."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from starflow_world.agents.policy import Policy
from starflow_world.envs.vector_env import WorldVectorEnv

DISCOUNT = 0.95
SUCCESS = 0.5


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one episode: sum of rewards, sum discounted by 0.95 per step, number of steps, and whether any reward
    was above 0.5."""

    reward: float
    discounted: float
    steps: int
    success: bool


@dataclass(frozen=True)
class PolicyScore:
    """Means over episodes: success (a share), reward, discounted reward (higher for an earlier success), length."""

    episodes: int
    success: float
    reward: float
    discounted: float
    length: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Start:
    """Start of an episode: the arguments of `env.reset`."""

    seed: int
    options: dict[str, Any] | None = None


def episode_steps(
    policy: Policy, env: gymnasium.Env, start: Start, seed: int
) -> Iterator[tuple[Any, float, bool]]:
    """Yield observation, reward and whether the episode has ended: at the start, then after every step."""
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
    """Play one episode to its end; `seed` determines all random choices of the policy."""
    return _result([reward for _, reward, _ in episode_steps(policy, env, start, seed)][1:])


def _result(gains: Sequence[float]) -> EpisodeResult:
    rewards = np.array(gains)
    discounted = float((rewards * DISCOUNT ** np.arange(len(rewards))).sum())
    return EpisodeResult(float(rewards.sum()), discounted, len(rewards), bool((rewards > SUCCESS).any()))


def score_policy(
    policy: Policy, env: gymnasium.Env, starts: Sequence[Start], *, seed: int = 0, progress: str | None = None
) -> PolicyScore:
    """Play an episode from each start and return the averages; `progress` is the title of a progress bar."""
    bar = tqdm(starts, desc=progress, unit="episode", disable=progress is None, leave=False)
    return _score([episode_result(policy, env, start, seed + index) for index, start in enumerate(bar)])


def score_in_dreams(
    policy: Policy, dreams: WorldVectorEnv, env: gymnasium.Env, starts: Sequence[Start], *, seed: int = 0,
    progress: str | None = None,
) -> PolicyScore:
    """Return what `score_policy` returns for `env`, one dream, by as many episodes at a time as `dreams` has rows.

    The policy chooses by observations alone; `env` tells it the spaces. The mode of `dreams` is same_step.
    """
    rows, results = dreams.num_envs, list[EpisodeResult]()
    with tqdm(total=len(starts), desc=progress, unit="episode", disable=progress is None, leave=False) as bar:
        for begin in range(0, len(starts), rows):
            part = starts[begin : begin + rows]
            results += _results_in_dreams(policy, dreams, env, part, seed + begin)
            bar.update(len(part))
    return _score(results)


def _results_in_dreams(
    policy: Policy, dreams: WorldVectorEnv, env: gymnasium.Env, starts: Sequence[Start], seed: int
) -> list[EpisodeResult]:
    """Play at most N episodes in N rows; rows without one repeat the last start and are not counted."""
    given = [*starts, *[starts[-1]] * (dreams.num_envs - len(starts))]
    options: dict[str, Any] = {key: [(start.options or {})[key] for start in given] for key in given[0].options or {}}
    if "frames" in options:
        options["frames"] = np.stack(options["frames"])
    observations, _ = dreams.reset(seed=[start.seed for start in given], options=options or None)
    policies = [copy.copy(policy) for _ in given]  # `reset` sets all that a policy knows of its episode
    for row, player in enumerate(policies):
        player.reset(seed + row, env)
    gains: list[list[float]] = [[] for _ in starts]
    over = np.zeros(len(starts), bool)
    while not over.all():
        actions = [player(seen) for player, seen in zip(policies, observations, strict=True)]
        observations, rewards, terminated, truncated, _ = dreams.step(actions)
        for row in np.flatnonzero(~over).tolist():
            policies[row].played(actions[row])
            gains[row].append(float(rewards[row]))
        over |= (terminated | truncated)[: len(starts)]
    return [_result(row) for row in gains]


def _score(results: Sequence[EpisodeResult]) -> PolicyScore:
    columns = np.array([(r.success, r.reward, r.discounted, r.steps) for r in results], float)
    return PolicyScore(len(results), *columns.mean(axis=0).tolist())


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; ties share the mean of their ranks; NaN if all values of a list are equal."""
    ranks = np.stack([_ranks(np.asarray(values, float)) for values in (first, second)])
    ranks -= ranks.mean(1, keepdims=True)
    spread = np.sqrt((ranks**2).sum(1).prod())
    return float(ranks.prod(0).sum() / spread) if spread > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal - 1) / 2
