"""What training minimises: nats of the flow, flow-score matching, outcomes, and the draft's likelihood.

Shapes: B rows, T frames, n tokens per frame, c channels, d deep width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import Batch
from .config import TrainConfig
from .flow import Tables
from .networks import Networks


@dataclass(frozen=True)
class Losses:
    """Means over a batch: nats per dim; excess nats per frame over the noise floor, (B, T); and the three losses."""

    nats_per_dim: Tensor
    excess: Tensor
    flow: Tensor
    denoiser: Tensor
    outcome: Tensor
    draft: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised; denoiser and outcome are weighted already."""
        return self.flow + self.denoiser + self.outcome + self.draft


def losses(
    networks: Networks, batch: Batch, noise: Tensor, tables: Tables, config: TrainConfig, *, denoiser: bool
) -> Losses:
    """All losses of one batch; noise (B, T, n, c) is standard normal. `denoiser`: train it too in this step."""
    flow, sigma = networks.flow, networks.config.noise_level
    latents = networks.codec.encode(batch.frames)
    x = latents + sigma * noise
    x.requires_grad_(denoiser)
    text = networks.encode_text(batch.texts)
    nats, hidden, u = _likelihood(networks, x, text, batch, tables)
    floor = (-0.5 * noise.square() - math.log(sigma) - 0.5 * math.log(2 * math.pi)).sum((-1, -2))
    dims, weight = x.shape[2] * x.shape[3], frame_weights(batch, config)
    denoiser_loss = nats.new_zeros(())
    if denoiser and flow.denoiser is not None:
        (score,) = torch.autograd.grad(-nats.sum(), x, retain_graph=True)
        target = score.detach() * sigma**2 / flow.config.denoiser_step
        guess = flow.denoiser_output(x.detach(), None if text is None else text.detach(), tables)
        denoiser_loss = config.denoiser_weight * (guess - target).square()[:, -max(1, x.shape[1] - 1) :].mean()
    return Losses(
        nats.detach().sum(-1).mean() / dims,
        (floor - nats.detach().sum(-1)),
        -(nats.sum(-1) * weight).sum() / weight.sum().clamp_min(1e-6) / dims,  # a batch may weigh nothing
        denoiser_loss,
        config.outcome_weight * _outcome_loss(networks, hidden, u, batch),
        _draft_loss(networks, u, batch),
    )


def draft_losses(networks: Networks, batch: Batch, noise: Tensor, tables: Tables) -> Losses:
    """The draft's loss alone; nothing is said of nats."""
    with torch.no_grad():
        x = networks.codec.encode(batch.frames) + networks.config.noise_level * noise
        u, _ = networks.flow.shallow_forward(x, tables)
    loss, zero = _draft_loss(networks, u, batch), u.new_zeros(())
    return Losses(zero, u.new_zeros(u.shape[:2]), zero, zero, zero, loss)


def denoiser_losses(networks: Networks, batch: Batch, noise: Tensor, tables: Tables) -> Losses:
    """The denoiser's loss alone, against the noise: its regression is the data's own score (Vincent 2011)."""
    flow, sigma = networks.flow, networks.config.noise_level
    with torch.no_grad():
        x, text = networks.codec.encode(batch.frames) + sigma * noise, networks.encode_text(batch.texts)
    guess = flow.denoiser_output(x, text, tables)
    loss = (guess - sigma / flow.config.denoiser_step * noise).square().mean()
    zero = loss.new_zeros(())
    return Losses(zero, loss.new_zeros(x.shape[:2]), zero, loss, zero, zero)


def frame_weights(batch: Batch, config: TrainConfig) -> Tensor:
    """Weights (B, T) of frames in the flow's loss.

    The first frame of a window in mid-episode has no past to follow from, and no step ever imagines one: weight 0. True
    starts are imagined from text alone: `start_weight`, small, because their many nats would teach the shallow blocks
    to mix the tokens of a frame before the deep block has learned how frames follow each other.
    """
    weight = torch.ones(batch.frames.shape[:2])
    weight[:, 0] = torch.where(batch.actions[:, 0, 0] == 0, config.start_weight, 0.0)
    return weight


def _likelihood(
    networks: Networks, x: Tensor, text: Tensor | None, batch: Batch, tables: Tables
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats per token (B, T, n), hidden states (B, T, n, d) and u (B, T, n, c)."""
    flow = networks.flow
    u, logdet = flow.shallow_forward(x, tables)
    added = flow.condition(u, None, networks.action(batch.actions), tables.grid)
    affine = flow.deep_forward(u, text, added, tables)
    nats = affine.nats(u.flatten(1, 2)).unflatten(1, u.shape[1:3]) + logdet
    return nats.sum(-1), affine.hidden.unflatten(1, u.shape[1:3]), u


def _outcome_loss(networks: Networks, hidden: Tensor, u: Tensor, batch: Batch) -> Tensor:
    if networks.outcome is None or hidden.shape[1] < 2:
        return hidden.new_zeros(())
    outcome = networks.outcome(hidden[:, 1:], u[:, 1:].detach())
    reward, end = networks.outcome.loss(outcome, batch.rewards[:, 1:], batch.ends[:, 1:])
    return reward.mean() + end.mean()


def _draft_loss(networks: Networks, u: Tensor, batch: Batch) -> Tensor:
    """Negative nats per dim of each frame after the first under the draft."""
    draft = networks.flow.draft
    if draft is None or u.shape[1] < 2:
        return u.new_zeros(())
    action = networks.action(batch.actions[:, 1:]).detach().flatten(0, 1)
    guess = draft(u[:, :-1].detach().flatten(0, 1), action, networks.codec.grid)
    return -guess.nats(u[:, 1:].detach().flatten(0, 1)).mean()
