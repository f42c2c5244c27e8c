"""Training losses: negative log-likelihood of the flow, regression of the denoiser, rewards and terminations.

Shapes: B batch elements, T frames, n tokens per frame, c channels, d deep width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starflow_world.config.train import TrainConfig
from starflow_world.flow import Tables
from starflow_world.flow.frame_map import MotionMap
from starflow_world.model.networks import Networks
from starflow_world.training.batches import Batch
from starflow_world.training.distributed import ALONE, Processes


@dataclass(frozen=True)
class Losses:
    """Losses of a batch, its log-likelihood in nats per dim; excess (B, T): log p of the noise minus a frame's."""

    nats_per_dim: Tensor
    excess: Tensor
    flow: Tensor
    denoiser: Tensor
    outcome: Tensor
    start: Tensor

    @property
    def total(self) -> Tensor:
        """Return the sum of all losses, the training objective; the weights of the terms are already applied."""
        return self.flow + self.denoiser + self.outcome + self.start


def objective(networks: Networks) -> str:
    """Return the name of the loss to minimise, given which parameters are not frozen: "start" if only the start
    diffusion trains, "outcome" if only a reward head without history trains, "motion" if only motion or carry train,
    with or without the action encoder, and "all" otherwise."""
    learning = {id(p) for p in networks.parameters() if p.requires_grad}

    def of(*modules: nn.Module | None) -> set[int]:
        return {id(p) for module in modules if module is not None for p in module.parameters()}

    flow, head = networks.flow, networks.outcome
    moving = of(flow.motion, flow.carry)
    if learning <= of(networks.start):
        return "start"
    if head is not None and head.project is None and learning <= of(head):
        return "outcome"
    return "motion" if learning & moving and learning <= moving | of(networks.action) else "all"


def losses(
    networks: Networks, batch: Batch, noise: Tensor, tables: Tables, config: TrainConfig, *, denoiser: bool,
    processes: Processes = ALONE,
) -> Losses:
    """Return all losses of a batch; noise (B, T, n, c) is standard normal. `denoiser`: train the denoiser in this step.
    The mean of the losses over processes, each with a share of the batch, is the loss of the whole batch."""
    flow, sigma = networks.flow, networks.config.noise_level
    clean, _ = networks.codec.encode(batch.frames)
    x = clean + sigma * noise
    score = denoiser and flow.denoiser is not None and config.denoiser_target == "score"
    x.requires_grad_(score)
    text, square = networks.encode_text(batch.texts), noise.square()
    action = networks.action(batch.actions)
    if config.denoiser_target == "score":  # the denoiser's target is the gradient of these nats
        nats, hidden = flow.nats(x, text, action, tables)
    else:
        nats, hidden = flow.nats(x, text, action, tables, clean=clean, level=sigma)
        sampled = flow.first_frames(x.shape[1])
        square = torch.cat((square[:, :sampled], torch.ones_like(square[:, sampled:])), dim=1)
    floor = (-0.5 * square - math.log(sigma) - 0.5 * math.log(2 * math.pi)).sum((-1, -2))
    dims, weight = x.shape[2] * x.shape[3], frame_weights(batch, config)
    denoiser_loss = nats.new_zeros(())
    if denoiser and flow.denoiser is not None:
        target = noise * sigma / flow.config.denoiser_step
        if score:
            (gradient,) = torch.autograd.grad(-nats.sum(), x, retain_graph=True)
            target = gradient.detach() * sigma**2 / flow.config.denoiser_step
        guess = flow.denoiser_output(x.detach(), None if text is None else text.detach(), tables)
        denoiser_loss = config.denoiser_weight * (guess - target).square()[:, -max(1, x.shape[1] - 1) :].mean()
    total_weight = processes.mean(weight.sum()).clamp_min(1e-6)  # all weights of a batch may be zero
    return Losses(
        nats.detach().sum(-1).mean() / dims,
        (floor - nats.detach().sum(-1)),
        -(nats.sum(-1) * weight).sum() / total_weight / dims,
        denoiser_loss,
        config.outcome_weight * _outcome_loss(networks, hidden, x, text, batch),
        start_losses(networks, batch, noise, processes).start if x.shape[1] == 1 else nats.new_zeros(()),
    )


