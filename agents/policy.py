"""Policies: map observations to actions, given their settings, the seed of the episode and the steps so far."""

import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from starflow_world.errors import ActionError, DataError

COPY_STEPS = 32


class Policy(Protocol):
    """Interface of a policy; a subclass must define `name`, `reset` and `__call__`.

    A policy is a dataclass whose fields are its settings, which `recipe` records. Its episode state is set by `reset`.
    """

    @property
    def name(self) -> str:
        """Return the name of the behaviour in the current episode, for the episode's record."""

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        """Start an episode in `env`, which has just been reset."""

    def __call__(self, observation: Any) -> Any:
        """Return the next action, an element of the env's action space."""

    def played(self, action: Any) -> None:
        """Receive the action that was taken after the last call, which may differ from the one returned."""
        return None

    def check(self, env: gymnasium.Env) -> None:
        """Raise ConfigError or ActionError if this policy cannot act in `env`; the caller resets `env` afterwards."""
        return None

    def recipe(self) -> dict[str, Any]:
        """Return class and settings as JSON; only a policy with an equal recipe can continue a collection."""
        shown = [setting.name for setting in fields(self) if setting.repr] if is_dataclass(self) else ["name"]
        return {"type": type(self).__name__, **{name: _plain(getattr(self, name)) for name in shown}}


def recipe_of(policy: Any) -> dict[str, Any]:
    """Return the policy's recipe; for an object that is not a `Policy`, its class and settings."""
    return dict(policy.recipe() if hasattr(policy, "recipe") else Policy.recipe(policy))


def _plain(value: Any) -> Any:
    """Return a setting as JSON: a nested policy as its recipe, a value that JSON cannot hold as its repr."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return recipe_of(value)
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def policy_record(policy: Policy, recorded: Any = None) -> Any:
    """Return the entry of a run's record for its policy: the recipe, or the repr if `recorded` is that (older runs)."""
    return recorded if recorded == repr(policy) else recipe_of(policy)


def check_policy(policy: Policy, env: gymnasium.Env) -> None:
    """Raise ConfigError, ActionError or DataError if the policy cannot act in `env`."""
    if hasattr(policy, "check"):
        policy.check(env)


@dataclass
class RandomPolicy(Policy):
    """Policy that samples the action space; `weights`: probabilities of Discrete actions (default uniform)."""

    weights: tuple[float, ...] | None = None
    name: str = "random"

    def check(self, env: gymnasium.Env) -> None:
        size = getattr(env.action_space, "n", None)
        if self.weights is not None and (
            size != len(self.weights) or min(self.weights) < 0 or sum(self.weights) <= 0
        ):
            raise ActionError(f"expected weights for the actions of {env.action_space}, found {self.weights}; "
                              "give one weight >= 0 per action of a Discrete space")

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self.check(env)
        self._space: Any = copy.deepcopy(env.action_space)
        self._space.seed(seed)
        self._rng = np.random.default_rng(seed)
        self._sums = None if self.weights is None else np.cumsum(self.weights) / sum(self.weights)

    def __call__(self, observation: Any) -> Any:
        if self._sums is None:
            return self._space.sample()
        draw = int(np.searchsorted(self._sums, self._rng.random(), side="right"))
        return int(self._space.start) + draw


def avoid_end(
    env: gymnasium.Env, action: Any, other: Policy, observation: Any, *, tries: int = 30, luck: int | None = None
) -> Any:
    """Return `action`, or the first of `tries` actions of `other` that does not terminate; the last if all do.

    Each is tested by stepping a deep copy of the env (0.5 ms for a MiniGrid). With a seed `luck` the copy draws its own
    random numbers, so that the choice of an action says nothing about what chance does to it.
    """
    for attempt in range(tries):
        twin = copy.deepcopy(env)
        if luck is not None:
            twin.unwrapped.np_random = np.random.default_rng((luck, attempt))
        if not twin.step(action)[2]:
            break
        action = other(observation)
    return action


