"""The verbs of a world: imagined is observed, streamed is parallel, rows are alone, a step is a pure function.

Worlds of 16 tokens x 12 channels, a window of 6 frames and a context of 2, so a slide comes every 4 frames.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from starflow_world.errors import DataError
from starflow_world.world import World
from starflow_world.world.state import WorldState
from tests.states import F32, F64, RELATIVE, aged, far, moves, other_world, pictures, same, small_world
from tests.worlds import KINDS, PUBLISHED

DIMS = 16 * 12
NATS = {F64: 1e-9, F32: 0.05 * DIMS / 1024}
WINDOW, CONTEXT = 6, 2


@pytest.fixture(scope="module")
def world(worlds: dict[torch.dtype, World]) -> World:
    return worlds[F64]


def cached(state: WorldState, row: int) -> Tensor:
    assert state.cache is not None
    length = int(state.cache.length[row])
    return torch.stack((state.cache.keys[:, row, :, :length], state.cache.values[:, row, :, :length]))


# ---- imagined = observed, streamed = parallel ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, F32])
def test_what_was_imagined_when_observed_gives_the_same_state_and_nats(worlds, dtype, at_most):
    world, worst = worlds[dtype], 0.0
    state = aged(world, 1, 4, 6, 11)
    for t in range(3 * WINDOW):
        actions = [t % 4, None, 3 - t % 4, 1]
        imagined, said = world.step(state, actions)
        observed, heard = world.observe(state, actions, latents=said.latents)
        worst = max(worst, far(said.nats, heard.nats))
        assert torch.equal(imagined.length, observed.length)
        assert torch.equal(imagined.step, observed.step)
        assert far(imagined.tokens, observed.tokens) <= 100 * RELATIVE[dtype]
        assert all(far(cached(imagined, row), cached(observed, row)) <= 100 * RELATIVE[dtype] for row in range(4))
        if world.config.flow.components == 1:  # in a mixture several noises give one frame
            missed = (said.noise - heard.noise).square().mean((1, 2)).sqrt()
            assert far(missed, said.residual) <= 1000 * RELATIVE[dtype]
        assert (said.sweeps > 0).all()
        assert (heard.sweeps == 0).all()
        assert far(said.reward, heard.reward) <= 100 * RELATIVE[dtype]
        assert far(said.end_probability, heard.end_probability) <= 100 * RELATIVE[dtype]
        assert torch.equal(said.frames, heard.frames) or dtype == F32
        state = imagined
    at_most("nats per frame", worst, NATS[dtype])


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("known", [1, WINDOW + 3])
def test_streamed_nats_are_the_parallel_ones_across_slides(worlds, dtype, known, at_most):
    world, count = worlds[dtype], 3 * WINDOW + 2
    frames, actions, texts = pictures(2, count), moves(2, count), ["go", "to the"]
    parallel = world.log_prob(frames, actions, text=texts, seed=5)
    clip = [row[:known] for row in actions]
    state, last = world.start(frames[:, :known], clip, text=texts, seed=5)
    streamed = [last.nats]
    for t in range(known, count):
        state, last = world.observe(state, [row[t] for row in actions], frames[:, t], reuse=True)
        streamed.append(last.nats)
    at_most("relative error", far(torch.stack(streamed, 1) / parallel[:, known - 1 :], torch.ones(())), RELATIVE[dtype])


@pytest.mark.parametrize("dtype", [F64, F32])
def test_the_state_behind_a_slide_is_a_fresh_encoding_of_the_last_frames(worlds, dtype, at_most):
    world = worlds[dtype]
    state, slides = aged(world, 3, 4, 6), 0
    for t in range(10 * (WINDOW - CONTEXT)):
        kept = [state.tokens[row, length - CONTEXT : length] for row, length in enumerate(state.length)]
        slid = [row for row, length in enumerate(state.length) if length == WINDOW]
        state, _ = world.step(state, [t % 4, 1, None], reuse=True)
        for row in slid:
            slides += 1
            assert state.length[row] == CONTEXT + 1
            assert torch.equal(state.tokens[row, 1:CONTEXT], kept[row][1:])
            assert torch.equal(state.tokens[row, 0], kept[row][0])
            assert not state.tokens[row, CONTEXT + 1 :].any()  # no ghosts
            with torch.no_grad():
                fresh = world.dynamics.rebuilt(replace(state[row], cache=None))
            at_most("difference", far(cached(state, row), cached(fresh, 0)), 10 * RELATIVE[dtype])
    assert slides == 30


def test_nats_are_those_of_the_flow_itself(world):
    frames, actions = pictures(1, 4), moves(1, 4)
    x = world.dynamics.frames.noisy(frames, world.start(frames, seed=3)[0].key, torch.tensor([0]))
    action = world.networks.action(torch.stack([world.flatten(row) for row in actions]))
    with torch.no_grad():
        nats, _ = world.networks.flow.nats(x, world.encode_text(["go"]), action, world.dynamics.tables)
    assert far(nats.sum(-1), world.log_prob(frames, actions, text="go", seed=3)) < 1e-9
    state, seen = world.start(frames[:, :1], text="go", seed=3)
    for t in range(1, 4):
        state, seen = world.observe(state, [actions[0][t]], frames[:, t])
        assert far(seen.token_nats, nats[:, t]) < 1e-9
        assert far(seen.nats, nats[:, t].sum(-1)) < 1e-9


# ---- pictures, rewards, ends ----------------------------------------------------------------------------------------


def test_outcomes_are_those_that_training_sees(world):
    frames, actions = pictures(2, WINDOW), moves(2, WINDOW)
    state, seen = world.start(frames[:, :1], text="go", seed=3)
    said = [seen]
    for t in range(1, WINDOW):
        state, seen = world.observe(state, [row[t] for row in actions], frames[:, t])
        said.append(seen)
    x = torch.stack([what.latents for what in said], 1)
    described = world.networks.flow.describe(x)
    networks, flat = world.networks, torch.stack([world.flatten(row) for row in actions])
    with torch.no_grad():
        text = world.encode_text(["go", "go"])
        _, hidden = networks.flow.nats(x, text, networks.action(flat), world.dynamics.tables)
        assert networks.outcome is not None
        every = text.repeat_interleave(WINDOW, dim=0)
        outcome = networks.outcome(hidden.flatten(0, 1), described.flatten(0, 1), every, networks.config.grid)
    assert far(networks.outcome.reward(outcome), torch.stack([what.reward for what in said], 1).flatten()) < 1e-9
    probability = torch.stack([what.end_probability for what in said], 1).flatten()
    assert far(outcome.end_logit.sigmoid(), probability) < 1e-9


def test_rows_before_their_first_frame_may_stand_beside_others(world):
    """Both move as they do alone: one is told of no last frame, the other of its own."""
    empty, begun = world.empty(["go"], [5]), world.start(pictures(1, 3), moves(1, 3), text="go", seed=6)[0]
    both, frames = WorldState.stack([empty, begun]), pictures(2, 1)[:, 0]
    for verb in ("step", "observe"):
        imagine = verb == "step"
        together = world.step(both, [None, 2]) if imagine else world.observe(both, [None, 2], frames)
        for row, (one, action) in enumerate(((empty, None), (begun, 2))):
            state, what = world.step(one, [action]) if imagine else world.observe(one, [action], frames[row : row + 1])
            assert far(together[1].latents[row], what.latents[0]) < 1e-6
            assert far(together[1].nats[row], what.nats[0]) < 1e-6
            assert far(cached(together[0], row), cached(state, 0)) < 1e-6


def test_ends_are_drawn_at_the_probability_that_is_told_or_at_a_threshold(worlds):
    world = other_world(worlds[F64])
    world.networks.load_state_dict(worlds[F64].networks.state_dict())
    world.networks.outcome.read.bias.data[-1] -= 4.0  # these random weights would end nearly every row
    state = aged(world, 3)[[0] * 300].with_keys(range(300))
    _, seen = world.step(state, [1] * 300)
    spread = (seen.end_probability * (1 - seen.end_probability)).sum().sqrt()
    assert 0.02 < seen.end_probability.mean() < 0.98  # the premise: some rows end
    assert abs(seen.end.sum() - seen.end_probability.sum()) <= 4 * spread
    sharp = other_world(world, outcome=replace(world.config.outcome, end="threshold"))
    sharp.networks.load_state_dict(world.networks.state_dict())
    for shift in (0.0, 9.0, -9.0):
        sharp.networks.outcome.read.bias.data[-1] += shift
        _, seen = sharp.step(aged(sharp, 3), [1])
        assert torch.equal(seen.end, seen.end_probability >= 0.5)
    silent = other_world(world, outcome=replace(world.config.outcome, width=0))
    _, seen = silent.step(aged(silent, 3), [1])
    assert seen.reward.isnan().all()
    assert seen.end_probability.isnan().all()
    assert not seen.end.any()


def test_a_picture_is_the_denoised_clip_s_last_and_the_denoised_is_not_fed_back():
    world = small_world(**PUBLISHED)
    state, seen = world.start(text=["go", "stay"], seed=2)
    noisy, shown = [seen.latents], [seen.frames]
    for t in range(2 * WINDOW):
        state, seen = world.step(state, [t % 4, 1])
        noisy.append(seen.latents)
        shown.append(seen.frames)
    assert far(state.latents[:, -1], noisy[-1]) == 0
    flow, tables = world.networks.flow, world.networks.flow.tables(world.config.grid, len(noisy))
    with torch.no_grad():
        clean = flow.denoise(torch.stack(noisy, 1), state.text, tables)
    assert far(clean, torch.stack(noisy, 1)) > 1e-3
    assert torch.equal(world.networks.codec.decode(clean)[0], torch.cat(shown, 1))


def test_a_frame_without_a_denoiser_is_cleaned_by_its_own_density_and_the_clean_is_not_fed_back():
    world = small_world()
    flow, level = world.networks.flow, world.config.noise_level
    state, seen = world.start(text=["go", "stay"], seed=2)
    for t in range(2 * WINDOW):
        before, (state, seen) = state, world.step(state, [t % 4, 1])
        place = torch.arange(2), state.length - 1
        assert torch.equal(state.tokens[place], seen.latents), "what is continued from is noisy"
        moves = world.dynamics
        with torch.no_grad():
            before = moves.own(before, reuse=False)
            coming = moves.next_frame(before, state.actions[place])
            inputs = torch.cat((coming.before, seen.latents[:, :-1]), dim=1)
            _, density = flow.extend(before.cache, inputs, coming.added, moves.tables, text=moves.text_length)
            clean = density.clean(seen.latents, level)
        assert far(state.latents[:, -1], clean) < 1e-9
        assert far(clean, seen.latents) > 1e-2
        assert torch.equal(world.networks.codec.decode(clean[:, None])[0], seen.frames)


# ---- actions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_action_encoder_changes_no_bit(kind):
    world = small_world(F32, **KINDS[kind])
    torch.nn.init.zeros_(world.networks.action.project.weight)
    frames = pictures(2, 9)
    assert torch.equal(world.log_prob(frames, moves(2, 9)), world.log_prob(frames))
    state = aged(world, 2, 5)
    assert same(world.step(state, [1, 2])[1], world.step(state, [None, 3])[1])


def test_an_action_changes_its_frame_and_later_ones_and_no_earlier_one(world):
    frames, actions = pictures(1, WINDOW), moves(1, WINDOW)
    other = [[*actions[0][:3], (actions[0][3] + 1) % 4, *actions[0][4:]]]
    change = (world.log_prob(frames, actions) - world.log_prob(frames, other))[0]
    assert (change[:3] == 0).all()
    assert (change[3:] != 0).all()
    flat = torch.stack([world.flatten(row) for row in actions]).requires_grad_()
    x = world.dynamics.frames.noisy(frames, torch.tensor([1]), torch.tensor([0])).clone()
    text = world.encode_text([""]).clone()
    nats, _ = world.networks.flow.nats(x, text, world.networks.action(flat), world.dynamics.tables)
    for t in range(WINDOW):
        (slope,) = torch.autograd.grad(nats[0, t].sum(), flat, retain_graph=True)
        seen = slope[0].abs().amax(-1)
        assert (seen[: t + 1] > 0).all()
        assert (seen[t + 1 :] == 0).all()


# ---- guidance and text -----------------------------------------------------------------------------------------------


def test_guidance_zero_is_unguided_and_the_nats_of_a_guided_frame_are_the_unguided_model_s(world):
    texts = ["go left", "go up", "stay"]
    strong = 1.5 if world.config.flow.components == 1 else 300.0  # the text of random weights says little
    plain, guided = (world.start(text=texts, seed=4, guidance=w) for w in (0.0, strong))
    assert all(same(a, b) for a, b in zip(plain, world.start(text=texts, seed=4), strict=True))
    assert far(plain[1].latents, guided[1].latents) > 1e-3
    assert guided[1].converged.all()
    assert (guided[1].sweeps > 0).all()
    empty = world.empty(texts, plain[0].key.tolist())
    state, heard = world.observe(empty, [None] * 3, latents=guided[1].latents)
    assert far(heard.nats, guided[1].nats) <= 1e-9
    assert far(state.tokens, guided[0].tokens) <= 1e-9


def test_another_text_changes_the_future_and_not_the_past(world):
    state = aged(world, 3, 6)
    turned = world.with_text(state, ["north", "row 1"])
    assert turned.texts == ("north", "row 1")
    assert torch.equal(turned.tokens, state.tokens)
    (_, was), (_, now) = world.step(state, [1, 1]), world.step(turned, [1, 1])
    assert far(was.latents[0], now.latents[0]) > 1e-6  # the text of random weights says little
    assert far(was.latents[1], now.latents[1]) <= 1e-9  # the same text, encoded anew
    assert same(world.step(turned, [1, 1])[1], world.step(world.with_text(turned, ["north", "row 1"]), [1, 1])[1])


def test_text_that_does_not_fit_is_refused(world):
    silent = other_world(world, text=replace(world.config.text, kind="none"),
                         flow=replace(world.config.flow, text_length=0, text_width=0))
    state, _ = silent.start(pictures(1, 2))
    assert silent.step(state, [1])[0].text is None
    for wrong in ("eight by", "grün, no", None, 3, ["a", "b"], [None], "\ud800"):
        with pytest.raises(DataError, match="text"):
            world.start(pictures(1, 1), text=wrong)
    for call in (lambda: silent.start(text="go"), lambda: silent.with_text(state, "go")):
        with pytest.raises(DataError, match="takes no text"):
            call()


# ---- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_a_start_from_a_clip_is_its_first_frame_and_observations(world, count):
    frames, actions = pictures(2, count), moves(2, count)
    whole, last = world.start(frames, actions, text="go", seed=[7, 3])
    state, seen = world.start(frames[:, :1], text="go", seed=[7, 3])
    for t in range(1, count):
        state, seen = world.observe(state, [row[t] for row in actions], frames[:, t])
    assert torch.equal(whole.length, state.length)
    assert (whole.step == count).all()
    assert torch.equal(last.frames[:, 0], frames[:, -1])
    assert last.converged.all()
    assert far(last.nats, seen.nats) <= 1e-9
    assert far(whole.tokens, state.tokens) <= 1e-9
    assert far(whole.latents, state.latents) <= 1e-9


def test_a_start_from_text_alone_imagines_the_first_frame(world):
    state, first = world.start(text=["go", "stay"], seed=1)
    assert (state.step == 1).all()
    assert (state.length == 1).all()
    assert first.frames.shape == (2, 1, 8, 8, 3)
    assert far(first.latents[0], first.latents[1]) > 1e-3
    alone, single = world.start(text="go", seed=1)
    assert len(alone) == 1
    assert far(single.latents[0], first.latents[0]) <= 1e-9
    seeded, _ = world.start(text="go", seed=[4, 5, 6])
    assert len(seeded) == 3
    assert seeded.texts == ("go",) * 3
