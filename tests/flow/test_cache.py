"""The cache is a value: what is committed is there, what is not is scratch, and rows do not know of each other."""

import random

import pytest
import torch
from torch import Tensor

from starflow_world.flow import KVCache
from starflow_world.flow.layers import attend
from tests.flow.sampling import numbers

CAPACITY = 9


def empty(rows: int) -> KVCache:
    return KVCache.empty(2, rows, CAPACITY, 1, 1, dtype=torch.float64, device=torch.device("cpu"))


def write(cache: KVCache, numbers: list[list[int]]) -> None:
    """Put one number per row and position behind the valid ones, in both layers."""
    key = torch.tensor(numbers, dtype=torch.float64)[:, :, None, None]
    for layer in range(2):
        keys, values = cache.write(layer, key + layer, -key)
        for row, length in enumerate(cache.length.tolist()):
            end = length + key.shape[1]
            assert torch.equal(keys[row, 0, length:end, 0], key[row, :, 0, 0] + layer)
            assert torch.equal(values[row, 0, length:end, 0], -key[row, :, 0, 0])


def content(cache: KVCache) -> list[list[int]]:
    """The valid numbers of each row; both layers, keys and values must agree on them."""
    rows = []
    for row, length in enumerate(cache.length.tolist()):
        rows.append([int(number) for number in cache.keys[0, row, 0, :length, 0]])
        assert cache.keys[1, row, 0, :length, 0].tolist() == [number + 1 for number in rows[-1]]
        assert cache.values[0, row, 0, :length, 0].tolist() == [-number for number in rows[-1]]
    return rows


def step(cache: KVCache, rows: list[list[int]], draw: random.Random, fresh: int) -> tuple[KVCache, list[list[int]]]:
    """One random operation on the cache and on plain lists."""
    kind = draw.choice(["append", "append", "scratch", "rollback", "select", "clone", "stack", "insert", "slide"])
    count = min(draw.randint(1, 3), CAPACITY - max(map(len, rows)))
    new = [[fresh + 10 * row + k for k in range(count)] for row in range(len(rows))]
    if kind in ("append", "scratch") and count:
        write(cache, new)
        if kind == "append":
            kept = [draw.randint(0, count) for _ in rows] if draw.random() < 0.3 else [count] * len(rows)
            same = len(set(kept)) == 1
            cache = cache.commit(kept[0] if same else torch.tensor(kept))
            rows = [old + added[:k] for old, added, k in zip(rows, new, kept, strict=True)]
    elif kind == "rollback":
        keep = [draw.randint(0, len(row)) for row in rows]
        cache, rows = cache.rollback(torch.tensor(keep)), [row[:k] for row, k in zip(rows, keep, strict=True)]
    elif kind == "select":
        chosen = [draw.randrange(len(rows)) for _ in range(draw.randint(1, 4))]
        cache, rows = cache.select(torch.tensor(chosen)), [list(rows[k]) for k in chosen]
    elif kind == "clone":
        old, cache = cache, cache.clone()
        old.keys.fill_(-1)
        old.values.fill_(-1)
    elif kind == "stack" and len(rows) < 4:
        cache, rows = KVCache.stack([cache, cache.select(torch.tensor([0]))]), [*rows, list(rows[0])]
    elif kind == "insert":
        row = draw.randrange(len(rows))
        one = cache.select(torch.tensor([row])).rollback(min(1, len(rows[row])))
        write(one, [[fresh, fresh + 1]])
        cache = cache.insert(torch.tensor([row]), one.commit(2))
        rows = [*rows[:row], [*rows[row][:1], fresh, fresh + 1], *rows[row + 1 :]]
    elif kind == "slide":
        row = draw.randrange(len(rows))
        one = cache.select(torch.tensor([row]), 3).rollback(min(1, len(rows[row])))
        assert one.capacity == 3
        write(one, [[fresh, fresh + 1]])
        cache = cache.insert(torch.tensor([row]), one.commit(2))
        rows = [*rows[:row], [*rows[row][:1], fresh, fresh + 1], *rows[row + 1 :]]
    return cache, rows


@pytest.mark.parametrize("seed", range(4))
def test_five_hundred_random_operations_leave_what_a_plain_list_would_hold(seed):
    draw = random.Random(seed)
    cache, rows = empty(2), [[], []]
    kept: list[tuple[KVCache, list[list[int]]]] = []
    for number in range(500):
        cache, rows = step(cache, rows, draw, 100 * (number + 1))
        assert content(cache) == rows
        if number % 50 == 0:
            kept.append((cache.clone(), [list(row) for row in rows]))
    assert all(content(copy) == held for copy, held in kept), "a clone shares storage"


def test_what_is_written_and_not_committed_can_be_written_again():
    cache = empty(2)
    write(cache, [[1, 2], [3, 4]])
    assert cache.length.tolist() == [0, 0]
    write(cache, [[5, 6], [7, 8]])
    assert content(cache.commit(2)) == [[5, 6], [7, 8]]


