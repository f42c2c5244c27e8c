"""Choice of precision: time matrix products in float32 and bfloat16 on the layer sizes of a model.

Without bfloat16 instructions a processor multiplies bfloat16 matrices several times slower than float32 ones; a GPU or
a processor with such instructions is several times faster. The device name does not tell, so it is measured.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRECISIONS = (torch.float32, torch.bfloat16)
ROWS = 512
OPERATIONS = {"cpu": 1e9}
MOST_OPERATIONS = 4e11
"""Operations per round over all layer sizes on a device not in OPERATIONS; large layers get fewer rows."""
CLEARLY_FASTER = 1.2
"""Speed ratio from which bfloat16 is chosen for inference; float32 is more accurate."""

Sizes = Mapping[tuple[int, int], int]


def layer_sizes(*modules: nn.Module) -> Sizes:
    """Count the linear layers inside `modules` by their (inputs, outputs)."""
    layers = (part for module in modules for part in module.modules() if isinstance(part, nn.Linear))
    return Counter((layer.in_features, layer.out_features) for layer in layers)


def measured_rates(
    sizes: Sizes, device: torch.device | str, *, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter
) -> dict[torch.dtype, float]:
    """Return the FLOP/s of matrix products in float32 and bfloat16 over layers of these sizes, timed alternately.

    Takes about `seconds`, at least one round after a small warm-up product. The best time of each product counts, so
    other work on the machine matters little. A precision that the device does not support has rate 0.
    """
    device, end = torch.device(device), clock() + seconds
    per_row = 2.0 * sum(inputs * outputs for inputs, outputs in sizes)
    rows = int(min(max(OPERATIONS.get(device.type, MOST_OPERATIONS) / max(per_row, 1), 8), ROWS))
    for dtype in PRECISIONS:
        _seconds_of_product(rows, (256, 256), dtype, device, clock)
    best: dict[tuple[torch.dtype, tuple[int, int]], float] = {}
    while not best or clock() < end:
        for size in sizes:
            for dtype in PRECISIONS:
                took = _seconds_of_product(rows, size, dtype, device, clock)
                best[dtype, size] = min(took, best.get((dtype, size), math.inf))
    work = sum(2.0 * rows * size[0] * size[1] * count for size, count in sizes.items())
    spent = {dtype: sum(best[dtype, size] * count for size, count in sizes.items()) for dtype in PRECISIONS}
    return {dtype: work / spent[dtype] if spent[dtype] else 0.0 for dtype in PRECISIONS}


def choose_precision(rates: Mapping[torch.dtype, float], *, at_least: float = 1.0) -> torch.dtype:
    """Return bfloat16 if its rate is more than `at_least` times that of float32, else float32."""
    return torch.bfloat16 if rates[torch.bfloat16] > at_least * rates[torch.float32] else torch.float32


def inference_precision(flow: nn.Module, device: torch.device | str) -> torch.dtype:
    """Return the precision for inference with `flow`: bfloat16 only where it is clearly faster (see CLEARLY_FASTER)."""
    return choose_precision(measured_rates(layer_sizes(flow), device, seconds=0.2), at_least=CLEARLY_FASTER)


def _seconds_of_product(
    rows: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device, clock: Callable[[], float]
) -> float:
    """Time one product, in seconds; return infinity if the device does not support it."""
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            inputs, weight = (torch.ones(count, size[0], dtype=dtype, device=device) for count in (rows, size[1]))
            _finish(inputs)
            start = clock()
            _finish(F.linear(inputs, weight))
            return clock() - start
    except RuntimeError:
        return math.inf


def _finish(tensor: Tensor) -> None:
    """Wait for the device to finish, by reading a number of the tensor."""
    tensor[0, 0].item()
