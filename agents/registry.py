"""What is known of environments by name: policies, the default policy, and how objects are located in frames."""

from importlib import import_module

import gymnasium

from starflow_world.agents.babyai.bot import BotPolicy, MixedPolicy, TinkerPolicy
from starflow_world.agents.babyai.scripted import ScriptedPolicy
from starflow_world.agents.babyai.tiles import ENV as BABYAI
from starflow_world.agents.cartpole import BalancePolicy, locate_cart_and_pole
from starflow_world.agents.minatar import ArcadePolicy
from starflow_world.agents.policy import CarefulPolicy, Policy, RandomPolicy
from starflow_world.errors import ConfigError
from starflow_world.evaluation.positions import Locator

POLICIES: dict[str, type[Policy]] = {
    "random": RandomPolicy, "careful": CarefulPolicy, "bot": BotPolicy, "tinker": TinkerPolicy, "mixed": MixedPolicy,
    "balance": BalancePolicy, "arcade": ArcadePolicy,
}
PREFERRED = (MixedPolicy, TinkerPolicy, BalancePolicy, ArcadePolicy)
TRAINED = "sb3:"
LOCATORS: dict[str, Locator] = {"CartPolePixels-v0": locate_cart_and_pole}


def make_policy(name: str) -> Policy:
    """Return the policy with this name, of the class that `package.module:Class` names, with default settings, or the
    agent of train-agent in the folder that `sb3:FOLDER` names. Raises ConfigError, CheckpointError."""
    if name.startswith(TRAINED):
        from starflow_world.agents.learning import load_agent  # needs a package of the extra sb3

        return load_agent(name.removeprefix(TRAINED))
    if ":" in name:
        return _own_policy(name)
    if name not in POLICIES:
        raise ConfigError(f"policy: expected one of {', '.join(POLICIES)}, package.module:Class or sb3:FOLDER, "
                          f"found {name!r}")
    return POLICIES[name]()


def _own_policy(name: str) -> Policy:
    """Import a module and return a policy of its class. Raises ConfigError."""
    module, _, short = name.partition(":")
    try:
        policy = getattr(import_module(module), short)()
    except Exception as error:  # foreign code
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"policy: expected package.module:Class, a class that can be made without arguments, in a "
                          f"module that is installed or on PYTHONPATH, found {name!r:.80} ({said:.160})") from error
    parts, known = ("name", "reset", "__call__"), dir(policy)  # a name may be set by reset
    if missing := [part for part in parts if part not in known]:
        raise ConfigError(f"policy: expected a class with name, reset and __call__, as one derived from "
                          f"starflow_world.agents.policy.Policy has, found {name!r:.80} without {', '.join(missing)}")
    return policy


def default_policy(env: gymnasium.Env) -> Policy:
    """Return the policy that shows most of an environment: one made for it, if there is one, else a random one."""
    for kind in PREFERRED:
        try:
            kind().check(env)
        except ConfigError:
            continue
        return kind()
    return RandomPolicy()


def expert_policy(env: gymnasium.Env) -> Policy:
    """Return BabyAI's bot where it can play, else the default policy of the environment."""
    try:
        BotPolicy().check(env)
    except ConfigError:
        return default_policy(env)
    return BotPolicy()


def watching_policy(env_id: str, text: str) -> Policy | None:
    """Return a scripted policy that plays an environment by its frames alone, so in dreams too; None if none is known.
    """
    return ScriptedPolicy(text) if env_id == BABYAI and text else None
