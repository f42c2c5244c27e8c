"""The density of a token: normalized, drawn from, explained by noise, cleaned; and the codebook of a mixture."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from starflow_world.config.world import FlowConfig
from starflow_world.flow import Affine, Flow, Mixture
from starflow_world.flow.density import AffineHead, Codebook, MixtureHead
from starflow_world.flow.guidance import guided

WIDTH, M = 6, 4
F32, F64 = torch.float32, torch.float64


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def make_head(sites: int, size: int, *, apart: float = 1.0, gain: float = 1.0, seed: int = 0) -> MixtureHead:
    """A random head of M components whose means are about `apart` from each other; gain 0: the codebook alone."""
    torch.manual_seed(seed)
    head = MixtureHead(WIDTH, sites * size, sites, M, inner=8).double().requires_grad_(False)
    torch.nn.init.normal_(head.out.weight, std=gain / 8**0.5, generator=torch.Generator().manual_seed(seed))
    book = head.codebook
    book.code.copy_(apart * torch.arange(M)[:, None] + 0.3 * normals(M, size, seed=seed))
    book.spread.copy_(0.2 + 0.3 * normals(M, size, seed=seed + 1).sigmoid())
    book.chance.copy_((2 * normals(M, seed=seed + 2)).log_softmax(0))
    return head


def make_mixture(sites: int = 2, size: int = 3, rows: int = 2, tokens: int = 5, **options) -> Mixture:
    return make_head(sites, size, **options)(normals(rows, tokens, WIDTH, seed=7))


def drawn(mixture: Mixture, seed: int = 11) -> tuple[Tensor, Tensor]:
    """Noise and the tokens that it gives."""
    head = mixture.head
    noise = normals(*mixture.hidden.shape[:2], head.sites * (head.codebook.size + 1), seed=seed)
    return noise, mixture.draw(noise)[0]


def parts(mixture: Mixture, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log pi (B, S, g, M), means and scales (B, S, g, M, k) of the components of tokens u."""
    _, chance, offset, factor = mixture.joint(u)
    book = mixture.head.codebook
    return chance, book.code + book.spread * offset[..., None, :], book.spread * factor[..., None, :]


def many(mixture: Mixture, count: int) -> Mixture:
    """The mixture of the only token, (B, count, ...)."""
    base, hidden = mixture.base.expand(-1, count, -1, -1), mixture.hidden.expand(-1, count, -1)
    return replace(mixture, base=base, hidden=hidden)


def luck(mixture: Mixture, seed: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*mixture.hidden.shape[:2], 2 * mixture.head.sites, generator=generator, dtype=F64)


# ---- probabilities ---------------------------------------------------------------------------------------------------


def on_a_plane(step: float) -> tuple[Tensor, Tensor]:
    """Points (N, 1, 2) of a plane, and the density there of a token of two sites with one channel each."""
    mixture = make_mixture(sites=2, size=1, rows=1, tokens=1)
    axis = torch.arange(-4, 8, step, dtype=F64)
    points = torch.cartesian_prod(axis, axis)[:, None]
    return points, mixture.nats(points).exp()[:, 0]


def test_a_mixture_over_two_sites_integrates_to_one(at_most):
    _, found = on_a_plane(0.02)
    at_most("error", abs(float(found.sum()) * 0.02**2 - 1), 1e-6)


def test_draws_of_several_sites_follow_the_density(at_most):
    """20,000 draws against the density in squares of a plane (Pearson's statistic, quantile for p = 0.001)."""
    count, step, each = 20_000, 0.05, 10
    mixture = make_mixture(sites=2, size=1, rows=1, tokens=1)
    tokens = many(mixture, count).draw(normals(1, count, 4))[0][0]
    points, density = on_a_plane(step)
    squares = ((points[:, 0] + 4) / (step * each) + 0.01).floor().long()
    number = int(squares.max()) + 1
    expected = torch.zeros(number, number, dtype=F64).index_put(tuple(squares.T), density * step**2, accumulate=True)
    places = ((tokens + 4 + step / 2) / (step * each)).floor().long().clamp(0, number - 1)
    found = torch.zeros(number, number, dtype=F64).index_put(
        tuple(places.T), torch.ones(count, dtype=F64), accumulate=True
    )
    often = expected * count >= 5
    statistic = ((found - expected * count).square() / (expected * count))[often].sum()
    freedom = int(often.sum())
    at_most("statistic", statistic, freedom + 3.1 * (2 * freedom) ** 0.5)


