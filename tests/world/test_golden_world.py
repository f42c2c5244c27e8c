"""Golden nats of a whole world: codec, noise, text, actions, motion, what is carried, and the slide of the window.

Weights and clips come from keyed noise, whose own numbers are golden (tests/test_noise.py), so nothing here depends on
torch's generators, and no file is needed. A change that moves these numbers changes every likelihood there is.
"""

import torch

from starflow_world.model.networks import Networks
from starflow_world.noise import normals
from starflow_world.world import World
from tests.worlds import tiny_config

TEXTS = ["", "go", "to the"]
FRAMES = 8  # two more than the window holds
NATS = [
    [-407.1616509, -233.9691038, -226.2145965, -285.4830419,
     -237.7407687, -257.2502106, -230.2798743, -271.336352],
    [-539.433324, -222.5406048, -273.440163, -240.4231442,
     -261.3170827, -245.3781882, -296.1502017, -240.2308088],
    [-483.3976136, -259.5426814, -234.065187, -257.9457292,
     -231.8273257, -238.0103427, -253.2622913, -255.0145919],
]


def drawn(key: int, shape: tuple[int, ...]) -> torch.Tensor:
    return normals(torch.tensor([key]), torch.tensor([0]), "prior", shape)[0].double()


def golden_world() -> World:
    """A tiny world in float64 whose every weight is drawn by its name's place in the alphabet."""
    networks = Networks(tiny_config(height=8, width=8)).double()
    with torch.no_grad():
        for key, (_, weight) in enumerate(sorted(networks.named_parameters())):
            weight.copy_(0.5 * drawn(key, tuple(weight.shape)) / weight.shape[-1] ** 0.5)
    return World(networks)


def test_nats_of_three_clips_are_the_golden_ones(at_most):
    world = golden_world()
    clips = torch.stack([128 + 50 * drawn(1000 + row, (FRAMES, 8, 8, 3)) for row in range(3)]).clamp(0, 255)
    actions = [[None, *((row + t) % 4 for t in range(1, FRAMES))] for row in range(3)]
    found = world.log_prob(clips.to(torch.uint8), actions, text=TEXTS, seed=7)
    expected = torch.tensor(NATS, dtype=torch.float64)
    print([[float(f"{nats:.10g}") for nats in row] for row in found.tolist()])
    at_most("relative error", (found / expected - 1).abs().max(), 1e-6)
