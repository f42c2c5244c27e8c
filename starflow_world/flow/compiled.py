"""Optional `torch.compile` of the networks, for devices where kernel launches cost more than arithmetic.

Compiled networks have static shapes, so the deep block attends to its whole cache through a mask. A network that fails
to compile runs uncompiled, with a warning.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from starflow_world.flow.cache import KVCache, Visible
from starflow_world.flow.density import Density
from starflow_world.flow.model import Flow


def compile_networks(flow: Flow, *others: nn.Module | None) -> None:
    """Compile the deep block's `predict`, the site networks and the modules `others`, each at its first call."""
    flow.deep.predict = Compiled("deep block", _masked(flow.deep.predict))  # type: ignore[method-assign]
    for module in (flow.features, flow.denoiser, *others):
        if module is not None:
            module.forward = Compiled(type(module).__name__, module.forward)


class Compiled:
    """Function that is compiled at its first call; if compilation fails it warns once and runs uncompiled."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.plain, self.run = name, function, torch.compile(function, dynamic=False)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        try:
            return self.run(*arguments, **named)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            warnings.warn(f"{self.name}: not compiled: {type(error).__name__}: {error!s:.200}", stacklevel=2)
            self.run = self.plain
            return self.plain(*arguments, **named)


def _masked(predict: Callable[..., Density]) -> Callable[..., Density]:
    def run(
        inputs: Tensor, rotary: Tensor, cache: KVCache | None = None, visible: Visible | None = None,
        added: Tensor | None = None,
    ) -> Density:
        return predict(inputs, rotary, cache, None if visible is None else visible.whole, added)

    return run