def start_losses(networks: Networks, batch: Batch, noise: Tensor, processes: Processes = ALONE) -> Losses:
    """Return the loss of the start diffusion on first frames (B, 1, ...) with noise (B, 1, n, c). Noise levels are
    evenly spaced over the batch from a random offset. No gradient reaches the text encoder."""
    zero = noise.new_zeros(())
    loss, start = zero, networks.start
    if start is not None:
        clean, text = networks.codec.encode(batch.frames)[0][:, 0], networks.encode_text(batch.texts)
        rows, offset = len(clean) * processes.count, _uniform(processes.first(noise[0]))
        level = (torch.arange(rows, device=clean.device) + offset)[processes.part(rows)] / rows
        text = None if text is None else text.detach()
        loss = start.loss(clean, noise[:, 0], level, networks.config.noise_level, text, networks.config.grid)
    return Losses(zero, zero.expand(len(noise), 1), zero, zero, zero, loss)


def _uniform(noise: Tensor) -> Tensor:
    """Return a uniform number in [0, 1] from standard normals, nearly independent of each of them."""
    return torch.special.ndtr(noise.sum() / noise.numel() ** 0.5)


def motion_losses(networks: Networks, batch: Batch, noise: Tensor, tables: Tables, beta: float) -> Losses:
    """Return the losses of the motion alone, as if the deep block were the identity; noise (B, T, n, c) is normal.

    The expectation over the predicted frame's own noise is taken in closed form, so that only the previous frame's
    noise enters the gradient. Dimensions are weighted by scale**(2 beta) (beta-NLL, Seitzer et al. 2022), because the
    mean is learned too slowly where the scale is large.
    """
    flow, sigma = networks.flow, networks.config.noise_level
    clean, action = networks.codec.encode(batch.frames)[0], networks.action(batch.actions)
    frame_map = flow.map_clip(clean + sigma * noise, action, tables)
    assert isinstance(frame_map, MotionMap)
    motion = frame_map.motion
    scale, zero = motion.scale, noise.new_zeros(())
    excess = 0.5 * ((clean[:, 1:] - motion.mean).square() + sigma**2) / scale**2 + (scale / sigma).log() - 0.5
    floor = -0.5 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    loss = (excess * (scale.detach() / sigma) ** (2 * beta)).mean() if beta else excess.mean()
    frames = F.pad(excess.detach().sum((-1, -2)), (1, 0))
    return Losses(floor - excess.detach().mean(), frames, loss, zero, zero, zero)


def outcome_losses(networks: Networks, batch: Batch, noise: Tensor, config: TrainConfig) -> Losses:
    """Return the loss of a reward head without history on all frames of a batch; noise (B, T, n, c) is normal."""
    x = networks.codec.encode(batch.frames)[0] + networks.config.noise_level * noise
    text, zero = networks.encode_text(batch.texts), noise.new_zeros(())
    loss = _head_loss(networks, None, x, None if text is None else text.detach(), batch.rewards, batch.ends)
    return Losses(zero, zero.expand(x.shape[:2]), zero, zero, config.outcome_weight * loss, zero)


def frame_weights(batch: Batch, config: TrainConfig) -> Tensor:
    """Return the weights (B, T) of frames in the flow's loss. The first frame of a window in mid-episode has weight 0,
    since the world never samples a frame without its history. First frames of episodes have the small `start_weight`,
    because their large loss would dominate that of the transitions."""
    weight = torch.ones(batch.frames.shape[:2], device=batch.frames.device)
    weight[:, 0] = torch.where(batch.actions[:, 0, 0] == 0, config.start_weight, 0.0)
    return weight


def _outcome_loss(networks: Networks, hidden: Tensor, x: Tensor, text: Tensor | None, batch: Batch) -> Tensor:
    """Return the reward head's loss on all frames but the first. Its gradient is not propagated into the hidden states,
    because it would dominate the gradient of the flow."""
    if networks.outcome is None or hidden.shape[1] == 1:
        return hidden.new_zeros(())
    known = hidden[:, 1:].detach().flatten(0, 1)
    return _head_loss(networks, known, x[:, 1:].detach(), text, batch.rewards[:, 1:], batch.ends[:, 1:])


def _head_loss(
    networks: Networks, hidden: Tensor | None, x: Tensor, text: Tensor | None, rewards: Tensor, ends: Tensor
) -> Tensor:
    """Return the mean cross-entropy of rewards plus that of ends (B, T); x (B, T, n, c), hidden (B * T, n, d)."""
    assert networks.outcome is not None
    each = None if text is None else text.repeat_interleave(x.shape[1], dim=0)
    outcome = networks.outcome(hidden, x.flatten(0, 1), each, networks.config.grid)
    reward, end = networks.outcome.loss(outcome, rewards.flatten(), ends.flatten())
    return reward.mean() + end.mean()
