"""In which precision a flow runs: that of its weights, or products in half precision with all else in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .model import Flow


@contextmanager
def precision(flow: Flow) -> Iterator[None]:
    """Without gradients, and with products in the dtype of the weights of a flow that was loaded to run in it."""
    weight = flow.deep.project_in.weight
    with torch.no_grad(), torch.autocast(weight.device.type, weight.dtype if flow.mixed else None, enabled=flow.mixed):
        yield
