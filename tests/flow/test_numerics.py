"""Figures that hold for the whole flow: densities, gradients, precision, and an honest word where the inverse fails."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from tests.flow.sampling import sample
from tests.flow.stability import stability

ON_A_PLANE = {
    "channels": 1, "sites": 1, "deep_layers": 1, "deep_width": 20, "shallow_width": 20, "gain": 0.7, "seed": 3,
}
EITHER = pytest.mark.parametrize("mixed", [False, True], ids=["one normal", "mixtures"])


def density(clip, step):
    """The points (N, 2) of a grid that is so fine and the density of a clip of two numbers at each, under row 0."""
    axis = torch.arange(-14, 14, step, dtype=torch.float64)
    points, parts = torch.cartesian_prod(axis, axis), []
    for part in points.reshape(-1, *clip.x.shape[1:]).split(20_000):
        action, text = (given[:1].expand(len(part), -1, -1) for given in (clip.action, clip.text))
        nats, _ = clip.flow.nats(part, text, action, clip.tables)
        parts.append(nats.sum((1, 2)).exp())
    return points, torch.cat(parts)


@EITHER
@pytest.mark.parametrize(("grid", "frames"), [((1, 2), 1), ((1, 1), 2)])
def test_the_density_integrates_to_one_on_a_plane(make_clip, at_most, grid, frames, mixed):
    """Two tokens of one channel: in one frame (shallow and deep blocks), and in two (the deep block and its start)."""
    _, found = density(make_clip(grid=grid, frames=frames, mixed=mixed, **ON_A_PLANE), 0.14)
    at_most("error", abs(float(found.sum()) * 0.14**2 - 1), 1e-6)


@EITHER
def test_samples_follow_the_density(make_clip, at_most, mixed):
    """20,000 samples of two tokens against the density on a grid, along both axes and both diagonals: the distance of
    the distribution functions (Kolmogorov) is below its quantile for p = 0.001."""
    count, step = 20_000, 0.1
    clip = make_clip(grid=(1, 2), frames=1, mixed=mixed, **ON_A_PLANE)
    shape, generator = (count, 1, 2, clip.flow.noise_channels), torch.Generator().manual_seed(0)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    text, action = (given[:1].expand(count, -1, -1) for given in (clip.text, clip.action))
    drawn = sample(clip.flow, noise, text, clip.tables, action=action)[0].flatten(1)
    points, found = density(clip, step)
    for direction in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)):
        along = torch.tensor(direction, dtype=torch.float64)
        place, order = (points @ along).sort()
        below = found[order].cumsum(0) * step**2
        ours = torch.searchsorted((drawn @ along).sort().values, place + step / 2).double() / count
        last = place.diff(append=torch.tensor([torch.inf])) > step / 2  # of the points at one place
        at_most("distance", (ours - below)[last].abs().max(), 1.95 / count**0.5)


@pytest.mark.parametrize("condition", ["none", "text", "text and action"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_log_determinant_of_the_flow_is_that_of_its_jacobian(make_clip, at_most, condition, dtype, tolerance):
    changes = {} if "text" in condition else {"text_width": 0, "text_length": 0}
    clip = make_clip(grid=(2, 2), frames=2, rows=1, **changes).to(dtype)
    action = clip.action if "action" in condition else None
    flow, tables = clip.flow, clip.tables

    def to_noise(x):
        u, logdet = flow.shallow(x, tables)
        affine = flow.deep_forward(u, clip.text, flow.conditions(u, clip.text, action, tables.grid), tables)
        z, deep = affine.to_noise(u.flatten(1, 2))
        return z, logdet.sum() + deep.sum()

    matrix = torch.autograd.functional.jacobian(lambda x: to_noise(x)[0].flatten(), clip.x).flatten(1)
    sign, expected = torch.linalg.slogdet(matrix.double())
    z, logdet = to_noise(clip.x)
    assert sign == 1
    at_most("error", abs(float(logdet) - float(expected)), tolerance)
    nats, _ = flow.nats(clip.x, clip.text, action, tables)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).sum()
    assert abs(float(nats.double().sum()) - float(prior + expected)) <= tolerance * 10


@EITHER
def test_gradients_of_the_nats_are_those_of_finite_differences(make_clip, mixed):
    """Inputs scalar by scalar; every parameter tensor along a random direction of its own."""
    small = {"shallow_blocks": 1, "deep_layers": 1, "denoiser_layers": 0}
    clip = make_clip(grid=(1, 2), frames=2, rows=1, mixed=mixed, **small)
    generator = torch.Generator().manual_seed(0)
    parameters = dict(clip.flow.named_parameters())
    directions = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) / p.numel() ** 0.5 for p in parameters.values()
    ]
    inputs = [clip.x, clip.text, clip.action[:, :, :3]]
    assert len(parameters) + sum(t.numel() for t in inputs) <= 200

    def nats(x, text, action, amount):
        moved = {
            f"flow.{name}": p + step * direction
            for (name, p), step, direction in zip(parameters.items(), amount, directions, strict=True)
        }
        action = torch.cat((action, clip.action[:, :, 3:]), dim=-1)
        return functional_call(_Nats(clip.flow), moved, (x, text, action, clip))

    amounts = torch.zeros(len(parameters), dtype=torch.float64)
    assert gradcheck(nats, [t.clone().requires_grad_() for t in (*inputs, amounts)])


class _Nats(torch.nn.Module):
    """`Flow.nats` as a forward pass, summed."""

    def __init__(self, flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x, text, action, clip):
        return self.flow.nats(x, text, action, clip.tables)[0].sum()


@pytest.mark.parametrize("kind", ["tiny", "mixed"])
def test_every_parameter_of_the_likelihood_gets_a_gradient(request, kind):
    clip = request.getfixturevalue(kind).to(torch.float64)
    clip.flow.requires_grad_()
    clip.flow.nats(clip.x, clip.text, clip.action, clip.tables)[0].sum().backward()
    for name, parameter in clip.flow.named_parameters():
        if not name.startswith("denoiser."):
            assert bool((parameter.grad != 0).any()), name


@EITHER
def test_float32_nats_of_a_hundred_thousand_dimensions_are_those_of_float64(make_clip, at_most, mixed):
    clip = make_clip(rows=49, frames=8, grid=(8, 8), gain=1.0, mixed=mixed)
    assert clip.x.numel() > 1e5
    with torch.no_grad():
        expected = sum(clip.rows([row]).flow.nats(
            clip.x[[row]], clip.text[[row]], clip.action[[row]], clip.tables)[0].sum() for row in range(49))
        clip = clip.to(torch.float32)
        found = clip.flow.nats(clip.x, clip.text, clip.action, clip.tables)[0].sum()
    at_most("relative error", abs(float(found) / float(expected) - 1), 1e-6)


def test_a_bfloat16_network_with_float32_maps_gives_the_noise_back_roughly(tiny, at_most):
    clip = tiny.to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x, nats, deep = sample(clip.flow, clip.noise, clip.text, clip.tables, action=clip.action)
        u, _ = clip.flow.shallow(x, clip.tables)
        added = clip.flow.conditions(u, clip.text, clip.action, clip.tables.grid)
        z, _ = clip.flow.deep_forward(u, clip.text, added, clip.tables).to_noise(u.flatten(1, 2))
    assert {t.dtype for t in (x, nats, deep.u, deep.density.mean, deep.density.scale, z)} == {torch.float32}
    difference = z.unflatten(1, (4, 16)) - clip.noise
    at_most("largest error", difference.abs().max(), 5e-2)
    at_most("root mean square", difference.square().mean().sqrt(), 1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_samples_are_well_conditioned_and_said_to_be(tiny, wild, at_most, dtype):
    for clip in (tiny.to(dtype), wild.to(dtype)):
        x, _, _ = sample(clip.flow, clip.noise, clip.text, clip.tables, action=clip.action, tolerance=0.0)
        report = stability(clip.flow, x, clip.text, clip.tables, action=clip.action)
        assert float(report.error.max()) <= (1e-10 if dtype == torch.float64 else 1e-3)
        at_most("growth", report.growth.max(), 1.02)
        assert not bool(report.ill.any())


def test_data_far_from_the_model_may_not_come_back_and_is_reported_as_ill_conditioned(wild):
    clip = wild.to(torch.float32)
    report = stability(clip.flow, clip.x, clip.text, clip.tables, action=clip.action)
    assert float(report.error.max()) > 0.05, "this fixture was chosen because its round trip fails"
    assert bool(report.ill[report.error > 1e-3].all())
    for scale in (1.0, 30.0, 1e4):
        report = stability(clip.flow, scale * clip.x, clip.text, clip.tables, action=clip.action)
        assert bool(torch.isfinite(report.error).all())
        assert bool(torch.isfinite(report.growth).all())
        nats, _ = clip.flow.nats(scale * clip.x, clip.text, clip.action, clip.tables)
        assert bool(torch.isfinite(nats).all())


@pytest.mark.parametrize("grid", [(4, 4), (8, 8)], ids=["still growing at the end", "saturated before the end"])
def test_an_error_that_grows_from_token_to_token_is_measured_as_such(make_clip, grid):
    """A flow whose means copy the previous token 1.3 times: errors grow by that factor until the soft clip ends it."""
    clip = make_clip(
        gain=0, rows=1, frames=1, grid=grid, channels=1, shallow_blocks=0, deep_layers=1,
        denoiser_layers=0, text_width=0, text_length=0,
    )
    deep = clip.flow.deep
    torch.nn.init.zeros_(deep.layers[0].attention.out.weight)
    torch.nn.init.zeros_(deep.layers[0].feed_forward.down.weight)
    for name in ("attention.out", "feed_forward.down"):
        torch.nn.init.zeros_(deep.layers[0].get_submodule(name).bias)
    deep.project_in.weight.zero_()
    deep.project_in.weight[0] = 1.0
    deep.project_in.bias.zero_()
    deep.project_in.bias[1] = 1e3  # the norm divides by a constant: what comes out is linear
    deep.head.weight[1, 0] = 1.3 * 1e3 / 40**0.5
    report = stability(clip.flow, 0.0 * clip.x, None, clip.tables)
    assert float(report.growth) == pytest.approx(1.3, abs=1e-3)
    assert bool(report.ill)
