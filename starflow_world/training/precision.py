"""Precision of matrix products in training: given by the recipe, or the faster one on this machine."""

import sys

import torch
from torch import nn

from starflow_world.model.rates import choose_precision, layer_sizes, measured_rates
from starflow_world.training.distributed import Processes

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def resolve_precision(precision: str, processes: Processes, *networks: nn.Module) -> str:
    """Return "bf16" or "f32" for the matrix products of `networks`. For "auto", time products of the networks' layer
    sizes for about a second on the main process and print the choice and both rates to stderr; a tie gives f32."""
    if precision != "auto":
        return precision
    choice = torch.zeros(1, device=processes.device)
    if processes.main:
        rates = measured_rates(layer_sizes(*networks), processes.device)
        choice += choose_precision(rates) == torch.bfloat16
        speeds = ", ".join(f"{name} {rates[kind] / 1e9:.1f}" for kind, name in PRECISIONS.items())
        print(f"train: precision {'bf16' if choice else 'f32'}, the faster here (GFLOP/s: {speeds})", file=sys.stderr)
    return "bf16" if processes.first(choice) else "f32"
