"""Jacobi decoding: exact after as many sweeps as tokens, honest about convergence, row by row."""

import pytest
import torch

from starflow_world.config.world import DecodeConfig, FlowConfig
from starflow_world.flow import Affine, Flow, Inverse, sample_frames, solve
from tests.flow.sampling import numbers, sample_deep

EITHER = pytest.mark.parametrize("mixed", [False, True], ids=["one normal", "mixtures"])


def frame_problem(clip, frame: int = 1):
    """The deep block at frame `frame` behind the frames before it: predict, token in front, noise, guess, the cache."""
    flow, tables = clip.flow, clip.tables
    u, _ = flow.shallow(clip.x, tables)
    added = flow.conditions(u, clip.text, clip.action, tables.grid)
    cache = flow.start_cache(clip.text, len(u), tables)
    cache, _ = flow.extend(cache, flow.deep.shift(u[:, :frame].flatten(1, 2)), added[:, :frame], tables, text=3)
    predict = flow.predictor(cache, added[:, frame], u.shape[2], tables, text=3)
    return predict, u[:, frame - 1, -1:], clip.noise[:, frame], u[:, frame - 1], cache


def sequential(clip, **options):
    return sample_deep(clip.flow, clip.noise, clip.text, clip.tables, action=clip.action, chunk=1, **options)


