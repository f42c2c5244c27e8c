"""An episode and its counterfactual: the same noise under other actions, stepped as one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starflow_world.agents.policy import Policy
from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ConfigError, DataError
from starflow_world.world import World
from starflow_world.world.counterfactual import Fidelity, Steps, Traced, fidelity, replay, trace
from starflow_world.world.state import WorldState


@dataclass(frozen=True)
class Alternative:
    """An episode, replayed under its own actions (`again`) and under others (`other`), one batch element each, and how
    closely the first replay reproduces it: in latents and decoded frames (`fidelity`), and as the share of pixels
    within one grey level of the real frames (`real_pixels`)."""

    episode: Episode
    again: Steps
    other: Steps
    fidelity: Fidelity
    real_pixels: float

    @property
    def over(self) -> int:
        """Return the step (from 1) at which the imagined episode would have ended; one past the last if none."""
        ends = (self.other.end_probability[0] >= 0.5).nonzero()[:, 0]
        return int(ends[0]) + 1 if len(ends) else self.other.end_probability.shape[1] + 1


def what_if(
    world: World, episode: Episode, *, at: int = 1, actions: Sequence[Any] = (), policy: Policy | None = None,
    seed: int = 0,
) -> Alternative:
    """Replay an episode with its own noise, but from step `at` (1: the first) on with other actions.

    actions: replace as many of the episode's; then the episode's own actions follow. policy: chooses from step `at` to
    the end, in a WorldEnv. Raises ActionError, ConfigError or DataError.
    """
    last = len(episode) - 1
    if (len(actions) == 0) == (policy is None):
        raise ConfigError("what if: expected other actions or a policy, found both or neither")
    if not 1 <= at <= last or at + len(actions) - 1 > last:
        raise ConfigError(f"at: expected steps {at} to {at + max(len(actions), 1) - 1} among the episode's 1 to {last}")
    if episode.space != world.config.action_space:
        raise DataError(f"episode: expected actions of {world.config.action_space}, found {episode.space}")
    flat = flat_actions(episode).to(world.dynamics.dtype)
    traced = trace(world, episode.frames, flat, text=world.texts_for([episode.text])[0], seed=seed)
    changed = flat.clone()
    if len(actions):
        changed[at : at + len(actions)] = world.flatten(list(actions)).cpu()
    choose = _pairs(flat, changed)
    if policy is not None:
        choose = _with_policy(world, traced, flat, at, policy, seed)
    both = replay(world, traced, choose, rows=2)
    again, other = _element(both, 0), _element(both, 1)
    error = again.frames[0].cpu().int() - torch.from_numpy(episode.frames[1:]).int()
    close = float((error.abs() <= 1).float().mean())
    return Alternative(episode, again, other, fidelity(world, traced.steps, again), close)


def _pairs(flat: Tensor, changed: Tensor) -> Callable[[int, WorldState], Tensor]:
    return lambda t, _: torch.stack((flat[t + 1], changed[t + 1]))


def _with_policy(
    world: World, traced: Traced, flat: Tensor, at: int, policy: Policy, seed: int
) -> Callable[[int, WorldState], Tensor]:
    """Let the policy choose the actions of the second batch element, in an env set to its state before every step."""
    env = WorldEnv(world, render_mode="rgb_array")
    env.reset(options={"state": traced.start})

    def choose(t: int, state: WorldState) -> Tensor:
        if t + 1 < at:
            return flat[t + 1].expand(2, -1)
        env.set_state(state[1])
        if t + 1 == at:
            policy.reset(seed, env)
        return torch.stack((flat[t + 1], world.flatten([policy(env.render())])[0].cpu()))

    return choose


def _element(steps: Steps, index: int) -> Steps:
    return Steps(**{name: getattr(steps, name)[index : index + 1] for name in Steps.__dataclass_fields__})
