"""A learned codec keeps what components lose, and is fitted once: from then on it never moves."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from starflow_world.codec import ConvCodec, PatchCodec, conv, make_codec
from starflow_world.config.world import CodecConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import ConfigError, DataError
from starflow_world.model.checkpoint import load_networks, save_checkpoint
from starflow_world.model.networks import Networks
from starflow_world.training.world import WorldTrainer
from tests.squares import FAST, fill, world_config
from tests.worlds import TINY

CODEC = CodecConfig("conv", patch=8, components=6)
LEVEL = 0.05


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "STEPS", 400)
        yield


def balls(count: int = 120, side: int = 16) -> Tensor:
    """Frames (N, side, side, 3) of one dark colour with a bright pixel that is at another place in each."""
    frames = torch.full((count, side * side, 3), 40, dtype=torch.uint8)
    frames[torch.arange(count), torch.arange(count) * 7 % side**2] = 220
    return frames.view(count, side, side, 3)


@pytest.fixture(scope="module")
def fitted(few_steps) -> ConvCodec:
    codec = ConvCodec(CODEC, (16, 16), LEVEL)
    codec.fit(balls())
    return codec


def back(codec: PatchCodec, frames: Tensor, level: float = 0.0) -> Tensor:
    latents, _ = codec.encode(frames[None])
    return codec.decode(latents + level * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)))[0][0]


def test_a_ball_of_one_pixel_that_as_many_components_lose_stays_one_pixel(fitted, at_most):
    frames, components = balls(), PatchCodec(replace(CODEC, kind="pca"), (16, 16))
    components.fit(frames)
    assert (back(components, frames).float() - frames).abs().max() > 100
    for level in (0.0, LEVEL):
        at_most(f"grey levels, noise {level}", float((back(fitted, frames, level).float() - frames).abs().max()), 60.0)
        assert torch.equal((back(fitted, frames, level) > 130), frames > 130)


def test_noise_in_training_keeps_pictures_under_the_noise_of_the_world(fitted, at_most):
    frames, silent = balls(), ConvCodec(CODEC, (16, 16), 0.0)
    silent.fit(frames)
    errors = [float((back(codec, frames, LEVEL).float() - frames).square().mean().sqrt()) for codec in (fitted, silent)]
    at_most("error, of that without noise in training", errors[0] / errors[1], 0.8)


def test_latents_are_bounded_and_those_of_a_site_depend_on_its_own_pixels_alone(fitted):
    frames = balls()
    latents = fitted.encode(frames[None])[0]
    assert latents.shape == (1, len(frames), 4, 6)
    assert latents.abs().max() <= 2
    changed = frames[:1].clone()
    changed[0, 15, 0] ^= 128
    moved = (fitted.encode(changed[None])[0] - latents[:, :1]).abs().amax(-1)
    assert moved[0, 0, 2] > 0.1
    assert moved[0, 0, [0, 1, 3]].max() < 1e-6


def test_equal_patches_give_equal_networks_however_often_they_are_seen(fitted):
    again = ConvCodec(CODEC, (16, 16), LEVEL)
    torch.manual_seed(5)
    again.fit(torch.cat((balls(), balls()[:50])))
    assert all(torch.equal(value, fitted.state_dict()[name]) for name, value in again.state_dict().items())


def test_training_a_world_fits_its_codec_once_and_then_leaves_it(tmp_path):
    data = fill(tmp_path / "data", (9, 9, 9))
    world = world_config(codec=CodecConfig("conv", patch=2, components=3, merge=2))
    trainer = WorldTrainer(world, FAST, EpisodeDataset(data).memory_map())
    trainer.fit_codec()
    codec = trainer.networks.codec
    assert isinstance(codec, ConvCodec)
    assert not list(codec.parameters())
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    trainer.advance()
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())


def test_a_learned_codec_is_saved_with_the_weights(tmp_path):
    config = replace(TINY, height=16, width=16, codec=replace(CODEC, components=3, merge=2, patch=4))
    networks = Networks(config)
    networks.codec.fit(balls(20))
    save_checkpoint(tmp_path, networks, {})
    loaded, _ = load_networks(tmp_path)
    frames = balls(20)[None]
    assert torch.equal(loaded.codec.encode(frames)[0], networks.codec.encode(frames)[0])
    half = tmp_path / "half"
    save_checkpoint(half, networks, {}, ("codec.",))
    rounded, _ = load_networks(half)
    torch.testing.assert_close(rounded.codec.encode(frames)[0], networks.codec.encode(frames)[0], rtol=0, atol=0.02)


def test_what_does_not_fit_is_refused(fitted):
    with pytest.raises(DataError, match="frames: expected uint8"):
        fitted.encode(torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="components"):
        CodecConfig("conv", patch=1, components=4)
    assert isinstance(make_codec(replace(TINY, codec=replace(CODEC, components=3, merge=2))), ConvCodec)
