"""First frames out of the fog: the right noise at every step, and nothing but the key decides it."""

import pytest
import torch

from starflow_world.config.world import FlowConfig, StartConfig
from starflow_world.flow.diffusion import LARGEST, Diffusion
from tests.worlds import randomise, tiny_world

GRID, LEAST = (2, 3), 0.2


@pytest.fixture(scope="module")
def model() -> Diffusion:
    torch.manual_seed(0)
    flow = FlowConfig(
        channels=8, sites=2, shallow_width=20, deep_width=20, head_width=20, text_width=6, text_length=3, codes=2,
        position_scale=4.0,
    )
    made = Diffusion(StartConfig(20, 1, 8), flow).double()
    randomise(made)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def world():
    return tiny_world(start=StartConfig(20, 1, 6))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_levels_fall_from_the_largest_to_that_of_the_world(model):
    levels = model.levels(LEAST)
    assert len(levels) == 9
    assert levels[0] == pytest.approx(LARGEST)
    assert levels[-1] == pytest.approx(LEAST)
    assert levels == sorted(levels, reverse=True)


def test_a_frame_that_is_known_comes_out_with_the_world_s_own_noise(model, monkeypatch):
    """With the truth for a guess the last step leaves the truth in noise of the least level, and nothing else."""
    clean = normals(1, 6, 8)
    monkeypatch.setattr(Diffusion, "forward", lambda self, x, s, text, grid: clean.expand(len(x), -1, -1))
    x = model.sample(lambda k: normals(4000, 6, 8, seed=k), LEAST, None, GRID)
    assert (x.mean(0) - clean[0]).abs().max() < 5 * LEAST / 4000**0.5
    assert float((x - clean).var(0).mean()) == pytest.approx(LEAST**2, rel=0.05)


def test_the_loss_is_that_of_the_guess_and_zero_for_the_truth(model, monkeypatch):
    clean, noise, level = normals(5, 6, 8), normals(5, 6, 8, seed=1), torch.linspace(0, 1, 5).double()
    assert model.loss(clean, noise, level, LEAST, normals(5, 3, 6), GRID) > 0
    monkeypatch.setattr(Diffusion, "forward", lambda self, x, s, text, grid: clean)
    assert model.loss(clean, noise, level, LEAST, None, GRID) == 0
    monkeypatch.setattr(Diffusion, "forward", lambda self, x, s, text, grid: clean + 0.1)
    s = torch.tensor([LEAST * (LARGEST / LEAST) ** share for share in level.tolist()]).double()
    expected = 0.1**2 * ((1 + s**2) / s**2).mean()
    assert float(model.loss(clean, noise, level, LEAST, None, GRID)) == pytest.approx(float(expected))


def test_text_and_guidance_steer(model):
    def sampled(text, **options):
        return model.sample(lambda k: normals(2, 6, 8, seed=k), LEAST, text, GRID, **options)

    one, other, null = normals(2, 3, 6), normals(2, 3, 6, seed=1), torch.zeros(2, 3, 6).double()
    assert not torch.equal(sampled(one), sampled(other))
    assert torch.equal(sampled(one, null_text=null, guidance=0.0), sampled(one))
    assert not torch.equal(sampled(one, null_text=null, guidance=2.0), sampled(one))
    torch.testing.assert_close(sampled(one, null_text=one, guidance=2.0), sampled(one))


def test_an_imagined_start_is_like_any_other_frame(world):
    """Seeded, independent of its companions, and as likely as the flow says when it is shown the same latents."""
    state, seen = world.start(text=["a", "b"], seed=[3, 4])
    again, _ = world.start(text=["a", "b"], seed=[3, 4])
    assert state.digest() == again.digest()
    assert not torch.equal(seen.latents, world.start(text=["a", "b"], seed=[5, 4])[1].latents)
    _, swapped = world.start(text=["b", "a"], seed=[4, 3])
    assert torch.equal(seen.latents[0], swapped.latents[1])
    assert (seen.sweeps == 6).all()
    _, told = world.observe(world.empty(["a", "b"], state.key.tolist()), [None, None], latents=seen.latents)
    assert float((told.nats - seen.nats).abs().max()) < 1e-3
    assert torch.equal(told.frames, seen.frames)
    _, guided = world.start(text=["a", "b"], seed=[3, 4], guidance=1.5)
    assert not torch.equal(guided.latents, seen.latents)


def test_guidance_is_the_config_s_where_none_is_asked_for():
    world = tiny_world(start=StartConfig(20, 1, 6, guidance=1.5))
    asked = (None, 1.5, 0.0)
    default, same, other = (world.start(text="a", guidance=guidance)[1].latents for guidance in asked)
    assert torch.equal(default, same)
    assert not torch.equal(default, other)


def test_a_start_that_is_shown_needs_no_diffusion(world, monkeypatch):
    monkeypatch.delattr(Diffusion, "sample")
    frames = torch.randint(0, 256, (1, 1, 16, 16, 3), dtype=torch.uint8)
    assert int(world.start(frames, text="a")[1].sweeps) == 0