@pytest.mark.parametrize("chunk", [0, 2, 5, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("gain", ["tiny", "wild", "mixed"])
def test_jacobi_with_as_many_sweeps_as_tokens_is_sequential_decoding(request, at_most, gain, chunk, dtype, tolerance):
    clip = request.getfixturevalue(gain).to(dtype)
    truth = sequential(clip)
    jacobi = sample_deep(
        clip.flow, clip.noise, clip.text, clip.tables, action=clip.action, chunk=chunk, tolerance=0.0
    )
    at_most("difference", (jacobi.u - truth.u).abs().max(), tolerance * (10 if gain == "wild" else 1))


@pytest.mark.parametrize("kind", ["tiny", "mixed"])
def test_jacobi_at_the_default_tolerance_is_close_to_sequential_decoding(request, at_most, kind):
    clip = request.getfixturevalue(kind)
    truth = sequential(clip)
    jacobi = sample_deep(clip.flow, clip.noise, clip.text, clip.tables, action=clip.action)
    at_most("difference", (jacobi.u - truth.u).abs().max(), 1e-2)
    nats = (jacobi.nats() - truth.nats()) / clip.x.shape[3]
    at_most("nats per dimension", nats.mean((1, 2)).abs().max(), 1e-3)
    assert bool(jacobi.converged.all())
    assert float(jacobi.residual.max()) <= 1e-3
    assert int(jacobi.sweeps.max()) < 16
    assert int(truth.sweeps.min()) == int(truth.sweeps.max()) == 16, "sequential decoding is one sweep per token"


def test_a_fresh_block_is_guessed_right_and_one_sweep_verifies_it(init):
    """The first guess is the noise, later ones are the last frame with noise of their own: the noise again."""
    jacobi = sample_deep(init.flow, init.noise, init.text, init.tables)
    torch.testing.assert_close(jacobi.u, init.noise, rtol=0, atol=1e-12)
    assert jacobi.sweeps.unique().tolist() == [1]


def test_the_number_of_sweeps_never_exceeds_the_tokens_plus_one(wild):
    jacobi = sample_deep(wild.flow, wild.noise, wild.text, wild.tables, tolerance=0.0)
    assert int(jacobi.sweeps.max()) <= 17


def test_a_row_that_meets_the_sweep_limit_says_that_it_has_not_converged(wild):
    jacobi = sample_deep(wild.flow, wild.noise, wild.text, wild.tables, max_sweeps=2)
    assert not bool(jacobi.converged.any())
    assert bool((jacobi.residual > 1e-3).all())
    assert jacobi.sweeps.unique().tolist() == [2]
    assert bool(torch.isfinite(jacobi.u).all())


def test_convergence_is_decided_row_by_row_and_a_row_that_has_converged_does_not_move():
    """Row 0 is solved at once; row 1 depends on its neighbour strongly and takes all sweeps."""
    strength = torch.tensor([0.0, 3.0], dtype=torch.float64)[:, None, None]
    noise = torch.randn(2, 8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def predict(inputs):
        return Affine(strength * torch.tanh(inputs), torch.ones_like(inputs), inputs)

    zero = torch.zeros(2, 1, 1, dtype=torch.float64)
    solved = solve(predict, zero, noise, torch.zeros_like(noise), tolerance=1e-3)
    assert solved.sweeps[0] == 2
    assert solved.sweeps[1] >= 5
    assert solved.converged.tolist() == [True, True]
    for row in range(2):
        strength_of_all, strength = strength, strength[[row]]
        alone = solve(predict, zero[[row]], noise[[row]], torch.zeros_like(noise[[row]]), tolerance=1e-3)
        strength = strength_of_all
        assert torch.equal(alone.tokens[0], solved.tokens[row]), "a row depends on its companions' convergence"
        assert alone.sweeps[0] == solved.sweeps[row]


@pytest.mark.parametrize("kind", ["tiny", "mixed"])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 0.0])
def test_what_is_emitted_is_what_the_cache_holds_and_the_density_describes(request, at_most, kind, tolerance):
    clip = request.getfixturevalue(kind).to(torch.float32)
    predict, before, noise, guess, cache = frame_problem(clip)
    solved = solve(predict, before, noise, guess, tolerance=tolerance)
    committed, start = cache.commit(16), int(cache.length[0])
    lazy = committed.keys[:, :, :, start : start + 16].clone()
    told = predict(torch.cat((before, solved.tokens[:, :-1]), dim=1))
    at_most("difference of keys", (committed.keys[:, :, :, start : start + 16] - lazy).abs().max(), 1e-5)
    for name, found in numbers(solved.density).items():
        assert float((getattr(told, name) - found).abs().max()) <= 1e-5


def test_the_residual_is_measured_in_noise_units(tiny):
    predict, before, noise, guess, _ = frame_problem(tiny)
    solved = solve(predict, before, noise, guess, tolerance=1e-1)
    found, _ = solved.density.to_noise(solved.tokens)
    assert torch.allclose((found - noise).square().mean((1, 2)).sqrt(), solved.residual, rtol=1e-9, atol=0)
    assert bool((solved.residual <= 1e-1).all())
    assert bool((solved.residual > 0).all())


def sampled(clip, chunk: int = 0):
    return sample_deep(clip.flow, clip.noise, clip.text, clip.tables, action=clip.action, chunk=chunk).u


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@EITHER
def test_a_rows_tokens_are_the_same_to_the_bit_whatever_its_companions_are(make_clip, mixed, chunk, dtype):
    clip, other = (make_clip(rows=3, frames=3, mixed=mixed, seed=seed).to(dtype) for seed in (0, 5))
    expected = sampled(clip, chunk)
    assert torch.equal(sampled(clip.rows([0, 2, 1]), chunk)[0], expected[0]), "order of companions"
    for name in ("noise", "text", "action"):
        getattr(clip, name)[1:] = 3 * getattr(other, name)[1:]
    assert torch.equal(sampled(clip, chunk)[0], expected[0]), "contents of companions"


@pytest.mark.parametrize("seed", range(3))
@EITHER
def test_a_rows_tokens_do_not_depend_on_its_place_in_the_batch(make_clip, mixed, seed):
    """To the bit in float32 where frames fill whole vector registers; in float64 the matrix products differ in the last
    bit at the edges."""
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
    clip = make_clip(rows=5, frames=2, mixed=mixed)
    assert float((sampled(clip.rows(order)) - sampled(clip)[order]).abs().max()) <= 1e-12
    clip = clip.to(torch.float32)
    assert torch.equal(sampled(clip.rows(order)), sampled(clip)[order])


def test_a_frame_is_guessed_from_the_last_one_with_noise_of_its_own():
    """Where mean and scale do not depend on what came before, the guess is the solution; so is a frame that is known.
    """
    sizes = {"channels": 4, "shallow_blocks": 0, "deep_layers": 1, "deep_width": 24, "head_width": 24}
    flow = Flow(FlowConfig(**sizes))
    with torch.no_grad():
        flow.deep.head.weight.zero_()
        flow.deep.head.bias.normal_()
    noise, decode = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0)), DecodeConfig(tolerance=1e-5)
    first, *later = sample_frames(flow, noise, None, flow.tables((2, 3), 3), decode)
    assert first.sweeps.tolist() == [2, 2]
    assert [frame.sweeps.tolist() for frame in later] == [[1, 1], [1, 1]]


def test_chunks_are_joined_by_adding_sweeps_and_keeping_the_worst_residual():
    def part(sweeps: int, residual: float, converged: bool) -> Inverse:
        x = torch.full((1, 2, 1), residual)
        return Inverse(x, Affine(x, x, x), *(torch.tensor([value]) for value in (sweeps, residual, converged)), x)

    joined = Inverse.join([part(2, 0.5, True), part(3, 0.25, False)])
    assert joined.tokens.flatten().tolist() == [0.5, 0.5, 0.25, 0.25]
    assert torch.equal(joined.scale, joined.tokens)
    assert (joined.sweeps.item(), joined.residual.item(), joined.converged.item()) == (5, 0.5, False)
