"""Training: everything learns, nothing is lost when it is killed, nothing is silently skipped or changed.

Worlds of 16 tokens x 12 channels; episodes in which the colour of a square tells episode and time, and action t leads
to frame t.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import starflow_world.training.world
from starflow_world.codec import Streams
from starflow_world.config.train import TrainConfig
from starflow_world.config.world import WorldConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import ConfigError, StarflowError
from starflow_world.model.networks import Networks
from starflow_world.training.batches import Sampler
from starflow_world.training.objective import losses
from starflow_world.training.optimizers import schedule
from starflow_world.training.world import WorldTrainer
from tests.squares import FAST, SIDE, SMALL, fill, world_config
from tests.worlds import KINDS, PUBLISHED, randomise

pytestmark = pytest.mark.usefixtures("no_curves")


def trainer(
    data: Path, world: WorldConfig | None = None, *, random_weights: bool = True, **changes: object
) -> WorldTrainer:
    config = replace(FAST, **changes)  # type: ignore[arg-type]
    made = WorldTrainer(world or world_config(), config, EpisodeDataset(data).memory_map())
    if random_weights:
        randomise(made.networks)
    else:
        made.fit_codec()
    return made


def weights(networks: Networks) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in networks.state_dict().items()}


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_changes_every_parameter_by_a_finite_gradient(data, kind):
    made = trainer(data, world_config(**KINDS[kind]))
    before = weights(made.networks)
    figures = made.advance()
    assert all(math.isfinite(value) for value in figures.values())
    for name, parameter in made.networks.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
        assert not torch.equal(parameter, before[name]), name
    buffers = dict(made.networks.named_buffers())
    assert all(torch.equal(buffers[name], before[name]) for name in before if name in buffers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_network_opens_its_closed_paths_within_six_steps(data, kind):
    """Heads and conditions start at zero, so that what lies behind them has no gradient at first: heads move in the
    first step, layers in the second, and what the text encoder makes of the text with them."""
    made = trainer(data, world_config(**KINDS[kind]), random_weights=False)
    before = dict(made.networks.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in before.items()}
    made.step = 4  # a step that trains the denoiser; so do the next
    for _ in range(6):
        made.advance()
        made.step += 3
    unmoved = [name for name, value in before.items() if torch.equal(value, made.networks.state_dict()[name])]
    assert unmoved == []
    assert all(p.grad is not None and p.grad.any() for p in made.networks.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_learned_by_heart(tmp_path, record_property, kind):
    fill(tmp_path / "one", (4,))
    changes = {"steps": 200, "frames": 4, "lengths": (4,), "starts": 0, "learning_rate": 5e-3, "warmup": 10}
    world = world_config(noise_level=0.1, **KINDS[kind])
    made = trainer(tmp_path / "one", world, random_weights=False, **changes)
    begin = time.process_time()
    history = [made.advance()["nats_per_dim"] for _ in range(150)]
    seconds = time.process_time() - begin
    better = np.mean(history[-10:]) - history[0]
    record_property("nats_per_dim", better)
    print(f"150 steps on one clip: {better:.2f} nats per dim better, {seconds:.0f} s")
    floor = -0.5 * (1 + math.log(2 * math.pi)) - math.log(0.1)  # what is left is the noise
    assert better >= 1.0 or np.mean(history[-10:]) > floor - 0.05, floor - np.mean(history[-10:])
    assert seconds < 60


def test_only_the_parts_that_are_asked_for_learn(data):
    made = trainer(data, parts=("flow.features", "outcome"))
    before = weights(made.networks)
    made.advance()
    changed = {name for name, value in before.items() if not torch.equal(value, made.networks.state_dict()[name])}
    assert changed == {name for name in before if name.startswith(("flow.features", "outcome"))}
    with pytest.raises(ConfigError, match=r"train.parts: expected modules such as flow, .*'flow.featurs'"):
        trainer(data, parts=("flow.featurs",))


def test_site_networks_and_actions_learn_at_a_rate_of_their_own(data):
    made = trainer(data, learning_rate=1e-3, site_learning_rate=2e-2, warmup=0)
    made.advance()
    names = {id(p): name for name, p in made.networks.named_parameters()}
    rates = {names[id(p)]: group["lr"] for o in made.optimizers for group in o.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    for name, found in rates.items():
        looking = name.startswith(("flow.features.", "outcome.", "action."))
        site = looking and not name.startswith("outcome.project.")
        assert found == pytest.approx(2e-2 if site else 1e-3), name


def test_rewards_and_ends_do_not_shape_the_deep_block(data):
    made = trainer(data)
    batch = made.sampler.batch(0)
    noise = torch.zeros(*batch.frames.shape[:2], 16, 12)
    losses(made.networks, batch, noise, made.tables, FAST, denoiser=False).outcome.backward()
    reached = {name for name, p in made.networks.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any(name.startswith("outcome.net.") for name in reached)
    assert not {name for name in reached if name.startswith("flow.")}


def test_the_learning_rate_rises_while_warming_up_and_falls_to_zero():
    rates = [schedule(step, TrainConfig(steps=100, warmup=10)) for step in range(101)]
    assert rates[:9] == pytest.approx([(step + 1) / 10 for step in range(9)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert max(rates) > 0.9
    assert rates[100] == 0


# ---- the denoiser ----------------------------------------------------------------------------------------------------


def test_held_out_windows_are_of_all_lengths_whatever_the_steps_of_the_run(data, monkeypatch):
    made, seen = trainer(data, lengths=(2, 4), steps=3), set()
    held_out = Sampler(EpisodeDataset(data).memory_map(), replace(FAST, lengths=(2, 4), steps=1000, starts=0))
    drawn = held_out.batch
    monkeypatch.setattr(held_out, "batch", lambda step: seen.add((batch := drawn(step)).frames.shape[1]) or batch)
    made.validate(held_out, batches=12)
    assert seen == {2, 4}


def test_the_denoiser_s_target_is_sigma_times_the_gradient(monkeypatch):
    config = world_config(height=4, width=4, **PUBLISHED)
    torch.manual_seed(0)
    networks = randomise(Networks(config)).double()
    sigma, step = config.noise_level, config.flow.denoiser_step
    assert sigma == step  # then the target is sigma times the gradient
    windows = _batch(config)
    windows = replace(windows, actions=windows.actions.double())
    noise = torch.randn(1, 2, 4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tables = networks.flow.tables(config.grid, 2)

    def nats(x: Tensor) -> float:
        with torch.no_grad():
            action = networks.action(windows.actions)
            return float(networks.flow.nats(x, networks.encode_text(windows.texts), action, tables)[0].sum())

    x = networks.codec.encode(windows.frames)[0] + sigma * noise
    slope, delta = torch.zeros_like(x).flatten(), 1e-5
    for index in range(x.numel()):
        change = torch.zeros_like(slope)
        change[index] = delta
        change = change.reshape(x.shape)
        slope[index] = (nats(x + change) - nats(x - change)) / (2 * delta)
    target = -sigma * slope.reshape(x.shape)
    monkeypatch.setattr(networks.flow, "denoiser_output", lambda *given: target)
    found = losses(networks, windows, noise, tables, replace(FAST, denoiser_weight=1.0), denoiser=True)
    error = float(found.denoiser.sqrt())
    print(f"denoiser target: {error:.1g} from finite differences of size {float(target.abs().mean()):.2g}")
    assert error <= 1e-6
    assert target.abs().mean() > 0.1


def _batch(config: WorldConfig) -> starflow_world.training.world.Batch:
    frames = torch.randint(0, 256, (1, 2, config.height, config.width, 3), dtype=torch.uint8)
    actions = torch.tensor([[[0.0, 0, 0, 0, 0], [1, 0, 1, 0, 0]]])
    nothing, alike = torch.zeros(1, 2), torch.ones(1, 2)
    return starflow_world.training.world.Batch(frames, actions, nothing, nothing, alike, alike, ["go"])


@pytest.mark.parametrize("reads_text", [False, True])
def test_training_the_denoiser_does_not_change_the_gradients_of_the_flow(reads_text):
    flow = replace(PUBLISHED["flow"], denoiser_text=reads_text)  # type: ignore[type-var]
    config, found = world_config(**PUBLISHED | {"flow": flow}), []
    for denoiser in (True, False):
        torch.manual_seed(0)
        networks = randomise(Networks(config))
        batch = _batch(config)
        noise = torch.randn(1, 2, 16, 12)
        losses(networks, batch, noise, networks.flow.tables(config.grid, 2), FAST, denoiser=denoiser).total.backward()
        found.append({name: p.grad for name, p in networks.named_parameters()})
    apart = [name for name in found[0] if name.startswith("flow.denoiser.")]
    assert all(found[0][name] is not None and found[1][name] is None for name in apart)
    for name in found[0].keys() - set(apart):
        assert torch.equal(found[0][name], found[1][name]), name


# ---- what a frame weighs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_first_frames_of_windows_in_mid_episode_weigh_nothing_and_true_starts_little(kind):
    config = world_config(**KINDS[kind])
    networks = randomise(Networks(config))
    frames = torch.randint(0, 256, (2, 3, SIDE, SIDE, 3), dtype=torch.uint8)
    actions = torch.zeros(2, 3, 5)
    actions[:, 1:, :2] = 1
    actions[1, 0, :2] = 1  # row 0 begins with an episode, row 1 in the middle of one
    nothing, alike = torch.zeros(2, 3), torch.ones(2, 3)
    batch = starflow_world.training.world.Batch(frames, actions, nothing, nothing, alike, alike, ["go", "go"])
    noise, tables = torch.randn(2, 3, 16, 12), networks.flow.tables(config.grid, 3)
    found = losses(networks, batch, noise, tables, replace(FAST, start_weight=0.1), denoiser=False)
    square = torch.ones_like(noise) if networks.flow.closed_form else noise.square()
    floor = (-0.5 * square - math.log(0.3) - 0.5 * math.log(2 * math.pi)).sum((-1, -2))
    nats, weight = floor - found.excess, torch.tensor([[0.1, 1, 1], [0, 1, 1]])
    assert float(found.flow.detach()) == pytest.approx(-float((nats * weight).sum() / weight.sum() / 192), rel=1e-5)
    assert float(found.nats_per_dim) == pytest.approx(float(nats.mean() / 192), rel=1e-5)


def test_a_batch_that_weighs_nothing_teaches_nothing_and_is_no_accident(data):
    made = trainer(data, lengths=(1,), events=0, start_weight=0.0, frames=8)
    assert made.advance()["skipped"] == 0
    assert not any(parameter.grad.any() for parameter in made.networks.flow.deep.head.parameters())


def test_without_shallow_blocks_and_denoiser_a_loss_is_in_expectation_over_the_frame_s_own_noise():
    """On average it is that of the noise that was drawn, and it varies less. One frame of one normal per channel."""
    config = world_config(**PUBLISHED | {"flow": replace(SMALL.flow, sites=1, components=1, features_width=0)})
    torch.manual_seed(0)
    networks, batch = randomise(Networks(config)), _batch(config)
    batch = replace(batch, frames=batch.frames[:, :1], actions=batch.actions[:, :1], rewards=batch.rewards[:, :1],
                    ends=batch.ends[:, :1])
    tables, found, exact = networks.flow.tables(config.grid, 1), [], []
    clean, sigma = networks.codec.encode(batch.frames)[0], config.noise_level
    with torch.no_grad():
        for seed in range(300):
            noise = torch.randn(1, 1, 16, 12, generator=torch.Generator().manual_seed(seed))
            found.append(losses(networks, batch, noise, tables, FAST, denoiser=False).flow * 192)
            text, action = networks.encode_text(batch.texts), networks.action(batch.actions)
            exact.append(-networks.flow.nats(clean + sigma * noise, text, action, tables)[0].sum())
    found, exact = torch.stack(found), torch.stack(exact)
    assert abs(found.mean() - exact.mean()) < 4 * (found - exact).std() / 300**0.5
    assert found.std() < 0.7 * exact.std()  # the noise of the tokens before it stays


# ---- what is not finite ----------------------------------------------------------------------------------------------


def spoiled(made: WorldTrainer, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the latents of some steps NaN."""
    encode = made.networks.codec.encode

    def spoil(frames: Tensor) -> tuple[Tensor, Streams]:
        latents, streams = encode(frames)
        return latents * (float("nan") if made.step in steps else 1.0), streams

    monkeypatch.setattr(made.networks.codec, "encode", spoil)


