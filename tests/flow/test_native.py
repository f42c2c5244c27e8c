"""Networks that run in one call (flow/native) give what torch gives, to rounding, and a row the same bits anywhere."""

import ctypes
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from starflow_world.flow import Block, KVCache, fused, native
from starflow_world.flow.layers import Linear, grid_positions, rotary_table
from starflow_world.flow.sites import SiteNet

CHANNELS, CLOSE = 6, 2e-5


@pytest.fixture(autouse=True)
def _in_inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def shaken(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with random numbers in every weight."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        size = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.2
        weight.data.add_(torch.randn(weight.shape, generator=generator) * size)
    return network.eval()


def block(width: int = 40, head: int = 20, layers: int = 2) -> Block:
    torch.manual_seed(0)
    found = Block(CHANNELS, width, layers, head, text_width=5)
    assert isinstance(shaken(found), Block)
    return found


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def aged(block: Block, ages: list[int], capacity: int) -> KVCache:
    """A cache of rows that hold so many positions, of random numbers."""
    cache = block.empty_cache(len(ages), capacity).rollback(torch.tensor(ages))
    cache.keys.copy_(normals(*cache.keys.shape, seed=1))
    cache.values.copy_(normals(*cache.values.shape, seed=2))
    return cache


def turns(block: Block, ages: list[int], count: int) -> Tensor:
    table = rotary_table(grid_positions(99, (4, 4), 4.0), block.head_width)
    return table[torch.tensor(ages)[:, None] + torch.arange(count)]


def predicted(block: Block, ages: list[int], count: int, capacity: int) -> tuple[list[Tensor], KVCache]:
    cache, sizes = aged(block, ages, capacity), (CHANNELS, block.project_in.out_features)
    inputs, added = (normals(len(ages), count, size, seed=size) for size in sizes)
    affine = block.predict(inputs, turns(block, ages, count), cache, cache.visible(count, torch.float32), added)
    return [affine.mean, affine.scale, affine.hidden], cache


def both(make):
    """What `make` gives in one call and in torch."""
    assert native.library() is not None, "these tests need a C compiler"
    with fused.left_to_torch():
        plain = make()
    return make(), plain


def test_where_there_is_a_compiler_networks_run_in_one_call(monkeypatch):
    calls = []
    monkeypatch.setattr(fused, "_call", lambda name, *rest: calls.append(name))
    predicted(block(), [3], 16, 40)
    SiteNet(8, 4, 1, 2)(normals(1, 16, 8), (4, 4))
    assert calls == ["run_linear", "run_block", "run_sites"]
    with fused.left_to_torch():
        predicted(block(), [3], 16, 40)
    assert len(calls) == 3


@pytest.mark.parametrize(("width", "head", "layers"), [(40, 20, 2), (84, 28, 1), (64, 32, 3)])
@pytest.mark.parametrize(("ages", "count"), [([0], 1), ([5], 16), ([3, 0, 11], 7), ([20, 1], 33)])
def test_a_block_behind_rows_of_all_ages_gives_what_torch_gives(width, head, layers, ages, count, at_most):
    (found, cache), (plain, other) = both(lambda: predicted(block(width, head, layers), ages, count, 60))
    for name, one, wanted in zip(("means", "scales", "hidden"), found, plain, strict=True):
        at_most(f"difference of {name}", (one - wanted).abs().max(), CLOSE)
    for one, wanted in ((cache.keys, other.keys), (cache.values, other.values)):
        assert torch.allclose(one, wanted, atol=CLOSE)
        for row, age in enumerate(ages):
            assert torch.equal(one[:, row, age + count :], wanted[:, row, age + count :]), "nothing else is written"
            assert torch.equal(one[:, row, :age], wanted[:, row, :age])


def test_a_whole_sequence_behind_text_gives_what_torch_gives(at_most):
    network = block()
    rotary = turns(network, [0], 3 + 40)

    def make() -> list[Tensor]:
        affine = network.predict_with_text(normals(2, 40, CHANNELS), normals(2, 3, 5), rotary, normals(2, 40, 40))
        return [affine.mean, affine.scale, affine.hidden]

    for found, plain in zip(*both(make), strict=True):
        assert found.shape == plain.shape
        at_most("difference", (found - plain).abs().max(), CLOSE)


def test_what_is_only_stored_is_what_a_prediction_stores():
    network, ages, count = block(), [4, 9], 18
    inputs, added, rotary = normals(2, count, CHANNELS), normals(2, count, 40), turns(network, ages, count)

    def stored(write: bool) -> KVCache:
        cache = aged(network, ages, 40)
        visible = cache.visible(count, torch.float32)
        if write:
            network.write(inputs, rotary, cache, visible, added)
        else:
            network.predict(inputs, rotary, cache, visible, added)
        return cache

    for one, other in zip(both(lambda: stored(True)), both(lambda: stored(False)), strict=True):
        assert torch.allclose(one.keys, other.keys, atol=1e-6)
        assert torch.allclose(one.values, other.values, atol=1e-6)
    found, plain = both(lambda: stored(True))
    assert torch.allclose(found.keys, plain.keys, atol=CLOSE)


@pytest.mark.parametrize(
    ("grid", "side", "numbers", "width", "layers", "told"),
    [((4, 4), 2, 3, 8, 2, 5), ((3, 5), 1, 6, 12, 1, 0), ((1, 1), 1, 4, 8, 1, 3),
     ((8, 4), 2, 2, 4, 3, 7), ((2, 8), 2, 3, 9, 1, 0)],
)
def test_a_network_over_sites_gives_what_torch_gives(grid, side, numbers, width, layers, told, at_most):
    net = shaken(SiteNet(numbers * side**2, width, layers, side, told))
    tokens, condition = normals(3, grid[0] * grid[1], numbers * side**2), normals(3, told) if told else None
    found, plain = both(lambda: net(tokens, grid, condition))
    assert found.shape == (3, width, grid[0] * side, grid[1] * side)
    at_most("difference", (found - plain).abs().max(), CLOSE)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_gives_what_torch_gives(bias, at_most):
    layer = shaken(Linear(13, 21, bias=bias))
    found, plain = both(lambda: layer(normals(2, 5, 13)))
    assert found.shape == (2, 5, 21)
    at_most("difference", (found - plain).abs().max(), CLOSE)


def test_large_numbers_saturate_as_in_torch():
    """A softmax that is one-hot, GELU far out, and nothing that becomes infinite on the way."""
    network = block()
    for layer in network.layers:
        layer.attention.qkv.weight.mul_(60)
        layer.feed_forward.up.weight.mul_(30)
    found, plain = both(lambda: predicted(network, [5], 16, 40)[0])
    for one, wanted in zip(found, plain, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-4, atol=1e-3)


def test_what_is_not_a_number_stays_visible():
    network = block()
    inputs = normals(1, 16, CHANNELS)
    inputs[0, 3, 2] = torch.nan
    affine = network.predict(inputs, turns(network, [0], 16))
    assert affine.mean[0, 3:].isnan().all()


def test_a_row_has_the_same_bits_with_other_rows_threads_and_room():
    network, ages = block(), [7, 0, 19]
    (whole, _), threads = predicted(network, ages, 16, 60), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, _ = predicted(network, ages, 16, 60)
    finally:
        torch.set_num_threads(threads)
    inputs, added = normals(3, 16, CHANNELS, seed=CHANNELS), normals(3, 16, 40, seed=40)
    for row, age in enumerate(ages):
        full = aged(network, ages, 60)
        one = KVCache(full.keys[:, row : row + 1], full.values[:, row : row + 1], torch.tensor([age]))
        visible, part = one.visible(16, torch.float32), slice(row, row + 1)
        affine = network.predict(inputs[part], turns(network, [age], 16), one, visible, added[part])
        assert torch.equal(affine.mean[0], whole[0][row])
        assert torch.equal(affine.hidden[0], whole[2][row])
        for capacity in (age + 16, 90):  # no more room than is needed, and much of it, with other numbers behind
            other = aged(network, [age], capacity)
            other.keys[:, :, :age], other.values[:, :, :age] = one.keys[:, :, :age], one.values[:, :, :age]
            affine = network.predict(inputs[part], turns(network, [age], 16), other, None, added[part])
            assert torch.equal(affine.hidden[0], whole[2][row])
    assert all(torch.equal(one, other) for one, other in zip(whole, alone, strict=True))


def test_a_linear_layer_and_a_network_over_sites_give_a_row_the_same_bits_among_any_others():
    layer, net = shaken(Linear(13, 21)), shaken(SiteNet(8, 6, 2, 2, 5))
    x, tokens, condition = normals(40, 13), normals(5, 16, 8), normals(5, 5)
    for row in (0, 17, 39):
        assert torch.equal(layer(x[row : row + 1])[0], layer(x)[row])
    for row in range(5):
        one = slice(row, row + 1)
        assert torch.equal(net(tokens[one], (4, 4), condition[one])[0], net(tokens, (4, 4), condition)[row])


def test_a_cache_without_room_is_refused_before_anything_is_written():
    network = block()
    cache = aged(network, [30, 2], 40)
    before = cache.clone()
    with pytest.raises(ValueError, match=r"room for 16 in a cache of 40, found \[30, 2\]"):
        network.predict(normals(2, 16, CHANNELS), turns(network, [30, 2], 16), cache)
    assert torch.equal(cache.keys, before.keys)


def test_gradients_other_precisions_and_autocast_are_left_to_torch():
    weight, x = torch.zeros(3, 3), torch.zeros(2, 3)
    assert fused.usable(x, weight)
    assert not fused.usable(x.double(), weight.double())
    assert not fused.usable(x, weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.usable(x, weight)
    with torch.inference_mode(False), torch.enable_grad():
        learned = torch.nn.Parameter(torch.zeros(3, 3))
        assert not fused.usable(torch.zeros(2, 3), learned)
        with torch.no_grad():
            assert fused.usable(torch.zeros(2, 3), learned)
    assert not fused.usable(torch.zeros(2, 3, device="meta"), weight)


# ---- building --------------------------------------------------------------------------------------------------------


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a library that is looked for anew."""
    monkeypatch.setenv("HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path / ".cache/starflow_world"
    native.library.cache_clear()


def test_the_library_is_built_once_and_found_again(afresh, monkeypatch):
    assert isinstance(native.library(), ctypes.CDLL)
    (built,) = afresh.glob("*.so")
    assert stat.S_IMODE(afresh.stat().st_mode) == 0o700
    native.library.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *args: pytest.fail("built again"))
    assert native.library() is not None
    assert list(afresh.iterdir()) == [built], "and nothing is left beside it"


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler_that_works_all_is_done_in_torch(afresh, monkeypatch, compiler, caplog):
    monkeypatch.setattr(native, "COMPILERS", (compiler,))
    with caplog.at_level("INFO"):
        assert native.library() is None
    assert "networks run on torch's own kernels" in caplog.text
    assert not fused.usable(torch.zeros(2, 3), torch.zeros(3, 3))
    found, _ = predicted(block(), [3], 16, 40)
    assert found[0].isfinite().all()
    assert not list(afresh.glob("*"))


def test_a_source_that_the_compiler_refuses_is_reported_and_leaves_nothing(afresh, monkeypatch, tmp_path, caplog):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "bad.c").write_text("int run_block(void) { return }\n")
    monkeypatch.setattr(native, "FOLDER", sources)
    with caplog.at_level("INFO"):
        assert native.library() is None
    assert "does not build" in caplog.text
    assert not list(afresh.glob("*"))


def test_a_folder_that_others_can_write_to_is_not_trusted(afresh, caplog):
    afresh.mkdir(parents=True)
    afresh.chmod(0o777)
    with caplog.at_level("INFO"):
        assert native.library() is None
    assert "can be written by others" in caplog.text


def test_what_is_hooked_into_or_replaced_is_called(monkeypatch):
    calls, seen, run = [], [], fused._call
    monkeypatch.setattr(fused, "_call", lambda name, *rest: (calls.append(name), run(name, *rest)))
    network, net = block(), shaken(SiteNet(8, 4, 1, 2))

    def together() -> list[str]:
        calls.clear()
        predicted(network, [3], 16, 40)
        net(normals(1, 16, 8), (4, 4))
        return [name for name in calls if name != "run_linear"]

    assert together() == ["run_block", "run_sites"]
    for module in (network.layers[1], network.layers[0].attention.qkv, network.norm, net.layers[0].look, net.stem):
        with module.register_forward_hook(lambda *args: seen.append(args)):
            assert len(together()) == 1
    assert len(seen) == 5
    network.layers[0].feed_forward.up = torch.nn.Sequential(network.layers[0].feed_forward.up)
    assert together() == ["run_sites"]


def test_sources_compile_without_a_warning_and_without_threads(tmp_path):
    sources = [str(path) for path in sorted(native.FOLDER.glob("*.c"))]
    for flags in (["-fopenmp", "-march=native"], ["-Wno-unknown-pragmas", "-Wno-psabi"]):
        command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", *flags, "-shared", "-fPIC", "-o", str(tmp_path / "x.so")]
        done = subprocess.run([*command, *sources], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:2000]
