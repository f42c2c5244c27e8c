"""A converted video model as a world: its frames are those of `generate`, its state a value, its adapter silent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from starflow_world.commands.score.clip import clip_nats
from starflow_world.commands.score.settings import ScoreSettings
from starflow_world.config.world import DecodeConfig
from starflow_world.errors import StateError
from starflow_world.io.media import read_video, write_png
from starflow_world.model.checkpoint import save_checkpoint
from starflow_world.video.model import VideoModel
from starflow_world.video.request import Request
from starflow_world.world import World
from tests.tiny_video import SEED, TEXT, moving_spot, sized, stepped

pytest.importorskip("diffusers")


def assert_shown_alike(found: Tensor, expected: Tensor) -> None:
    """A frame at a time or many at once: sums differ in their last bits, and now and then a grey level with them."""
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3, (apart > 0).float().mean()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return moving_spot(tmp_path_factory.mktemp("clip") / "spot.mp4", 29)


@pytest.fixture(scope="module")
def frames(video_world, clip) -> Tensor:
    """The clip (1, 29, H, W, 3) as the world sees it: 8 latent frames, where the window holds 4."""
    return sized(video_world, clip)


def unguided(world: World) -> World:
    """The same world, steered by nothing."""
    other = World(world.networks, world.world_id)
    other.dynamics.guidance = 0.0
    return other


@pytest.fixture(scope="module")
def model(video_folder) -> VideoModel:
    return VideoModel.from_pretrained(video_folder, device="cpu")


def generated(model: VideoModel, request: Request) -> Tensor:
    shown: list[np.ndarray] = []
    model.run(request, shown.append)
    return torch.from_numpy(np.stack(shown))


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, 0.0])
def test_steps_from_text_show_the_video_that_generate_makes(model, video_world, guidance):
    world = video_world if guidance is None else unguided(video_world)
    state, first = world.start(text=TEXT, seed=SEED)
    _, seen = stepped(world, 3, state)
    found = torch.cat([first.frames, *(transition.frames for transition in seen)], dim=1)[0]
    expected = generated(model, Request(TEXT, frames=13, seed=SEED, guidance=guidance))
    assert [transition.frames.shape[1] for transition in (first, *seen)] == [1, 4, 4, 4]
    assert_shown_alike(found, expected)
    assert found.float().std() > 2


@pytest.mark.parametrize("given", [1, 9])
def test_steps_from_a_picture_or_a_clip_go_on_as_generate_does(model, video_world, given, tmp_path):
    frames = sized(video_world, moving_spot(tmp_path / "short.mp4", given))
    write_png(tmp_path / "first.png", frames[0, 0].numpy())
    source = {"image": tmp_path / "first.png"} if given == 1 else {"video": tmp_path / "short.mp4", "extend": True}
    expected = generated(model, Request(TEXT, frames=13, seed=SEED, **source))
    state, first = video_world.start(frames, text=TEXT, seed=SEED)
    assert torch.equal(first.frames, frames[:, -4:])
    _, seen = stepped(video_world, (13 - given) // 4, state)
    found = torch.cat([transition.frames for transition in seen], dim=1)[0]
    assert_shown_alike(found, expected[given:])


def test_guidance_steers_and_nats_are_those_of_the_model_without_it(video_world):
    plain = unguided(video_world)
    state, first = video_world.start(text=TEXT, seed=SEED)
    assert (first.latents - plain.start(text=TEXT, seed=SEED)[1].latents).abs().max() > 0.01
    _, second = video_world.step(state, [1])
    told, heard = plain.observe(plain.empty([TEXT], state.key.tolist()), [None], latents=first.latents)
    assert heard.nats.item() == pytest.approx(first.nats.item(), abs=1e-3)
    _, heard = plain.observe(told, [1], latents=second.latents)
    assert heard.nats.item() == pytest.approx(second.nats.item(), abs=1e-3)


def test_what_was_imagined_and_is_observed_gives_the_same_state_and_pictures(video_world):
    state, first = video_world.start(text=TEXT, seed=SEED)
    told, heard = video_world.observe(video_world.empty([TEXT], state.key.tolist()), [None], latents=first.latents)
    for _ in range(6):  # past the window
        state, said = video_world.step(state, [2])
        told, heard = video_world.observe(told, [2], latents=said.latents)
        assert heard.nats.item() == pytest.approx(said.nats.item(), abs=2e-3)
        assert (heard.frames.int() - said.frames.int()).abs().max() <= 1
    torch.testing.assert_close(told.tokens, state.tokens, rtol=0, atol=1e-4)


def test_chunks_of_the_deep_block_leave_the_shallow_ones_whole(video_world):
    counts: set[int] = set()
    layer = video_world.networks.flow.shallow[0].layers[0]
    handle = layer.register_forward_hook(lambda module, inputs, out: counts.add(out.shape[1]))
    state, _ = video_world.start(text=TEXT, seed=SEED)
    expected = video_world.step(state, [1])[1].latents
    found = video_world.decoded(DecodeConfig(tolerance=1e-5, chunk=4)).step(state, [1])[1].latents
    handle.remove()
    assert counts == {6}
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


# ---- likelihood ------------------------------------------------------------------------------------------------------


def test_frames_have_the_nats_of_the_scored_clip_in_parallel_and_told_one_by_one(model, video_world, frames, clip):
    parallel = video_world.log_prob(frames, text=TEXT, seed=SEED)
    settings = ScoreSettings(out=clip.parent, video=clip, prompt=TEXT, seed=SEED)
    scores = clip_nats(model, settings, read_video(clip, 99), "16:9")
    np.testing.assert_allclose(parallel.numpy(), scores.nats, atol=1e-3)
    state, transition = video_world.start(frames[:, :1], text=TEXT, seed=SEED)
    found = [transition.nats]
    for t in range(1, 8):
        state, transition = video_world.observe(state, [None], frames[:, 4 * t - 3 : 4 * t + 1])
        found.append(transition.nats)
    torch.testing.assert_close(torch.stack(found, dim=1), parallel, rtol=0, atol=2e-3)
    _, whole = video_world.start(frames, text=TEXT, seed=SEED)
    assert whole.nats.item() == pytest.approx(parallel[0, -1].item(), abs=2e-3)
    assert torch.equal(whole.frames, frames[:, -4:])


def test_a_fresh_adapter_leaves_the_likelihood_as_it_is_to_the_bit_and_can_learn(video_world, frames):
    networks, moves = video_world.networks, video_world.dynamics
    plain = video_world.log_prob(frames[:, :13], text=TEXT)
    assert torch.equal(video_world.log_prob(frames[:, :13], [[None, 1, 2, 3]], text=TEXT), plain)
    x = moves.frames.noisy(frames[:, :13], video_world.start(frames[:, :1])[0].key, torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        bare, _ = networks.flow.nats(x, video_world.encode_text([TEXT]), None, moves.tables)
    assert torch.equal(bare.sum(-1), plain)
    actions = video_world.flatten([0, 1, 2, 3]).clone()[None]
    text = video_world.encode_text([TEXT]).clone()
    nats, _ = networks.flow.nats(x.clone(), text, networks.action(actions), moves.tables)
    (slope,) = torch.autograd.grad(nats.sum(), networks.action.project.weight)
    assert slope.abs().max() > 1e-3


def test_a_world_whose_adapter_learned_is_saved_and_loaded_as_any_other(video_world, tmp_path):
    other = World.load(find(video_world, tmp_path), device="cpu")
    assert torch.equal(other.networks.action.project.weight, torch.full_like(other.networks.action.project.weight, 0.1))
    state, _ = other.start(text=TEXT, seed=SEED)
    (_, left), (_, right) = other.step(state, [0]), other.step(state, [None])
    assert (left.latents - right.latents).abs().max() > 1e-3
    fresh, _ = video_world.start(text=TEXT, seed=SEED)
    with pytest.raises(StateError, match="expected one of world"):
        other.step(fresh, [0])
    with pytest.raises(StateError, match="expected one of world"):
        other.observe(fresh, [0], torch.zeros(1, 4, 32, 48, 3, dtype=torch.uint8))


def find(world: World, folder: Path) -> Path:
    """A checkpoint of the world with another adapter."""
    kept = world.networks.action.project.weight.detach().clone()
    try:
        with torch.no_grad():
            world.networks.action.project.weight.fill_(0.1)
        save_checkpoint(folder, world.networks, {})
    finally:
        with torch.no_grad():
            world.networks.action.project.weight.copy_(kept)
    return folder


def test_half_precision_steps_and_scores_nearly_alike(video_folder, video_world, frames):
    half = World.load(video_folder, device="cpu", dtype=torch.bfloat16)
    state, _ = half.start(frames[:, :5], text=TEXT, seed=SEED)
    state, transition = half.step(state, [1])
    assert (state.tokens.dtype, state.cache.keys.dtype) == (torch.float32, torch.bfloat16)
    assert (transition.nats.dtype, transition.frames.shape[1]) == (torch.float32, 4)
    found, exact = (each.log_prob(frames[:, :13], text=TEXT) for each in (half, video_world))
    assert 0 < (found - exact).abs().max() < 0.05 * 36
