"""Noise becomes frames: the golden numbers of a trusted implementation, and small models of the published structure."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

from starflow_world.config.world import DecodeConfig
from starflow_world.flow import Flow
from starflow_world.model.checkpoint import load_flow
from starflow_world.video.convert import convert
from starflow_world.video.pipeline import GenerationTask, synthesize
from tests.flow.sampling import denoised_in_windows, sample_deep
from tests.tiny_video import TINY_VIDEO, tiny_video

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
EXACT = DecodeConfig(tolerance=1e-6)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The flow of tests/golden, converted, without its denoiser, and the files."""
    folder = tmp_path_factory.mktemp("golden")
    state = load_file(GOLDEN / "forward.safetensors")
    torch.save({name: t for name, t in state.items() if name.startswith("model.")}, folder / "reference.pth")
    convert(folder / "reference.pth", folder / "flow", head_width=32, text_length=6, position_scale=5.0)
    return load_flow(folder / "flow"), {name: load_file(GOLDEN / f"{name}.safetensors") for name in CASES}


CASES = ("reverse", "context", "long")


def tokens(x: Tensor) -> Tensor:
    return x.flatten(-2).transpose(-1, -2)


def sampled(flow, file: dict[str, Tensor], *, guidance: float, given: int = 0, **changes) -> Tensor:
    """All frames, as the command makes them."""
    noise = tokens(file["z_noise" if "z_noise" in file else "z"])
    known = tokens(file["x_context"])[:, :given] if given else None
    task = GenerationTask(noise[:, given:], file["y"], (3, 4), noise.shape[1], 1, file["y_uncond"], guidance, known)
    parts: list[Tensor] = []
    synthesize(flow, replace(task, **changes), EXACT, parts.append)
    return torch.cat(parts, dim=1)


QUICK = [
    ("reverse", 0, {}, "{}.x", "guided"),
    ("context", 2, {}, "ctx2.{}.seq.x", "guided"),
    ("long", 1, {"window": 3, "context": 2}, "{}.ctx2.image1.block4.tight.x", "noguide"),
]
LONGER = [
    ("reverse", 0, {}, "{}.x", "noguide"),
    ("context", 1, {}, "ctx1.{}.seq.x", "guided"),
    ("context", 2, {}, "ctx2.{}.seq.x", "noguide"),
    ("long", 0, {"window": 3, "context": 2}, "{}.ctx2.block4.tight.x", "guided"),
    ("long", 0, {"window": 3, "context": 1}, "{}.ctx1.block4.tight.x", "guided"),
    ("long", 1, {"window": 3, "context": 2}, "{}.ctx2.image1.block4.tight.x", "guided"),
]


ALL = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONGER)]


