"""Ablations: nats of a world without one of its parts, beside the whole world's on the same episodes.

What can be taken away without a loss does nothing. Networks are copied, never changed.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from starflow_world.data.episodes import Episode, flat_actions
from starflow_world.evaluation.fidelity import clip_excess, frame_excess, one_step, standard_error
from starflow_world.evaluation.intervals import Share
from starflow_world.flow.density import MixtureHead
from starflow_world.flow.layers import Layer
from starflow_world.model.networks import Networks
from starflow_world.world import World

PAIRS = 32


class MostLikely(MixtureHead):
    """A mixture head that keeps only the most likely component of each site."""

    def parts(self, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log pi (..., M): 0 for the most likely component and -inf for others; offset and factor (..., k)."""
        chance, offset, factor = super().parts(inner)
        only = torch.full_like(chance, -torch.inf)
        return only.scatter(-1, chance.argmax(-1, keepdim=True), 0.0), offset, factor


def collapsed(world: World) -> World | None:
    """Return the world with only the most likely component of each mixture; None if it has one component."""
    networks = copy.deepcopy(world.networks)
    if not isinstance(networks.flow.deep.head, MixtureHead):
        return None
    networks.flow.deep.head.__class__ = MostLikely
    return _world(networks, world)


def without_last_layer(world: World) -> World:
    """Return the world whose deep block's last layer adds nothing to the hidden states."""
    networks = copy.deepcopy(world.networks)
    layer = cast(Layer, networks.flow.deep.layers[-1])
    for output in (layer.attention.out, layer.feed_forward.down):
        output.weight.data.zero_()
        output.bias.data.zero_()
    return _world(networks, world)


def without_deep_block(world: World) -> World:
    """Return the world whose deep block says nothing: the last layer of its head is zero, as before training."""
    networks = copy.deepcopy(world.networks)
    head = networks.flow.deep.head
    for parameter in (head.out if isinstance(head, MixtureHead) else head).parameters():
        parameter.data.zero_()
    return _world(networks, world)


def ablations(world: World, episodes: Sequence[Episode], seed: int = 0) -> dict[str, dict[str, float]]:
    """Return the excess nats per frame after the first of the whole world and of each ablation, and the loss: how many
    nats an ablation costs on the same frames; with standard errors over episodes. exact_1: the share of exact frames
    one step ahead, of the whole world and of its most likely components."""
    whole = frame_excess(world, episodes, seed=seed)
    found = {"whole": whole, "one frame of history": one_frame_excess(world, episodes, seed)}
    found["no action"] = frame_excess(world, episodes, seed=seed, actions=False)
    if world.networks.text is not None:
        found["no text"] = frame_excess(world, episodes, seed=seed, text=False)
    found["no last deep layer"] = frame_excess(without_last_layer(world), episodes, seed=seed)
    found["no deep block"] = frame_excess(without_deep_block(world), episodes, seed=seed)
    if (likely := collapsed(world)) is not None:
        found["most likely component"] = frame_excess(likely, episodes, seed=seed)
    figures = {name: _figures(some, whole) for name, some in found.items()}
    for name, one in (("whole", world), ("most likely component", likely)):
        if one is not None:
            figures[name]["exact_1"] = _exact(one, episodes, seed)
    return figures


def _exact(world: World, episodes: Sequence[Episode], seed: int) -> float:
    """Return the share of exact frames one step ahead."""
    exact = one_step(world, episodes, seed)["exact_frames_1"]
    return exact.share if isinstance(exact, Share) else exact


@torch.inference_mode()
def one_frame_excess(world: World, episodes: Sequence[Episode], seed: int = 0) -> list[np.ndarray]:
    """Return the excess nats (T,) of the frames of each episode given the frame before them alone; 0 for the first."""
    found = []
    for episode in tqdm(episodes, desc="one frame of history", unit="episode", leave=False):
        flat, excess = flat_actions(episode), np.zeros(len(episode))
        for begin in range(1, len(episode), PAIRS):
            later = np.arange(begin, min(begin + PAIRS, len(episode)))
            pairs = np.stack((later - 1, later), axis=1)
            texts = [episode.text] * len(later)
            excess[later] = clip_excess(world, episode.frames[pairs], flat[torch.from_numpy(pairs)], texts, seed)[:, 1]
        found.append(excess)
    return found


def ablation_table(figures: dict[str, dict[str, Any]]) -> str:
    """Return the ablations as a table of text."""
    lines = [f"{'nats per frame':<24}{'excess':>10}{'+-':>10}{'loss':>10}{'+-':>10}{'exact':>10}"]
    for name, row in figures.items():
        numbers = [row[key] for key in ("excess_nats", "excess_nats_error", "loss", "loss_error")]
        texts = [f"{number:.3f}" if abs(number) < 1e4 else f"{number:.1e}" for number in numbers]
        texts.append(f"{100 * row['exact_1']:.1f} %" if "exact_1" in row else "")
        lines.append(f"{name:<24}" + "".join(f"{text:>10}" for text in texts))
    return "\n".join(lines)


def _figures(some: Sequence[np.ndarray], whole: Sequence[np.ndarray]) -> dict[str, float]:
    after = [excess[1:] for excess in some]
    loss = [excess[1:] - own[1:] for excess, own in zip(some, whole, strict=True)]
    return {
        "excess_nats": float(np.concatenate(after).mean()), "excess_nats_error": standard_error(after),
        "loss": float(np.concatenate(loss).mean()), "loss_error": standard_error(loss),
    }


def _world(networks: Networks, world: World) -> World:
    other = World(networks, world.world_id, world.starts, world.folder)
    other.dynamics.decode = world.dynamics.decode
    return other
