"""What the deep block is told: sites lie where the codec puts them; the last frame, the action and the text count."""

import pytest
import torch

from starflow_world.codec import make_codec
from starflow_world.config.world import CodecConfig, FlowConfig, WorldConfig
from starflow_world.flow.sites import to_sites, to_tokens

ALONE = {"sites": 2, "features_width": 4, "features_layers": 1}
"""Features of a flow of one normal per channel."""


@pytest.fixture(scope="module", params=[False, True], ids=["one normal", "mixtures"])
def clip(request, make_clip):
    return make_clip(mixed=True) if request.param else make_clip(**ALONE)


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


def conditions(clip, u=None, action=None, text=None):
    u, action = clip.x if u is None else u, clip.action if action is None else action
    return clip.flow.conditions(u, text, action, clip.tables.grid)


def test_a_first_frame_without_text_is_told_its_action_alone(clip):
    found = conditions(clip)
    assert found.shape == (*clip.x.shape[:3], clip.action.shape[-1])
    for first in (found[:, 0], conditions(clip, clip.x[:, :1], clip.action[:, :1])[:, 0]):
        assert torch.equal(first, clip.action[:, 0, None].expand_as(first))
    assert not torch.equal(found[:, 1], clip.action[:, 1, None].expand_as(found[:, 1]))


def test_every_token_is_told_of_the_text(clip):
    told = conditions(clip, text=clip.text) - conditions(clip)
    expected = clip.flow.features.text(clip.text.sum(1) / 3**0.5)[:, None, None].expand_as(told)
    torch.testing.assert_close(told, expected)
    both = torch.cat((clip.text, clip.null_text.expand_as(clip.text)))
    twice = conditions(clip, text=both)  # texts of twice as many rows, as guidance has
    torch.testing.assert_close(twice[:2], conditions(clip, text=clip.text))
    torch.testing.assert_close(twice[2:], conditions(clip, text=both[2:]))


def test_a_frame_is_told_of_the_last_one_and_of_its_own_action(clip):
    """Another frame changes what the next one is told, and another action what its own frame is told, and no more."""
    plain = conditions(clip)
    for frame in range(4):
        u, action = clip.x.clone(), clip.action.clone()
        u[0, frame] += 1
        action[0, frame] += 1
        for found, changed in ((conditions(clip, u), frame + 1), (conditions(clip, action=action), frame)):
            differs = (found != plain).flatten(2).any(-1)
            assert differs.tolist() == [[t == changed for t in range(4)], [False] * 4]


def test_every_site_of_the_last_frame_is_told_to_the_tokens_around_it(make_clip):
    clip = make_clip(mixed=True, frames=2, rows=1)
    plain, u = conditions(clip), clip.x.clone()
    u[0, 0, 5] += 1  # the second token of the second row of 4 x 4
    told = (conditions(clip, u) != plain)[0, 1].any(-1).reshape(4, 4)
    assert torch.equal(told, torch.tensor([[True, True, True, False]] * 3 + [[False] * 4]))


def test_what_is_told_has_the_size_of_a_token_however_large_the_features_become(clip):
    """Else what attention adds to it is lost beside it, and the past is never learned."""
    with torch.no_grad():
        clip.flow.features.tell.weight.mul_(100)
    told = conditions(clip) - clip.action[:, :, None]
    torch.testing.assert_close(told[:, 1:].square().mean(-1), torch.ones_like(told[:, 1:, :, 0]), rtol=0, atol=1e-3)


def test_what_was_at_a_token_is_told_even_where_the_network_is_silent(clip):
    with torch.no_grad():
        for parameter in clip.flow.features.net.parameters():
            parameter.zero_()
    plain, u = conditions(clip), clip.x.clone()
    u[0, 0, 5] += 1
    told = (conditions(clip, u) != plain)[0, 1].any(-1)
    assert told.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("frame", [1, 3])
def test_the_next_frame_is_told_what_it_is_told_in_a_clip(clip, frame):
    present = torch.ones(2, 1, 1, dtype=torch.bool)
    arguments = clip.x[:, frame - 1], present, clip.text, clip.action[:, frame], clip.tables.grid
    expected = conditions(clip, text=clip.text)[:, frame]
    torch.testing.assert_close(clip.flow.next_conditions(*arguments), expected, rtol=0, atol=1e-12)


def test_a_row_without_a_last_frame_is_told_its_action_and_leaves_the_others_alone(clip):
    rows = [torch.tensor(present)[:, None, None] for present in ([True, True], [True, False])]
    arguments = None, clip.action[:, 2], clip.tables.grid
    both, one = (clip.flow.next_conditions(clip.x[:, 1], present, *arguments) for present in rows)
    assert torch.equal(one[0], both[0])
    assert torch.equal(one[1], clip.action[1, 2].expand_as(one[1]))


def test_no_action_is_zeros_and_a_flow_without_features_is_told_nothing_else(clip, tiny):
    none = clip.flow.conditions(clip.x, clip.text, None, clip.tables.grid)
    assert torch.equal(none, conditions(clip, action=torch.zeros_like(clip.action), text=clip.text))
    assert tiny.flow.conditions(tiny.x, tiny.text, None, tiny.tables.grid) is None
    found = conditions(tiny)
    assert torch.equal(found, tiny.action[:, :, None].expand_as(found))


def test_features_are_computed_at_full_precision_whatever_the_products_are(make_clip):
    clip = make_clip(mixed=True).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = conditions(clip)
    assert half.dtype == torch.float32
    assert torch.equal(half, conditions(clip))
