"""The denoiser gives the numbers of a trusted implementation of the same mathematics (tests/golden/README.md)."""

import pytest
import torch

from tests.flow.sampling import denoised_in_windows

GRID, TOKENS = (3, 4), 12
F32, F64 = 5e-5, 1e-11


@pytest.mark.parametrize("window", [1, 2, 3, None])
def test_the_denoiser_gives_the_golden_output_in_every_window(golden, at_most, window, tmp_path):
    file = golden["denoiser"]
    flow = golden.converted(tmp_path, denoiser_window=99 if window is None else window)
    name = "" if window == 2 else f"_window{window}"
    mask = flow.denoiser.mask(1, 5, TOKENS, 6, window=flow.denoiser.window)
    assert torch.equal(mask, file[f"mask{name}"].bool())
    d = flow.denoiser_output(golden.tokens(file["x"]), file["y"], flow.tables(GRID, 5))
    at_most("float32", golden.error(d, golden.tokens(file[f"d{name}"])), F32)


def test_the_denoiser_gives_the_golden_states_and_float64_output(golden):
    file, seen = golden["denoiser"], []
    hooks = [layer.register_forward_hook(lambda *args: seen.append(args[2])) for layer in golden.flow.denoiser.layers]
    golden.flow.denoiser_output(golden.tokens(file["x"]), file["y"], golden.flow.tables(GRID, 5))
    for hook in hooks:
        hook.remove()
    assert golden.error(seen[0], file["hidden.0"]) < F32
    assert golden.error(seen[7], file["hidden.7"]) < F32
    tables = golden.flow64.tables(GRID, 5)
    assert golden.error(tables.whole(5, text=True)[0].real, file["rope"][:, ::2].double().cos()) < 1e-6
    d = golden.flow64.denoiser_output(golden.tokens(file["x"]).double(), file["y"].double(), tables)
    assert golden.error(d, golden.tokens(file["f64.d"])) < F64


def test_one_tweedie_step_gives_the_golden_clean_latents(golden):
    file, flow = golden["denoiser"], golden.flow
    x, tables = golden.tokens(file["x"]), flow.tables(GRID, 5)
    clean = flow.denoise(x, file["y"], tables)
    assert golden.error(clean, golden.tokens(file["apply.x"])) < F32
    assert golden.error(clean, golden.tokens(file["process_full.x"])) < F32
    partial = x + (clean - x) * (0.5 - 0.2) / 0.5
    assert golden.error(partial, golden.tokens(file["apply_sigma0.5_to_0.2.x"])) < F32


def test_the_denoiser_takes_an_image_as_one_frame(golden):
    file, flow, tables = golden["denoiser"], golden.flow, golden.flow.tables(GRID, 1)
    x = golden.tokens(file["x_t1"])
    d = flow.denoiser_output(x, file["y"], tables)
    assert golden.error(d, golden.tokens(file["d_t1_video"])) < F32
    assert golden.error(d, golden.tokens(file["d_t1_image"])) < F32
    assert golden.error(flow.denoise(x, file["y"], tables), golden.tokens(file["process_image.x"])) < F32
    image = golden["image"]
    d = flow.denoiser_output(golden.tokens(image["x"]), image["y"], tables)
    assert golden.error(d, golden.tokens(image["d"])) < F32


@pytest.mark.parametrize(("flow", "tolerance", "name"), [("flow", 5e-4, ""), ("flow64", F64, "f64.")])
def test_a_step_along_the_gradient_of_the_nats_gives_the_golden_score_denoising(golden, flow, tolerance, name):
    file, flow = golden["denoiser"], getattr(golden, flow)
    x = golden.tokens(file["x"]).to(flow.deep.start.dtype).requires_grad_()
    nats, _ = flow.nats(x, file["y"].to(x.dtype), None, flow.tables(GRID, 5))
    (score,) = torch.autograd.grad(nats.sum(), x)
    assert golden.error(x.detach() + 0.5**2 * score, golden.tokens(file[f"{name}score_denoise.x"])) < tolerance


@pytest.mark.parametrize(("window", "overlap", "name"), [(3, 2, "2"), (4, 2, "2"), (3, 2, "None")])
def test_windowed_denoising_is_the_golden_one_until_that_reads_its_own_output(golden, window, overlap, name):
    file, flow = golden["denoiser"], golden.flow
    x, tables = golden.tokens(file["x8"]), flow.tables(GRID, 8)
    clean = denoised_in_windows(flow, x, file["y"], tables, window=window, overlap=overlap)
    published = golden.tokens(file[f"process_window{window}_overlap{name}.x"])
    first = window - 1  # the first window's last frame comes from the second window, where its future is visible
    assert golden.error(clean[:, :first], published[:, :first]) < F32
    assert golden.error(clean[:, first:], published[:, first:]) > 0.01
    for start in range(0, 8 - window + 1, window - overlap):  # every frame comes from a window over noisy latents
        alone = flow.denoise(x[:, start : start + window], file["y"], tables)
        assert golden.error(clean[:, start + 1 : start + window - 1], alone[:, 1:-1]) < 1e-6
