"""Counterfactuals: the noise of what happened gives it back, and under other actions something else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from starflow_world.agents.environment import Environment
from starflow_world.agents.policy import RandomPolicy
from starflow_world.agents.search_settings import Search
from starflow_world.cli import main
from starflow_world.commands.whatif.imagine import what_if
from starflow_world.commands.whatif.sources import named_policy, play_long_enough, read_action
from starflow_world.data.episodes import Episode, flat_actions, write_episode
from starflow_world.errors import ActionError, ConfigError, DataError
from starflow_world.noise import normals
from starflow_world.world.counterfactual import fidelity, replay, trace
from tests.worlds import KINDS, env_world, no_text, save_world


@pytest.fixture(scope="module", params=KINDS)
def tiny(request):
    return env_world(dtype=torch.float64, **KINDS[request.param])


@pytest.fixture(scope="module")
def shipped():
    from starflow_world.world import World

    return World.load("babyai-gotolocal")


def made_up(world, steps=14, seed=0):
    """An episode of random pictures and actions, longer than two windows of a tiny world."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (steps + 1, world.config.height, world.config.width, 3)).astype(np.uint8)
    actions = np.eye(4, dtype=np.float32)[rng.integers(4, size=steps + 1)] * (np.arange(steps + 1) > 0)[:, None]
    last = np.arange(steps + 1) == steps
    return Episode(
        frames, actions.astype(np.float32), np.zeros(steps + 1, np.float32), terminated=last, truncated=last & False,
        text="go", space=world.config.action_space,
    )


@pytest.fixture(scope="module")
def real():
    """An episode of the real BabyAI, played by a mixed policy."""
    pytest.importorskip("minigrid")
    from starflow_world.agents.babyai.bot import MixedPolicy
    from starflow_world.agents.collect import play
    from starflow_world.agents.environment import make_env
    from starflow_world.agents.policy import NoEnd

    env = make_env("BabyAI-GoToLocalS8N4-v0", max_steps=40)
    return play(env, NoEnd(MixedPolicy()), seed=5, index=0)


def taken(episode):
    flat = flat_actions(episode)
    return flat, lambda t, _: flat[t + 1 : t + 2]


# ---- trace and replay ------------------------------------------------------------------------------------------------


def test_the_same_actions_with_the_same_noise_give_the_same_latents_and_frames(tiny):
    episode = made_up(tiny)
    flat, choose = taken(episode)
    traced = trace(tiny, episode.frames, flat.double(), text="go", seed=3)
    again = replay(tiny, traced, choose)
    found = fidelity(tiny, traced.steps, again)
    assert found.latents < 1e-4
    assert found.pixels > 0.999
    torch.testing.assert_close(again.nats, traced.steps.nats, atol=1e-2, rtol=1e-5)
    assert torch.equal(again.actions, traced.steps.actions)
    torch.testing.assert_close(again.noise, traced.steps.noise, atol=1e-4, rtol=0)


def test_the_shipped_world_gives_back_a_real_episode(shipped, real):
    flat, choose = taken(real)
    traced = trace(shipped, real.frames, flat, text=real.text, seed=1)
    again = replay(shipped, traced, choose)
    found = fidelity(shipped, traced.steps, again)
    assert len(real) == 41
    assert found.latents < 1e-2
    assert found.pixels > 0.999
    apart = again.frames[0].int() - torch.from_numpy(real.frames[1:]).int()
    assert (apart.abs() <= 1).float().mean() > 0.999, "also of the real frames, which are not decoded ones"


def test_it_is_the_noise_that_gives_it_back(tiny):
    """Any other noise leads elsewhere: the test above can fail."""
    episode = made_up(tiny)
    flat, choose = taken(episode)
    traced = trace(tiny, episode.frames, flat.double(), text="go", seed=3)
    other = normals(torch.arange(14), torch.zeros(14).long(), "prior", traced.steps.noise.shape[2:]).double()[None]
    lost = replay(tiny, replace(traced, steps=replace(traced.steps, noise=other)), choose)
    assert fidelity(tiny, traced.steps, lost).latents > 1
    assert fidelity(tiny, traced.steps, lost).pixels < 0.5


