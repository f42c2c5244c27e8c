"""Products in half precision, and other kernels of attention, move nats by what they round and no more."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from starflow_world.errors import ConfigError
from starflow_world.flow import KVCache
from starflow_world.flow.precision import run_in
from starflow_world.world import World

HALF = torch.bfloat16
EITHER = pytest.mark.parametrize("mixed", [False, True], ids=["one normal", "mixtures"])


def running(clip):
    """The clip in float32, its flow as `World.load` has it run in bfloat16."""
    clip = clip.to(torch.float32)
    run_in(clip.flow, HALF)
    assert clip.flow.deep.project_in.weight.dtype == HALF
    return replace(clip, tables=clip.flow.tables(clip.tables.grid, clip.x.shape[1]))


def nats(clip):
    with clip.flow.products():
        return clip.flow.nats(clip.x, clip.text, clip.action, clip.tables)[0]


@EITHER
def test_nats_in_bfloat16_do_not_depend_on_how_many_rows_are_computed_together(make_clip, at_most, mixed):
    exact = make_clip(rows=32, frames=2, mixed=mixed)
    clip = running(exact)
    whole = nats(clip)
    assert whole.dtype == torch.float32
    assert float((whole - nats(exact)).abs().max()) > 1e-4, "products are in half precision"
    for width in (1, 2, 3, 8):
        found = nats(clip.rows(list(range(width))))
        at_most("relative error", ((found - whole[:width]).abs() / whole[:width].abs().clamp_min(1)).max(), 2e-2)


@pytest.mark.parametrize("rows", [1, 2])
@EITHER
def test_every_split_of_a_sequence_gives_the_density_of_one_pass_in_bfloat16(make_clip, at_most, mixed, rows):
    clip, n = running(make_clip(rows=rows, mixed=mixed)), 16
    flow, tables = clip.flow, clip.tables
    with flow.products():
        u, _ = flow.shallow(clip.x, tables)
        added = flow.conditions(u, clip.text, clip.action, tables.grid)
        whole = flow.deep_forward(u, clip.text, added, tables)
        inputs, added, total = flow.deep.shift(u.flatten(1, 2)), added.flatten(1, 2), 4 * n
        for size in (1, 3, n - 1, n, n + 1, total):
            cache, parts = flow.start_cache(clip.text, rows, tables), []
            assert cache.keys.dtype == HALF
            for start in range(0, total, size):
                part = slice(start, start + size)
                cache, density = flow.extend(cache, inputs[:, part], added[:, part], tables, text=3)
                parts.append(density)
            joined = parts[0].join(parts[1:])
            for name in ("base",) if mixed else ("mean", "scale"):
                at_most(f"difference of {name}s", (getattr(joined, name) - getattr(whole, name)).abs().max(), 2e-2)


def test_another_kernel_of_attention_gives_the_same_nats(make_clip, at_most):
    clip = make_clip(rows=4).to(torch.float32)
    with sdpa_kernel(SDPBackend.MATH):
        plain = nats(clip)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused = nats(clip)
    assert not torch.equal(plain, fused), "the kernels are two"
    at_most("relative error", ((fused - plain).abs() / plain.abs().clamp_min(1)).max(), 1e-4)


def test_another_kernel_of_attention_sees_the_same_cache(make_clip, at_most):
    """Behind rows of different ages, which needs a mask."""
    clip, n = make_clip(rows=2).to(torch.float32), 16
    flow, tables, found = clip.flow, clip.tables, []
    u, _ = flow.shallow(clip.x, tables)
    inputs = flow.deep.shift(u.flatten(1, 2))
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(kernel):
            caches = []
            for row, age in enumerate((1, 3)):
                cache = flow.start_cache(clip.text[row : row + 1], 1, tables)
                caches.append(flow.extend(cache, inputs[row : row + 1, : age * n], None, tables, text=3)[0])
            after = torch.stack((inputs[0, n : 2 * n], inputs[1, 3 * n :]))
            _, affine = flow.extend(KVCache.stack(caches), after, None, tables, text=3)
        found.append(affine.nats(torch.stack((u[0, 1], u[1, 3]))))
    assert not torch.equal(*found)
    at_most("relative error", ((found[1] - found[0]).abs() / found[0].abs().clamp_min(1)).max(), 1e-4)


def test_a_world_in_half_precision_reads_and_scores_frames_as_in_single_precision(at_most):
    """All but products stays float32: a latent in bfloat16 would be off by a tenth of the noise."""
    single, half = (World.load("babyai-gotolocal", device="cpu", dtype=dtype) for dtype in (None, HALF))
    assert half.networks.flow.deep.project_in.weight.dtype == HALF
    frames, texts = single.starts.frames[:4, None], list(single.starts.texts[:4])
    (one, seen), (other, found) = (world.start(frames, text=texts, seed=1) for world in (single, half))
    assert torch.equal(found.latents, seen.latents)
    one, expected = single.step(one, [2, 0, 1, 2])
    other, told = half.observe(other, [2, 0, 1, 2], latents=expected.latents)
    assert told.nats.dtype == torch.float32
    at_most("nats per frame", (told.nats - expected.nats).abs().max(), 0.1)
    assert torch.equal(told.frames, expected.frames)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_a_precision_that_no_world_runs_in_is_refused(dtype):
    with pytest.raises(ConfigError, match="dtype: expected auto, float64, float32 or bfloat16"):
        World.load("babyai-gotolocal", device="cpu", dtype=dtype)