def test_a_component_is_drawn_as_often_as_it_is_probable(at_most):
    mixture = make_mixture(sites=1, size=1, rows=1, tokens=1, apart=50.0)
    count = 20_000
    tokens, _ = many(mixture, count).draw(normals(1, count, 2))
    chance, mean, _ = parts(mixture, tokens[:, :1])
    which = (tokens - mean[:, :, 0, :, 0]).abs().argmin(-1)
    expected = chance[0, 0, 0].exp()
    share = torch.bincount(which.flatten(), minlength=M) / count
    at_most("difference", (share - expected).abs().max(), 4 * 0.5 / count**0.5)


def test_a_site_follows_the_sites_before_it_and_no_later_one():
    mixture = make_mixture(sites=4, size=2, rows=1, tokens=1)
    u = drawn(mixture)[1].requires_grad_()
    chance, mean, scale = parts(mixture, u)
    for part in (chance.exp()[..., 0], mean.sum((-1, -2)), scale.sum((-1, -2))):
        for site in range(4):
            (slope,) = torch.autograd.grad(part[0, 0, site], u, retain_graph=True)
            reached = slope[0, 0].unflatten(0, (4, 2)).abs().amax(-1) > 0
            assert reached.tolist() == [other < site for other in range(4)]


# ---- one normal ------------------------------------------------------------------------------------------------------


def test_a_flow_of_one_component_has_the_published_head_to_the_bit():
    config = FlowConfig(4, shallow_blocks=0, shallow_width=20, deep_layers=1, deep_width=40, head_width=20)
    head = Flow(config).deep.head
    assert isinstance(head, AffineHead)
    assert [name for name, _ in head.named_parameters()] == ["weight", "bias"]
    hidden, weight, bias = (normals(*shape).float() for shape in ((2, 3, 40), (8, 40), (8,)))
    head.load_state_dict({"weight": weight, "bias": bias})
    density = head(hidden)
    scale, mean = (4 * torch.tanh(F.linear(hidden, weight, bias) / 4)).chunk(2, dim=-1)
    assert torch.equal(density.mean, mean)
    assert torch.equal(density.scale, F.softplus(scale + math.log(math.e - 1)))
    noise = normals(2, 3, 4, seed=1).float()
    u, scales = density.draw(noise)
    assert torch.equal(u, density.mean + density.scale * noise)
    assert torch.equal(scales, density.scale)
    assert density.noise(u, u) is not None
    assert head.sites == 0


def test_a_mixture_of_one_component_is_that_normal():
    torch.manual_seed(0)
    head = MixtureHead(WIDTH, 3, 1, 1, inner=8).double().requires_grad_(False)
    torch.nn.init.normal_(head.out.weight)
    mixture = head(normals(2, 5, WIDTH))
    _, mean, scale = (part.squeeze(3).squeeze(2) for part in parts(mixture, normals(2, 5, 3)))
    affine, noise = Affine(mean, scale, mixture.hidden), normals(2, 5, 4)
    u, _ = affine.draw(noise[..., :3])
    torch.testing.assert_close(mixture.draw(noise)[0], u)
    torch.testing.assert_close(mixture.nats(u), affine.nats(u))
    around = normals(2, 5, 3, seed=3)
    torch.testing.assert_close(mixture.nats(u, around=around, spread=0.4), affine.nats(u, around=around, spread=0.4))
    torch.testing.assert_close(mixture.clean(u, 0.3), affine.clean(u, 0.3))
    torch.testing.assert_close(mixture.noise(u, luck(mixture))[..., :3], affine.noise(u, u))


# ---- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("apart", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("sites", [1, 4])
def test_the_noise_found_for_a_token_gives_that_token_again(at_most, sites, apart, dtype, limit):
    mixture = as_dtype(make_mixture(sites=sites, size=2, rows=4, tokens=250, apart=apart), dtype)
    noise, u = (part.to(dtype) for part in drawn(mixture))
    found = mixture.noise(u, luck(mixture))
    assert found.dtype == dtype
    assert found.shape == noise.shape
    at_most("difference", (mixture.draw(found)[0] - u).abs().max(), limit)


@pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-10), (F32, 1e-4)])
@pytest.mark.parametrize("chance", [1e-2, 1e-3, 1e-4, 2e-5])
def test_what_is_improbable_comes_back_as_well(at_most, chance, dtype, limit):
    """Tokens from the component that is drawn once in so many times, by this head and by one whose log-probabilities
    are off by the rounding of another batch size."""
    head = make_head(1, 2, apart=30.0, gain=0.0)
    others = torch.tensor([0.5, chance, 0.3, 0.2], dtype=F64)
    head.codebook.chance.copy_((others / others.sum()).log())
    mixture = as_dtype(head(normals(1, 2000, WIDTH)), dtype)
    u = (head.codebook.code[1] + head.codebook.spread[1] * normals(1, 2000, 2)).to(dtype)
    found = mixture.noise(u, luck(mixture))
    at_most("difference", (mixture.draw(found)[0] - u).abs().max(), limit)
    mixture.head.codebook.chance[0] += 1e-5 if chance > 1e-4 else 1e-6
    at_most("difference", (mixture.draw(found)[0] - u).abs().max(), limit)


def test_what_no_component_explains_comes_back_and_has_finite_noise(at_most):
    mixture = make_mixture(apart=5.0)
    u = 40 * normals(2, 5, 6, seed=5)
    found = mixture.noise(u, luck(mixture))
    assert bool(found.isfinite().all())
    assert bool(mixture.nats(u).isfinite().all())
    at_most("difference", (mixture.draw(found)[0] - u).abs().max(), 1e-9)


def test_noise_that_is_found_is_distributed_as_the_noise_that_was_drawn(at_most):
    """The choosing number of 20,000 tokens, and the numbers of their channels: Kolmogorov's distance for p = 0.001."""
    count = 20_000
    mixture = many(make_mixture(sites=1, size=1, rows=1, tokens=1, apart=0.5), count)
    _, u = drawn(mixture)
    found = mixture.noise(u, luck(mixture))
    place = (torch.arange(count) + 0.5) / count
    for part in found.unbind(-1):
        below = torch.special.ndtr(part.flatten().sort().values)
        at_most("distance", (below - place).abs().max(), 1.95 / count**0.5)


def as_dtype(mixture: Mixture, dtype: torch.dtype) -> Mixture:
    return replace(
        mixture, base=mixture.base.to(dtype), hidden=mixture.hidden.to(dtype),
        head=copy.deepcopy(mixture.head).to(dtype),
    )


# ---- expectation over noise, and cleaning ----------------------------------------------------------------------------


