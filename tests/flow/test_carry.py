"""What is carried from frame to frame: causal, the same at once and frame by frame, able to bring back what went."""

from dataclasses import replace

import pytest
import torch

from starflow_world.config.world import FlowConfig
from starflow_world.flow import Past
from starflow_world.flow.motion import Carry, CarryingMotion
from starflow_world.flow.sites import to_tokens

CARRYING = {"motion_width": 8, "motion_layers": 1, "carry_slots": 2, "carry_width": 8}
GRID = (2, 2)
SMALL = FlowConfig(channels=12, shallow_width=20, deep_width=20, head_width=20, denoiser_width=20, **CARRYING)


@pytest.fixture(scope="module")
def carrying(make_clip):
    return make_clip(**CARRYING)


def past_of(clip, frame: int, carried: torch.Tensor) -> Past:
    """What precedes a frame of the clip."""
    return Past(clip.x[:, frame - 1], clip.x[:, :frame], carried[:, frame - 1], torch.empty(0, dtype=torch.long))


def test_frames_at_once_and_one_by_one_carry_the_same(carrying):
    flow, x, action, grid = carrying.flow, carrying.x, carrying.action, carrying.tables.grid
    whole = flow.carry.along(x, action, grid)
    assert whole.shape == (*x.shape[:2], flow.carry.numbers)
    carried = flow.carry.along(x[:, :1], action[:, :1], grid)
    for t in range(1, x.shape[1]):
        one = slice(t, t + 1)
        last = flow.carry.after(past_of(carrying, t, carried), x[:, one], action[:, one], grid)
        carried = torch.cat((carried, last), dim=1)
    torch.testing.assert_close(carried, whole, rtol=0, atol=1e-12)
    assert (whole[:, 1:] - whole[:, :-1]).abs().amax() > 1e-4, "something was carried"


def test_a_row_without_a_previous_frame_begins_to_carry(carrying):
    flow, x, action, grid = carrying.flow, carrying.x, carrying.action, carrying.tables.grid
    past = replace(past_of(carrying, 2, flow.carry.along(x, action, grid)), alone=torch.tensor([1]))
    carried = flow.carry.after(past, x[:, 2:3], action[:, 2:3], grid)
    begun = flow.carry.along(x[:, 2:3], action[:, 2:3], grid)
    torch.testing.assert_close(carried[1], begun[1])
    assert not torch.equal(carried[0], begun[0])


def test_what_is_carried_changes_the_frames_after_it_and_none_before(carrying):
    clip, changed = carrying, carrying.x.clone()
    changed[:, 1, 0, 0] += 1.0
    one, other = (clip.flow.nats(x, clip.text, clip.action, clip.tables)[0] for x in (clip.x, changed))
    assert torch.equal(one[:, 0], other[:, 0])
    one, other = (clip.flow.carry.along(x, clip.action, clip.tables.grid) for x in (clip.x, changed))
    assert torch.equal(one[:, 0], other[:, 0])
    assert not torch.equal(one[:, 1:], other[:, 1:])


def test_a_motion_follows_what_is_carried(carrying):
    flow, x, action, tables = carrying.flow, carrying.x, carrying.action, carrying.tables
    carried = flow.carry.along(x, action, tables.grid)
    one, other = (flow.map_clip(x, action, tables, k).motion for k in (carried, carried + 1))
    assert not torch.equal(one.mean, other.mean)
    assert not torch.equal(one.scale, other.scale)


def test_the_next_frame_is_mapped_with_what_was_carried_through_the_clip(carrying):
    flow, x, action, tables = carrying.flow, carrying.x, carrying.action, carrying.tables
    carried = flow.carry.along(x, action, tables.grid)
    whole = flow.map_clip(x, action, tables).forward(x)
    part = flow.map_next(past_of(carrying, 3, carried), action[:, 3:], tables).forward(x[:, 3:])
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[:, 3:], other, rtol=0, atol=1e-12)


def test_a_fresh_carry_changes_no_motion():
    torch.manual_seed(0)
    with_slots = CarryingMotion(SMALL)
    torch.nn.init.normal_(with_slots.head.numbers.weight)  # a fresh head says nothing of what it is given
    x, action = torch.randn(3, 4, 12), torch.randn(3, 20)
    one, other = (with_slots(x, action, GRID, carried) for carried in (torch.zeros(3, 24), torch.randn(3, 24)))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.scale, other.scale)


def test_an_open_slot_holds_the_site_that_went_as_it_looked():
    torch.manual_seed(0)
    carry = Carry(replace(SMALL, sites=2))
    with torch.no_grad():
        carry.look.weight[:, -1] = 100.0
        carry.gate.bias.fill_(100.0)
    before = torch.zeros(1, 4, 4, 3)
    before[0, 1, 2] = torch.tensor([1.0, -2.0, 3.0])
    frames = torch.stack([to_tokens(sites, 2) for sites in (before, torch.zeros_like(before))], dim=1)
    last = torch.zeros(1, 6)
    carried = carry(last, frames[:, :1], frames[:, 1:], torch.zeros(1, 1, 20), GRID)
    torch.testing.assert_close(carried[0, 0], torch.tensor([1.0, -2.0, 3.0] * 2), rtol=0, atol=0.05)