def test_what_was_imagined_has_the_noise_it_was_imagined_with(tiny):
    """Observed with its own noisy latents, an imagined frame gives back the keyed noise; of a mixture one that gives
    the same frame."""
    state, _ = tiny.start(tiny.starts.frames[:1, None], text="a", seed=[9])
    exact = tiny.decoded(replace(tiny.dynamics.decode, tolerance=1e-9))
    _, imagined = exact.step(state, [2])
    _, told = tiny.observe(state, [2], latents=imagined.latents)
    if tiny.config.flow.components == 1:
        torch.testing.assert_close(told.noise, normals(state.key, state.step, "prior", told.noise.shape[1:]).double())
    _, again = exact.step(state, [2], noise=told.noise)
    torch.testing.assert_close(again.latents, imagined.latents)


def test_rows_are_alternatives_that_do_not_touch_each_other(tiny):
    episode = made_up(tiny, steps=4)
    flat, choose = taken(episode)
    traced = trace(tiny, episode.frames, flat.double(), text="go")
    alone = replay(tiny, traced, choose)
    both = replay(tiny, traced, lambda t, _: torch.stack((flat[t + 1], flat[1])), rows=2)
    torch.testing.assert_close(both.latents[:1], alone.latents, atol=1e-5, rtol=0)
    assert not torch.allclose(both.latents[1, 1:], alone.latents[0, 1:], atol=1e-3)


def test_one_frame_is_no_trajectory(tiny):
    episode = made_up(tiny)
    with pytest.raises(DataError, match="a first frame and at least one that follows it, found 1"):
        trace(tiny, episode.frames[:1], taken(episode)[0][:1].double())


# ---- what if ---------------------------------------------------------------------------------------------------------


def test_nothing_differs_before_the_changed_action_and_something_behind_it(tiny):
    episode = made_up(tiny)
    other = (int(episode.actions[6].argmax()) + 1) % 4
    found = what_if(tiny, episode, at=6, actions=[other])
    differ = (found.again.actions != found.other.actions).any(-1)[0]
    assert differ.nonzero()[:, 0].tolist() == [5]
    assert torch.equal(found.again.latents[:, :5], found.other.latents[:, :5])
    assert not torch.allclose(found.again.latents[:, 5], found.other.latents[:, 5], atol=1e-2)
    torch.testing.assert_close(found.again.noise, found.other.noise, atol=1e-4, rtol=0)
    assert found.fidelity.latents < 1e-4


def test_a_changed_action_shows_in_the_shipped_world_what_the_real_env_would_have_shown(shipped):
    """The expert turns where it could go on: compared with the real env that does."""
    pytest.importorskip("minigrid")
    from starflow_world.agents.environment import source_environment
    from starflow_world.evaluation.fidelity import frames_right

    right, count = 0.0, 0
    for seed in (3, 5, 6):
        episode = play_long_enough(source_environment(shipped), "bot", seed, steps=2)
        changed = [int(action.argmax()) for action in episode.actions[1:]]
        changed[1:2] = [1]
        env = source_environment(shipped).make()
        env.reset(seed=episode.info["env_seed"])
        real = [(env.step(action), np.asarray(env.render()))[1] for action in changed]
        found = what_if(shipped, episode, at=2, actions=[1], seed=seed)
        agree = frames_right(shipped, found.other.frames[0].numpy(), np.stack(real))[: found.over]
        right, count = right + agree.sum(), count + len(agree)
    assert count > 10
    assert right / count > 0.8


def test_a_policy_chooses_from_its_step_on_and_sees_its_own_course(tiny):
    seen, episode = [], made_up(tiny)

    class Watching(RandomPolicy):
        def __call__(self, observation):
            seen.append(observation)
            return super().__call__(observation)

    found = what_if(tiny, episode, at=4, policy=Watching(), seed=2)
    assert torch.equal(found.again.actions[:, :3], found.other.actions[:, :3])
    assert not torch.equal(found.again.actions, found.other.actions)
    assert len(seen) == 14 - 3
    apart = np.stack(seen[1:]).astype(int) - found.other.frames[0, 3:-1].numpy()
    assert np.abs(apart).max() <= 1  # decoded in another batch
    assert torch.equal(found.other.actions, what_if(tiny, episode, at=4, policy=Watching(), seed=2).other.actions)


