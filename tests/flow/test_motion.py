"""The step from frame to frame: exact, causal, and silent about frames that follow none."""

import pytest
import torch

from starflow_world.codec import make_codec
from starflow_world.config.world import CodecConfig, FlowConfig, WorldConfig
from starflow_world.errors import ConfigError
from starflow_world.flow.sample import sample_deep
from starflow_world.flow.sites import SiteHead, to_sites, to_tokens

MOVING = {"motion_width": 8, "motion_layers": 1, "codes": 3}


@pytest.fixture(scope="module")
def moving(make_clip):
    return make_clip(**MOVING)


def test_sites_and_tokens_are_two_views_of_the_same_numbers():
    tokens = torch.randn(3, 6, 20)
    sites = to_sites(tokens, (2, 3), 2)
    assert sites.shape == (3, 4, 6, 5)
    assert torch.equal(to_tokens(sites, 2), tokens)
    assert torch.equal(sites[:, 0, 1], tokens[:, 0, 5:10]), "the second site of a token is the one to the right"


def test_sites_lie_where_the_codec_puts_them():
    """A pixel moves the site that holds it, and no other."""
    config = WorldConfig("w", FlowConfig(channels=48, sites=2), 16, 16, codec=CodecConfig("patch", patch=2, merge=2))
    codec = make_codec(config)
    frames = torch.zeros(2, 1, 16, 16, 3, dtype=torch.uint8)
    frames[1, 0, 5, 14] = 255
    sites = to_sites(codec.encode(frames)[0][:, 0], codec.grid, 2)
    changed = (sites[0] != sites[1]).any(-1)
    assert changed.nonzero().tolist() == [[2, 7]]


@pytest.mark.parametrize("sites", [1, 2])
def test_front_and_back_are_inverse_and_the_log_determinant_is_right(make_clip, at_most, sites):
    clip = make_clip(**MOVING, sites=sites, rows=1, grid=(2, 2))
    flow = clip.flow
    u, logdet, _ = flow.front(clip.x, None, clip.action, clip.tables)
    motion, _ = flow.condition(clip.x, None, clip.action, clip.tables.grid)
    first, _ = flow.back(u[:, :1], None, clip.tables)
    later, back = flow.back(u[:, 1:], motion, clip.tables)
    at_most("error", (torch.cat((first, later), 1) - clip.x).abs().max(), 1e-10)
    torch.testing.assert_close(back, logdet[:, 1:])
    jacobian = torch.autograd.functional.jacobian(
        lambda x: flow.front(x, None, clip.action, clip.tables)[0].flatten(), clip.x
    ).reshape(u.numel(), u.numel())
    at_most("log-determinant", abs(float(torch.linalg.slogdet(jacobian)[1] - logdet.sum())), 1e-9)


def test_frames_that_follow_another_pass_no_shallow_block(moving, make_clip):
    other = make_clip(**MOVING)
    for parameter in other.flow.shallow.parameters():
        parameter.mul_(1.5)
    here, there = (c.flow.front(moving.x, None, moving.action, moving.tables)[0] for c in (moving, other))
    assert not torch.equal(here[:, 0], there[:, 0])
    assert torch.equal(here[:, 1:], there[:, 1:])


def test_a_frame_depends_on_no_later_one(moving):
    x = moving.x.clone().requires_grad_()
    nats, _ = moving.flow.nats(x, moving.text, moving.action, moving.tables)
    for frame in range(4):
        (gradient,) = torch.autograd.grad(nats[:, frame].sum(), x, retain_graph=True)
        assert not gradient[:, frame + 1 :].any()
        assert gradient[:, : frame + 1].abs().amax((0, 2, 3)).min() > 0


def test_a_frame_that_is_given_as_the_one_before_counts_like_one_of_the_clip(moving):
    whole = moving.flow.front(moving.x, None, moving.action, moving.tables)
    part = moving.flow.front(moving.x[:, 2:], moving.x[:, 1], moving.action[:, 2:], moving.tables)
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[:, 2:], other, rtol=1e-12, atol=1e-12)


def test_no_action_is_zeros_for_the_motion_too(moving):
    none = moving.flow.front(moving.x, None, None, moving.tables)[0]
    zeros = moving.flow.front(moving.x, None, torch.zeros_like(moving.action), moving.tables)[0]
    assert torch.equal(none, zeros)
    assert not torch.equal(none, moving.flow.front(moving.x, None, moving.action, moving.tables)[0])


def test_a_code_is_read_where_a_softmax_chooses_it():
    head = SiteHead(2, 4, 2, codes=3).double()
    torch.nn.init.zeros_(head.choice.weight)
    head.choice.bias.data = torch.tensor([0.0, 100.0, 0.0]).double()
    out = head(torch.randn(1, 2, 2, 2).double())
    expected = torch.cat((torch.zeros(2), head.codes.detach()[1])).double()
    torch.testing.assert_close(out[0].flatten(0, 1), expected.expand(4, 4))


def test_a_flow_with_motion_is_sampled_by_a_world_only(moving):
    with pytest.raises(ConfigError, match="stepped by a world"):
        sample_deep(moving.flow, moving.noise, moving.text, moving.tables, action=moving.action)
    one = sample_deep(moving.flow, moving.noise[:, :1], moving.text, moving.tables, action=moving.action[:, :1])
    assert bool(one.converged.all())


def test_a_site_denoiser_cleans_every_frame_on_its_own(make_clip):
    clip = make_clip(denoiser_kind="sites", denoiser_layers=1, denoiser_width=8, codes=3)
    assert clip.flow.denoiser.memory == 0
    whole = clip.flow.denoise(clip.x, clip.text, clip.tables)
    assert not torch.equal(whole, clip.x)
    torch.testing.assert_close(whole[:, 2:3], clip.flow.denoise(clip.x[:, 2:3], clip.text, clip.tables))


def test_nats_in_expectation_are_the_mean_over_draws_of_the_newest_noise(make_clip):
    """Only the last token of a clip is drawn anew: no other one's mean or scale depends on it."""
    clip, level, draws = make_clip(**MOVING, rows=1), 0.3, 4000
    noise = torch.randn(draws, *clip.x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=clip.x.dtype)
    x = clip.x.expand(draws, -1, -1, -1).clone()
    x[:, -1, -1] += level * noise[:, -1, -1]
    text, action = clip.text.expand(draws, -1, -1), clip.action.expand(draws, -1, -1)
    sampled, _ = clip.flow.nats(x, text, action, clip.tables)
    expected, _ = clip.flow.nats(x[:1], text[:1], action[:1], clip.tables, clean=clip.x, level=level)
    own, error = sampled[:, -1, -1], sampled[:, -1, -1].std() / draws**0.5
    assert abs(own.mean() - expected[0, -1, -1]) < 4 * error < 0.1
    assert own.std() > 0.5, "the noise that the expectation leaves out"
    assert torch.equal(expected[:, 0], sampled[:1, 0]), "a first frame has no such form"
