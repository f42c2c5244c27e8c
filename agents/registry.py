"""What is known of environments by name: policies, the default policy, and how objects are located in frames."""

import gymnasium

from starflow_world.agents.babyai.bot import BotPolicy, MixedPolicy, TinkerPolicy
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
LOCATORS: dict[str, Locator] = {"CartPolePixels-v0": locate_cart_and_pole}


def make_policy(name: str) -> Policy:
    """Return the policy with this name, with default settings. Raises ConfigError."""
    if name not in POLICIES:
        raise ConfigError(f"policy: expected one of {', '.join(POLICIES)}, found {name!r}")
    return POLICIES[name]()


def default_policy(env: gymnasium.Env) -> Policy:
    """Return the policy that shows most of an environment: one made for it, if there is one, else a random one."""
    for kind in PREFERRED:
        try:
            kind().check(env)
        except ConfigError:
            continue
        return kind()
    return RandomPolicy()
