"""Training losses: negative log-likelihood of the flow, regression of the denoiser, rewards and terminations.

Shapes: B batch elements, T frames, n tokens per frame, c channels, d deep width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from starflow_world.config.train import TrainConfig
from starflow_world.flow import Tables
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

    @property
    def total(self) -> Tensor:
        """Return the sum of all losses, the training objective; the weights of the terms are already applied."""
        return self.flow + self.denoiser + self.outcome


def losses(
    networks: Networks, batch: Batch, noise: Tensor, tables: Tables, config: TrainConfig, *, denoiser: bool,
    processes: Processes = ALONE,
) -> Losses:
    """Return all losses of a batch; noise (B, T, n, c) is standard normal. `denoiser`: train the denoiser in this step.
    The mean of the losses over processes, each with a share of the batch, is the loss of the whole batch."""
    flow, sigma = networks.flow, networks.config.noise_level
    clean, _ = networks.codec.encode(batch.frames)
    x = clean + sigma * noise
    score = denoiser and flow.denoiser is not None
    x.requires_grad_(score)
    text, action = networks.encode_text(batch.texts), networks.action(batch.actions)
    if score or not flow.closed_form:  # the denoiser's target is the gradient of these nats
        nats, hidden = flow.nats(x, text, action, tables)
        square = noise.square()
    else:
        nats, hidden = flow.nats(x, text, action, tables, clean=clean, level=sigma)
        square = torch.ones_like(noise)
    floor = (-0.5 * square - math.log(sigma) - 0.5 * math.log(2 * math.pi)).sum((-1, -2))
    dims, weight = x.shape[2] * x.shape[3], frame_weights(batch, config)
    denoiser_loss = nats.new_zeros(())
    if score:
        (gradient,) = torch.autograd.grad(-nats.sum(), x, retain_graph=True)
        target = gradient.detach() * sigma**2 / flow.config.denoiser_step
        guess = flow.denoiser_output(x.detach(), None if text is None else text.detach(), tables)
        denoiser_loss = config.denoiser_weight * (guess - target).square()[:, -max(1, x.shape[1] - 1) :].mean()
    total_weight = processes.mean(weight.sum()).clamp_min(1e-6)  # all weights of a batch may be zero
    outcome = outcome_loss(networks, hidden, x, text, batch) / max(1, batch.rewards[:, 1:].numel())
    return Losses(
        nats.detach().sum(-1).mean() / dims,
        (floor - nats.detach().sum(-1)),
        -(nats.sum(-1) * weight).sum() / total_weight / dims,
        denoiser_loss,
        config.outcome_weight * outcome,
    )


def frame_weights(batch: Batch, config: TrainConfig) -> Tensor:
    """Return the weights (B, T) of frames in the flow's loss: those of the batch, but 0 for the first frame of a window
    in mid-episode, since the world never samples a frame without its history. First frames of episodes have the small
    `start_weight`, because their large loss would dominate that of the transitions."""
    weight = batch.weights.clone()
    weight[:, 0] = torch.where(batch.actions[:, 0, 0] == 0, config.start_weight, 0.0)
    return weight


def event_loss(networks: Networks, batch: Batch, noise: Tensor, tables: Tables) -> Tensor:
    """Return the reward head's loss on a batch of events, summed; noise (B, T, n, c) is standard normal."""
    clean, _ = networks.codec.encode(batch.frames)
    x, text = clean + networks.config.noise_level * noise, networks.encode_text(batch.texts)
    with torch.no_grad():
        _, hidden = networks.flow.nats(x, text, networks.action(batch.actions), tables)
    return outcome_loss(networks, hidden, x, text, batch)


def outcome_loss(networks: Networks, hidden: Tensor, x: Tensor, text: Tensor | None, batch: Batch) -> Tensor:
    """Return the reward head's weighted loss, summed over all frames but the first. Its gradient is not propagated into
    the hidden states, because it would dominate the gradient of the flow."""
    if networks.outcome is None or hidden.shape[1] == 1:
        return hidden.new_zeros(())
    known, x = hidden[:, 1:].detach().flatten(0, 1), x[:, 1:].detach()
    each = None if text is None else text.repeat_interleave(x.shape[1], dim=0)
    described = networks.flow.describe(x.flatten(0, 1))
    outcome = networks.outcome(known, described, each, networks.config.grid)
    reward, end = networks.outcome.loss(outcome, batch.rewards[:, 1:].flatten(), batch.ends[:, 1:].flatten())
    return ((reward + end) * batch.outcome_weights[:, 1:].flatten()).sum()