def test_a_query_sees_what_is_committed_in_its_row_and_new_positions_up_to_its_own():
    cache = empty(3).rollback(torch.tensor([0, 4, 2]))
    visible = cache.visible(3, torch.float64)
    assert visible.ends == (3, 7, 5)
    assert visible.own.shape == (1, 1, 3, 7)
    assert visible.whole.shape == (3, 1, 3, CAPACITY)
    assert visible.own.dtype == visible.whole.dtype == torch.float64
    for row, (length, end) in enumerate(zip([0, 4, 2], visible.ends, strict=True)):
        for query in range(3):
            seen = [0 if key <= length + query else -torch.inf for key in range(CAPACITY)]
            assert visible.own[0, 0, query, 7 - end :].tolist() == seen[:end]
            assert visible.whole[row, 0, query].tolist() == seen


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("ages", [[4], [0, 4, 2]])
def test_rows_taken_one_by_one_attend_as_under_one_mask(count, ages):
    cache = empty(len(ages)).rollback(torch.tensor(ages))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(len(ages), 2, s, 4, generator=generator) for s in (count, CAPACITY, CAPACITY))
    visible = cache.visible(count, torch.float32)
    one_by_one = attend(query, key, value, visible, causal=False)
    assert torch.allclose(one_by_one, attend(query, key, value, visible.whole, causal=False), atol=1e-6)


def test_rows_are_copied_by_select_and_stack():
    cache = empty(2)
    write(cache, [[1], [2]])
    cache = cache.commit(1)
    for copy in (cache.select(torch.tensor([0, 1])), KVCache.stack([cache]), cache.clone()):
        copy.keys.fill_(9)
    assert content(cache) == [[1], [2]]


def deep_keys(clip, cache: KVCache) -> Tensor:
    """Valid keys and values of a cache whose rows are equally long."""
    end = int(cache.length[0])
    return torch.stack((cache.keys[:, :, :, :end], cache.values[:, :, :, :end]))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["tiny", "mixed"])
def test_every_split_of_a_sequence_gives_the_density_of_one_pass(request, at_most, kind, rows, dtype, tolerance):
    clip = request.getfixturevalue(kind).to(dtype).rows(list(range(rows)))
    flow, tables, n = clip.flow, clip.tables, 16
    u, _ = flow.shallow(clip.x, tables)
    added = flow.conditions(u, clip.text, clip.action, tables.grid)
    whole = flow.deep_forward(u, clip.text, added, tables)
    inputs, added, total = flow.deep.shift(u.flatten(1, 2)), added.flatten(1, 2), 4 * n
    for size in (1, 3, n - 1, n, n + 1, total):
        cache, parts = flow.start_cache(clip.text, rows, tables), []
        for start in range(0, total, size):
            part = slice(start, start + size)
            cache, density = flow.extend(cache, inputs[:, part], added[:, part], tables, text=3)
            parts.append(density)
        assert cache.length.tolist() == [3 + total] * rows
        for name, found in numbers(parts[0].join(parts[1:])).items():
            at_most("difference", (found - getattr(whole, name)).abs().max(), tolerance)


def test_rows_of_different_ages_in_one_batch_get_what_each_gets_alone(tiny):
    flow, tables, n = tiny.flow, tiny.tables, 16
    u, _ = flow.shallow(tiny.x, tables)
    added = flow.conditions(u, tiny.text, tiny.action, tables.grid)
    inputs = flow.deep.shift(u.flatten(1, 2)).unflatten(1, (4, n))
    alone, caches = [], []
    for row, age in enumerate((1, 3)):
        one = slice(row, row + 1)
        cache = flow.start_cache(tiny.text[one], 1, tables)
        cache, _ = flow.extend(cache, inputs[one, :age].flatten(1, 2), added[one, :age].flatten(1, 2), tables, text=3)
        caches.append(cache.clone())
        alone.append(flow.extend(cache, inputs[one, age], added[one, age], tables, text=3)[1].mean[0])
    both = torch.stack((inputs[0, 1], inputs[1, 3])), torch.stack((added[0, 1], added[1, 3]))
    _, together = flow.extend(KVCache.stack(caches), *both, tables, text=3)
    assert float((together.mean - torch.stack(alone)).abs().max()) <= 1e-12


def test_a_row_that_slides_leaves_the_others_to_the_bit_and_becomes_a_fresh_row(tiny):
    flow, tables, n = tiny.flow, tiny.tables, 16
    u, _ = flow.shallow(tiny.x, tables)
    added = flow.conditions(u, tiny.text, tiny.action, tables.grid)
    cache = flow.start_cache(tiny.text, 2, tables)
    cache, _ = flow.extend(cache, flow.deep.shift(u[:, :3].flatten(1, 2)), added[:, :3], tables, text=3)
    before = cache.clone()
    last = u[1:, 2:3]
    again = flow.conditions(last, tiny.text[1:], tiny.action[1:, 2:3], tables.grid)
    second = torch.tensor([1])
    row = flow.fill(cache.select(second, 3 + n).rollback(3), flow.deep.shift(last.flatten(1, 2)), again, tables, text=3)
    cache = cache.insert(second, row)
    assert cache.length.tolist() == [3 + 3 * n, 3 + n]
    assert torch.equal(cache.keys[:, 0], before.keys[:, 0])
    fresh = flow.start_cache(tiny.text[1:], 1, tables)
    fresh, _ = flow.extend(fresh, flow.deep.shift(last.flatten(1, 2)), again, tables, text=3)
    found = deep_keys(tiny, cache.select(torch.tensor([1])))
    assert float((found - deep_keys(tiny, fresh)).abs().max()) <= 1e-12
