"""Detection of unreliable imagined frames: signals that are independent of the sampler, and limits on them.

A sample is likely under the flow that drew it, so its own nats cannot show that the world is wrong. An agent that
learns in imagination seeks states in which the world is wrong; truncating the episode there keeps them out of training.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from starflow_world.codec import frame_codec
from starflow_world.errors import ConfigError
from starflow_world.world import World
from starflow_world.world.state import Transition, WorldState


@dataclass(frozen=True)
class Trust:
    """Limits above which an episode is truncated; a signal without a limit is not computed.

    residual: decoding error, in noise units. round_trip: distance between the sampled latents and the decoded frame,
    encoded again: RMS over the worst token, in units of the observation noise, so about 1 for frames on which denoiser
    and codec were trained. disagreement: distance to the frame sampled with noise -z, which is as likely as z: RMS in
    grey levels; it costs a second step.

    With limits, `info` has the signals and `reason`: "" or the first signal that exceeded its limit, with both numbers.
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
        """Return the limits that are set, by signal."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in given.items() if limit is not None}

    def signals(
        self, world: World, before: WorldState, actions: list[Any], transition: Transition
    ) -> dict[str, np.ndarray]:
        """Return the signals and `reason` of a transition of B rows. The cache of the state `before` is overwritten."""
        signals = {"residual": transition.residual.double().cpu().numpy()}
        if self.round_trip is not None:
            again, _ = frame_codec(world.networks.codec).encode(transition.frames[:, -1:])
            error = (transition.latents - again[:, 0].to(transition.latents)).double().square().mean(-1).amax(-1).sqrt()
            signals["round_trip"] = (error / world.config.noise_level).cpu().numpy()
        if self.disagreement is not None:
            _, other = world.step(before, actions, noise=-transition.noise, reuse=True)
            difference = transition.frames[:, -1].double() - other.frames[:, -1].double()
            signals["disagreement"] = difference.square().mean((1, 2, 3)).sqrt().cpu().numpy()
        return signals | {"reason": self.reasons(signals)}

    def reasons(self, signals: dict[str, np.ndarray]) -> np.ndarray:
        """Return the reason to distrust each row, (B,) of strings; "" if there is none."""
        reason = np.full(len(signals["residual"]), "", dtype=object)
        for name, limit in reversed(self.limits.items()):
            for row in np.flatnonzero(~(signals[name] <= limit)):  # NaN counts as above the limit
                reason[row] = f"{name} {signals[name][row]:.3g} > {limit:g}"
        return reason
