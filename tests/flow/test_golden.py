"""The flow gives the numbers of a trusted implementation of the same mathematics (tests/golden/README.md).

Tolerances are those of the golden data: float32 as far as the trusted implementation's own rounding goes, float64 to
1e-11.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from starflow_world.flow import Flow, guide
from starflow_world.flow.density import UNIT_SCALE
from tests.flow.sampling import sample_deep

GRID, GUIDANCE, TOKENS = (3, 4), 2.5, 12
F32, SAMPLED32, F64 = 5e-5, 1e-4, 1e-11


def states(flow: Flow, x: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Every intermediate of data -> noise under the golden names, x (B, T, n, c)."""
    tables = flow.tables(GRID, x.shape[1])
    found, frames = {"out.0": x}, x.flatten(0, 1)
    for k, block in enumerate(flow.shallow):
        own = block.in_order(frames)
        affine = block.predict(block.shift(own), tables.frame)
        z, logdet = affine.to_noise(own)
        frames = block.in_order(z)
        found |= {f"out.{k + 1}": frames.unflatten(0, x.shape[:2]), f"logdet.{k}": logdet.unflatten(0, x.shape[:2])}
        found[f"affine.{k}"] = torch.cat((affine.scale, affine.mean), dim=-1)
    u = found["out.5"]
    affine = flow.deep_forward(u, text, None, tables)
    z, found["logdet.5"] = affine.to_noise(u.flatten(1, 2))
    found["affine.5"] = torch.cat((affine.scale, affine.mean), dim=-1)
    found["out.6"] = found["z"] = z.unflatten(1, u.shape[1:3])
    half, total = 0.5 * z.square().mean(), sum(found[f"logdet.{k}"].mean() for k in range(6))
    found |= {"loss.loss_z": half, "loss.loss_logdet": -total, "loss.loss": half - total}
    found["loss.weighted"] = (half - total) * 0.5 / 0.3
    return found


def in_our_shape(golden, name: str, tensor: Tensor) -> Tensor:
    """A golden forward tensor as `states` has it."""
    if name.startswith("out."):
        return tensor.flatten(-3, -2) if tensor.ndim == 5 else tensor.flatten(-3, -2)[:, None]
    if name.startswith("affine."):
        scale, mean = tensor.chunk(2, dim=-1)
        return torch.cat((F.softplus(scale + UNIT_SCALE), mean), dim=-1)
    if name.startswith("loss"):
        return tensor.reshape(())
    return golden.tokens(tensor) if name == "z" else tensor


FORWARD = [f"out.{k}" for k in range(7)] + [f"logdet.{k}" for k in range(6)] + [
    "z", "loss.loss", "loss.loss_z", "loss.loss_logdet", "loss.weighted",
]


def test_forward_gives_every_golden_state_in_float32(golden, at_most):
    file = golden["forward"]
    found = states(golden.flow, golden.tokens(file["x"]), file["y"])
    for name in FORWARD + [f"affine.{k}" for k in range(6)]:
        error = golden.error(found[name], in_our_shape(golden, name, file[name]))
        at_most("log-determinants and losses" if "lo" in name else "states", error, 5e-6 if "lo" in name else F32)


def test_forward_gives_every_golden_state_in_float64(golden, at_most):
    file = golden["forward"]
    found = states(golden.flow64, golden.tokens(file["x"]).double(), file["y"].double())
    for name in FORWARD:
        at_most("error", golden.error(found[name], in_our_shape(golden, name, file[f"f64.{name}"])), F64)
    u, logdet = golden.flow64.shallow(golden.tokens(file["x"]).double(), golden.flow64.tables(GRID, 5))
    assert golden.error(u, found["out.5"]) == 0
    own_order = [found[f"logdet.{k}"].flip(-2) if k % 2 == 0 else found[f"logdet.{k}"] for k in range(5)]
    assert golden.error(logdet, sum(own_order)) < 1e-14


def test_hidden_states_and_text_states_of_the_deep_block_are_the_golden_ones(golden):
    file, seen = golden["forward"], []
    hooks = [layer.register_forward_hook(lambda *args: seen.append(args[2])) for layer in golden.flow.deep.layers]
    states(golden.flow, golden.tokens(file["x"]), file["y"])
    for hook in hooks:
        hook.remove()
    for k, hidden in enumerate(seen):
        assert golden.error(hidden, file[f"top.hidden.{k}"]) < F32
    assert golden.error(golden.flow.deep.norm(seen[-1][:, :6]), file["y_out"]) < F32


def test_rotary_angles_are_the_golden_ones(golden):
    file, tables = golden["forward"], golden.flow64.tables(GRID, 5)
    for name, table in {"shallow": tables.frame, "top": tables.whole(5, text=True)}.items():
        angles = file[f"f64.rope.{name}"][:, ::2]
        assert golden.error(table[0].real, angles.cos()) < F64
        assert golden.error(table[0].imag, angles.sin()) < F64


