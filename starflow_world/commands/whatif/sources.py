"""Inputs of whatif: a played episode, and actions or a policy from the command line."""

import json
from typing import Any

import numpy as np

from starflow_world.agents.collect import play
from starflow_world.agents.environment import Environment
from starflow_world.agents.planner import Planner
from starflow_world.agents.policy import Policy, RandomPolicy, check_policy
from starflow_world.agents.registry import TRAINED, expert_policy, make_policy
from starflow_world.agents.search_settings import METHODS, Search
from starflow_world.data.episodes import Episode
from starflow_world.errors import ActionError, ConfigError
from starflow_world.world import World

TRIES = 50
"""Limit on the number of episodes that are played to find one that is long enough."""


def read_action(text: str) -> Any:
    """Parse an action of the command line: an integer, or a JSON list for a Box. Raises ActionError."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, list):
        return np.asarray(value, np.float32)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ActionError(f"actions: expected integers, or JSON lists of numbers for a Box, found {text!r:.60}")
    return value


def play_long_enough(source: Environment, policy: str, seed: int, *, steps: int) -> Episode:
    """Play episodes of the real environment from `seed` on until one has `steps` steps. Raises ConfigError if none has.

    policy: a name, or auto for the expert of the environment.
    """
    env, longest = source.make(), 0
    try:
        player = expert_policy(env) if policy == "auto" else make_policy(policy)
        check_policy(player, env)
        for index in range(TRIES):
            episode = play(env, player, seed=seed, index=index, reward=source.reward, frame_size=source.size)
            longest = max(longest, len(episode) - 1)
            if longest >= steps:
                print(f"episode {index} of seed {seed}: {len(episode) - 1} steps of {source.env}, {player.name}")
                return episode
    finally:
        env.close()
    raise ConfigError(f"at: expected an episode of at least {steps} steps, found at most {longest} in {TRIES} episodes "
                      f"of policy {player.name}; change an earlier step (--at), or choose another policy (--played)")


def named_policy(name: str, world: World) -> Policy:
    """Return a policy that can act in an imagined env: random, a planner by its method, or a trained agent."""
    if name == "random":
        return RandomPolicy()
    if name.startswith(TRAINED):
        return make_policy(name)
    if name in METHODS:
        return Planner(world, Search(name))
    raise ConfigError(f"policy: expected one of {', '.join(METHODS)} or sb3:FOLDER, found {name!r:.60}")
