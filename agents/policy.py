"""Policies: observation -> action, as their settings, the seed of the episode and its course so far decide."""

import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from starflow_world.errors import ActionError, DataError

COPY_STEPS = 32


class Policy(Protocol):
    """The interface of a policy; a class derived from it only needs `name`, `reset` and `__call__`.

    A policy is a dataclass whose fields are its settings, which `recipe` records. Its state begins at `reset`.
    """

    @property
    def name(self) -> str:
        """The name of what it plays in the present episode, for the episode's record."""

    def reset(self, seed: int, env: gymnasium.Env) -> None:
        """Begin an episode in `env`, which has just been reset."""

    def __call__(self, observation: Any) -> Any:
        """Return the next action, an element of the env's action space."""

    def played(self, action: Any) -> None:
        """Hear which action was taken after the last call, if that may be another than it returned."""
        return None

    def check(self, env: gymnasium.Env) -> None:
        """Raise ConfigError or ActionError if this policy cannot play in `env`, which is reset again afterwards."""
        return None

    def recipe(self) -> dict[str, Any]:
        """Return class and settings as JSON: a collection is continued by a policy of the same recipe only."""
        shown = [setting.name for setting in fields(self) if setting.repr] if is_dataclass(self) else ["name"]
        return {"type": type(self).__name__, **{name: _plain(getattr(self, name)) for name in shown}}


def recipe_of(policy: Any) -> dict[str, Any]:
    """Return the policy's recipe; of an object that is no `Policy`, class and settings."""
    return dict(policy.recipe() if hasattr(policy, "recipe") else Policy.recipe(policy))


def _plain(value: Any) -> Any:
    """A setting as JSON; nested policies by their recipes, what JSON cannot hold by its repr."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return recipe_of(value)
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def policy_record(policy: Policy, recorded: Any = None) -> Any:
    """Return what a run records of its policy: the recipe, or the repr if `recorded` is that, as older runs have it."""
    return recorded if recorded == repr(policy) else recipe_of(policy)


def check_policy(policy: Policy, env: gymnasium.Env) -> None:
    """Raise ConfigError, ActionError or DataError if the policy says that it cannot play in `env`."""
    if hasattr(policy, "check"):
        policy.check(env)


@dataclass
class RandomPolicy(Policy):
    """Samples the action space; with `weights` (one per action of a Discrete space) not uniformly."""

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


def avoid_end(env: gymnasium.Env, action: Any, other: Policy, observation: Any, *, tries: int = 30) -> Any:
    """Return `action`, or the first of `tries` proposals of `other` that does not terminate; the last if all do.

    A deep copy of the env is stepped to find out (0.5 ms for a MiniGrid).
    """
    for _ in range(tries):
        if not copy.deepcopy(env).step(action)[2]:
            break
        action = other(observation)
    return action


def check_copies(env: gymnasium.Env) -> None:
    """Raise DataError unless deep copies of `env` continue as it does itself: same outcome of a step, same frame.

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
    """A policy that acts through another one."""

    policy: Policy

    def check(self, env: gymnasium.Env) -> None:
        check_policy(self.policy, env)

    def played(self, action: Any) -> None:
        self.policy.played(action)


@dataclass
class NoEnd(_Wrapped):
    """Another policy whose actions are drawn again (at random) while they would terminate the episode."""

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
    """Another policy, each of whose actions is taken `steps` times in a row: a video model sees several frames at a
    time, all under one action."""

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
