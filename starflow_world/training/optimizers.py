"""Optimizers. Worlds: Muon (Jordan et al. 2024) for the matrices inside layers, AdamW for all else; video: AdamW."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from starflow_world.config.train import TrainConfig, VideoTrainConfig
from starflow_world.flow.carry import Carry
from starflow_world.flow.denoiser import SiteDenoiser
from starflow_world.flow.motion import Motion
from starflow_world.model.actions import ActionEncoder
from starflow_world.model.reward_head import OutcomeHead
from starflow_world.training.distributed import whole

NEWTON_SCHULZ, SWEEPS, SMALLEST = (3.4445, -4.775, 2.0315), 5, 1e-7
MOMENTUM, DECAY = 0.95, 0.01


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon (Nesterov, match_rms_adamw) for matrices that may be sharded: weights and momentum stay in their
    shards; the direction is gathered, and made orthogonal whole, as its rows alone cannot be."""

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum_buffer"]
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonal(whole(p.grad.lerp(momentum, MOMENTUM)))
                if isinstance(p, DTensor):
                    update = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
                p.mul_(1 - group["lr"] * DECAY)
                p.add_(update, alpha=-group["lr"] * (0.2 * math.sqrt(max(p.shape))))


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly U V^T of a matrix U S V^T, by Newton and Schulz's iteration; in float32, because in bfloat16 (as torch has
    it) gradients that differ in their last bit may differ visibly afterwards."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=SMALLEST)
    a, b, c = NEWTON_SCHULZ
    for _ in range(SWEEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def make_optimizers(networks: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon and AdamW; networks that look at sites learn at a rate of their own."""
    kinds = (Motion, Carry, SiteDenoiser, OutcomeHead, ActionEncoder)
    looking = [module for module in networks.modules() if isinstance(module, kinds)]
    sites = {id(p) for module in looking for p in module.parameters()}
    for head in (module for module in looking if isinstance(module, OutcomeHead)):
        if head.project is not None:  # it reads the hidden states, which are no sites
            sites -= {id(p) for p in head.project.parameters()}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, p in networks.named_parameters():
        if p.requires_grad:
            muon = p.ndim == 2 and ".layers." in name and ".condition." not in name and not name.startswith("text.")
            peak = config.site_learning_rate if id(p) in sites else config.learning_rate
            groups.setdefault((muon, peak), []).append(p)
    parts = [[{"params": p, "peak": lr} for (m, lr), p in groups.items() if m is muon] for muon in (True, False)]
    made: list[torch.optim.Optimizer] = [Muon(parts[0])] if parts[0] else []
    return [*made, torch.optim.AdamW(parts[1], betas=(0.9, 0.95), weight_decay=1e-4)] if parts[1] else made


def video_optimizers(networks: nn.Module, config: VideoTrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, as STARFlow-V was trained: the denoiser forgets more slowly; actions have a rate of their own."""
    settings = {
        "flow.denoiser.": (config.denoiser_learning_rate, 0.999), "action.": (config.action_learning_rate, 0.95),
        "": (config.learning_rate, 0.95),
    }
    parts: dict[str, list[nn.Parameter]] = {}
    for name, p in networks.named_parameters():
        if p.requires_grad:
            parts.setdefault(next(part for part in settings if name.startswith(part)), []).append(p)
    groups = [
        {"params": parts[part], "peak": peak, "betas": (0.9, memory)}
        for part, (peak, memory) in settings.items() if part in parts
    ]
    return [torch.optim.AdamW(groups, weight_decay=1e-4)]


def rate(step: int, config: TrainConfig | VideoTrainConfig) -> float:
    """Share of the full learning rate at a step: linear warm-up, then linear to zero (what is left of the excess nats
    is mostly the jitter of the last steps)."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return min(rise, (config.steps - step) / config.steps)
