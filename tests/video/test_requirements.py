"""What `starflow-world plan` says is what small models need when they are measured."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from starflow_world.cli import main
from starflow_world.codec.wan import WanCodec
from starflow_world.errors import ConfigError
from starflow_world.flow import Flow
from starflow_world.model.checkpoint import load_flow
from starflow_world.video.decoding import Decoder
from starflow_world.video.plan import requirements_report
from starflow_world.video.requirements import GIB, GPUS, Needs, sweep_timings
from tests.tiny_video import PUBLISHED, TINY_VIDEO, tiny_video, tiny_wan

TOKENS, GRID = 6, (2, 3)
CONFIGS = {
    "published": PUBLISHED.flow,
    "tiny": TINY_VIDEO.flow,
    "no denoiser": replace(TINY_VIDEO.flow, denoiser_layers=0, denoiser_look_ahead=()),
    "unequal blocks": replace(TINY_VIDEO.flow, shallow_layers=(2, 1, 1, 0, 1)),
    "no text": replace(TINY_VIDEO.flow, text_length=0, text_width=0),
    "text for the deep block only": replace(TINY_VIDEO.flow, denoiser_text=False),
}


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Flow:
    """The tiny flow, ready to run in bfloat16."""
    return load_flow(tiny_video(tmp_path_factory.mktemp("models") / "tiny"), dtype=torch.bfloat16)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_exactly(name):
    with torch.device("meta"):
        flow = Flow(CONFIGS[name])
    found = Needs(CONFIGS[name], TOKENS).parameters()
    for part, count in found.items():
        assert count == sum(p.numel() for n, p in flow.named_parameters() if n.startswith(f"{part}."))
    assert sum(found.values()) == sum(p.numel() for p in flow.parameters())


def test_bytes_of_weights_are_those_of_a_loaded_flow(flow):
    found = Needs(flow.config, TOKENS).weight_bytes()
    for part, size in found.items():
        assert size == sum(t.nbytes for name, t in flow.state_dict().items() if name.startswith(f"{part}."))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("frames", [1, 4])
def test_bytes_of_the_cache_are_those_that_sampling_allocates(flow, frames, guided):
    rows = 1 + guided
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = flow.start_cache(torch.randn(rows, 80, 24), rows, flow.tables(GRID, frames))
    assert cache.keys.dtype == torch.bfloat16
    expected = Needs(flow.config, TOKENS).cache_bytes(frames, guided=guided)
    assert cache.keys.nbytes + cache.values.nbytes == expected


def test_the_published_model_needs_half_of_the_published_cache():
    """480p, 21 latent frames, guidance: 49.3 GiB in the published program, which keeps float32."""
    with torch.device("meta"):
        deep = Flow(PUBLISHED.flow).deep
    tokens = PUBLISHED.grid("16:9")[0] * PUBLISHED.grid("16:9")[1]
    cache = deep.empty_cache(2, 256 + 21 * tokens, torch.bfloat16)
    needs = Needs(PUBLISHED.flow, tokens)
    assert cache.keys.nbytes + cache.values.nbytes == needs.cache_bytes(21, guided=True)
    assert needs.cache_bytes(21, guided=True) / GIB <= 24.7
    assert round(2 * needs.cache_bytes(21, guided=True) / GIB, 1) == 49.3


@pytest.mark.parametrize(("chunk", "frames", "guided"), [(1, 0, False), (6, 2, False), (4, 3, False), (6, 3, True)])
def test_operations_of_a_sweep_are_those_that_are_executed(chunk, frames, guided):
    flow = Flow(TINY_VIDEO.flow).eval()
    tables = flow.tables(GRID, 4)
    cache = flow.deep.empty_cache(1 + guided, 80 + 4 * TOKENS).rollback(80 + frames * TOKENS)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        flow.predictor(cache, None, chunk, tables, text=80)(torch.zeros(1, chunk, 6))
    needs = Needs(flow.config, TOKENS)
    assert counter.get_total_flops() == needs.sweep_operations(chunk, 80 + frames * TOKENS, guided=guided, dense=True)
    fewer = needs.sweep_operations(chunk, 80 + frames * TOKENS, guided=guided)
    assert fewer < counter.get_total_flops() or chunk == 1


def test_operations_around_the_deep_block_are_those_that_are_executed():
    flow = Flow(TINY_VIDEO.flow).eval()
    tables, needs, d = flow.tables(GRID, 4), Needs(TINY_VIDEO.flow, TOKENS), 24
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        flow.shallow(torch.zeros(1, 1, TOKENS, 6), tables)
    unseen = 5 * 1 * TOKENS * 4 * d * (TOKENS - 1) / 2  # keys behind a query are computed, and do not count
    assert counter.get_total_flops() == needs.shallow_operations() + unseen
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        flow.denoise(torch.zeros(1, 3, TOKENS, 6), torch.zeros(1, 80, 24), tables)
    text = 80 * (2 * 24 * d + 2 * 4 * d * (80 + 3 * TOKENS))  # text queries, which do not count
    assert counter.get_total_flops() == needs.denoiser_operations(3) + text


def test_a_sweep_takes_at_least_its_reading_and_its_products():
    needs, gpu = Needs(PUBLISHED.flow, 1590), GPUS["h200"]
    for chunk, length, guided in ((32, 32_000, True), (1590, 2_000, False)):
        seconds = needs.sweep_seconds(gpu, chunk, length, guided=guided)
        assert seconds >= needs.sweep_bytes(chunk, length, guided=guided) / gpu.bandwidth
        assert seconds >= needs.sweep_operations(chunk, length, guided=guided) / gpu.operations
    reading = needs.sweep_bytes(32, 32_000, guided=True) / gpu.bandwidth
    assert needs.sweep_seconds(gpu, 32, 32_000, guided=True) == reading


def test_a_clip_costs_about_a_petaflop_per_sweep_with_guidance():
    """Published arithmetic: 0.55 PFLOP for a teacher-forced pass over 81 frames at 480p, twice that with guidance."""
    needs = Needs(PUBLISHED.flow, 1590)
    for guided, expected in ((False, 0.55), (True, 1.09)):
        chunks = [needs.sweep_operations(1590, 256 + t * 1590, guided=guided) for t in range(21)]
        assert sum(chunks) / 1e15 == pytest.approx(expected, rel=0.02)


def test_the_command_prints_a_table(capsys):
    main(["plan", "--config", "starflow-v-7b", "--gpu", "h200"])
    said = capsys.readouterr().out
    for words in ("6.890 B", "24.64 GiB", "21 latent frames of 30 x 53 tokens", "1590 tokens", "GiB are left", "k = 4",
                  "k = 16", "VAE", "139.8 GiB: fits"):
        assert words in said
    main(["plan", "--gpu", "rtx4090", "--frames", "161", "--guidance", "0"])
    said = capsys.readouterr().out
    assert "without guidance" in said
    assert "4 slides" in said
    assert "does not fit, because" in said


def test_more_frames_more_guidance_and_a_smaller_gpu_never_cost_less():
    def seconds(**changes: object) -> float:
        options = {"gpu": "h200", "frames": 81, "guidance": 3.5, **changes}
        report = requirements_report(PUBLISHED, **options, sweeps=(4,))  # type: ignore[arg-type]
        return float(report.rsplit("k = 4:", 1)[1].split()[0])

    base = seconds()
    assert seconds(frames=161) > 2 * base
    assert seconds(guidance=0.0) < base
    assert seconds(gpu="a100") > 2 * base


@pytest.mark.parametrize("changes", [{"gpu": "abacus"}, {"aspect": "4:3"}, {"frames": 80}])
def test_what_cannot_be_planned_is_refused(changes):
    with pytest.raises(ConfigError):
        requirements_report(PUBLISHED, **{"gpu": "h200", **changes})


def test_sweeps_can_be_measured_against_their_floor():
    report = sweep_timings(TINY_VIDEO, "h200", device="cpu", chunks=(2, 6), frames=(1, 2), repeats=1)
    assert report.count("tokens:") == 4
    assert "behind 86 positions" in report


def test_what_the_vae_takes_is_what_is_executed_and_kept(tmp_path):
    pytest.importorskip("diffusers")
    codec = WanCodec.load(tiny_wan(tmp_path / "wan"), grid=GRID)
    decoder, streams = Decoder(6, base=4, mult=(4, 4, 2, 1), residual=1), codec.begin(1)
    for step in range(3):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, streams = codec.decode(torch.zeros(1, 1, TOKENS, 6), streams)
        assert counter.get_total_flops() == decoder.operations(*GRID, first=step == 0), step
    held = [part for part in streams[0].decoder.features if isinstance(part, torch.Tensor)]
    assert sum(part.numel() for part in held) * 2 == decoder.held_bytes(*GRID)
    parts = [*codec.vae.decoder.named_parameters(), *codec.vae.post_quant_conv.named_parameters()]
    assert sum(p.numel() for name, p in parts if name.endswith("weight")) * 2 == decoder.weight_bytes()


def test_the_report_says_what_fits_and_why_not():
    def memory(**changes: object) -> list[str]:
        report = requirements_report(PUBLISHED, **{"gpu": "h100", "frames": 81, **changes})
        return [line for line in report.splitlines() if "fit" in line]

    alone, translated = memory()
    assert "of 79.1 GiB: fits" in alone
    cache = [float(line.split("cache ")[1].split()[0]) for line in (alone, translated)]
    assert cache[1] == pytest.approx(2 * cache[0], rel=0.01)
    missing, unguided, offloaded, picture, _ = memory(gpu="rtx4090")
    assert "GiB are missing; most is cache" in missing
    assert unguided.strip().startswith("--guidance 0: ")
    assert offloaded.strip().startswith("--offload: ")
    amounts = [float(line.split("because ")[1].split()[0]) for line in (missing, offloaded)]
    assert amounts[0] > amounts[1]
    assert picture.strip().startswith("--frames 1: fits")


def test_decoding_is_part_of_the_whole_video():
    report = requirements_report(PUBLISHED, "h200", frames=81)
    line = next(line for line in report.splitlines() if "k = 2:" in line)
    decoder = Decoder()
    expected = (decoder.operations(30, 53, first=True) + 20 * decoder.operations(30, 53)) / GPUS["h200"].operations
    assert f"VAE {expected:.1f}" in line
    assert 0.3 < expected < 1.2
