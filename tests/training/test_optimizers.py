"""Muon of our own: torch's, but for rounding; it moves sharded matrices too (test_distributed.py)."""

import pytest
import torch

from starflow_world.training.optimizers import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_takes_the_steps_of_torch(shape):
    """torch rounds the directions to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=generator), torch.randn(4, *shape, generator=generator)
    mine, torchs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (
        Muon([{"params": [mine], "lr": 0.02}]),
        torch.optim.Muon([torchs], lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for gradient in gradients:
        mine.grad, torchs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = float((torchs.detach() - start).norm())
    assert float((mine.detach() - torchs.detach()).norm()) < 0.02 * moved


def test_what_is_orthogonal_has_singular_values_near_one():
    found = torch.linalg.svdvals(orthogonal(torch.randn(12, 40, generator=torch.Generator().manual_seed(0))))
    assert 0.5 < float(found.min()) < float(found.max()) < 1.5