def test_a_planner_may_choose(tiny):
    planner = named_policy("random", tiny), named_policy("cem", tiny)
    assert isinstance(planner[0], RandomPolicy)
    planner[1].search = Search("random", branches=2, horizon=1)
    found = what_if(tiny, made_up(tiny, steps=3), at=2, policy=planner[1])
    assert len(planner[1].thoughts) == 2
    assert found.other.actions.shape == (1, 3, 5)
    with pytest.raises(ConfigError, match="policy: expected one of best-first, cem, random or sb3:FOLDER, found"):
        named_policy("bot", tiny)


def test_what_does_not_fit_is_refused(tiny):
    episode = made_up(tiny)
    for at, actions in ((0, [1]), (15, [1]), (14, [1, 1])):
        with pytest.raises(ConfigError, match="among the episode's 1 to 14"):
            what_if(tiny, episode, at=at, actions=actions)
    with pytest.raises(ConfigError, match="expected other actions or a policy, found both or neither"):
        what_if(tiny, episode)
    with pytest.raises(ActionError):
        what_if(tiny, episode, actions=[7])
    with pytest.raises(DataError, match="expected actions of"):
        what_if(tiny, replace(episode, space='{"n": 9, "start": 0, "type": "Discrete"}'), actions=[1])


def test_the_command_writes_video_sheet_and_figures(tiny, tmp_path, capsys):
    world = save_world(env_world(), tmp_path / "world")
    episode = made_up(tiny, steps=5)
    write_episode(tmp_path / "episode.h5", episode)
    taken_there = int(episode.actions[2].argmax())
    main(["whatif", str(world), "--episode", str(tmp_path / "episode.h5"), "--at", "2", "--actions",
          str((taken_there + 1) % 4), "--out", str(tmp_path / "out")])
    facts = json.loads((tmp_path / "out" / "whatif.json").read_text())
    assert [a != b for a, b in zip(facts["took"], facts["what_if"], strict=True)] == [False, True, False, False, False]
    assert facts["took"] == [str(int(action.argmax())) for action in episode.actions[1:]]
    assert facts["fidelity"]["latents"] < 1e-2
    assert len(facts["reward_what_if"]) == 5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"whatif.mp4", "whatif.png", "whatif.json"}
    assert "other actions at 1 of 5 steps, first at 2" in capsys.readouterr().out


def test_a_box_action_is_a_json_list_and_changes_the_course():
    assert read_action("2") == 2
    assert read_action("[0.5, -1]").tolist() == [0.5, -1.0]
    for wrong in ("left", "true", '{"a": 1}'):
        with pytest.raises(ActionError, match="JSON lists of numbers"):
            read_action(wrong)
    world = env_world(spaces.Box(-1, 1, (2,), np.float32), dtype=torch.float64, **no_text())
    plain = made_up(env_world())
    actions = np.random.default_rng(0).uniform(-1, 1, (len(plain), 2)).astype(np.float32)
    episode = replace(plain, actions=actions, space=world.config.action_space, text="")
    result = what_if(world, episode, at=3, actions=[read_action("[0.9, -0.9]")])
    differ = (result.again.actions != result.other.actions).any(-1)[0]
    assert differ.nonzero()[:, 0].tolist() == [2]
    assert result.other.actions[0, 2, 1:].tolist() == pytest.approx([0.9, -0.9])


def test_an_episode_that_is_long_enough_is_played_or_the_error_says_what_to_do(capsys):
    source = Environment("CartPolePixels-v0", frame_size=16, max_steps=12)
    episode = play_long_enough(source, "random", 0, steps=3)
    assert len(episode) - 1 >= 3
    assert "steps of CartPolePixels-v0, random" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"at least 13 steps, found at most \d+ in 50 episodes .* \(--at\)"):
        play_long_enough(source, "random", 0, steps=13)
