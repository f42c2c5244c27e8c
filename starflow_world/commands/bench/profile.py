"""The time of a step by part: timers around the parts of a world, attached from outside and removed again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starflow_world.world import World

PARTS = ("deep sweeps", "shallow sweeps", "motion", "carry", "heads", "denoiser", "decode", "slides", "noise", "rest")


class Timers:
    """Seconds and calls of each part; a part that runs inside another one counts as the outer part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS[:-1], 0.0)
        self.calls = dict.fromkeys(PARTS[:-1], 0)
        self._inside = False

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed as `part`."""

        def measured(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return function(*arguments, **named)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._inside = False
                self.seconds[part] += time.perf_counter() - begin
                self.calls[part] += 1

        return measured


@contextmanager
def timed(world: World) -> Iterator[Timers]:
    """Time the parts of `world` while the block runs."""
    timers, flow = Timers(), world.networks.flow
    places: list[tuple[object, str, str]] = [
        (flow.deep, "predict", "deep sweeps"), (world.networks.codec, "decode", "decode"),
        (world.dynamics, "slide", "slides"), (world.dynamics, "prior", "noise"),
        *((block, "predict", "shallow sweeps") for block in flow.shallow),
    ]
    modules = {"motion": flow.motion, "carry": flow.carry, "denoiser": flow.denoiser, "heads": world.networks.outcome}
    places += [(module, "forward", part) for part, module in modules.items() if module]
    for place, name, part in places:
        setattr(place, name, timers.around(part, getattr(place, name)))
    try:
        yield timers
    finally:
        for place, name, _ in places:
            delattr(place, name)
