"""The whole flow: causal in time, the same by every path; windows are fresh encodes; guidance; denoising of clips."""

from itertools import pairwise

import pytest
import torch

from starflow_world.errors import ConfigError
from starflow_world.flow import guide
from starflow_world.flow.windows import Span, spans
from tests.flow.sampling import denoised_in_windows, numbers, sample, sample_deep

EITHER = pytest.mark.parametrize("mixed", [False, True], ids=["one normal", "mixtures"])
EITHER_CLIP = pytest.mark.parametrize("kind", ["tiny", "mixed"])


def nats(clip, x=None, action="given"):
    action = clip.action if isinstance(action, str) else action
    return clip.flow.nats(clip.x if x is None else x, clip.text, action, clip.tables)[0]


def draw(clip, **options):
    options = {"action": clip.action, "tolerance": 0.0, **options}
    return sample(clip.flow, clip.noise, clip.text, clip.tables, **options)


def to_noise(clip, x):
    """x (B, T, n, c) -> z (B, T, n, c) by teacher forcing."""
    u, _ = clip.flow.shallow(x, clip.tables)
    added = clip.flow.conditions(u, clip.text, clip.action, clip.tables.grid)
    affine = clip.flow.deep_forward(u, clip.text, added, clip.tables)
    return affine.to_noise(u.flatten(1, 2))[0].unflatten(1, x.shape[1:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_fresh_flow_is_the_identity_exactly(init, dtype):
    clip = init.to(dtype)
    u, logdet = clip.flow.shallow(clip.x, clip.tables)
    assert torch.equal(u, clip.x)
    assert torch.equal(logdet, torch.zeros_like(u))
    assert torch.equal(to_noise(clip, clip.x), clip.x)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(clip.x).sum(-1)
    assert torch.allclose(nats(clip), expected, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    ("gain", "dtype", "tolerance"),
    [
        ("init", torch.float64, 1e-10), ("tiny", torch.float64, 1e-10), ("wild", torch.float64, 1e-10),
        ("init", torch.float32, 1e-4), ("tiny", torch.float32, 1e-4),
        ("wild", torch.float32, 1e-2),  # data up to 50 and scales down to 0.03: rounding x alone moves z by 1e-4
    ],
)
@pytest.mark.parametrize("chunk", [0, 1])
def test_noise_to_data_and_back_gives_the_noise(request, at_most, gain, chunk, dtype, tolerance):
    clip = request.getfixturevalue(gain).to(dtype)
    x, _, _ = draw(clip, chunk=chunk)
    at_most("error", (to_noise(clip, x) - clip.noise).abs().max(), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_samples_and_shallow_blocks_are_inverted_to_rounding(tiny, at_most, dtype, tolerance):
    clip = tiny.to(dtype)
    x, _, _ = draw(clip)
    u, logdet = clip.flow.shallow(x, clip.tables)
    for chunk in (0, 1):
        back, back_logdet, sweeps = clip.flow.shallow.inverse(u, clip.tables, chunk=chunk)
        at_most("error", (back - x).abs().max(), tolerance)
        assert float((back_logdet - logdet).abs().max()) <= tolerance
        assert int(sweeps.max()) <= 2 * 17


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("tolerance_of_decoding", [0.0, 1e-3])
@EITHER_CLIP
def test_nats_of_a_sample_are_those_that_teacher_forcing_gives_it(
    request, at_most, kind, tolerance_of_decoding, dtype, tolerance
):
    clip = request.getfixturevalue(kind).to(dtype)
    x, found, deep = draw(clip, tolerance=tolerance_of_decoding)
    at_most("nats", (found - nats(clip, x)).abs().max(), tolerance)
    u, _ = clip.flow.shallow(x, clip.tables)
    assert float((u - deep.u).abs().max()) <= tolerance


@EITHER
def test_nothing_later_in_time_and_no_other_row_changes_a_frame(make_clip, mixed):
    clip = make_clip(grid=(2, 2), frames=3, mixed=mixed)
    matrix = torch.autograd.functional.jacobian(lambda x: nats(clip, x).sum(-1), clip.x).abs().sum((-1, -2))
    seen = matrix != 0  # (B, T, B, T)
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    expected = torch.einsum("ab,ts->atbs", torch.eye(2), causal.float()).bool()
    assert torch.equal(seen, expected)


@EITHER_CLIP
def test_an_action_changes_its_own_frame_and_later_ones_only(request, kind):
    clip = request.getfixturevalue(kind)
    action = clip.action.clone().requires_grad_()
    for frame in range(4):
        (gradient,) = torch.autograd.grad(nats(clip, action=action)[:, frame].sum(), action)
        reached = (gradient != 0).any(-1)
        assert reached.tolist() == [[t <= frame for t in range(4)]] * 2
    assert torch.equal(nats(clip, action=torch.zeros_like(action)), nats(clip, action=None)), "no action is zeros"


@EITHER
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_nats_do_not_depend_on_how_many_rows_are_computed_together(make_clip, at_most, mixed, dtype, tolerance):
    clip = make_clip(rows=32, frames=2, mixed=mixed).to(dtype)
    whole = nats(clip)
    for width in (1, 2, 3, 8):
        some = clip.rows(list(range(width)))
        difference = (nats(some) - whole[:width]).abs() / whole[:width].abs().clamp_min(1)
        at_most("relative error", difference.max(), tolerance)


@EITHER
def test_nats_in_expectation_are_the_mean_over_draws_of_the_newest_noise_or_below(make_clip, mixed):
    """Only the last token of a clip is drawn anew: what the others are told does not depend on it."""
    clip, level, draws = make_clip(rows=1, mixed=mixed, shallow_blocks=0), 0.3, 4000
    noise = torch.randn(draws, *clip.x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=clip.x.dtype)
    x = clip.x.expand(draws, -1, -1, -1).clone()
    x[:, -1, -1] += level * noise[:, -1, -1]
    text, action = clip.text.expand(draws, -1, -1), clip.action.expand(draws, -1, -1)
    sampled, _ = clip.flow.nats(x, text, action, clip.tables)
    expected, _ = clip.flow.nats(x[:1], text[:1], action[:1], clip.tables, clean=clip.x, level=level)
    own, error = sampled[:, -1, -1], sampled[:, -1, -1].std() / draws**0.5
    assert own.std() > 0.3, "the noise that the expectation leaves out"
    difference = expected[0, -1, -1] - own.mean()
    assert difference < 4 * error
    assert mixed or difference > -4 * error


def test_behind_shallow_blocks_there_is_no_expectation_in_closed_form(tiny):
    found, _ = tiny.flow.nats(tiny.x, tiny.text, tiny.action, tiny.tables, clean=0 * tiny.x, level=0.3)
    assert not tiny.flow.closed_form
    assert torch.equal(found, nats(tiny))


# ---- windows ---------------------------------------------------------------------------------------------------------


def window_starts(frames: int, window: int, context: int) -> list[int]:
    """The first frame of the window in which each frame is new."""
    return [begin for begin, known, end in spans(frames, window, context) for _ in range(known, end)]


def test_a_window_begins_where_the_table_of_slides_says():
    assert window_starts(8, 3, 2) == [0, 0, 0, 1, 2, 3, 4, 5]
    assert window_starts(8, 3, 1) == [0, 0, 0, 2, 2, 4, 4, 6]
    assert window_starts(12, 5, 2) == [0] * 5 + [3] * 3 + [6] * 3 + [9]
    assert list(spans(7, 5, 2)) == [Span(0, 0, 5), Span(3, 5, 7)]
    assert list(spans(5, 5, 2)) == [Span(0, 0, 5)]
    assert list(spans(2, 5, 2)) == [Span(0, 0, 2)]


def test_a_window_ends_at_a_break_and_goes_on_where_it_began_unless_it_is_full():
    assert list(spans(5, 5, 2, [3])) == [Span(0, 0, 3), Span(0, 3, 5)]
    assert list(spans(9, 5, 2, [-1, 0, 2, 5, 9])) == [Span(0, 0, 2), Span(0, 2, 5), Span(3, 5, 8), Span(6, 8, 9)]
    assert list(spans(9, 5, 2, [6])) == [Span(0, 0, 5), Span(3, 5, 6), Span(3, 6, 8), Span(6, 8, 9)]


@pytest.mark.parametrize(("window", "context", "frames"), [(3, 1, 21), (4, 3, 13), (4, 2, 22)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@EITHER
def test_every_window_is_a_fresh_encode_of_its_frames(
    make_clip, at_most, mixed, window, context, frames, dtype, tolerance
):
    clip = make_clip(grid=(2, 2), frames=frames, mixed=mixed).to(dtype)
    deep = sample_deep(
        clip.flow, clip.noise, clip.text, clip.flow.tables((2, 2), window), action=clip.action,
        window=window, context=context,
    )
    starts = window_starts(frames, window, context)
    assert len(set(starts)) >= 10
    for frame, start in enumerate(starts):
        part = slice(start, frame + 1)
        added = clip.flow.conditions(deep.u[:, part], clip.text, clip.action[:, part], clip.tables.grid)
        fresh = clip.flow.deep_forward(deep.u[:, part], clip.text, added, clip.tables)
        for name, found in numbers(deep.density).items():
            found = found.unflatten(1, (frames, 4))[:, frame]
            at_most("error", (found - getattr(fresh, name)[:, -4:]).abs().max(), tolerance)


@pytest.mark.parametrize("given", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@EITHER
def test_continuing_ones_own_frames_gives_the_frames_that_came(make_clip, mixed, given, guidance):
    clip = make_clip(grid=(2, 2), frames=7, mixed=mixed)
    options = {
        "window": 3, "context": 1, "tolerance": 0.0, "action": clip.action, "guidance": guidance,
        "null_text": clip.null_text,
    }
    whole = sample_deep(clip.flow, clip.noise, clip.text, clip.tables, **options).u
    rest = sample_deep(
        clip.flow, clip.noise[:, given:], clip.text, clip.tables, prefix=whole[:, :given], **options
    ).u
    assert float((rest - whole[:, given:]).abs().max()) <= 1e-12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 3}, "context"),
        ({"window": 3, "context": 3}, "context"),
        ({"window": 3, "context": 0}, "context"),
        ({"window": 0}, "window"),
        ({"window": 5}, "window"),
        ({"guidance": 1.0}, "null text"),
        ({"guidance": -1.0}, "guidance"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tiny, options, said):
    with pytest.raises(ConfigError, match=said):
        draw(tiny, **options)


def test_sampling_changes_none_of_its_arguments(tiny):
    before = [t.clone() for t in (tiny.noise, tiny.text, tiny.action)]
    u = tiny.x[:, :1].clone()
    sample_deep(tiny.flow, tiny.noise[:, 1:], tiny.text, tiny.tables, prefix=u, action=tiny.action)
    draw(tiny)
    assert all(torch.equal(a, b) for a, b in zip(before, (tiny.noise, tiny.text, tiny.action), strict=True))
    assert torch.equal(u, tiny.x[:, :1])


# ---- guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@EITHER_CLIP
def test_guidance_zero_is_no_guidance_to_the_bit(request, kind, dtype):
    clip = request.getfixturevalue(kind).to(dtype)
    plain = draw(clip, tolerance=1e-3)
    zero = draw(clip, tolerance=1e-3, guidance=0.0, null_text=clip.null_text)
    assert torch.equal(plain[0], zero[0])
    assert torch.equal(plain[1], zero[1])


@EITHER_CLIP
def test_guided_nats_are_those_of_the_unguided_model(request, kind):
    clip = request.getfixturevalue(kind)
    x, found, _ = draw(clip, guidance=2.0, null_text=clip.null_text)
    assert float((x - draw(clip)[0]).abs().max()) > 0.1, "guidance has no effect"
    assert float((found - nats(clip, x)).abs().max()) <= 1e-9


def test_guided_samples_are_those_of_the_guided_normals(tiny):
    _, _, deep = draw(tiny, guidance=2.0, null_text=tiny.null_text)
    added = tiny.flow.conditions(deep.u, tiny.text, tiny.action, tiny.tables.grid)
    texts = (tiny.text, tiny.null_text.expand(2, -1, -1))
    both = [tiny.flow.deep_forward(deep.u, text, added, tiny.tables) for text in texts]
    noise, _ = guide(*both, 2.0).to_noise(deep.u.flatten(1, 2))
    assert float((noise.unflatten(1, (4, 16)) - tiny.noise).abs().max()) <= 1e-10


@EITHER_CLIP
def test_guidance_away_from_the_text_itself_changes_nothing(request, kind):
    clip = request.getfixturevalue(kind)
    guided = draw(clip, guidance=3.0, null_text=clip.text)
    assert float((guided[0] - draw(clip)[0]).abs().max()) <= 1e-10


@pytest.mark.parametrize("guidance", [0.5, 3.0])
def test_the_guided_gaussian_is_the_normalized_quotient(tiny, guidance):
    """Where the conditional scale is smaller: density proportional to p_c**(1 + w) / p_u**w."""
    affine = tiny.flow.deep_forward(tiny.x, tiny.text, None, tiny.tables)
    other = tiny.flow.deep_forward(tiny.x, tiny.null_text.expand(2, -1, -1), None, tiny.tables)
    found, narrower = guide(affine, other, guidance), affine.scale < other.scale
    guided, given, null = (torch.distributions.Normal(one.mean, one.scale) for one in (found, affine, other))
    points = [torch.full_like(affine.mean, value) for value in (-1.0, 0.0, 2.0)]
    offset = [
        guided.log_prob(x) - (1 + guidance) * given.log_prob(x) + guidance * null.log_prob(x) for x in points
    ]  # one constant per scalar: that of the normalization
    for left, right in pairwise(offset):
        assert float(((left - right) * narrower).abs().max()) <= 1e-9
    assert bool((found.scale <= affine.scale).all())


# ---- denoising -------------------------------------------------------------------------------------------------------


def reached(clip, frames: int) -> torch.Tensor:
    """(T, T): whether the denoiser's frame t depends on frame s."""
    x = clip.x[:1, :frames]
    matrix = torch.autograd.functional.jacobian(
        lambda x: clip.flow.denoiser_output(x, None, clip.tables).square().sum((0, 2, 3)), x
    )
    return (matrix != 0).any(-1).any(-1)[:, 0]


@pytest.mark.parametrize(("look_ahead", "window"), [((), 1), ((1, 0), 1), ((1, 1), 2), ((), 0), ((0, 1), 3)])
def test_the_denoiser_sees_its_memory_and_its_look_ahead_and_no_further(make_clip, look_ahead, window):
    clip = make_clip(grid=(2, 2), frames=8, denoiser_window=window, denoiser_look_ahead=look_ahead)
    ahead, back = sum(look_ahead), clip.flow.denoiser.memory
    assert back == 2 * window - ahead
    frame = torch.arange(8)
    distance = frame[None, :] - frame[:, None]
    assert torch.equal(reached(clip, 8), (distance <= ahead) & (distance >= -back))


@pytest.mark.parametrize(("look_ahead", "seen"), [((), (0, 0)), ((0, 0), (1, 1)), ((1, 0), (2, 0)), ((1, 2), (2, 3))])
def test_the_text_sees_the_frames_up_to_the_look_ahead_or_none_if_nothing_is_said_of_it(make_clip, look_ahead, seen):
    denoiser = make_clip(grid=(2, 2), denoiser_window=2, denoiser_look_ahead=look_ahead).flow.denoiser
    for ahead, frames in zip(denoiser.look_ahead, seen, strict=True):
        mask = denoiser.mask(ahead, 4, 4, 3, window=2)
        assert torch.equal(mask[:3, 3:], (torch.arange(16) < 4 * frames).expand(3, -1))
        assert bool(mask[:, :3].all())


def test_frames_that_do_not_exist_are_not_looked_at(make_clip):
    clip = make_clip(frames=4, denoiser_window=2)
    valid = torch.tensor([[True] * 4, [False, False, True, True]])
    found = clip.flow.denoise(clip.x, None, clip.tables, valid)
    assert float((found[:1] - clip.flow.denoise(clip.x[:1], None, clip.tables)).abs().max()) <= 1e-12
    assert float((found[1:, 2:] - clip.flow.denoise(clip.x[1:, 2:], None, clip.tables)).abs().max()) <= 1e-12


@pytest.mark.parametrize(("window", "overlap"), [(5, 3), (6, 4), (4, 3), (9, 3), (20, 3)])
@pytest.mark.parametrize("look_ahead", [(1, 0), ()])
def test_windowed_denoising_equals_the_whole_clip_where_the_overlap_covers_what_is_seen(
    make_clip, window, overlap, look_ahead
):
    clip = make_clip(grid=(2, 2), frames=13, denoiser_look_ahead=look_ahead)
    assert clip.flow.denoiser.memory + sum(look_ahead) <= overlap
    whole = clip.flow.denoise(clip.x, None, clip.tables)
    found = denoised_in_windows(
        clip.flow, clip.x, None, clip.tables, window=window, overlap=overlap
    )
    assert float((found - whole).abs().max()) <= 1e-12


def test_too_little_overlap_changes_the_result_and_no_overlap_is_allowed(make_clip):
    clip = make_clip(grid=(2, 2), frames=8)
    whole = clip.flow.denoise(clip.x, None, clip.tables)
    found = denoised_in_windows(clip.flow, clip.x, None, clip.tables, window=4, overlap=0)
    assert float((found - whole).abs().max()) > 1e-3
    assert float((found[:, :4] - whole[:, :4]).abs().max()) <= 1e-12
    with pytest.raises(ConfigError, match="overlap"):
        denoised_in_windows(clip.flow, clip.x, None, clip.tables, window=4, overlap=4)


@pytest.mark.parametrize("guidance", [-0.5, -1e-6])
def test_guidance_away_from_the_text_is_refused(make_clip, guidance):
    with pytest.raises(ConfigError, match="guidance: expected a number >= 0"):
        draw(make_clip(rows=1), guidance=guidance)