def expected_nats(density: Affine | Mixture, clean: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """The mean (S,) of log p of tokens (1, S, c) in 20,000 draws of their noise, and its standard error."""
    draws = 20_000
    noisy = clean + spread * normals(draws, *clean.shape[1:], seed=4)
    found = density.nats(noisy)
    return found.mean(0), found.std(0) / draws**0.5


def test_nats_around_a_clean_token_are_the_mean_over_its_noise_for_one_normal():
    affine = Affine(normals(1, 5, 3), normals(1, 5, 3, seed=1).exp(), normals(1, 5, WIDTH))
    clean, spread = normals(1, 5, 3, seed=2), 0.4
    mean, error = expected_nats(affine, clean, spread)
    found = affine.nats(clean, around=clean, spread=spread)[0]
    assert bool(((found - mean).abs() < 4 * error).all())


def test_nats_around_a_clean_token_are_at_most_the_mean_over_its_noise_for_mixtures():
    mixture = make_mixture(sites=1, size=3, rows=1, apart=0.4)
    _, clean = drawn(mixture)
    mean, error = expected_nats(mixture, clean, 0.4)
    found = mixture.nats(clean, around=clean, spread=0.4)[0]
    assert bool((found < mean + 4 * error).all())
    assert bool((found < mean - 4 * error).any()), "components overlap: the bound is not the mean"


def test_nats_around_a_clean_token_are_the_mean_where_components_are_far_apart():
    mixture = make_mixture(sites=1, size=3, rows=1, apart=30.0)
    _, clean = drawn(mixture)
    mean, error = expected_nats(mixture, clean, 0.2)
    found = mixture.nats(clean, around=clean, spread=0.2)[0]
    assert bool(((found - mean).abs() < 4 * error + 1e-6).all())


def test_cleaning_is_the_tweedie_step_of_the_density():
    level = 0.15  # below every scale of the head
    for mixture in (make_mixture(sites=1, size=3, gain=0.3), make_mixture(sites=3, size=2, gain=0.3)):
        size = mixture.head.codebook.size
        u = drawn(mixture)[1].requires_grad_()
        assert float(parts(mixture, u)[2].detach().min()) > level
        (slope,) = torch.autograd.grad(mixture.nats(u).sum(), u)
        found, expected = mixture.clean(u, level), u + level**2 * slope
        last = slice(-size, None)  # no other site hangs on the last
        torch.testing.assert_close(found[..., last], expected[..., last])


def test_cleaning_one_normal_is_the_tweedie_step():
    affine = Affine(normals(1, 5, 3), normals(1, 5, 3, seed=1).exp(), normals(1, 5, WIDTH))
    u = normals(1, 5, 3, seed=2).requires_grad_()
    level = float(affine.scale.min()) / 2
    (slope,) = torch.autograd.grad(affine.nats(u).sum(), u)
    torch.testing.assert_close(affine.clean(u, level), u + level**2 * slope)


def test_cleaning_goes_no_further_than_to_the_means():
    """A scale below the noise level is a mean that the model is too sure of."""
    mixture = make_mixture(sites=1, size=3, apart=30.0)
    _, u = drawn(mixture)
    chance, mean, _ = parts(mixture, u)
    nearest = (u[..., None, None, :] - mean).square().sum(-1).argmin(-1)
    wanted = mean.gather(-2, nearest[..., None, None].expand(*nearest.shape, 1, 3)).flatten(-3)
    torch.testing.assert_close(mixture.clean(u, 100.0), wanted)
    affine = Affine(normals(1, 5, 3), normals(1, 5, 3, seed=1).exp(), normals(1, 5, WIDTH))
    torch.testing.assert_close(affine.clean(normals(1, 5, 3, seed=2), 100.0), affine.mean)
    assert chance.shape == (2, 5, 1, M)


# ---- guidance --------------------------------------------------------------------------------------------------------


def test_guidance_of_mixtures_is_of_the_components_probabilities_alone(at_most):
    """Draws of a token follow pi**(1 + w) / pi_null**w around the components of the text; its nats do not change."""
    head, count, weight = make_head(1, 2, apart=50.0), 20_000, 1.5
    both = head(normals(2, 1, WIDTH, seed=3))
    guide = guided(many(both, count), 1, weight)
    given, null = both.rows(slice(1)), both.rows(slice(1, None))
    tokens, scale = guide.draw(normals(1, count, 3))
    u = tokens[:, :1]
    (chance, mean, scales), (other, _, _) = parts(given, u), parts(null, u)
    expected = ((1 + weight) * chance - weight * other).softmax(-1).flatten()
    which = (tokens[:, :, None] - mean[:, :, 0]).square().sum(-1).argmin(-1)[0]
    share = torch.bincount(which, minlength=M) / count
    at_most("difference", (share - expected).abs().max(), 4 * 0.5 / count**0.5)
    assert float((expected - chance.exp().flatten()).abs().max()) > 0.05, "guidance changes something"
    torch.testing.assert_close(scale[0], scales[0, 0, 0][which])
    assert torch.equal(guide.nats(tokens), many(given, count).nats(tokens))


# ---- rows and joins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, F32])
def test_a_row_has_the_same_bits_whatever_the_other_rows_are(dtype):
    mixture = as_dtype(make_mixture(sites=4, size=2, rows=3, tokens=16), dtype)
    noise, u = (part.to(dtype) for part in drawn(mixture))
    changed, other = noise.clone(), u.clone()
    changed[1:] *= 3
    other[1:] += 1
    chosen = luck(mixture)
    assert torch.equal(mixture.draw(changed)[0][0], mixture.draw(noise)[0][0])
    for one, two in (
        (mixture.nats(u), mixture.nats(other)), (mixture.clean(u, 0.3), mixture.clean(other, 0.3)),
        (mixture.noise(u, chosen), mixture.noise(other, chosen)),
    ):
        assert torch.equal(one[0], two[0])
        assert not torch.equal(one[1], two[1])


def test_densities_of_consecutive_tokens_are_joined_and_those_of_rows_are_chosen():
    mixture = make_mixture(rows=3)
    _, u = drawn(mixture)
    first, second = (replace(mixture, base=mixture.base[:, part], hidden=mixture.hidden[:, part])
                     for part in (slice(2), slice(2, None)))
    torch.testing.assert_close(first.join([second]).nats(u), mixture.nats(u))
    assert first.join([]) is first
    torch.testing.assert_close(mixture.rows(slice(1, 3)).nats(u[1:]), mixture.nats(u)[1:])


# ---- codebook --------------------------------------------------------------------------------------------------------


def contents(count: int = 4, size: int = 3) -> Tensor:
    """That many distinct site contents, far apart, in double precision."""
    return 3 * torch.arange(count, dtype=F64)[:, None] * torch.ones(size) + normals(count, size)


def fitted(sites: Tensor, components: int, **options) -> Codebook:
    book = Codebook(components, sites.shape[-1]).double()
    book.fit(sites, 0.1, **options)
    return book


def nearest(book: Codebook, sites: Tensor) -> Tensor:
    return torch.cdist(sites, book.code).amin(1)


def test_a_codebook_finds_every_content_once_and_knows_how_frequent_it_is(at_most):
    truth, times = contents(), torch.tensor([800, 150, 49, 1])
    book = fitted(truth.repeat_interleave(times, 0), 4)
    at_most("distance", nearest(book, truth).max(), 0.1)
    order = torch.cdist(truth, book.code).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3], "the content that was seen once has a code too"
    torch.testing.assert_close(book.chance.exp()[order], times / 1000, rtol=0, atol=1e-4, check_dtype=False)
    torch.testing.assert_close(book.spread, torch.full_like(book.spread, 0.1), rtol=0.1, atol=0)