def test_a_batch_that_is_not_finite_is_skipped_and_counted(data, monkeypatch):
    made = trainer(data)
    spoiled(made, monkeypatch, {1, 3})
    for step, skipped in enumerate((0, 1, 1, 2, 2)):
        before = weights(made.networks)
        assert made.advance()["skipped"] == skipped
        same = all(torch.equal(value, made.networks.state_dict()[name]) for name, value in before.items())
        assert same == (step in (1, 3))


def test_ten_such_batches_in_a_row_end_the_run(data, monkeypatch):
    made = trainer(data)
    spoiled(made, monkeypatch, {*range(1, 10), *range(11, 40)})
    for _ in range(20):
        made.advance()
    with pytest.raises(StarflowError, match="found 10 steps in a row without, up to 20"):
        made.advance()


def test_events_teach_the_reward_head_and_not_the_flow(data: Path) -> None:
    made = trainer(data, events=4)
    batch = made.sampler.events(0)
    assert batch is not None
    made._learn_events(batch)
    learning = {name.partition(".")[0] for name, p in made.networks.named_parameters() if p.grad is not None}
    assert "outcome" in learning
    assert learning <= {"outcome", "text"}


def test_a_run_without_first_frames_is_judged_on_later_ones(data: Path) -> None:
    made = trainer(data, starts=0)
    assert set(made.validate(made.sampler)) == {"valid_excess"}