def test_guided_forward_gives_the_golden_noise(golden):
    file, flow = golden["forward"], golden.flow
    tables = flow.tables(GRID, 5)
    u, _ = flow.shallow(golden.tokens(file["x"]), tables)
    both = [flow.deep_forward(u, file[name], None, tables) for name in ("y", "y_uncond")]
    z, logdet = guide(*both, GUIDANCE).to_noise(u.flatten(1, 2))
    assert golden.error(z.unflatten(1, (5, TOKENS)), golden.tokens(file["guided.z"])) < F32
    assert golden.error(logdet, file["guided.logdet.5"]) < F32


# ---- noise to data ---------------------------------------------------------------------------------------------------

CHUNKS = {"sequential": 1, "jacobi in chunks of 4": 4, "jacobi in chunks of 5": 5, "jacobi over whole frames": 0}
GUIDED = {"noguide": 0.0, "guided": GUIDANCE}


def decode(golden, file: dict[str, Tensor], case: str, *, given: int = 0, dtype=torch.float32, **options):
    """(u, x) of all frames, (B, T, n, c): `given` frames of x_context, the others from noise."""
    flow = golden.flow if dtype == torch.float32 else golden.flow64
    noise = golden.tokens(file["z_noise" if "z_noise" in file else "z"]).to(dtype)
    tables = flow.tables(GRID, noise.shape[1])
    u = noise[:, :0]
    if given:
        u, _ = flow.shallow(golden.tokens(file["x_context"]).to(dtype)[:, :given], tables)
    options = {"tolerance": 0.0, **options}
    sampled = sample_deep(
        flow, noise[:, given:], file["y"].to(dtype), tables, null_text=file["y_uncond"].to(dtype),
        guidance=GUIDED[case], prefix=u if given else None, **options,
    )
    u = torch.cat((u, sampled.u), dim=1)
    x, _, _ = flow.shallow.inverse(u, tables, chunk=1 if options.get("chunk") == 1 else 0)
    return u, x, sampled


@pytest.mark.parametrize("case", GUIDED)
@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_sampling_gives_the_golden_samples(golden, at_most, case, chunk):
    reverse, jacobi = golden["reverse"], golden["jacobi"]
    u, x, _ = decode(golden, reverse, case, chunk=chunk)
    assert golden.error(u, golden.tokens(reverse[f"{case}.seq.1"])) < SAMPLED32
    at_most("float32", golden.error(x, golden.tokens(reverse[f"{case}.x"])), SAMPLED32)
    for block in (4, 64):
        assert golden.error(u, golden.tokens(jacobi[f"{case}.block{block}.tight.deep"])) < SAMPLED32
        assert golden.error(x, golden.tokens(jacobi[f"{case}.block{block}.tight.x"])) < SAMPLED32
    u, x, _ = decode(golden, reverse, case, chunk=chunk, dtype=torch.float64)
    assert golden.error(u, reverse[f"f64.{case}.deep"].flatten(-2).transpose(-1, -2)) < F64
    at_most("float64", golden.error(x, golden.tokens(reverse[f"f64.{case}.x"])), F64)


@pytest.mark.parametrize("case", GUIDED)
def test_every_stage_of_the_golden_shallow_inverse_is_met_on_the_way_back(golden, case):
    file = golden["reverse"]
    found = states(golden.flow, golden.tokens(file[f"{case}.x"]), file["y"])
    for stage in range(1, 7):
        assert golden.error(found[f"out.{6 - stage}"], golden.tokens(file[f"{case}.seq.{stage}"])) < SAMPLED32


