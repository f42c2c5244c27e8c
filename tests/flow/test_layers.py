"""Positions, attention and norms."""

import pytest
import torch

from starflow_world.flow.layers import (
    Attention,
    FinalNorm,
    Layer,
    attend,
    grid_positions,
    rotary_table,
    rotate,
    text_positions,
)


def normals(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def test_rotated_queries_and_keys_meet_at_their_distance_only():
    x = normals(1, 1, 2, 3, 32)
    score = []
    for shift in (0.0, 5.0):
        places = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.5, 7.0]], dtype=torch.float64) + shift
        tables = [rotary_table(place[None], 32, torch.float64) for place in places]
        query, key = (rotate(x[:, :, [k]], table[None]) for k, table in enumerate(tables))
        score.append((query * key).sum(-1))
    assert torch.allclose(score[0], score[1], rtol=0, atol=1e-12)


def test_rotation_keeps_lengths():
    x, table = normals(2, 12, 3, 2, 20), rotary_table(grid_positions(2, (2, 3), 4.0), 20, torch.float64)
    rotated = rotate(x, table[None])
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-14)


def test_what_is_compiled_rotates_by_real_numbers_as_the_complex_product_does(monkeypatch):
    x, table = normals(2, 6, 2, 2, 20), rotary_table(grid_positions(1, (2, 3), 4.0), 20, torch.float64)[None]
    wanted = rotate(x, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = rotate(x, table)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
    assert not torch.allclose(found, x)


@pytest.mark.parametrize("width", [16, 18, 22, 30])
def test_a_head_that_cannot_be_shared_by_three_axes_is_refused(width):
    with pytest.raises(ValueError, match="head width"):
        rotary_table(torch.zeros(1, 3), width)


def test_every_grid_is_as_wide_as_the_scale_on_average_and_frames_count_from_zero():
    for grid in ((4, 4), (2, 8), (30, 53)):
        positions = grid_positions(3, grid, 32.0)
        step = positions[1, 1] - positions[0, 1]
        assert float(step) * (grid[0] * grid[1]) ** 0.5 == pytest.approx(32.0)
        assert positions[:, 2].unique().tolist() == [0, 1, 2]
    assert text_positions(4, 32.0).tolist() == [[0, 0, 0], [0, 0, 8], [0, 0, 16], [0, 0, 24]]


@pytest.mark.parametrize("masked", ["causal", "mask", "all"])
def test_attention_is_the_same_with_and_without_gradients(masked):
    query, key, value = (normals(2, 3, 5, 8) + k for k in range(3))
    mask = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = mask | torch.eye(5, dtype=torch.bool)
    arguments = {"mask": mask if masked == "mask" else None, "causal": masked == "causal"}
    fused = attend(query, key, value, **arguments)
    plain = attend(query.clone().requires_grad_(), key, value, **arguments)
    assert torch.allclose(fused, plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", ["causal", "mask"])
def test_a_layer_gives_nothing_of_a_token_to_those_that_may_not_see_it(masked):
    layer = Layer(40, 20).double()
    table = rotary_table(grid_positions(1, (2, 3), 4.0), 20, torch.float64)
    allowed = torch.ones(6, 6, dtype=torch.bool).tril() if masked == "causal" else torch.arange(6)[:, None] % 2 == 0
    allowed = allowed.expand(6, 6) | torch.eye(6, dtype=torch.bool)
    mask = None if masked == "causal" else allowed
    jacobian = torch.autograd.functional.jacobian(
        lambda x: layer(x[None], table[None], mask)[0].sum(-1), normals(6, 40)
    )
    seen = (jacobian != 0).any(-1)
    assert torch.equal(seen, allowed)


def test_attention_scores_are_divided_by_the_root_of_the_head_width():
    attention, x = Attention(40, 20).double(), normals(1, 2, 40)
    table = rotary_table(grid_positions(1, (1, 2), 4.0), 20, torch.float64)
    query, key, value = attention.qkv(attention.norm(x)).reshape(1, 2, 3, 2, 20).unbind(2)
    query, key = (rotate(t[:, :, None], table[None])[:, :, 0] for t in (query, key))
    weight = (torch.einsum("bqhe,bkhe->bhqk", query, key) / 20**0.5)[:, :, 1].softmax(-1)
    last = attention.out(torch.einsum("bhk,bkhe->bhe", weight, value).flatten(1))
    found = attention(x, table[None], None, None, 0)
    assert torch.allclose(found[:, 1], last, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("grid", "head_width"), [((3, 4), 20), ((8, 8), 32), ((5, 5), 64)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_head_that_looks_back_begins_at_the_same_place_so_many_frames_before(grid, head_width, frames):
    heads, tokens = 2 * frames, 8 * grid[0] * grid[1]
    attention = Attention(heads * head_width, head_width).double()
    attention.look_back()
    table = rotary_table(grid_positions(8, grid, 4.0), head_width, torch.float64)[None]
    query, key, _ = attention.qkv.bias.view(3, 1, 1, 1, heads, head_width).expand(3, 1, tokens, 1, heads, head_width)
    query, key = (rotate(t, table)[0, :, 0, frames - 1] for t in (query, key))
    most = (query[-tokens // 8 :] @ key.T).argmax(-1)
    assert most.tolist() == [place + (7 - frames) * tokens // 8 for place in range(tokens // 8)]


def test_the_final_norm_is_a_root_mean_square_norm_in_the_dtype_of_its_weight():
    norm, x = FinalNorm(6), normals(4, 6)
    norm.weight.data = torch.arange(6.0) / 10
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.weight.double())
    found = norm(x.float())
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)
    assert norm(x.bfloat16()).dtype == torch.float32
