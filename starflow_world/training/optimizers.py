"""Optimizers: for worlds, Muon (Jordan et al. 2024) on matrices inside layers and AdamW elsewhere; for video, AdamW."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from starflow_world.config.train import TrainConfig, VideoTrainConfig
from starflow_world.flow import Flow
from starflow_world.flow.features import Features
from starflow_world.flow.layers import Layer
from starflow_world.flow.sites import SiteLayer
from starflow_world.model.actions import ActionEncoder
from starflow_world.model.reward_head import OutcomeHead
from starflow_world.training.distributed import full_tensor

NEWTON_SCHULZ, SWEEPS, SMALLEST = (3.4445, -4.775, 2.0315), 5, 1e-7
MOMENTUM, DECAY = 0.95, 0.01


class Muon(torch.optim.Optimizer):
    """Muon optimizer as in torch.optim.Muon (Nesterov momentum, match_rms_adamw), for matrices that may be sharded.
    Weights and momentum stay sharded; the update is gathered, since a shard alone cannot be orthogonalised."""

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each matrix that has a gradient; `closure` must be None."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum_buffer"]
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonal(full_tensor(p.grad.lerp(momentum, MOMENTUM)))
                if isinstance(p, DTensor):
                    update = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
                p.mul_(1 - group["lr"] * DECAY)
                p.add_(update, alpha=-group["lr"] * (0.2 * math.sqrt(max(p.shape))))


def orthogonal(matrix: Tensor) -> Tensor:
    """Return approximately U V^T of a matrix U S V^T by the Newton-Schulz iteration, in float32: in bfloat16, which
    torch uses, gradients that differ in the last bit can give clearly different updates."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=SMALLEST)
    a, b, c = NEWTON_SCHULZ
    for _ in range(SWEEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def world_optimizers(networks: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for matrices inside layers of transformers and site networks, and AdamW for other parameters.
    Networks over sites and the action encoder use `site_learning_rate`."""
    matrices: list[nn.Module] = []
    sites: set[int] = set()
    for module in networks.modules():
        if isinstance(module, Layer):
            matrices.append(module)
        elif isinstance(module, SiteLayer):
            matrices += module.look, module.mix
        if isinstance(module, Features | ActionEncoder):
            sites |= _ids([module])
        elif isinstance(module, OutcomeHead):  # `project` reads hidden states of the deep block, not sites
            sites |= _ids([module]) - _ids([module.project])
    inside, groups = _ids(matrices), dict[tuple[bool, float], list[nn.Parameter]]()
    for p in networks.parameters():
        if p.requires_grad:
            peak = config.site_learning_rate if id(p) in sites else config.learning_rate
            groups.setdefault((p.ndim == 2 and id(p) in inside, peak), []).append(p)
    parts = [[{"params": p, "peak": lr} for (m, lr), p in groups.items() if m is muon] for muon in (True, False)]
    made: list[torch.optim.Optimizer] = [Muon(parts[0])] if parts[0] else []
    return [*made, torch.optim.AdamW(parts[1], betas=(0.9, 0.95), weight_decay=1e-4)] if parts[1] else made


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}


def video_optimizers(flow: Flow, action: ActionEncoder, config: VideoTrainConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW as in STARFlow-V; the denoiser has a larger beta2, the action encoder its own learning rate."""
    denoiser = [] if flow.denoiser is None else list(flow.denoiser.parameters())
    own = {id(p) for p in denoiser}
    settings = (
        (denoiser, config.denoiser_learning_rate, 0.999),
        (action.parameters(), config.action_learning_rate, 0.95),
        ((p for p in flow.parameters() if id(p) not in own), config.learning_rate, 0.95),
    )
    groups = [
        {"params": learning, "peak": peak, "betas": (0.9, memory)}
        for parameters, peak, memory in settings if (learning := [p for p in parameters if p.requires_grad])
    ]
    return [torch.optim.AdamW(groups, weight_decay=1e-4)]


def schedule(step: int, config: TrainConfig | VideoTrainConfig) -> float:
    """Return the factor of the peak learning rate at a step: linear warm-up, then linear decay to zero, because most of
    the remaining excess nats come from the fluctuation of weights in the last steps."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return min(rise, (config.steps - step) / config.steps)