def test_attention_temperature_of_the_golden_sample_is_a_scale_of_the_queries(golden):
    cooled = copy.copy(golden)
    cooled.flow = copy.deepcopy(golden.flow)
    with torch.no_grad():
        for name, value in cooled.flow.named_parameters():
            if ".qkv." in name and "denoiser" not in name:
                value[: len(value) // 3] /= 1.3
    _, x, _ = decode(cooled, golden["reverse"], "noguide", chunk=1)
    assert golden.error(x, golden.tokens(golden["reverse"]["attn_temp1.3.noguide.x"])) < SAMPLED32


def assert_closer_than_published(golden, x: Tensor, truth: Tensor, file: dict[str, Tensor], name: str) -> None:
    """Our default tolerance of 1e-3 beats the published threshold of 1e-3 (and its cut-off, where there is one)."""
    endings = ("th1e-3.x", "max3.x")
    loose = [golden.tokens(t) for key, t in file.items() if key.startswith(f"{name}.block") and key.endswith(endings)]
    assert len(loose) >= 2
    for published in loose:
        assert golden.error(x, truth) < 0.5 * golden.error(published, truth)


@pytest.mark.parametrize("case", GUIDED)
def test_our_default_tolerance_is_closer_to_sequential_than_the_published_solver(golden, case):
    _, x, sampled = decode(golden, golden["jacobi"], case, tolerance=1e-3)
    assert bool(sampled.converged.all())
    assert_closer_than_published(golden, x, golden.tokens(golden["reverse"][f"f64.{case}.x"]), golden["jacobi"], case)


@pytest.mark.parametrize("case", GUIDED)
@pytest.mark.parametrize("given", [1, 2])
def test_continuing_given_frames_gives_the_golden_frames(golden, case, given):
    file, name = golden["context"], f"ctx{given}.{case}"
    for chunk in (0, 1):
        u, x, _ = decode(golden, file, case, given=given, chunk=chunk)
        assert golden.error(u[:, :given].flatten(1, 2), file[f"{name}.prefix"]) < F32
        assert golden.error(u, golden.tokens(file[f"{name}.seq.deep"])) < SAMPLED32
        for solver in ("seq", "block4.tight", "block64.tight"):
            assert golden.error(x, golden.tokens(file[f"{name}.{solver}.x"])) < SAMPLED32
        _, x64, _ = decode(golden, file, case, given=given, chunk=chunk, dtype=torch.float64)
        assert golden.error(x64, golden.tokens(file[f"f64.{name}.x"])) < F64
    _, x, _ = decode(golden, file, case, given=given, tolerance=1e-3)
    assert_closer_than_published(golden, x, x64, file, name)


LONG = {  # name: guided, frames kept, frames given
    "noguide.ctx2": ("noguide", 2, 0),
    "guided.ctx2": ("guided", 2, 0),
    "guided.ctx1": ("guided", 1, 0),
    "noguide.ctx2.image1": ("noguide", 2, 1),
    "guided.ctx2.image1": ("guided", 2, 1),
}


@pytest.mark.parametrize("name", LONG)
def test_long_rollouts_through_a_sliding_window_give_the_golden_frames(golden, at_most, name):
    file, (case, context, given) = golden["long"], LONG[name]
    options = {"given": given, "window": 3, "context": context}
    for chunk in (0, 1):
        u, x, _ = decode(golden, file, case, chunk=chunk, **options)
        for block in (4, 64):
            assert golden.error(u, golden.tokens(file[f"{name}.block{block}.tight.deep"])) < SAMPLED32
            at_most("float32", golden.error(x, golden.tokens(file[f"{name}.block{block}.tight.x"])), SAMPLED32)
        _, x64, _ = decode(golden, file, case, chunk=chunk, dtype=torch.float64, **options)
        if f"f64.{name}.x" in file:
            at_most("float64", golden.error(x64, golden.tokens(file[f"f64.{name}.x"])), F64)
    _, x, _ = decode(golden, file, case, tolerance=1e-3, **options)
    assert_closer_than_published(golden, x, x64, file, name)


# ---- images ----------------------------------------------------------------------------------------------------------


def test_an_image_is_a_clip_of_one_frame(golden):
    file = golden["image"]
    found = states(golden.flow, golden.tokens(file["x"]), file["y"])
    for name in [f"out.{k}" for k in range(7)] + ["z", "loss.loss", "loss.loss_z", "loss.loss_logdet"]:
        assert golden.error(found[name], in_our_shape(golden, name, file[name])) < F32, name
    for k in range(6):
        assert golden.error(found[f"logdet.{k}"].reshape(2, TOKENS, 8), file[f"logdet.{k}"]) < 5e-6
    table = golden.flow.tables(GRID, 1).whole(1, text=True)
    assert golden.error(table[0].real, file["rope.top"][:, ::2].cos()) < 1e-6
    found = states(golden.flow64, golden.tokens(file["x"]).double(), file["y"].double())
    assert golden.error(found["z"], golden.tokens(file["f64.z"])) < F64


def test_an_image_of_another_shape_gives_the_golden_noise(golden):
    file, flow = golden["image"], golden.flow
    tables, x = flow.tables((4, 4), 1), golden.tokens(file["x_4x4"])
    u, _ = flow.shallow(x, tables)
    z, _ = flow.deep_forward(u, file["y"], None, tables).to_noise(u.flatten(1, 2))
    assert golden.error(z[:, None], golden.tokens(file["z_4x4"])) < F32


@pytest.mark.parametrize("case", GUIDED)
def test_sampled_images_are_the_golden_ones(golden, case):
    file = golden["image"]
    for chunk in (0, 1):
        u, x, _ = decode(golden, file, case, chunk=chunk)
        assert golden.error(u, golden.tokens(file[f"{case}.deep"])) < SAMPLED32
        for name in ("x", "block4.tight.x", "block64.tight.x"):
            assert golden.error(x, golden.tokens(file[f"{case}.{name}"])) < SAMPLED32
        _, x64, _ = decode(golden, file, case, chunk=chunk, dtype=torch.float64)
        assert golden.error(x64, golden.tokens(file[f"f64.{case}.x"])) < F64
    _, x, _ = decode(golden, file, case, tolerance=1e-3)
    assert_closer_than_published(golden, x, x64, file, case)
