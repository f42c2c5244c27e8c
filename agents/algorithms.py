"""Algorithms of Stable-Baselines3 with one network and one set of settings, and the policies that they learn.

PPO (Schulman et al. 2017) for Discrete and Box actions, DQN (Mnih et al. 2015) for Discrete, SAC (Haarnoja et al. 2018)
for Box actions. They differ in what they learn from: PPO from its last steps, the others from a memory of steps.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from starflow_world.agents.network import Places
from starflow_world.agents.policy import Policy
from starflow_world.envs.observation import shown
from starflow_world.errors import ConfigError

ACTIONS: dict[str, tuple[type[spaces.Space], ...]] = {
    "ppo": (spaces.Discrete, spaces.Box), "dqn": (spaces.Discrete,), "sac": (spaces.Box,)
}
"""Action spaces of each algorithm."""
MEMORY_BYTES, MOST_STEPS_KEPT = 256 * 2**20, 100_000
LEAST_CHANCE = 0.05
"""Probability of a random action of DQN, after its exploration."""


@dataclass(frozen=True)
class LearnerSettings:
    """Settings of an algorithm, besides env, number of steps and seed.

    discount: of rewards per step. pairs, frequencies: of `Places`; width: of the layers after it. PPO: `rollout` steps
    of each sub-environment between updates, `epochs` over them, `gae` and `entropy` coefficients. DQN and SAC: one
    update with `batch` remembered steps per `every` steps, after `warmup` random ones; the share of random actions of
    DQN falls over `explore` steps.
    """

    algorithm: str = "ppo"
    learning_rate: float = 1e-3
    discount: float = 0.97
    batch: int = 256
    pairs: int = 16
    frequencies: int = 4
    width: int = 64
    rollout: int = 32
    epochs: int = 4
    gae: float = 0.9
    entropy: float = 0.01
    warmup: int = 1000
    every: int = 16
    explore: int = 20_000

    def __post_init__(self) -> None:
        if self.algorithm not in ACTIONS:
            raise ConfigError(f"algorithm: expected one of {', '.join(ACTIONS)}, found {self.algorithm!r:.60}")


def default_settings(algorithm: str) -> LearnerSettings:
    """Return the settings of an algorithm. Raises ConfigError for an unknown one."""
    if algorithm == "ppo":
        return LearnerSettings()
    return LearnerSettings(algorithm, learning_rate=3e-4, batch=128)


def check_actions(algorithm: str, space: spaces.Space) -> None:
    """Raise ConfigError unless the algorithm can choose actions of this space."""
    kinds = ACTIONS[algorithm]
    fits = isinstance(space, kinds) and getattr(space, "start", 0) == 0
    if isinstance(space, spaces.Box):
        fits = fits and np.issubdtype(space.dtype, np.floating) and (algorithm != "sac" or space.is_bounded())
    if not fits:
        names = " or ".join(kind.__name__ for kind in kinds)
        others = [other for other in ACTIONS if isinstance(space, ACTIONS[other]) and other != algorithm]
        hint = f"; choose --algorithm {' or '.join(others)}" if others else ""
        raise ConfigError(f"algorithm {algorithm}: expected {names} actions (a Discrete from 0, a Box of floats), "
                          f"found {space!s:.120}{hint}")


def make_agent(env: VecEnv, settings: LearnerSettings, seed: int) -> BaseAlgorithm:
    """Return an untrained agent. Raises ConfigError if actions do not fit, or a batch is larger than a rollout."""
    check_actions(settings.algorithm, env.action_space)
    common: dict[str, Any] = {
        "seed": seed, "device": "cpu", "learning_rate": settings.learning_rate, "gamma": settings.discount,
        "batch_size": settings.batch, "policy_kwargs": architecture(settings),
    }
    if settings.algorithm == "ppo":
        if settings.batch > settings.rollout * env.num_envs:
            said = f"a batch of {settings.batch} of {settings.rollout} steps in {env.num_envs} envs"
            raise ConfigError(f"batch: expected at most the steps of a rollout, found {said}; take more envs")
        return PPO("CnnPolicy", env, n_steps=settings.rollout, n_epochs=settings.epochs, gae_lambda=settings.gae,
                   ent_coef=settings.entropy, **common)
    each = 2 * int(np.prod(env.observation_space.shape or (1,)))
    kept = min(MOST_STEPS_KEPT, max(settings.batch, MEMORY_BYTES // each))
    common |= {"buffer_size": kept, "learning_starts": settings.warmup, "train_freq": 1,
               "gradient_steps": max(1, env.num_envs // settings.every)}
    if settings.algorithm == "sac":
        return SAC("CnnPolicy", env, **common)
    agent = DQN("CnnPolicy", env, target_update_interval=max(1000, env.num_envs), **common)
    # by steps, not by the share of the run: a run that is resumed with more steps explores as before
    agent.exploration_schedule = lambda _: max(LEAST_CHANCE, 1 - agent.num_timesteps / settings.explore)
    return agent


def architecture(settings: LearnerSettings) -> dict[str, Any]:
    """Return the arguments of a policy of SB3: `Places`, and a layer for each head."""
    places = {"pairs": settings.pairs, "frequencies": settings.frequencies, "width": settings.width}
    heads: Any = [settings.width]
    if settings.algorithm != "dqn":
        heads = {"pi": heads, "vf" if settings.algorithm == "ppo" else "qf": heads}
    return {"features_extractor_class": Places, "features_extractor_kwargs": places, "net_arch": heads}


@dataclass
class AgentPolicy(Policy):
    """Policy of a trained agent: frames (H, W, 3) u8 -> action. PPO and SAC draw from their distribution, DQN takes
    the best action, or a random one with the probability with which it went on to explore.

    In an env whose observations are not frames of the agent's size it acts by the frames that `render` returns.
    """

    network: Any = field(repr=False)
    algorithm: str = "ppo"
    name: str = "ppo"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._rng, self._env = np.random.default_rng(seed), env
        pixels = env.observation_space.dtype == np.uint8
        _, height, width = self.network.observation_space.shape
        self._size = height, width
        self._watches = not pixels or env.observation_space.shape != (height, width, 3)

    @torch.inference_mode()
    def __call__(self, observation: Any) -> Any:
        frame = shown(self._env.render(), self._size) if self._watches else observation
        seen, _ = self.network.obs_to_tensor(frame)
        if self.algorithm == "dqn":
            values = self.network.q_net(seen)[0].numpy()
            if self._rng.random() < LEAST_CHANCE:
                return int(self._rng.integers(len(values)))
            return int(values.argmax())
        if self.algorithm == "sac":
            mean, log_deviation, _ = self.network.actor.get_action_dist_params(seen)
            drawn = np.tanh(self._drawn(mean[0].numpy(), log_deviation[0].exp().numpy()))
            return self._in_space(self.network.unscale_action(drawn))
        chosen = self.network.get_distribution(seen).distribution
        if isinstance(self.network.action_space, spaces.Discrete):
            chances = chosen.probs[0].double().cumsum(0).numpy()
            return min(int(np.searchsorted(chances, self._rng.random() * chances[-1], side="right")), len(chances) - 1)
        return self._in_space(self._drawn(chosen.mean[0].numpy(), chosen.stddev[0].numpy()))

    def _drawn(self, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        return np.asarray(mean + deviation * self._rng.standard_normal(mean.shape))

    def _in_space(self, action: np.ndarray) -> np.ndarray:
        space = self.network.action_space
        return action.clip(space.low, space.high).astype(space.dtype).reshape(space.shape)

    def check(self, env: gymnasium.Env) -> None:
        own, theirs = self.network.action_space, env.action_space
        fewer = isinstance(own, spaces.Discrete) and isinstance(theirs, spaces.Discrete) and theirs.n >= own.n
        if own != theirs and not fewer:
            raise ConfigError(f"policy {self.name}: expected actions {own}, found {theirs}; take an agent that was "
                              "trained in this env")

    def recipe(self) -> dict[str, Any]:
        tensors = (tensor.detach().cpu().numpy().tobytes() for tensor in self.network.state_dict().values())
        return super().recipe() | {"weights": hashlib.sha256(b"".join(tensors)).hexdigest()}
