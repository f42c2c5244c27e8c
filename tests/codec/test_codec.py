"""Codecs: exact where they say so, a basis that travels with the weights, and frames that do not fit are refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from starflow_world.codec import PatchCodec, make_codec
from starflow_world.config.world import CodecConfig, FlowConfig, WorldConfig
from starflow_world.errors import DataError
from starflow_world.flow import Flow
from starflow_world.model.checkpoint import load_networks, save_checkpoint
from starflow_world.model.networks import Networks
from tests.worlds import TINY


def pictures(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)


def drawn_from(patches: Tensor, *shape: int, seed: int = 0) -> Tensor:
    """Frames (*shape, H, W, 3) made of the given patches (P, p, p, 3) alone."""
    count, p = patches.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    *batch, height, width = shape
    index = torch.randint(0, count, (*batch, height // p, width // p), generator=generator)
    return patches[index].transpose(-4, -3).reshape(*batch, height, width, 3)


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_are_exact_and_lie_where_the_picture_has_them(patch, merge):
    codec = PatchCodec(CodecConfig("patch", patch=patch, merge=merge), (8, 16))
    frames = pictures(2, 3, 8, 16)
    (latents, _), scale = codec.encode(frames), patch * merge
    assert latents.shape == (2, 3, 8 // scale * (16 // scale), 3 * scale**2)
    assert codec.invertible
    assert -1 <= latents.min()
    assert latents.max() <= 1
    assert torch.equal(codec.decode(latents)[0], frames)
    assert torch.equal(codec.decode(latents.double() + 0.4 * 2 / 255)[0], frames)  # rounds to the nearest grey level
    changed = frames.clone()
    changed[1, 2, scale - 1, scale] ^= 1  # the second token of the first row
    moved = (codec.encode(changed)[0] != latents).any(-1)
    assert moved.nonzero().tolist() == [[1, 2, 1]]


def test_latents_beyond_the_pixels_are_clipped():
    codec = PatchCodec(CodecConfig("patch", patch=2), (4, 4))
    assert codec.decode(torch.full((1, 1, 4, 12), 9.0))[0].min() == 255
    assert codec.decode(torch.full((1, 1, 4, 12), -9.0))[0].max() == 0


def test_bits_per_dimension_of_noise_under_the_identity_are_the_closed_form(at_most):
    """A fresh flow is a standard normal; a pixel is a cell of width 2 / 255 with uniform dither."""
    config = FlowConfig(channels=12, shallow_blocks=2, shallow_layers=1, shallow_width=20, deep_layers=1, deep_width=20,
                        head_width=20)
    flow, codec = Flow(config).double(), PatchCodec(CodecConfig("patch", patch=2), (16, 16))
    frames = pictures(2, 1, 16, 16)
    dither = torch.rand(2, 1, 64, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    x = codec.encode(frames)[0].double() + dither * 2 / 255
    with torch.no_grad():
        nats, _ = flow.nats(x, None, None, flow.tables((8, 8), 1))
    bits = -(nats.sum() / x.numel() + math.log(2 / 255)) / math.log(2)
    grey = (frames.double() / 127.5 - 1).flatten()
    values = codec.encode(frames)[0].double().flatten()
    torch.testing.assert_close(values.sort().values, grey.sort().values, rtol=0, atol=1e-7)
    closed = (0.5 * math.log(2 * math.pi) + 0.5 * (x**2).mean()) / math.log(2) + math.log2(255 / 2)
    at_most("error", abs(float(bits - closed)), 1e-6)
    assert float(bits) == pytest.approx(8.0, abs=0.6)  # near the 8 bits of uniform noise, and not 8 * ln 2


def test_few_distinct_patches_are_kept_exactly():
    frames = drawn_from(pictures(7, 4, 4), 20, 16, 16)
    codec = PatchCodec(CodecConfig("pca", patch=4, components=6), (16, 16))
    codec.fit(frames)
    latents, _ = codec.encode(frames[None])
    assert torch.equal(codec.decode(latents)[0], frames[None])
    assert not codec.invertible
    assert latents.abs().max() == pytest.approx(2.0, abs=1e-3)
    spread = codec.encode(drawn_from_all(frames))[0].flatten(0, 2)
    torch.testing.assert_close(spread.std(0, correction=0), spread.std(0, correction=0).mean().expand(6))


def drawn_from_all(frames: Tensor) -> Tensor:
    """Each distinct patch once, as frames of one row: (P, 1, 16, 16, 3) with the patch everywhere."""
    cells = frames.unflatten(2, (4, 4)).unflatten(1, (4, 4)).transpose(2, 3).flatten(0, 2)
    return torch.unique(cells, dim=0).repeat(1, 4, 4, 1)[:, None]


def test_the_basis_does_not_depend_on_how_often_a_patch_is_seen():
    patches = pictures(9, 4, 4)
    often, seldom = drawn_from(patches, 30, 16, 16), drawn_from(patches, 8, 16, 16, seed=1)
    codecs = [PatchCodec(CodecConfig("pca", patch=4, components=5), (16, 16)) for _ in range(2)]
    for codec, frames in zip(codecs, (often, torch.cat((seldom, often[:2]))), strict=True):
        codec.fit(frames)
    torch.testing.assert_close(codecs[0].mean, codecs[1].mean)
    torch.testing.assert_close(codecs[0].analysis.abs(), codecs[1].analysis.abs())


def test_more_components_keep_more():
    frames = pictures(40, 8, 8)
    errors = []
    for count in (2, 8, 24, 48):
        codec = PatchCodec(CodecConfig("pca", patch=4, components=count), (8, 8))
        codec.fit(frames)
        errors.append(float((codec.decode(codec.encode(frames[None])[0])[0].float() - frames[None]).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1.0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_distinct_patches_than_components_are_kept_exactly_and_the_rest_is_zero(count):
    codec = PatchCodec(CodecConfig("pca", patch=4, components=8), (8, 8))
    frames = drawn_from(pictures(count, 4, 4), 50, 8, 8)
    codec.fit(frames)
    latents, _ = codec.encode(frames[None])
    assert torch.equal(codec.decode(latents)[0], frames[None])
    noisy = latents + torch.randn(latents.shape) * (torch.arange(8) >= count - 1)
    assert torch.equal(codec.decode(noisy)[0][0], frames)
    assert not latents[..., count - 1 :].any()


@pytest.mark.parametrize(("kind", "size", "patch", "merge", "grid"), [
    ("pca", (56, 56), 8, 2, (4, 4)), ("patch", (10, 10), 1, 2, (5, 5)), ("patch", (7, 10), 2, 2, (2, 3)),
    ("pca", (5, 64), 4, 1, (2, 16)), ("patch", (1, 1), 4, 2, (1, 1)),
])
def test_frames_of_any_size_are_padded_with_their_edges_and_cropped(kind, size, patch, merge, grid):
    codec = PatchCodec(CodecConfig(kind, patch=patch, components=9, merge=merge), size)
    frames = pictures(3, 2, 4, 4)[:, :, torch.arange(size[0]) % 4][:, :, :, torch.arange(size[1]) % 4]
    codec.fit(frames.flatten(0, 1))
    latents, _ = codec.encode(frames)
    assert codec.grid == grid
    assert latents.shape[:3] == (3, 2, grid[0] * grid[1])
    back, _ = codec.decode(latents)
    assert back.shape == frames.shape
    assert kind == "pca" or torch.equal(back, frames)
    whole = PatchCodec(codec.config, tuple(patch * merge * side for side in grid))
    whole.load_state_dict(codec.state_dict())
    padded = whole.decode(latents)[0]
    assert torch.equal(padded[:, :, : size[0], : size[1]], back)
    if kind == "patch":
        assert (padded[:, :, size[0] :] == padded[:, :, size[0] - 1 : size[0]]).all()
        assert (padded[:, :, :, size[1] :] == padded[:, :, :, size[1] - 1 : size[1]]).all()


def test_the_basis_is_saved_with_the_weights(tmp_path):
    codec = CodecConfig("pca", patch=4, components=3, merge=2)
    networks = Networks(replace(TINY, codec=codec))
    frames = drawn_from(pictures(4, 4, 4), 5, 16, 16)
    networks.codec.fit(frames)
    save_checkpoint(tmp_path, networks, {})
    loaded, _ = load_networks(tmp_path)
    assert torch.equal(loaded.codec.encode(frames[None])[0], networks.codec.encode(frames[None])[0])
    assert torch.equal(loaded.codec.decode(loaded.codec.encode(frames[None])[0])[0], frames[None])


def test_frames_that_do_not_fit_are_refused():
    config = WorldConfig("x", FlowConfig(channels=12), 8, 16, codec=CodecConfig("patch", patch=2))
    codec = make_codec(config)
    good = pictures(1, 1, 8, 16)
    for wrong in (pictures(1, 1, 16, 8), good[0], good[..., :2], good.float(), good.long(), good.to(torch.int8)):
        with pytest.raises(DataError, match=r"frames: expected uint8 \(rows, frames, 8, 16, 3\)"):
            codec.encode(wrong)
