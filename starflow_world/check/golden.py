"""Golden nats of a tiny world that covers codec, noise, text, actions, features, mixture and sliding windows.

Weights and clips come from keyed noise, which has its own golden values (tests/test_noise.py), so the results depend
neither on torch's generators nor on a file. A change of these values means that every likelihood changes.
"""

import torch

from starflow_world.config.world import CodecConfig, FlowConfig, OutcomeConfig, TextConfig, WorldConfig
from starflow_world.flow.density import MixtureHead
from starflow_world.model.networks import Networks
from starflow_world.noise import normals
from starflow_world.world import World

CONFIG = WorldConfig(
    "tiny",
    FlowConfig(
        channels=48, shallow_blocks=3, shallow_layers=1, shallow_width=40, deep_layers=2, deep_width=60, head_width=20,
        text_length=8, text_width=16, position_scale=4.0, sites=2, components=4, head_inner=16, features_width=8,
        features_layers=1, denoiser_layers=1, denoiser_width=40, denoiser_window=1, denoiser_text=False,
        denoiser_step=0.3,
    ),
    height=8, width=8, codec=CodecConfig("patch", patch=2, merge=2), text=TextConfig("t5", 8, 16, 1, 2),
    outcome=OutcomeConfig(16, bins=5), noise_level=0.3, window=6, context=2,
    action_space='{"n": 4, "start": 0, "type": "Discrete"}',
)
TEXTS = ["", "go", "to the"]
FRAMES = 8
"""Number of frames per clip: the window plus 2, so that the window slides."""
NATS = [
    [-332.2576399, -321.5458908, -480.7188216, -339.1134901,
     -335.746969, -384.0912689, -333.6556267, -343.1642834],
    [-364.3713576, -345.0546152, -383.5091069, -344.9976207,
     -366.4706418, -362.2687497, -329.8475183, -354.0933456],
    [-375.9171678, -374.4470294, -351.5051147, -319.6789388,
     -344.4407305, -337.4829694, -331.9031478, -337.6208334],
]
LARGEST_ERROR = 1e-6
"""Largest relative error of a frame's nats that is allowed between processors and versions of torch."""


def golden_world() -> World:
    """Return a tiny world in float64; each weight is drawn with its index in alphabetical order as the noise key."""
    networks = Networks(CONFIG).double()
    with torch.no_grad():
        for key, (_, weight) in enumerate(sorted(networks.named_parameters())):
            weight.copy_(0.5 * _drawn(key, tuple(weight.shape)) / weight.shape[-1] ** 0.5)
        head = networks.flow.deep.head
        assert isinstance(head, MixtureHead)
        head.codebook.code.copy_(0.5 * _drawn(999, tuple(head.codebook.code.shape)))
    return World(networks)


def golden_error() -> float:
    """Return the largest relative difference between the nats of three clips on this machine and the golden nats."""
    clips = torch.stack([128 + 50 * _drawn(1000 + row, (FRAMES, 8, 8, 3)) for row in range(3)]).clamp(0, 255)
    actions = [[None, *((row + t) % 4 for t in range(1, FRAMES))] for row in range(3)]
    nats = golden_world().log_prob(clips.to(torch.uint8), actions, text=TEXTS, seed=7)
    return float((nats / torch.tensor(NATS, dtype=torch.float64) - 1).abs().max())


def _drawn(key: int, shape: tuple[int, ...]) -> torch.Tensor:
    return normals(torch.tensor([key]), torch.tensor([0]), "prior", shape)[0].double()
