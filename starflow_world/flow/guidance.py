"""Classifier-free guidance of an affine autoregressive flow (STARFlow, proposition 2)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from starflow_world.flow.block import Affine


@dataclass(frozen=True)
class Guided(Affine):
    """Guided means and scales, and those of the conditional model without guidance."""

    conditional: Affine


def guide(conditional: Affine, unconditional: Affine, guidance: float) -> Guided:
    """Return the Gaussian proportional to conditional**(1 + w) / unconditional**w, per dimension; w = guidance.

        r = min(scale_c / scale_u, 1)**2;   d = 1 + w - w r
        mean = ((1 + w) mean_c - w r mean_u) / d;   scale = scale_c / sqrt(d)
    """
    ratio = (conditional.scale / unconditional.scale).clamp(max=1).square()
    denominator = 1 + guidance - guidance * ratio
    mean = ((1 + guidance) * conditional.mean - guidance * ratio * unconditional.mean) / denominator
    return Guided(mean, conditional.scale / denominator.sqrt(), conditional.hidden, conditional)


def guided(predict: Callable[[Tensor], Affine], guidance: float) -> Callable[[Tensor], Guided]:
    """Return `predict` with guidance applied; it maps inputs (B, ...) to 2B predictions, [text; null text]."""

    def run(inputs: Tensor) -> Guided:
        both, rows = predict(inputs), len(inputs)
        return guide(both.rows(slice(rows)), both.rows(slice(rows, None)), guidance)

    return run