@pytest.mark.parametrize(("name", "given", "changes", "key", "case"), ALL)
def test_what_the_command_samples_are_the_golden_frames(golden, name, given, changes, key, case):
    flow, files = golden
    found = sampled(flow, files[name], guidance=2.5 if case == "guided" else 0.0, given=given, **changes)
    assert (found - tokens(files[name][key.format(case)])).abs().max() < 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_video(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def flow(folder) -> Flow:
    return load_flow(folder)


def task(frames: int = 3, given: int = 0, **changes) -> GenerationTask:
    """Random noise, texts and given frames of 2 x 3 tokens for the tiny flow."""
    generator = torch.Generator().manual_seed(0)

    def normals(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    known = normals(given, 6, 6) if given else None
    return replace(
        GenerationTask(normals(frames, 6, 6), normals(80, 24), (2, 3), 4, 2, normals(80, 24), 2.0, known, 4, 2),
        **changes,
    )


def clean(flow: Flow, task: GenerationTask, decode: DecodeConfig = EXACT, threaded: bool | None = None) -> list[Tensor]:
    """What is emitted, part by part."""
    parts: list[Tensor] = []
    synthesize(flow, task, decode, parts.append, threaded=threaded)
    return parts


def test_every_stage_is_the_documented_one(flow):
    """By hand, in one go: sample, invert, denoise the whole clip in windows."""
    asked = task(frames=6, given=1)
    tables = flow.tables(asked.grid, 4)
    with torch.no_grad():
        prefix = flow.shallow(asked.given, tables)[0]
        u = sample_deep(
            flow, asked.noise, asked.text, tables, null_text=asked.null_text, guidance=2.0, prefix=prefix, window=4,
            context=2, tolerance=EXACT.tolerance,
        ).u
        x = torch.cat((asked.given, flow.shallow.inverse(u, tables)[0]), dim=1)
        expected = denoised_in_windows(flow, x, asked.text, tables, window=4, overlap=2)
    parts = clean(flow, asked)
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-5)
    assert len(parts) > 1, "frames leave before the last one is there"
    assert (expected - x).abs().max() > 0.05, "the denoiser acts"


def test_work_behind_the_deep_block_gives_the_same_numbers_in_a_thread(flow):
    asked = task(frames=6)
    together, separate = clean(flow, asked, threaded=False), clean(flow, asked, threaded=True)
    assert torch.equal(torch.cat(together, dim=1), torch.cat(separate, dim=1))


@pytest.mark.parametrize("threaded", [False, True])
def test_an_error_behind_the_deep_block_is_raised(flow, threaded):
    def broken(latents: Tensor) -> None:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        synthesize(flow, task(), EXACT, broken, threaded=threaded)


def test_the_flow_says_of_what_was_generated_that_its_noise_was_drawn(folder):
    """Latents go back to the noise they came from: sampling inverts the likelihood's own direction."""
    flow, asked = load_flow(folder), task(guidance=0.0)
    flow.denoiser = None
    found, tables = torch.cat(clean(flow, asked), dim=1), flow.tables(asked.grid, 3)
    with torch.no_grad():
        u, _ = flow.shallow(found, tables)
        z, _ = flow.deep_forward(u, asked.text, None, tables).to_noise(u.flatten(1, 2))
    assert torch.allclose(z, asked.noise.flatten(1, 2), atol=1e-3)


def test_halves_of_guidance_share_all_that_does_not_depend_on_the_text(folder):
    flow, rows = load_flow(folder), {}
    watched = {
        "shallow": flow.shallow[0].layers[0], "denoiser": flow.denoiser.layers[0], "deep, input": flow.deep.project_in,
        "deep, first keys": flow.deep.layers[0].attention.qkv, "deep, behind": flow.deep.layers[1].attention.qkv,
    }

    def counting(name: str):
        def count(module: Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            if out.shape[1] != 80:  # as many as there are tokens of text
                rows.setdefault(name, set()).add(len(out))

        return count

    for name, module in watched.items():
        module.register_forward_hook(counting(name))
    clean(flow, task(given=1))
    assert rows == {"shallow": {1}, "denoiser": {1}, "deep, input": {1}, "deep, first keys": {1}, "deep, behind": {2}}


def test_half_precision_stays_close_and_its_cache_is_half_as_large(folder, flow):
    half = load_flow(folder, dtype=torch.bfloat16)
    assert half.deep.layers[0].attention.qkv.weight.dtype == torch.bfloat16
    assert half.deep.head.weight.dtype == half.deep.start.dtype == torch.float32
    assert half.deep.empty_cache(2, 10).keys.dtype == torch.bfloat16
    loose = replace(TINY_VIDEO.decode, tolerance=1e-3)
    found, whole = (torch.cat(clean(which, task(), loose), dim=1) for which in (half, flow))
    separate = torch.cat(clean(half, task(), loose, threaded=True), dim=1)  # precision is a matter of each thread
    assert torch.equal(separate, found)
    assert not separate.requires_grad
    difference = (found - whole).square().mean().sqrt() / whole.std()
    assert 0 < difference < 0.1


def test_a_text_that_changes_holds_from_its_frame_on_and_what_is_there_is_read_behind_it(flow):
    """By hand: the frames before the change are given to a generation with the new text, which goes on with the same
    window."""
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(1, 80, 24, generator=generator)
    first = task(frames=4, denoise_window=4)
    changed = replace(first, changes={2: other})
    u: list[Tensor] = []
    synthesize(flow, changed, EXACT, lambda _: None, on_frame=lambda solved: u.append(solved.tokens))
    alone: list[Tensor] = []
    synthesize(flow, first, EXACT, lambda _: None, on_frame=lambda solved: alone.append(solved.tokens))
    assert all(torch.equal(a, b) for a, b in zip(u[:2], alone[:2], strict=True))
    assert not torch.allclose(u[2], alone[2], atol=1e-3)
    tables = flow.tables(first.grid, 4)
    rest = sample_deep(flow, first.noise[:, 2:], other, tables, null_text=first.null_text, guidance=2.0,
                       prefix=torch.stack(u[:2], dim=1), window=4, context=2, tolerance=EXACT.tolerance)
    assert torch.allclose(torch.stack(u[2:], dim=1), rest.u, atol=1e-5)
    with torch.no_grad():
        x = flow.shallow.inverse(torch.stack(u, dim=1), tables)[0]
        expected = torch.cat((flow.denoise(x, first.text, tables)[:, :2], flow.denoise(x, other, tables)[:, 2:]), dim=1)
    assert torch.allclose(torch.cat(clean(flow, changed), dim=1), expected, atol=1e-5)
