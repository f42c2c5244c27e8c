"""The CartPole part of the benchmark, in pixels: the disturbances of PEDM, severe and minor, and correlated noise.

PEDM (Haider et al. 2023) disturbs masses, actions and forces; its minor disturbances are 1 % of the severe ones (taken
for the force too, which the paper does not give). Correlated noise (Nasvytis et al. 2024, ARTS) keeps the variance of
the pixel noise and correlates it with that of the last frame, or of the frame before the last. The twin has the same
state, action and draw of the noise, so a frame is positive iff a pixel differs from the twin's.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from starflow_world.agents.cartpole import BalancePolicy
from starflow_world.agents.collect import seeds
from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import Policy, RandomPolicy
from starflow_world.commands.anomaly.figures import average, mean
from starflow_world.commands.anomaly.run import INFORMED, OWN, WINDOWED
from starflow_world.commands.anomaly.twins import SHIFT, Scenario, TwinStep
from starflow_world.envs.cartpole_pixels import CartPolePixels, Disturbance, clean_frame
from starflow_world.io.reports import Goal

ENV = "CartPolePixels-v0"
SEVERE = {
    "mass x 1.5": Disturbance(mass=1.5), "action x 1.5": Disturbance(action=1.5),
    "action + 0.2": Disturbance(offset=0.2), "action noise 0.2": Disturbance(jitter=0.2),
    "force -10 N": Disturbance(force=-10.0),
}
MINOR = {
    "mass x 1.01": Disturbance(mass=1.01), "action x 1.01": Disturbance(action=1.01),
    "action + 0.01": Disturbance(offset=0.01), "action noise 0.01": Disturbance(jitter=0.01),
    "force -0.1 N": Disturbance(force=-0.1),
}
CORRELATED = {
    "noise correlated, 1 frame": Disturbance(correlation=0.95, lag=1),
    "noise correlated, 2 frames": Disturbance(correlation=0.95, lag=2),
}
DISTURBANCES = SEVERE | MINOR | CORRELATED


@dataclass(frozen=True)
class CartPole(Scenario):
    """CartPole in pixels under a linear controller with correlated noise."""

    frames: int = 64
    name: str = "cartpole"
    world: str = "cartpole-pixels"
    lasting: bool = True

    @property
    def about(self) -> str:
        return (
            "Gymnasium's CartPole, drawn at 64 x 64 pixels, one action for four physics steps, pixel noise of "
            "deviation 0.02. One picture does not show speed, so the green channel is two physics steps older "
            "than red and blue. Disturbances last from the switch on and are those of PEDM, severe and minor (1 "
            "%; its minor force is our choice); the nominal simulator has no noise of its own but on the pixels, "
            "so correlated noise on states (ARNS) is not part of it. A controller with a wandering hand plays; "
            "the other policies are a stiff one, a lazy one and random pushes."
        )

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        return {"severe": tuple(SEVERE), "minor": tuple(MINOR), "correlated noise": tuple(CORRELATED)}

    def start(self, kind: str, seed: int, index: int) -> "CartPoleRun":
        return CartPoleRun(kind, seed, index)

    def goals(self, figures: dict[str, Any]) -> list[Goal]:
        severe = [figures["kinds"][kind][OWN] for kind in figures["groups"]["severe"]]
        windowed, own, oracle = (average(figures, "minor", name, "windowed") for name in (WINDOWED, OWN, INFORMED))
        return [
            Goal("severe: mean AUROC, per frame", mean([cell["auroc"] for cell in severe]), least=0.97,
                 note="PEDM on states 0.96"),
            Goal("severe: mean FPR at 95 % of the positives", mean([cell["fpr"] for cell in severe]), most=0.15,
                 note="PEDM on states 0.26"),
            Goal("minor: mean AUROC, windowed", windowed, least=0.85,
                 note=f"mean of the score {own:.3f}, oracle {oracle:.3f}; published per step: best 0.55"),
        ]


class CartPoleRun:
    """One episode of CartPole in progress, with its nominal twin."""

    def __init__(self, kind: str, seed: int, index: int) -> None:
        self.env: gymnasium.Env = make_env(ENV)
        bare = self.env.unwrapped
        assert isinstance(bare, CartPolePixels)
        self.world, self.disturbance = bare, DISTURBANCES.get(kind)
        env_seed, policy_seed = seeds(seed, index)
        self.policy = _shifted_policy(index) if kind == SHIFT else BalancePolicy()
        self.world.reset(seed=env_seed)
        self.policy.reset(policy_seed, self.env)
        self.over = False

    @property
    def facts(self) -> tuple[str, str, spaces.Space]:
        return "", self.policy.name, self.world.action_space

    def first(self) -> np.ndarray:
        return self.world.frame()

    def step(self, spoiled: bool) -> TwinStep:
        world, action = self.world, self.policy(None)
        nominal = clean_frame(world.forecast(action, Disturbance()))
        disturbed = None if self.disturbance is None else clean_frame(world.forecast(action, self.disturbance))
        world.disturbance = self.disturbance if spoiled and self.disturbance else Disturbance()
        frame, _, self.over, _, _ = world.step(action)
        blind = gaussian_surprise((frame / 255 - nominal) / world.noise)
        informed = np.nan
        if disturbed is not None and self.disturbance is not None:
            informed = blind - self.surprise_of_fault(frame, disturbed, self.disturbance)
        return TwinStep(frame, world.seen(nominal, world.fresh_grain()), action, informed, blind)

    def surprise_of_fault(self, frame: np.ndarray, disturbed: np.ndarray, disturbance: Disturbance) -> float:
        """Return the surprise, in nats, of the disturbed simulator at a frame, given its pixel noise correlation."""
        world, share = self.world, disturbance.correlation
        residual = (frame / 255 - disturbed) / world.noise
        if not share or len(world.grain) <= disturbance.lag:
            return gaussian_surprise(residual)
        scale = (1 - share**2) ** 0.5
        fresh = (residual - share * world.grain[-1 - disturbance.lag]) / scale
        return gaussian_surprise(fresh) + residual.size * np.log(scale)


def gaussian_surprise(residual: np.ndarray) -> float:
    """Return -log density of standard normal numbers in nats, up to a constant."""
    return float(0.5 * np.square(residual).sum())


def _shifted_policy(index: int) -> Policy:
    """Return a policy for the policy shift: a controller with large gains, one with small gains, or random pushes."""
    stiff, lazy = (0.2, 0.5, 6.0, 1.6), (0.02, 0.05, 2.2, 0.5)
    return (
        BalancePolicy(stiff, (0.0, 0.05), name="stiff"), BalancePolicy(lazy, (0.0, 0.1), name="lazy"), RandomPolicy(),
    )[index % 3]
