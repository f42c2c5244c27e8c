"""Worlds with frames of any height and width: imagined, observed and scored like any other."""

import pytest
import torch

from starflow_world.config.world import CodecConfig, FlowConfig, WorldConfig
from starflow_world.evaluation.fidelity import cells_right, frames_right
from starflow_world.model.networks import Networks
from starflow_world.score.background import residual
from starflow_world.world import World


def world_of(height: int, width: int, codec: CodecConfig) -> World:
    per_site = 3 * codec.patch**2 if codec.kind == "patch" else codec.components
    flow = FlowConfig(per_site * codec.merge**2, shallow_blocks=0, deep_layers=1, deep_width=32, head_width=32,
                      sites=codec.merge, components=3, head_inner=16, features_width=8, features_layers=1)
    config = WorldConfig("sizes", flow, height, width, codec, noise_level=0.1, window=4, context=1)
    torch.manual_seed(0)
    return World(Networks(config))


@pytest.mark.parametrize(("height", "width", "codec"), [
    (56, 56, CodecConfig("pca", 8, 4, 2)), (10, 10, CodecConfig("patch", 1, 1, 2)),
    (7, 5, CodecConfig("patch", 2, 1, 2)),
])
def test_a_world_steps_and_observes_frames_of_any_size(height, width, codec):
    world = world_of(height, width, codec)
    frames = torch.randint(0, 256, (2, 1, height, width, 3), dtype=torch.uint8)
    world.networks.codec.fit(frames[:, 0])
    state, _ = world.start(frames, seed=0)
    _, imagined = world.step(state, [0, 0])
    assert imagined.frames.shape == frames.shape
    _, seen = world.observe(state, [0, 0], latents=imagined.latents)
    torch.testing.assert_close(seen.nats, imagined.nats)
    _, observed = world.observe(state, [0, 0], imagined.frames[:, 0])
    assert observed.nats.isfinite().all()


def test_every_pixel_counts_once_in_the_cells_and_in_the_error_of_a_padded_frame():
    world = world_of(7, 5, CodecConfig("patch", 2, 1, 2))
    real = torch.zeros(1, 7, 5, 3, dtype=torch.uint8)
    wrong = real.clone()
    wrong[0, 6, 4] = 40
    right = cells_right(world, wrong.numpy(), real.numpy())
    assert right.shape == (1, 4, 3)
    assert (~right).nonzero() == ([0], [3], [2])
    assert not frames_right(world, wrong.numpy(), real.numpy())[0]
    latents = world.networks.codec.encode(wrong[None])[0][0]
    lost = residual(world.networks.codec, real, latents, 4)
    assert lost.tolist() == [[0, 0, 0, pytest.approx((1600 / 3) ** 0.5)]]  # the last token has three pixels of its own
