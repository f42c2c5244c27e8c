"""The step from frame to frame: exact, causal, and silent about frames that follow none."""

import pytest
import torch

from starflow_world.codec import make_codec
from starflow_world.config.world import CodecConfig, FlowConfig, WorldConfig
from starflow_world.errors import ConfigError
from starflow_world.flow import Past
from starflow_world.flow.sites import SiteHead, to_sites, to_tokens
from tests.flow.sampling import sample_deep

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


def mapped(clip, action):
    """u and log|du/dx| of a clip, and what is added to the deep block's inputs."""
    frame_map = clip.flow.map_clip(clip.x, action, clip.tables)
    return *frame_map.forward(clip.x), frame_map.added


def past_of(clip, frame: int, alone: list[int] | None = None, carried: torch.Tensor | None = None) -> Past:
    """What precedes a frame of the clip; `alone`: rows in which nothing does."""
    u, _, _ = mapped(clip, clip.action)
    carried = clip.flow.carry.along(clip.x, clip.action, clip.tables.grid) if carried is None else carried
    rows = torch.tensor([] if alone is None else alone, dtype=torch.long)
    return Past(u[:, frame - 1], clip.x[:, :frame], carried[:, frame - 1], rows)


@pytest.mark.parametrize("sites", [1, 2])
def test_a_frame_map_and_its_inverse_agree_and_the_log_determinant_is_right(make_clip, at_most, sites):
    clip = make_clip(**MOVING, sites=sites, rows=1, grid=(2, 2))
    frame_map = clip.flow.map_clip(clip.x, clip.action, clip.tables)
    u, logdet = frame_map.forward(clip.x)
    x, back = frame_map.inverse(u)
    at_most("error", (x - clip.x).abs().max(), 1e-10)
    torch.testing.assert_close(back, logdet)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: clip.flow.map_clip(x, clip.action, clip.tables).forward(x)[0].flatten(), clip.x
    ).reshape(u.numel(), u.numel())
    at_most("log-determinant", abs(float(torch.linalg.slogdet(jacobian)[1] - logdet.sum())), 1e-9)


@pytest.mark.parametrize("frame", [1, 3])
def test_the_map_of_the_next_frame_is_that_of_the_clip_and_inverts_itself(moving, at_most, frame):
    whole, one = mapped(moving, moving.action), slice(frame, frame + 1)
    frame_map = moving.flow.map_next(past_of(moving, frame), moving.action[:, one], moving.tables)
    u, logdet = frame_map.forward(moving.x[:, one])
    for part, expected in zip((u, logdet, frame_map.added), whole, strict=True):
        torch.testing.assert_close(part, expected[:, one], rtol=1e-12, atol=1e-12)
    at_most("error", (frame_map.inverse(u)[0] - moving.x[:, one]).abs().max(), 1e-10)


def test_a_row_without_a_previous_frame_passes_the_shallow_blocks_and_leaves_the_others_alone(moving, at_most):
    action, x = moving.action[:, 2:3], moving.x[:, 2:3]
    frame_map = moving.flow.map_next(past_of(moving, 2, alone=[1]), action, moving.tables)
    u, logdet = frame_map.forward(x)
    every = moving.flow.map_next(past_of(moving, 2), action, moving.tables)
    first, first_logdet = moving.flow.shallow(x, moving.tables)
    for part, later, start in ((u, every.forward(x)[0], first), (logdet, every.forward(x)[1], first_logdet)):
        torch.testing.assert_close(part[0], later[0], rtol=0, atol=0)
        torch.testing.assert_close(part[1], start[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(frame_map.added[0], every.added[0])
    assert torch.equal(frame_map.added[1], action[1, :, None].expand_as(frame_map.added[1]))
    at_most("error", (frame_map.inverse(u)[0] - x).abs().max(), 1e-10)
    alone = moving.flow.map_next(past_of(moving, 2, alone=[0, 1]), action, moving.tables)
    torch.testing.assert_close(alone.forward(x)[0], first)


def test_the_predictive_distribution_of_a_frame_has_the_nats_of_the_flow(moving):
    frame_map = moving.flow.map_clip(moving.x, moving.action, moving.tables)
    u, logdet = frame_map.forward(moving.x)
    given = moving.flow.deep_forward(u, moving.text, frame_map.added, moving.tables)
    nats = given.nats(u.flatten(1, 2)).unflatten(1, u.shape[1:3]) + logdet
    torch.testing.assert_close(frame_map.predictive(given).nats(moving.x[:, 1:]), nats[:, 1:])


def test_frames_that_follow_another_pass_no_shallow_block(moving, make_clip):
    other = make_clip(**MOVING)
    for parameter in other.flow.shallow.parameters():
        parameter.mul_(1.5)
    here, there = (
        c.flow.map_clip(moving.x, moving.action, moving.tables).forward(moving.x)[0] for c in (moving, other)
    )
    assert not torch.equal(here[:, 0], there[:, 0])
    assert torch.equal(here[:, 1:], there[:, 1:])


def test_a_frame_depends_on_no_later_one(moving):
    x = moving.x.clone().requires_grad_()
    nats, _ = moving.flow.nats(x, moving.text, moving.action, moving.tables)
    for frame in range(4):
        (gradient,) = torch.autograd.grad(nats[:, frame].sum(), x, retain_graph=True)
        assert not gradient[:, frame + 1 :].any()
        assert gradient[:, : frame + 1].abs().amax((0, 2, 3)).min() > 0


def test_no_action_is_zeros_for_the_motion_too(moving):
    none, zeros = mapped(moving, None)[0], mapped(moving, torch.zeros_like(moving.action))[0]
    assert torch.equal(none, zeros)
    assert not torch.equal(none, mapped(moving, moving.action)[0])


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
