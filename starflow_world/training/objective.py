"""What training minimises: nats of the flow, the denoiser's regression, and outcomes.

Shapes: B rows, T frames, n tokens per frame, c channels, d deep width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from starflow_world.config.train import TrainConfig
from starflow_world.flow import Tables
from starflow_world.model.networks import Networks
from starflow_world.training.batches import Batch
from starflow_world.training.distributed import ALONE, Processes


@dataclass(frozen=True)
class Losses:
    """Means over a batch: nats per dim; excess nats per frame over the noise floor, (B, T); and the losses."""

    nats_per_dim: Tensor
    excess: Tensor
    flow: Tensor
    denoiser: Tensor
    outcome: Tensor
    start: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised; denoiser and outcome are weighted already."""
        return self.flow + self.denoiser + self.outcome + self.start


def losses(
    networks: Networks, batch: Batch, noise: Tensor, tables: Tables, config: TrainConfig, *, denoiser: bool,
    processes: Processes = ALONE,
) -> Losses:
    """All losses of one batch; noise (B, T, n, c) is standard normal. `denoiser`: train it too in this step. The mean
    of the losses over processes, each of which has part of a batch, is that of the whole batch."""
    flow, sigma = networks.flow, networks.config.noise_level
    clean, _ = networks.codec.encode(batch.frames)
    x = clean + sigma * noise
    score = denoiser and flow.denoiser is not None and config.denoiser_target == "score"
    x.requires_grad_(score)
    text, square = networks.encode_text(batch.texts), noise.square()
    if config.denoiser_target == "score" or flow.motion is None:  # whose gradient is that of these very nats
        nats, hidden = flow.nats(x, text, networks.action(batch.actions), tables)
    else:
        nats, hidden = flow.nats(x, text, networks.action(batch.actions), tables, clean=clean, level=sigma)
        square = torch.cat((square[:, :1], torch.ones_like(square[:, 1:])), dim=1)
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
    heft = processes.mean(weight.sum()).clamp_min(1e-6)  # a batch may weigh nothing
    return Losses(
        nats.detach().sum(-1).mean() / dims,
        (floor - nats.detach().sum(-1)),
        -(nats.sum(-1) * weight).sum() / heft / dims,
        denoiser_loss,
        config.outcome_weight * _outcome_loss(networks, hidden, x, text, batch),
        start_losses(networks, batch, noise, processes).start if x.shape[1] == 1 else nats.new_zeros(()),
    )


def start_losses(networks: Networks, batch: Batch, noise: Tensor, processes: Processes = ALONE) -> Losses:
    """The loss of the start diffusion alone, on first frames (B, 1, ...) in noise (B, 1, n, c), at noise levels spread
    evenly over the rows from a random offset. It reads the text and does not shape it."""
    zero = noise.new_zeros(())
    found, start = zero, networks.start
    if start is not None:
        clean, text = networks.codec.encode(batch.frames)[0][:, 0], networks.encode_text(batch.texts)
        rows, offset = len(clean) * processes.count, _uniform(processes.first(noise[0]))
        level = (torch.arange(rows, device=clean.device) + offset)[processes.part(rows)] / rows
        text = None if text is None else text.detach()
        found = start.loss(clean, noise[:, 0], level, networks.config.noise_level, text, networks.config.grid)
    return Losses(zero, zero.expand(len(noise), 1), zero, zero, zero, found)


def _uniform(noise: Tensor) -> Tensor:
    """A number between 0 and 1 that hardly depends on any one of these normal ones, which are used for themselves."""
    return torch.special.ndtr(noise.sum() / noise.numel() ** 0.5)


def motion_losses(networks: Networks, batch: Batch, noise: Tensor, tables: Tables, beta: float) -> Losses:
    """The nats of the motion alone, as if the deep block said nothing; noise (B, T, n, c) is standard normal.

    The expectation over the noise of the frame that is predicted, which the motion cannot know, is taken in closed
    form: what is left of the gradient's own noise is that of the frame before. Dimensions of large scale count
    scale**(2 beta) as much (beta-NLL, Seitzer et al. 2022): where a motion expects anything, it learns too slowly what
    to expect.
    """
    flow, sigma = networks.flow, networks.config.noise_level
    clean, action = networks.codec.encode(batch.frames)[0], networks.action(batch.actions)
    motion, _ = flow.condition(clean + sigma * noise, None, action, tables.grid)
    assert motion is not None
    scale, zero = motion.scale, noise.new_zeros(())
    excess = 0.5 * ((clean[:, 1:] - motion.mean).square() + sigma**2) / scale**2 + (scale / sigma).log() - 0.5
    floor = -0.5 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    loss = (excess * (scale.detach() / sigma) ** (2 * beta)).mean() if beta else excess.mean()
    found = excess.detach().sum((-1, -2))
    return Losses(floor - excess.detach().mean(), F.pad(found, (1, 0)), loss, zero, zero, zero)


def outcome_losses(networks: Networks, batch: Batch, noise: Tensor, config: TrainConfig) -> Losses:
    """The loss of an outcome head that needs no history, on every frame of the batch; noise (B, T, n, c)."""
    assert networks.outcome is not None
    x = networks.codec.encode(batch.frames)[0] + networks.config.noise_level * noise
    text, count, zero = networks.encode_text(batch.texts), x.shape[1], noise.new_zeros(())
    each = None if text is None else text.detach().repeat_interleave(count, dim=0)
    outcome = networks.outcome(None, x.flatten(0, 1), each, networks.config.grid)
    reward, end = networks.outcome.loss(outcome, batch.rewards.flatten(), batch.ends.flatten())
    found = config.outcome_weight * (reward.mean() + end.mean())
    return Losses(zero, zero.expand(x.shape[:2]), zero, zero, found, zero)


def frame_weights(batch: Batch, config: TrainConfig) -> Tensor:
    """Weights (B, T) of frames in the flow's loss.

    The first frame of a window in mid-episode has no past to follow from, and no step ever imagines one: weight 0. True
    starts: `start_weight`, small, because their many nats would drown out how frames follow each other.
    """
    weight = torch.ones(batch.frames.shape[:2], device=batch.frames.device)
    weight[:, 0] = torch.where(batch.actions[:, 0, 0] == 0, config.start_weight, 0.0)
    return weight


def _outcome_loss(networks: Networks, hidden: Tensor, x: Tensor, text: Tensor | None, batch: Batch) -> Tensor:
    """The head reads the hidden states and does not shape them: the flow's gradient is faint beside its own."""
    count = hidden.shape[1] - 1
    if networks.outcome is None or not count:
        return hidden.new_zeros(())
    each = None if text is None else text.repeat_interleave(count, dim=0)
    seen, known = x[:, 1:].detach().flatten(0, 1), hidden[:, 1:].detach().flatten(0, 1)
    outcome = networks.outcome(known, seen, each, networks.config.grid)
    reward, end = networks.outcome.loss(outcome, batch.rewards[:, 1:].flatten(), batch.ends[:, 1:].flatten())
    return reward.mean() + end.mean()
