"""When an imagined frame is not to be believed: signals that can disagree with the sampler, and limits on them.

A sample is likely under the flow that drew it, so its own nats cannot say that the world is making things up. An agent
that learns in a dream seeks out what the world gets wrong; an episode that is cut off there teaches it nothing false.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from starflow_world.codec import frame_codec
from starflow_world.envs.episode import as_numpy, facts
from starflow_world.errors import ConfigError
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState


@dataclass(frozen=True)
class Trust:
    """Limits above which an episode is truncated; a signal without a limit is not computed.

    residual: what decoding left unsolved, in noise units. round_trip: how far the shown frame, encoded again, lies from
    the latents that were sampled: RMS over the worst token, in units of the observation noise, so about 1 where
    denoiser and codec know what they see. disagreement: how far the frame is from the one that the opposite noise -z
    gives, which is as likely as z: RMS in grey levels; it costs a second step.

    With limits, `info` has the signals and `reason`: "" or the first signal that passed its limit, with both numbers.
    """

    residual: float | None = None
    round_trip: float | None = None
    disagreement: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if not isinstance(limit, int | float) or not limit >= 0:
                raise ConfigError(f"trust: {name}: expected a number >= 0, found {limit!r:.60}")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in given.items() if limit is not None}

    def reasons(self, found: dict[str, np.ndarray]) -> np.ndarray:
        """Why each row is not believed, (B,) of strings: "" where it is."""
        rows = np.full(len(found["nats"]), "", dtype=object)
        for name, limit in reversed(self.limits.items()):
            for row in np.flatnonzero(~(found[name] <= limit)):  # a signal that is no number is no good sign
                rows[row] = f"{name} {found[name][row]:.3g} > {limit:g}"
        return rows


def imagine(
    world: World, state: WorldState, actions: list[Any], trust: Trust | None, *, between: bool
) -> tuple[WorldState, Transition, dict[str, np.ndarray]]:
    """A step of every row, and what `info` says about it, trust included. The state's cache is used up."""
    limits = {} if trust is None else trust.limits
    twice = "disagreement" in limits
    after, transition = world.step(state, actions, reuse=not twice)
    found = facts(world, transition, after.texts, between=between)
    if "round_trip" in limits:
        found["round_trip"] = _round_trip(world, transition)
    if twice:
        _, other = world.step(state, actions, noise=-transition.noise, reuse=True)
        apart = (transition.frames[:, -1].double() - other.frames[:, -1].double()).square().mean((1, 2, 3)).sqrt()
        found["disagreement"] = as_numpy(apart)
    if trust is not None:
        found["reason"] = trust.reasons(found)
    return after, transition, found


def _round_trip(world: World, transition: Transition) -> np.ndarray:
    again, _ = frame_codec(world.networks.codec).encode(transition.frames[:, -1:])
    error = (transition.latents - again[:, 0].to(transition.latents)).double().square().mean(-1).amax(-1).sqrt()
    return as_numpy(error / world.config.noise_level)
