"""The adapter over the Wan VAE: what the class itself computes, in streams, with the published scaling."""

import json
import shutil

import pytest
import torch
from torch import Tensor

from starflow_world.codec.wan import WanCodec
from starflow_world.errors import CheckpointError, DataError
from tests.tiny_video import ALTERED, altered, tiny_wan

pytest.importorskip("diffusers")
GRID = (2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def codec(folder) -> WanCodec:
    return WanCodec.load(folder, grid=GRID)


@pytest.fixture(scope="module")
def clip() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 13, 4, 6, generator=generator)
    large = torch.nn.functional.interpolate(small.flatten(0, 1), scale_factor=8, mode="bilinear")
    return (large.unflatten(0, (2, 3)) * 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


@pytest.fixture(scope="module")
def latents(codec, clip) -> Tensor:
    return codec.encode(clip)[0]


def test_shapes_are_those_of_the_published_codec(codec, clip, latents):
    assert codec.pixels == 16
    assert clip.shape == (2, 13, 32, 48, 3)
    assert latents.shape == (2, 4, 6, codec.channels)
    frames, memory = codec.decode(latents)
    assert frames.shape == clip.shape
    assert frames.dtype == torch.uint8
    assert [stream.decoder.frames for stream in memory] == [4, 4]


def test_latents_are_the_classes_own_standardised_and_all_but_the_first_shrunk(codec, clip, latents):
    pixels = clip.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        mean = torch.cat([codec.vae.encode(video).latent_dist.mode() for video in pixels.split(1)])
    shape, config = (1, 6, 1, 1, 1), codec.vae.config
    expected = (mean - torch.tensor(config.latents_mean).view(shape)) / torch.tensor(config.latents_std).view(shape)
    expected[:, :, 1:] *= 0.6
    assert torch.equal(latents, expected.flatten(3).permute(0, 2, 3, 1))
    assert latents.std() > 0.05


def test_frames_are_the_classes_own_after_the_scaling_is_undone(codec, latents):
    config = codec.vae.config
    z = latents.clone()
    z[:, 1:] /= 0.6
    z = (z * torch.tensor(config.latents_std) + torch.tensor(config.latents_mean)).unflatten(2, GRID)
    with torch.no_grad():
        pixels = codec.vae.decode(z.permute(0, 4, 1, 2, 3)).sample
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    found = codec.decode(latents)[0]
    assert (found.int() - expected.int()).abs().max() <= 1  # a rounding of 1 / 0.6
    assert (found == expected).float().mean() > 0.999
    assert found.float().std() > 3


def test_a_stream_is_encoded_and_decoded_piece_by_piece_to_the_same_numbers(codec, clip, latents):
    whole, _ = codec.decode(latents)
    memory, parts = codec.begin(2), []
    for piece in clip.split([5, 4, 4], dim=1):
        part, memory = codec.encode(piece, memory)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), latents, rtol=0, atol=1e-5)
    memory, frames = codec.begin(2), []
    for piece in latents.split([1, 2, 1], dim=1):
        part, memory = codec.decode(piece, memory)
        frames.append(part)
    assert [part.shape[1] for part in frames] == [1, 8, 4]
    assert (torch.cat(frames, dim=1).int() - whole.int()).abs().max() <= 1


def test_the_past_does_not_depend_on_the_future(codec, clip, latents):
    assert torch.equal(codec.encode(clip[:, :9])[0], latents[:, :3])
    assert torch.equal(codec.decode(latents[:, :3])[0], codec.decode(latents)[0][:, :9])
    changed = clip.clone()
    changed[:, 9:] = 0
    found = codec.encode(changed)[0]
    assert torch.equal(found[:, :3], latents[:, :3])
    assert not torch.equal(found[:, 3], latents[:, 3])


def test_a_memory_is_a_value_so_streams_do_not_disturb_each_other(codec, latents):
    first, memory = codec.decode(latents[:1, :2])
    expected, _ = codec.decode(latents[:1, 2:], memory)
    other, other_memory = codec.decode(latents[1:, :2])
    codec.decode(latents[1:, 2:], other_memory)
    assert torch.equal(codec.decode(latents[:1, 2:], memory)[0], expected)
    assert not torch.equal(first, other)


def test_a_sampled_posterior_has_its_own_deviation_which_is_not_standardised(codec, clip, latents):
    sampled = codec.encode(clip[:1, :5], keys=torch.arange(64))[0]
    pixels = clip[:1, :5].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        std = codec.vae.encode(pixels).latent_dist.std.flatten(3).permute(0, 2, 3, 1)
    std[:, 1:] *= 0.6
    found = (sampled - latents[:1, :2]).square().mean(0, keepdim=True).sqrt()
    assert (found / std).mean().sub(1).abs() < 0.03


def test_the_noise_of_the_posterior_follows_from_key_and_frame_alone(codec, clip):
    whole, _ = codec.encode(clip, keys=torch.tensor([7, 8]))
    first, memory = codec.encode(clip[1:, :5], keys=torch.tensor([8]))
    later, _ = codec.encode(clip[1:, 5:], memory, keys=torch.tensor([8]))
    torch.testing.assert_close(torch.cat((first, later), dim=1), whole[1:], rtol=0, atol=1e-5)
    assert (codec.encode(clip[1:], keys=torch.tensor([7]))[0] - whole[1:]).abs().max() > 0.1


@pytest.mark.parametrize(("shape", "dtype"), [
    ((1, 4, 32, 32, 3), torch.uint8), ((1, 5, 32, 40, 3), torch.uint8), ((1, 5, 32, 32, 3), torch.float32),
    ((5, 32, 32, 3), torch.uint8), ((1, 0, 32, 32, 3), torch.uint8),
])
def test_clips_of_other_shapes_are_refused(codec, shape, dtype):
    with pytest.raises(DataError, match=r"1 \+ 4k frames, multiples of 16"):
        codec.encode(torch.zeros(shape, dtype=dtype))


def test_a_stream_goes_on_with_four_frames(codec, clip):
    _, memory = codec.encode(clip[:, :5])
    with pytest.raises(DataError, match="4k frames"):
        codec.encode(clip[:, 5:10], memory)


def test_what_is_no_vae_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="AutoencoderKLWan"):
        WanCodec.load(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"latents_mean": [0.0] * 5}))
    with pytest.raises(CheckpointError, match="5 means and 6 standard deviations"):
        WanCodec.load(tmp_path)


def test_the_factor_is_that_of_the_config(folder, clip, latents):
    plain = WanCodec.load(folder, later=1.0).encode(clip)[0]
    assert torch.equal(plain[:, :1], latents[:, :1])
    assert torch.allclose(plain[:, 1:] * 0.6, latents[:, 1:], atol=1e-6)


@pytest.mark.parametrize(("how", "said"), ALTERED.items())
def test_a_vae_without_all_its_numbers_is_one_error(folder, tmp_path, how, said):
    wrong = altered(shutil.copytree(folder, tmp_path / "vae"), "decoder.conv_in.weight", how)
    with pytest.raises(CheckpointError, match=f"vae: expected all tensors of an AutoencoderKLWan, .*{said}"):
        WanCodec.load(wrong)