def test_a_cluster_of_several_contents_is_as_wide_as_they_are():
    sites = torch.tensor([[-0.4], [0.4], [10.0]], dtype=F64).repeat(10, 1)
    book = fitted(sites, 2)
    wide = int(book.code.abs().argmin())
    assert float(book.spread[wide]) == pytest.approx((0.4**2 + 0.1**2) ** 0.5, rel=0.05)


@pytest.mark.parametrize("count", [1, 3])
def test_with_fewer_contents_than_components_the_rest_is_never_drawn(count):
    truth = contents(count)
    head = MixtureHead(WIDTH, 3, 1, 8, inner=8).double().requires_grad_(False)
    head.codebook.fit(truth.repeat(5, 1), 0.1)
    book = head.codebook
    assert int((book.chance > -20).sum()) == count
    assert all(bool(part.isfinite().all()) for part in (book.code, book.spread, book.chance))
    mixture = head(normals(1, 5000, WIDTH))
    tokens, _ = mixture.draw(normals(1, 5000, 4))
    assert float(torch.cdist(tokens[0], truth).amin(1).max()) < 1.0, "a draw lies near no content"
    assert bool(mixture.nats(tokens).isfinite().all())


def test_a_fit_is_a_function_of_its_sites_and_seed_and_moves_no_generator():
    sites, before = normals(500, 3), torch.get_rng_state()
    one, other, third = fitted(sites, 8), fitted(sites, 8), fitted(sites, 8, seed=1)
    for name in ("code", "spread", "chance"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert not torch.equal(one.code, third.code)
    assert torch.equal(before, torch.get_rng_state())
    shuffled = fitted(sites[torch.randperm(500, generator=torch.Generator().manual_seed(0))], 8)
    torch.testing.assert_close(shuffled.code, one.code)


def test_a_fit_of_very_many_contents_takes_some_of_them(monkeypatch):
    monkeypatch.setattr("starflow_world.flow.density.MOST_CONTENTS", 50)
    book = fitted(normals(400, 3), 8)
    assert float(nearest(book, normals(400, 3)).mean()) < 1.5
    assert float(book.chance.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_the_posterior_of_a_site_is_that_of_bayes():
    book, sites = make_head(1, 3).codebook, normals(2, 5, 3)
    joint = book.chance + torch.distributions.Normal(book.code, book.spread).log_prob(sites[..., None, :]).sum(-1)
    torch.testing.assert_close(book.posterior(sites), joint.softmax(-1))


def test_tokens_are_described_site_by_site_with_their_posteriors():
    book, tokens = make_head(2, 3).codebook, normals(2, 5, 6)
    said = book.describe(tokens)
    assert said.shape == (2, 5, 2 * (3 + M))
    sites = said.unflatten(-1, (2, 3 + M))
    assert torch.equal(sites[..., :3], tokens.unflatten(-1, (2, 3)))
    torch.testing.assert_close(sites[..., 3:].sum(-1), torch.ones(2, 5, 2, dtype=F64))
    torch.testing.assert_close(sites[..., 1, 3:], book.posterior(tokens[..., 3:]))


def test_a_fresh_head_is_its_codebook():
    mixture = make_mixture(gain=0.0)
    chance, mean, scale = parts(mixture, normals(2, 5, 6))
    book = mixture.head.codebook
    for part, wanted in ((chance, book.chance), (mean, book.code), (scale, book.spread)):
        torch.testing.assert_close(part, wanted.expand_as(part))