@dataclass
class CarefulPolicy(Policy):
    """Policy of random actions that avoids most of those that would end the episode, so that episodes are long.

    risk: probability that an action is not checked. Which actions end it is asked from copies of the environment.
    """

    risk: float = 0.03
    name: str = "careful"

    def check(self, env: gymnasium.Env) -> None:
        check_copies(env)

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._env, self._rng, self._random = env, np.random.default_rng(seed), RandomPolicy()
        self._random.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        action, luck = self._random(observation), int(self._rng.integers(1 << 31))
        if self._rng.random() < self.risk:
            return action
        return avoid_end(self._env, action, self._random, observation, luck=luck)


def check_copies(env: gymnasium.Env) -> None:
    """Raise DataError unless a deep copy of `env` gives the same step result and the same frame as `env`.

    Copies of many simulators (MuJoCo, Box2D, Atari: `gymnasium.utils.EzPickle`) are fresh environments instead.
    """
    space: Any = copy.deepcopy(env.action_space)
    space.seed(0)
    env.reset(seed=0)
    env.render()
    for step in range(COPY_STEPS):
        action = space.sample()
        try:
            twin = copy.deepcopy(env)
            fault = "whose random numbers differ" if _random_state(twin) != _random_state(env) else ""
            theirs = twin.step(action)[:4]
        except Exception as error:  # foreign code: a fresh copy may fail in any way
            raise _no_copies(env, " ".join(f"{type(error).__name__}: {error}".split())[:200]) from error
        ours = env.step(action)[:4]
        fault = fault or ("which a step leads elsewhere" if not _same(ours, theirs) else "")
        fault = fault or ("which looks different" if not _same(env.render(), twin.render()) else "")
        if fault:
            raise _no_copies(env, f"a copy {fault}")
        if ours[2] or ours[3]:
            env.reset(seed=step)


def _no_copies(env: gymnasium.Env, found: str) -> DataError:
    return DataError(f"{env}: expected an env that can be copied, to ask copies which action would end the episode, "
                     f"found {found}; let its episodes end (without --no-end, ends=True)")


def _same(ours: Any, theirs: Any) -> bool:
    return bool(data_equivalence(ours, theirs, exact=True))


def _random_state(env: gymnasium.Env) -> Any:
    generator = getattr(env.unwrapped, "_np_random", None)
    return None if generator is None else repr(generator.bit_generator.state)


@dataclass
class _Wrapped(Policy):
    """Base class of a policy that wraps another policy."""

    policy: Policy

    def check(self, env: gymnasium.Env) -> None:
        check_policy(self.policy, env)

    def played(self, action: Any) -> None:
        self.policy.played(action)


@dataclass
class NoEnd(_Wrapped):
    """Wrapper that resamples actions (at random) while they would terminate the episode."""

    @property
    def name(self) -> str:
        return f"{self.policy.name}, no end"

    def check(self, env: gymnasium.Env) -> None:
        super().check(env)
        check_copies(env)

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._env = env
        self._other = RandomPolicy()
        self._other.reset(seed, env)
        self.policy.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        action = avoid_end(self._env, self.policy(observation), self._other, observation)
        self.policy.played(action)
        return action


@dataclass
class Held(_Wrapped):
    """Wrapper that repeats each action for `steps` steps, for video models with several frames per latent frame."""

    steps: int

    @property
    def name(self) -> str:
        return f"{self.policy.name}, held"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._count, self._action = 0, None
        self.policy.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        if self._count % self.steps == 0:
            self._action = self.policy(observation)
        self._count += 1
        return self._action


@dataclass
class PartlyRandom(_Wrapped):
    """Wrapper that replaces a share of the actions by random ones: policies of different quality from one."""

    share: float

    @property
    def name(self) -> str:
        return f"{self.policy.name}, {self.share:.0%} random"

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        self._rng, self._random = np.random.default_rng((seed, 1)), RandomPolicy()
        self._random.reset(seed, env)
        self.policy = copy.copy(self.policy)  # several copies of this policy may play at a time
        self.policy.reset(seed, env)

    def __call__(self, observation: Any) -> Any:
        action = self.policy(observation)
        return self._random(observation) if self._rng.random() < self.share else action
