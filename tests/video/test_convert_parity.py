"""Converted models of three sizes give the numbers of an evaluation in float64 that shares no code with ours."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from starflow_world.flow.windows import spans
from starflow_world.model.checkpoint import load_flow
from starflow_world.video.convert import convert
from tests.flow.sampling import sample_deep
from tests.published import Published, Sizes
from tests.references import GOLDEN, golden_state

GOAL, GUIDANCE, FRAMES = 1e-10, 2.5, 5
SIZES = {
    "four blocks": Sizes(
        channels=5, layers=(1, 2, 1, 2), width=20, deep_width=40, head=20, text=(4, 6), scale=3, denoiser_layers=2,
        ahead=0, reach=1, grid=(2, 3),
    ),
    "eight blocks": Sizes(
        channels=4, layers=(2, 1, 1, 2, 1, 1, 1, 2), width=24, deep_width=48, head=24, text=(3, 5), scale=4,
        denoiser_layers=3, ahead=1, reach=2, grid=(3, 2),
    ),
    "two blocks": Sizes(
        channels=6, layers=(1, 3), width=56, deep_width=28, head=28, text=(5, 7), scale=2, denoiser_layers=2, ahead=2,
        reach=3, grid=(1, 4),
    ),
}


@pytest.fixture(scope="module", params=SIZES)
def model(request, tmp_path_factory) -> SimpleNamespace:
    """A converted flow, the published model of the same checkpoint, and inputs."""
    sizes, folder = SIZES[request.param], tmp_path_factory.mktemp("parity")
    torch.save(state := sizes.checkpoint(seed=len(sizes.layers)), folder / "published.pth")
    convert(folder / "published.pth", folder / "out", denoiser_window=sizes.reach, denoiser_look_ahead=sizes.ahead)
    flow, generator = load_flow(folder / "out").requires_grad_(False), torch.Generator().manual_seed(1)
    shape = (FRAMES, sizes.grid[0] * sizes.grid[1], sizes.channels)
    x, z = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    text, null = torch.randn(2, *sizes.text, generator=generator, dtype=torch.float64)
    assert flow.dtype == torch.float64
    return SimpleNamespace(flow=flow, published=Published(state, sizes), x=x, z=z, text=text, null=null,
                           tables=flow.tables(sizes.grid, FRAMES))


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of one clip, in a batch of one, and what is expected."""
    assert found.shape == (1, *expected.shape)
    return float((found[0] - expected).abs().max())


def test_noise_and_log_determinants_are_those_of_the_published_model(model, at_most):
    z, shallow, deep = model.published.to_noise(model.x, model.text)
    u, logdet = model.flow.shallow(model.x[None], model.tables)
    density = model.flow.deep_forward(u, model.text[None], None, model.tables)
    found, own = (part.unflatten(1, u.shape[1:3]) for part in density.to_noise(u.flatten(1, 2)))
    at_most("noise", distance(found, z), GOAL)
    at_most("log-determinants", max(distance(logdet, shallow), distance(own, deep)), GOAL)
    assert float(shallow.std()) > 0.1, "no block is trivial"
    assert float(deep.std()) > 0.1


CASES = {
    "plain": {}, "guided": {"guided": True}, "given": {"given": 2}, "window": {"window": 3, "keep": 2},
    "all": {"window": 2, "keep": 1, "guided": True, "given": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_samples_are_those_of_the_published_model(model, at_most, case):
    settings = {"guided": False, "given": 0, "window": FRAMES, "keep": 0, **CASES[case]}
    given, null = settings["given"], model.null if settings["guided"] else None
    prefix = model.published.to_deep(model.x[:given])[0] if given else None
    expected = model.published.sample(
        model.z, model.text, null, GUIDANCE, prefix, window=settings["window"], keep=settings["keep"])
    options = {"prefix": None if prefix is None else model.flow.shallow(model.x[None, :given], model.tables)[0]}
    if settings["guided"]:
        options |= {"null_text": model.null[None], "guidance": GUIDANCE}
    if settings["keep"]:
        options |= {"window": settings["window"], "context": settings["keep"]}
        assert len(list(spans(FRAMES, settings["window"], settings["keep"]))) > 2
    for chunk in (1, 0, 4):
        found = sample_deep(
            model.flow, model.z[None, given:], model.text[None], model.tables, chunk=chunk, tolerance=1e-14, **options)
        at_most("sample", distance(found.u, expected[given:]), GOAL)


def test_the_inverse_of_the_shallow_blocks_is_that_of_the_published_model(model, at_most):
    expected = model.published.from_deep(model.z[:2])
    for chunk in (1, 0):
        x, _, _ = model.flow.shallow.inverse(model.z[None, :2], model.tables, chunk=chunk)
        at_most("latents", distance(x, expected), GOAL)


def test_the_denoiser_is_the_published_one_with_and_without_look_ahead(model, at_most):
    d = model.flow.denoiser_output(model.x[None], model.text[None], model.tables)
    at_most("denoiser", distance(d, model.published.denoiser(model.x, model.text)), GOAL)
    clean = model.flow.denoise(model.x[None], model.text[None], model.tables)
    assert distance(clean, model.x - 0.3 * d[0]) <= GOAL


def test_the_text_of_a_denoiser_sees_the_frames_up_to_its_look_ahead(model):
    """Each frame changes what frame 0 gets, or does not, as in the published model."""
    for frame in range(FRAMES):
        x = model.x.clone()
        x[frame] += 1
        ours = model.flow.denoiser_output(x[None], model.text[None], model.tables)
        assert distance(ours, model.published.denoiser(x, model.text)) <= GOAL


def test_the_evaluation_gives_the_golden_numbers():
    """What this file compares with is itself compared with the published program."""
    state = {name.removeprefix("model."): t.double() for name, t in golden_state().items()}
    sizes = Sizes(channels=8, layers=(1, 1, 1, 1, 1, 3), width=64, deep_width=96, head=32, text=(6, 24), scale=5,
                  denoiser_layers=8, ahead=1, reach=2, grid=(3, 4))
    file, denoiser = (load_file(GOLDEN / f"{name}.safetensors") for name in ("forward", "denoiser"))
    model = Published(state, sizes)
    x = file["x"][0].double().flatten(-2).transpose(-1, -2)
    z, _, deep = model.to_noise(x, file["y"][0].double())
    assert float((z - file["f64.z"][0].flatten(-2).transpose(-1, -2)).abs().max()) <= 1e-11
    assert float((deep.flatten(0, 1) - file["f64.logdet.5"][0]).abs().max()) <= 1e-11
    d = model.denoiser(denoiser["x"][0].double().flatten(-2).transpose(-1, -2), denoiser["y"][0].double())
    assert float((d - denoiser["f64.d"][0].flatten(-2).transpose(-1, -2)).abs().max()) <= 1e-11
