"""One block: identity when fresh, invertible, triangular, with the log-determinant it says."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from starflow_world.flow import Affine, Block, solve
from starflow_world.flow.layers import grid_positions, rotary_table, text_positions

GRID, TOKENS, CHANNELS, TEXT = (2, 3), 6, 4, 3
KINDS = [  # in reversed order, with a text, with conditions
    (reverse, text, added) for reverse in (False, True) for text in (False, True) for added in (False, True)
]


def make_block(*, reverse: bool, text: bool, gain: float = 1.0) -> Block:
    torch.manual_seed(1)
    block = Block(CHANNELS, 40, 2, 20, reverse=reverse, text_width=6 if text else 0).double()
    torch.nn.init.normal_(block.head.weight, std=gain / 40**0.5)
    torch.nn.init.normal_(block.head.bias, std=0.2 * gain)
    return block.requires_grad_(False)


def predictor(block: Block, *, text: bool, added: bool, dtype: torch.dtype = torch.float64):
    """x (B, n, c) in the block's own order -> Affine, with a fixed text and conditions where asked for."""
    draw = torch.Generator().manual_seed(2)
    words = torch.randn(1, TEXT, 6, generator=draw, dtype=torch.float64).to(dtype)
    condition = torch.randn(1, TOKENS, 40, generator=draw, dtype=torch.float64).to(dtype) if added else None
    positions = grid_positions(1, GRID, 4.0)
    if text:
        positions = torch.cat((text_positions(TEXT, 4.0), positions))
    rotary = rotary_table(positions, 20, torch.promote_types(dtype, torch.float32))[None]

    def inputs_to_affine(inputs: Tensor) -> Affine:
        if text:
            return block.predict_with_text(inputs, words.expand(len(inputs), -1, -1), rotary, condition)
        return block.predict(inputs, rotary, added=condition)

    return inputs_to_affine


def to_noise(block: Block, predict, x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, n, c) in raster order -> z and log-determinant per dimension, in raster order."""
    x = block.in_order(x)
    z, logdet = predict(block.shift(x)).to_noise(x)
    return block.in_order(z), block.in_order(logdet)


def random_x(rows: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, TOKENS, CHANNELS, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_fresh_block_is_the_identity_exactly(dtype):
    block = Block(CHANNELS, 40, 2, 20).to(dtype)
    x = random_x(2, dtype)
    z, logdet = to_noise(block, predictor(block, text=False, added=False, dtype=dtype), x)
    assert torch.equal(z, x)
    assert torch.equal(logdet, torch.zeros_like(x))


@pytest.mark.parametrize(("reverse", "text", "added"), KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_log_determinant_is_that_of_the_jacobian(at_most, reverse, text, added, dtype, tolerance):
    block = make_block(reverse=reverse, text=text).to(dtype)
    predict, x = predictor(block, text=text, added=added, dtype=dtype), random_x(dtype=dtype)
    matrix = jacobian(lambda x: to_noise(block, predict, x)[0].flatten(), x).flatten(1)
    sign, expected = torch.linalg.slogdet(matrix.double())
    assert sign == 1
    at_most("error", abs(float(to_noise(block, predict, x)[1].sum()) - float(expected)), tolerance)


@pytest.mark.parametrize(("reverse", "text", "added"), KINDS)
def test_a_token_depends_on_earlier_tokens_of_the_blocks_order_and_on_no_later_one(reverse, text, added):
    block = make_block(reverse=reverse, text=text)
    predict = predictor(block, text=text, added=added)
    matrix = jacobian(lambda x: to_noise(block, predict, x)[0][0], random_x())[:, :, 0]  # (n, c, n, c)
    if reverse:
        matrix = matrix.flip(0, 2)
    for token in range(TOKENS):
        assert bool((matrix[token, :, token + 1 :] == 0).all()), "a later token is seen"
        assert bool((matrix[token, :, :token] != 0).all()), "an earlier token is not seen"
        inside = matrix[token, :, token]
        assert torch.equal(inside, inside.diagonal().diag()), "channels of a token see each other"
        assert bool((inside.diagonal() > 0).all())


@pytest.mark.parametrize(("reverse", "text", "added"), KINDS)
def test_rows_do_not_depend_on_each_other(reverse, text, added):
    block = make_block(reverse=reverse, text=text)
    predict = predictor(block, text=text, added=added)
    matrix = jacobian(lambda x: to_noise(block, predict, x)[0], random_x(2))
    for row in range(2):
        assert bool((matrix[row, :, :, 1 - row] == 0).all())


@pytest.mark.parametrize(("reverse", "text", "added"), KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_data_to_noise_and_back_gives_the_data(at_most, reverse, text, added, dtype, tolerance):
    block = make_block(reverse=reverse, text=text, gain=0.5).to(dtype)
    predict, x = predictor(block, text=text, added=added, dtype=dtype), random_x(3, dtype)
    z, _ = to_noise(block, predict, x)
    start = block.start.expand(3, 1, -1)
    solved = solve(predict, start, block.in_order(z), block.in_order(z), tolerance=0.0)
    at_most("error", (block.in_order(solved.tokens) - x).abs().max(), tolerance)


def test_scales_and_means_stay_within_the_soft_clip_however_large_the_head():
    block = make_block(reverse=False, text=False)
    block.head.weight.mul_(1e6)
    affine = predictor(block, text=False, added=False)(block.shift(random_x(2)))
    assert float(affine.mean.abs().max()) <= 4
    assert 0.0309 < float(affine.scale.min())
    assert float(affine.scale.max()) < 4.552


def test_nats_of_an_affine_are_those_of_a_normal_distribution():
    mean, scale, x = random_x(), random_x().exp(), random_x() + 1
    expected = torch.distributions.Normal(mean, scale).log_prob(x).sum(-1)
    assert torch.allclose(Affine(mean, scale, mean).nats(x), expected, rtol=0, atol=1e-13)
    assert float(Affine(mean, scale, mean).nats(mean).sum() + scale.log().sum()) == pytest.approx(
        -0.5 * math.log(2 * math.pi) * mean.numel()
    )


def test_every_parameter_gets_a_gradient():
    block = make_block(reverse=True, text=True).requires_grad_()
    affine = predictor(block, text=True, added=True)(block.shift(random_x(2)))
    affine.nats(random_x(2)).sum().backward()
    for name, parameter in block.named_parameters():
        assert bool((parameter.grad != 0).any()), name
