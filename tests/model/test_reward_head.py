"""Rewards and ends: two-hot targets, units, learning the right answer."""

import math

import pytest
import torch
from torch import Tensor, nn

from starflow_world.config.world import FlowConfig, OutcomeConfig
from starflow_world.model.reward_head import Outcome, OutcomeHead, symexp, symlog

GRID, SIZES = (1, 3), FlowConfig(channels=4, deep_width=20, shallow_width=20, head_width=20)


def head(bins: int = 41, largest: float = 10.0, width: int = 16) -> OutcomeHead:
    torch.manual_seed(0)
    return OutcomeHead(OutcomeConfig(width, bins=bins, largest_reward=largest), SIZES).double()


def two_hot(model: OutcomeHead, reward: Tensor) -> Tensor:
    """The target distribution (..., bins) that the loss implies: its negative slope in the log-probabilities."""
    logits = torch.zeros(*reward.shape, len(model.bins), dtype=torch.float64, requires_grad=True)
    loss, _ = model.loss(Outcome(logits, torch.zeros_like(reward)), reward, torch.zeros_like(reward))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    return logits.softmax(-1).detach() - slope


def test_symexp_undoes_symlog():
    x = torch.tensor([-1e6, -1.0, -1e-9, 0.0, 0.5, 3e4], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-12, atol=0)
    assert (symlog(-x) == -symlog(x)).all()


@pytest.mark.parametrize("bins", [2, 5, 41])
def test_targets_are_two_hot_and_give_the_reward_back(bins):
    model = head(bins)
    reward = torch.cat((torch.linspace(-10, 10, 101).double(), symexp(model.bins), torch.tensor([1e-12]).double()))
    target = two_hot(model, reward)
    assert (target.sum(-1) - 1).abs().max() < 1e-12
    assert target.min() > -1e-12
    assert ((target > 1e-9).sum(-1) <= 2).all()
    again = model.reward(Outcome(target.clamp_min(0).log(), reward * 0))
    torch.testing.assert_close(again, reward, rtol=1e-6, atol=1e-6)


def test_rewards_beyond_the_bins_count_as_the_largest():
    model = head(largest=1.0)
    far, near = two_hot(model, torch.tensor([50.0, -1e9]).double()), two_hot(model, torch.tensor([1.0, -1.0]).double())
    torch.testing.assert_close(far, near)


def test_losses_are_nats_and_least_at_the_true_rates():
    """Ends at rate p cost their entropy when p(end) = p, and any other probability costs more; rewards likewise."""
    model, rate = head(bins=3, largest=1.0), 0.2
    ends = torch.tensor([1.0] * 20 + [0.0] * 80).double()
    rewards = torch.tensor([1.0] * 30 + [0.0] * 70).double()

    def cost(end_rate: float, reward_rate: float) -> tuple[float, float]:
        logits = torch.tensor([1e-30, 1 - reward_rate, reward_rate]).double().log().expand(100, -1)
        end = torch.full((100,), math.log(end_rate / (1 - end_rate))).double()
        reward_loss, end_loss = model.loss(Outcome(logits, end), rewards, ends)
        return float(reward_loss.mean()), float(end_loss.mean())

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    best = cost(rate, 0.3)
    assert best[0] == pytest.approx(entropy(0.3), abs=1e-6)
    assert best[1] == pytest.approx(entropy(rate), abs=1e-6)
    assert all(a > b for a, b in zip(cost(0.25, 0.35), best, strict=True))
    assert all(a > b for a, b in zip(cost(0.15, 0.25), best, strict=True))


def test_the_loss_falls_towards_the_right_answer():
    model = head(bins=5, largest=1.0)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 3, 20, generator=generator).double()
    tokens = torch.randn(32, 3, 4, generator=generator).double()
    happy = hidden[:, :, 0].sum(-1) > 0
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    history = []
    for _ in range(60):
        outcome = model(hidden, tokens, None, GRID)
        reward, end = model.loss(outcome, happy.double(), ~happy)
        optimizer.zero_grad()
        (reward.mean() + end.mean()).backward()
        optimizer.step()
        history.append(float((reward + end).mean().detach()))
    assert history[-1] < 0.3 * history[0]
    outcome = model(hidden, tokens, None, GRID)
    assert ((model.reward(outcome) > 0.5) == happy).float().mean() > 0.9
    assert ((outcome.end_logit < 0) == happy).float().mean() > 0.9


def test_every_frame_is_judged_on_its_own_and_all_its_tokens_count():
    model = head()
    torch.nn.init.normal_(model.project.weight)  # it starts at zero
    hidden, tokens = torch.randn(5, 3, 20).double(), torch.randn(5, 3, 4).double()
    with torch.no_grad():
        whole = model(hidden, tokens, None, GRID)
        one = model(hidden[3:4], tokens[3:4], None, GRID)
    assert whole.reward_logits.shape == (5, 41)
    assert whole.end_logit.shape == (5,)
    torch.testing.assert_close(whole.reward_logits[3:4], one.reward_logits)
    hidden.requires_grad_()
    (slope,) = torch.autograd.grad(model(hidden, tokens, None, GRID).end_logit[3], hidden)
    assert (slope[3].abs().amax(-1) > 0).all()
    slope[3] = 0
    assert not slope.any()


def test_the_bins_are_numbers_even_in_a_network_of_shapes_only():
    with torch.device("meta"):
        model = OutcomeHead(OutcomeConfig(4, bins=3, largest_reward=1.0), SIZES)
    assert isinstance(model, nn.Module)
    assert model.bins.tolist() == pytest.approx([-math.log(2), 0, math.log(2)])
