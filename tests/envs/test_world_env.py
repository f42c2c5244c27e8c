"""WorldEnv: Gymnasium's and Stable-Baselines3's examiners, order of calls, refusals, copies, and starts."""

import copy
import io
import pickle  # noqa: TID251  (that an env survives it is the promise)
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence

import starflow_world
from starflow_world import world as worlds
from starflow_world.config.world import CodecConfig, DecodeConfig, OutcomeConfig
from starflow_world.envs import viewer
from starflow_world.envs.options import OPTIONS
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ActionError, CheckpointError, ConfigError, DataError, StarflowError, StateError
from starflow_world.world import Starts
from starflow_world.world.state import WorldState
from tests.worlds import PUBLISHED, env_world, no_text, save_world, tiny_world

SPACES = {
    "Discrete": spaces.Discrete(4),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict({"go": spaces.Discrete(3), "turn": spaces.Box(-1, 1, (1,), np.float32)}),
    "Tuple": spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]),
}
INFO = {"nats", "nats_per_dim", "bits_per_dim", "sweeps", "residual", "converged", "end_probability", "text"}


@pytest.fixture(autouse=True)
def _no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.fixture
def env() -> Iterator[WorldEnv]:
    env = WorldEnv(env_world(), render_mode="rgb_array", max_episode_steps=99)
    yield env
    env.close()


def no_reward(*_: object) -> float:
    return 0.0


def one(*_: object) -> float:
    return 1.0


# ---- the examiners (E1) ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("head", [True, False], ids=["outcome", "reward_fn"])
@pytest.mark.parametrize("text", [True, False], ids=["text", "no-text"])
@pytest.mark.parametrize("kind", SPACES)
def test_gymnasiums_checker_passes_without_a_warning(kind: str, text: bool, head: bool, tmp_path: Path) -> None:
    changes = ({} if text else no_text()) | ({} if head else {"outcome": OutcomeConfig()})
    folder = save_world(env_world(SPACES[kind], **changes), tmp_path / "world")
    reward_fn = None if head else no_reward
    made = gymnasium.make("StarflowWorld/Custom-v0", path=str(folder), reward_fn=reward_fn)
    check_env(made.unwrapped)  # goes through all render modes, each in an env that it makes from the spec
    made.close()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", [True, False], ids=["text", "no-text"])
@pytest.mark.parametrize("kind", ["Discrete", "Box", "MultiDiscrete", "MultiBinary"])
def test_stable_baselines_checker_passes_without_a_warning(
    kind: str, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WorldEnv.metadata, "render_fps", 1000)
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    codec = CodecConfig("pca", patch=5, components=3, merge=2)
    world = env_world(SPACES[kind], size=40, codec=codec, **({} if text else no_text()))
    for mode in (None, "rgb_array", "human"):
        checker.check_env(WorldEnv(world, render_mode=mode), warn=True, skip_render_check=False)


@pytest.mark.filterwarnings("error")
def test_gymnasiums_wrappers_see_nothing_to_warn_about(tmp_path: Path) -> None:
    folder = save_world(env_world(), tmp_path / "world")
    made = gymnasium.make("StarflowWorld/Custom-v0", path=folder, render_mode="rgb_array")
    made.reset(seed=0)
    made.step(made.action_space.sample())
    assert made.render().shape == (8, 8, 3)
    made.close()
    made.close()


# ---- determinism and randomness (E2, E3, E4, E15) --------------------------------------------------------------------


def test_twins_in_lock_step_are_equal_to_the_bit() -> None:
    a, b = (WorldEnv(env_world(size=4), max_episode_steps=9, frames_between=True) for _ in range(2))
    for seed in range(5):
        a.action_space.seed(seed)
        assert data_equivalence(a.reset(seed=seed), b.reset(seed=seed), exact=True)
        for _ in range(50):
            action = a.action_space.sample()
            mine, other = a.step(action), b.step(action)
            assert data_equivalence(mine, other, exact=True)
            if mine[2] or mine[3]:
                assert data_equivalence(a.reset(), b.reset(), exact=True)


def test_other_seeds_give_other_episodes(env: WorldEnv) -> None:
    shown = []
    frame = env.world.starts.frames[0]
    for seed in range(3):
        env.reset(seed=seed, options={"frames": frame})
        for _ in range(5):
            observation = env.step(1)[0]
        shown.append(observation)
    for i in range(3):
        for j in range(i):
            assert (shown[i] != shown[j]).mean() >= 0.01
    state = env.get_state()[[0] * 16].with_keys(range(16))
    _, transition = env.world.step(state, [1] * 16)
    assert len({one.numpy().tobytes() for one in transition.frames}) == 16


def test_reset_without_a_seed_goes_on_with_the_generator(env: WorldEnv) -> None:
    runs = []
    for _ in range(2):
        runs.append([env.reset(seed=5)[0], env.reset()[0], env.reset()[0]])
        runs[-1].append(env.step(0)[0])
    assert data_equivalence(*runs, exact=True)
    first, second, third, _ = runs[0]
    assert (first != second).any() or (first != third).any()
    env.reset(seed=5)
    key = env.get_state().key
    env.reset()
    assert env.get_state().key != key


def test_the_start_set_is_drawn_from_with_its_texts(env: WorldEnv) -> None:
    starts = env.world.starts
    found = set()
    for seed in range(40):
        observation, info = env.reset(seed=seed)
        place = starts.texts.index(info["text"])
        assert (observation == starts.frames[place].numpy()).all()
        found.add(place)
    assert found == set(range(len(starts)))


def test_no_global_generator_is_touched(env: WorldEnv) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    env.reset(seed=0)
    for _ in range(20):
        env.step(0)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


# ---- what is returned (E5, E6, E9) -----------------------------------------------------------------------------------


def test_types_are_gymnasiums_and_info_has_the_documented_keys_only() -> None:
    env = WorldEnv(env_world(), frames_between=True)
    observation, info = env.reset(seed=0)
    assert info.keys() == INFO | {"frames"}
    for _ in range(3):
        assert observation in env.observation_space
        kinds = {key: type(value) for key, value in info.items()}
        numbers = {key for key, kind in kinds.items() if kind is float}
        assert numbers == INFO - {"sweeps", "converged", "text"}
        assert all(np.isfinite(info[key]) for key in numbers)
        assert (kinds["sweeps"], kinds["converged"], kinds["text"]) == (int, bool, str)
        assert info["frames"].shape == (1, 8, 8, 3)
        assert (info["frames"][-1] == observation).all()
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert (type(reward), type(terminated), type(truncated), type(info)) == (float, bool, bool, dict)
        assert np.isfinite(reward)
        assert info["sweeps"] >= 1


def test_info_leaves_out_what_the_world_cannot_know() -> None:
    lossy = env_world(size=40, codec=CodecConfig("pca", patch=5, components=3, merge=2), outcome=OutcomeConfig())
    _, info = WorldEnv(lossy, reward_fn=one).reset(seed=0)
    assert info.keys() == INFO - {"bits_per_dim", "end_probability"}


def test_bits_per_dim_are_those_of_grey_levels() -> None:
    world = env_world()
    env = WorldEnv(world)
    _, info = env.reset(seed=0)
    # A density that is constant over [-1, 1] has log 1/2 per number; a level is 2 / 255 wide and costs log2(255) bits.
    flat_nats = np.log(0.5)
    constant = info["bits_per_dim"] + info["nats_per_dim"] / np.log(2)
    assert constant - flat_nats / np.log(2) == pytest.approx(np.log2(255), abs=1e-9)
    assert info["nats"] == pytest.approx(info["nats_per_dim"] * 8 * 8 * 3)


def test_a_frame_that_did_not_converge_is_said_to_be_so() -> None:
    env = WorldEnv(env_world().decoded(DecodeConfig(tolerance=1e-6, max_sweeps=1)))
    env.reset(seed=0)
    *_, info = env.step(0)
    assert info["converged"] is False
    assert info["residual"] > 1e-6
    assert info["sweeps"] == 1


def test_what_is_returned_is_copied(env: WorldEnv) -> None:
    starts = env.world.starts.frames.clone()
    kept, env.frames_between = [env.reset(seed=0)[0]], True
    kept[0][:] = 255
    assert torch.equal(env.world.starts.frames, starts), "the start set is the world's own"
    assert (env.render() != 255).any()
    kept = []
    for step in range(30):
        if step % 10 == 9:
            observation, info = env.reset()
        else:
            observation, *_, info = env.step(1)
        expected = env.render()
        kept.append(observation.copy())
        for array in (observation, info["frames"], env.snapshot().frames, env.get_state().tokens, env.render()):
            array[:] = 0
        assert (env.render() == expected).all()
        assert (expected == kept[-1]).all()
    assert len({frame.tobytes() for frame in kept}) == len(kept)
    again = WorldEnv(env.world, max_episode_steps=99)
    again.reset(seed=0)
    assert (again.step(1)[0] == kept[0]).all()


@pytest.mark.parametrize("end", [False, True])
def test_truncated_exactly_at_the_limit_and_terminated_as_told(end: bool) -> None:
    env = WorldEnv(env_world(), max_episode_steps=3, reward_fn=lambda *_: (1.0, end and env.snapshot().steps[0] == 2))
    for _ in range(2):
        env.reset()
        flags = [env.step(0)[2:4] for _ in range(3)]
        assert flags == [(False, False), (False, False), (end, True)]
        with pytest.raises(StateError, match="it has ended"):
            env.step(0)


def test_terminated_comes_from_the_worlds_head() -> None:
    world = env_world()
    bias = world.networks.outcome.read.bias.data
    env, expected = WorldEnv(world, max_episode_steps=99), []
    for shift in (-40.0, 80.0):
        bias[-1] += shift
        env.reset(seed=0)
        *_, terminated, truncated, info = env.step(0)
        assert not truncated
        expected.append((terminated, round(info["end_probability"])))
    assert expected == [(False, 0), (True, 1)]
    env.reset(seed=0)
    reward = env.step(0)[1]
    state = WorldEnv(world)
    state.reset(seed=0)
    assert reward == float(world.step(state.get_state(), [0])[1].reward[0])


# ---- order of calls (E7) ---------------------------------------------------------------------------------------------

CALLS = ("reset", "step", "render", "get_state", "close")
ALLOWED = {
    "fresh": {"reset", "close"},
    "under way": {"reset", "step", "render", "get_state", "close"},
    "refused": {"reset", "step", "render", "get_state", "close"},
    "ended": {"reset", "render", "get_state", "close"},
    "closed": {"reset", "close"},
}


def brought_to(place: str) -> WorldEnv:
    env = WorldEnv(env_world(), render_mode="rgb_array", max_episode_steps=1 if place == "ended" else 9)
    if place != "fresh":
        env.reset(seed=0)
    if place == "ended":
        assert env.step(0)[3]
    if place == "refused":
        with pytest.raises(ActionError):
            env.step("nonsense")
    if place == "closed":
        env.close()
    return env


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ALLOWED)
def test_calls_in_any_order_work_or_say_what_is_missing(place: str, call: str) -> None:
    env = brought_to(place)
    action = (0,) if call == "step" else ()
    if call in ALLOWED[place]:
        getattr(env, call)(*action)
    else:
        with pytest.raises(StateError, match=f"{call}: expected an episode under way.*reset"):
            getattr(env, call)(*action)
    env.reset(seed=1)
    env.step(0)
    env.close()


# ---- refusals (E8, E10, E12, E13, E14) -------------------------------------------------------------------------------

BAD_ACTIONS = {
    "Discrete": [None, "go", -1, 4, 1.0, np.array([1, 2]), [1], {}],
    "Box": [None, "go", np.array([0.0, np.nan], np.float32), np.array([0, 2], np.float32), np.zeros(3, np.float32),
            np.array([0, 2.0]), np.array([0, 1j]), 0.5],
    "MultiDiscrete": [None, "go", np.array([2, 0]), np.array([0, -1]), np.array([0.5, 0.5]), np.array([0, 0, 0]), 1],
    "MultiBinary": [None, "go", np.array([0, 1, 2], np.int8), np.zeros(2, np.int8), 1],
    "Dict": [None, "go", {}, {"go": 1}, {"go": 3, "turn": np.zeros(1, np.float32)}, {"go": 1, "turn": "left"}, 1],
    "Tuple": [None, "go", (), (2, np.zeros(2, np.int8)), (1,), (1, np.zeros(3, np.int8)), 1],
}


@pytest.mark.parametrize("kind", BAD_ACTIONS)
def test_a_bad_action_is_refused_by_name_and_nothing_changes(kind: str) -> None:
    env = WorldEnv(env_world(SPACES[kind]), max_episode_steps=9)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    before, frames = env.get_state().digest(), env.snapshot().frames
    for action in BAD_ACTIONS[kind]:
        with pytest.raises(ActionError, match=f"expected an element of .*{kind}"):
            env.step(action)
        assert env.get_state().digest() == before
        assert (env.snapshot().frames == frames).all()
        assert env.snapshot().steps == 1
    env.step(env.action_space.sample())


def test_an_infinite_action_is_refused() -> None:
    env = WorldEnv(env_world(spaces.Box(-np.inf, np.inf, (2,), np.float32)))
    env.reset(seed=0)
    with pytest.raises(ActionError, match="action: expected"):
        env.step(np.array([np.inf, 0], np.float32))


def raising(*_: object) -> float:
    raise ZeroDivisionError("no reward today")


@pytest.mark.parametrize(
    ("reward_fn", "match"),
    [
        (raising, r"reward_fn raising: .*no reward today"),
        (lambda *_: float("nan"), "reward_fn <lambda>: expected a finite number, found nan"),
        (lambda *_: float("inf"), "finite"),
        (lambda *_: None, "expected a number"),
        (lambda *_: "much", "expected a number"),
        (lambda *_: (1.0, True, 3), "expected a number"),
        (lambda: 1.0, "expected a number"),
    ],
)
def test_a_failing_reward_function_is_named_and_the_step_not_taken(reward_fn: Callable[..., float], match: str) -> None:
    env = WorldEnv(env_world(), reward_fn=one)
    env.reset(seed=0)
    expected = env.step(2)
    env.reset(seed=0)
    env.reward_fn = reward_fn
    before = env.get_state()
    with pytest.raises(DataError, match=match):
        env.step(2)
    assert env.snapshot().steps == 0
    assert torch.equal(env.get_state().tokens, before.tokens)
    env.reward_fn = one
    assert (env.step(2)[0] == expected[0]).all(), "the step can be taken again"
    env.reset(seed=0)
    assert data_equivalence(env.step(2), expected, exact=True)


def test_a_reward_function_is_given_what_happened() -> None:
    seen = []
    env = WorldEnv(env_world(), reward_fn=lambda *given: seen.append(given) or 2)
    first, _ = env.reset(seed=0)
    after, reward, _, _, info = env.step(3)
    assert reward == 2.0
    assert type(reward) is float
    assert data_equivalence(seen[0], (first, 3, after, info), exact=True)
    seen[0][0][:], seen[0][2][:] = 0, 0
    assert (env.snapshot().frames[0] == after).all()


def test_a_world_without_rewards_is_no_env_without_a_reward_function() -> None:
    world = env_world(outcome=OutcomeConfig())
    with pytest.raises(ConfigError, match="predicts no rewards: pass reward_fn"):
        WorldEnv(world)
    env = WorldEnv(world, reward_fn=one)
    env.reset(seed=0)
    assert env.step(0)[1:4] == (1.0, False, False)


CLIP = np.zeros((3, 8, 8, 3), np.uint8)
BAD_OPTIONS = [
    ({"txt": "a"}, ConfigError, "unknown key 'txt'; did you mean 'text'"),
    ({"zzz": 1}, ConfigError, "known keys: text, frames, actions, state"),
    ({"reset_mask": np.array([True])}, ConfigError, "unknown key"),
    (["text"], ConfigError, "expected a dict"),
    ({"text": 3}, DataError, "expected a string"),
    ({"text": "a" * 10_000}, DataError, "shorten"),
    ({"text": "\ud800"}, DataError, "UTF-8"),
    ({"frames": CLIP[:, :4]}, DataError, r"expected uint8 \(8, 8, 3\) or \(T, 8, 8, 3\), found uint8 \(3, 4, 8, 3\)"),
    ({"frames": CLIP.astype(np.float32)}, DataError, "found float32"),
    ({"frames": CLIP[:0]}, DataError, "frames"),
    ({"frames": CLIP[0, 0]}, DataError, "frames"),
    ({"frames": "picture.png"}, DataError, "frames"),
    ({"frames": [[1], [1, 2]]}, DataError, "frames"),
    ({"frames": CLIP, "actions": [None, 1]}, ActionError, "expected a list of 3"),
    ({"frames": CLIP, "actions": 2}, ActionError, "expected a list of 3"),
    ({"frames": CLIP, "actions": [None, 1, 9]}, ActionError, "expected an element of Discrete"),
    ({"actions": [None]}, ConfigError, "frames"),
    ({"state": "yesterday"}, StateError, "state"),
    ({"state": 1, "text": "a"}, ConfigError, "`state` alone"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD_OPTIONS, ids=[repr(one[0])[:50] for one in BAD_OPTIONS])
def test_bad_options_are_refused_and_nothing_changes(env: WorldEnv, options: object, error: type, match: str) -> None:
    env.reset(seed=0)
    env.step(1)
    before, generator = env.get_state().digest(), copy.deepcopy(env.np_random).bit_generator.state
    for seed in (77, None):
        with pytest.raises(error, match=match):
            env.reset(seed=seed, options=options)
        assert env.get_state().digest() == before
        assert env.np_random.bit_generator.state == generator
    assert issubclass(error, StarflowError)
    env.step(1)


def test_states_of_other_worlds_and_widths_are_refused(env: WorldEnv) -> None:
    env.reset(seed=0)
    state = env.get_state()
    other = WorldEnv(tiny_world(), text="a")
    other.reset(seed=0)
    precise = WorldEnv(env_world(dtype=torch.float64))
    precise.reset(seed=0)
    assert precise.world.world_id == env.world.world_id
    empty = env.world.dynamics.empty(["a"], [1])
    for one in (other.get_state(), other.snapshot(), precise.get_state(), state[[0, 0]], empty):
        with pytest.raises(StateError, match="state: expected"):
            env.set_state(one)
        assert env.get_state().digest() == state.digest()


def test_a_text_of_the_start_set_begins_with_a_start_of_that_text(env):
    starts = env.unwrapped.world.starts
    for text in ("b", "e"):
        observation, info = env.reset(seed=1, options={"text": text})
        assert info["text"] == text
        assert info["sweeps"] == 0, "it was given, not imagined"
        assert np.array_equal(observation, starts.frames[starts.texts.index(text)].numpy())
    _, info = env.reset(seed=1, options={"text": "zz"})
    assert info["sweeps"] > 0, "no start has this text: it was imagined"


@pytest.mark.parametrize("text", ["", "héllo", "🙂", "a\0", "\0", "שלום", "</s>", "a" * 7])
def test_any_text_that_fits_is_encoded_as_it_is(env: WorldEnv, text: str) -> None:
    if len(text.encode()) > 7:
        with pytest.raises(DataError, match="at most 7 bytes"):
            env.reset(options={"text": text})
        return
    _, info = env.reset(seed=0, options={"text": text})
    assert info["text"] == text == env.get_state().texts[0]
    assert env.step(0)[4]["text"] == text
    shorter = env.world.encode_text([text[:-1]])
    assert not text or not torch.equal(env.get_state().text, shorter), "no byte is lost"


def test_a_text_for_a_world_without_text_is_refused() -> None:
    world = env_world(**no_text())
    with pytest.raises(DataError, match="takes no text"):
        WorldEnv(world, text="go")
    env = WorldEnv(world)
    assert env.reset(seed=0)[1]["text"] == ""
    with pytest.raises(DataError, match="takes no text"):
        env.reset(options={"text": "go"})


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 15])
def test_starts_of_any_length_are_observed(env: WorldEnv, count: int) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    actions = [None, *[k % 4 for k in range(1, count)]]
    observation, info = env.reset(seed=3, options={"frames": clip, "actions": actions, "text": "go"})
    assert (observation == clip[-1]).all()
    assert info["text"] == "go"
    assert int(env.get_state().step[0]) == count
    assert env.snapshot().steps == 0
    if count == 1:
        image = env.reset(seed=3, options={"frames": torch.from_numpy(clip[0]), "text": "go"})
        assert data_equivalence(image, (observation, info), exact=True)
    env.step(0)
    assert env.snapshot().steps == 1


def test_a_text_alone_imagines_the_first_frame() -> None:
    world = env_world()
    env, told = WorldEnv(world, text="go"), WorldEnv(world)
    mine, other = env.reset(seed=0), told.reset(seed=0, options={"text": "go"})
    assert data_equivalence(mine, other, exact=True)
    assert mine[1]["sweeps"] >= 1
    assert (env.reset(seed=1)[0] != mine[0]).any()
    frame = world.starts.frames[0].numpy()
    observation, info = env.reset(seed=0, options={"frames": frame})
    assert (observation == frame).all()
    assert info["text"] == "go", "the env's text is the prompt of frames that come without one"


def test_a_world_without_a_start_set_says_what_to_give() -> None:
    for starts in (None, Starts(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), ())):
        world = env_world()
        world.starts = starts
        env = WorldEnv(world)
        with pytest.raises(DataError, match="no start set; pass options: text, frames or state"):
            env.reset(seed=0)
        env.reset(seed=0, options={"text": "go"})
        env.step(0)


# ---- states (E12) ----------------------------------------------------------------------------------------------------


def test_a_snapshot_restores_the_episode_to_the_bit(env: WorldEnv) -> None:
    env.max_episode_steps = 9
    first, _ = env.reset(seed=0)
    snapshots, observations = [env.snapshot()], [first]
    for action in range(8):
        observations.append(env.step(action % 4)[0])
        snapshots.append(env.snapshot())
    rest = env.step(0)
    assert rest[3]
    for age, snapshot in enumerate(snapshots):
        digest = snapshot.world.digest()
        observation, info = env.reset(seed=age, options={"state": snapshot})
        assert (observation == observations[age]).all()
        assert info == {"text": snapshot.world.texts[0]}
        for action in range(age, 8):
            env.step(action % 4)
        assert data_equivalence(env.step(0), rest, exact=True), "truncated at the same step, too"
        assert snapshot.world.digest() == digest, "the snapshot itself is not used up"
    env.set_state(snapshots[3])
    assert (env.render() == observations[3]).all()
    ended = env.snapshot()
    assert not ended.ended.any()


def test_a_world_state_begins_a_new_episode_or_goes_back_in_the_present_one(env: WorldEnv) -> None:
    env.reset(seed=0)
    env.step(1)
    state, shown = env.get_state(), env.render()
    assert isinstance(state, WorldState)
    expected = [env.step(2)[0], env.step(3)[0]]
    env.set_state(state)
    assert env.snapshot().steps == 1
    assert [env.step(2)[0].tobytes(), env.step(3)[0].tobytes()] == [one.tobytes() for one in expected]
    observation, _ = env.reset(options={"state": state})
    assert env.snapshot().steps == 0
    difference = np.abs(observation.astype(int) - shown)
    assert np.median(difference) <= 1, "the frame is decoded anew, without the oldest frame that the denoiser saw"
    assert (env.step(2)[0] == expected[0]).all()
    fresh = WorldEnv(env.world)
    fresh.set_state(state)
    assert (fresh.step(2)[0] == expected[0]).all()


ALONE = PUBLISHED | {"flow": replace(PUBLISHED["flow"], denoiser_window=0)}  # type: ignore[type-var]


@pytest.mark.parametrize("changes", [{}, ALONE], ids=["mixtures", "a denoiser of one frame"])
def test_a_frame_decoded_anew_is_the_frame_that_was_shown_where_no_past_is_needed(changes: dict[str, object]) -> None:
    world = env_world(dtype=torch.float64, **changes)
    env = WorldEnv(world, max_episode_steps=99)
    env.reset(seed=0)
    for _ in range(8):
        observation = env.step(1)[0]
        assert (env.reset(options={"state": env.get_state()})[0] == observation).all()


# ---- pickles, specs, names (E11) -------------------------------------------------------------------------------------


def test_an_env_survives_pickling_in_the_middle_of_an_episode(tmp_path: Path) -> None:
    world = env_world()
    folder = save_world(world, tmp_path / "world")
    sizes = []
    for given in (world, folder):
        env = WorldEnv(given, reward_fn=one, max_episode_steps=9)
        env.reset(seed=0)
        env.step(1)
        packed = pickle.dumps(env)
        sizes.append(len(packed))
        for other in (pickle.loads(packed), copy.deepcopy(env)):
            assert data_equivalence(other.step(2), copy.deepcopy(env).step(2), exact=True)
            assert data_equivalence(other.reset(), copy.deepcopy(env).reset(), exact=True)
    assert sizes[1] < sizes[0] / 2, "a world from a folder is loaded again, not packed"


def test_make_and_the_spec_build_equal_envs(tmp_path: Path) -> None:
    folder = save_world(env_world(), tmp_path / "world")
    made = gymnasium.make("StarflowWorld/Custom-v0", path=str(folder), text="go")
    again = gymnasium.make(made.spec)
    also = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(made.spec.to_json()))
    outcomes = []
    for env in (made, again, also):
        env.action_space.seed(0)
        outcomes.append([env.reset(seed=1), env.step(env.action_space.sample())])
    assert data_equivalence(outcomes[0], outcomes[1], exact=True)
    assert data_equivalence(outcomes[0], outcomes[2], exact=True)
    assert outcomes[0][0][1]["text"] == "go"


def test_a_shipped_world_is_limited_once_and_where_make_says(tmp_path: Path) -> None:
    folder = str(save_world(env_world(max_episode_steps=3), tmp_path / "world"))
    entry = "starflow_world.envs.world_env:ShippedWorldEnv"
    gymnasium.register("StarflowTest/Shipped-v0", entry, max_episode_steps=3, kwargs={"world": folder})
    try:
        for limit, count in ((None, 3), (2, 2), (5, 5)):
            made = gymnasium.make("StarflowTest/Shipped-v0", max_episode_steps=limit, reward_fn=one)
            assert made.spec.max_episode_steps == count
            made.reset(seed=0)
            assert [made.step(0)[3] for _ in range(count)] == [False] * (count - 1) + [True]
    finally:
        del gymnasium.registry["StarflowTest/Shipped-v0"]


def test_shipped_worlds_are_registered_under_their_names() -> None:
    names = {"babyai-gotolocal": "BabyAI-GoToLocal", "cartpole-pixels": "CartPolePixels",
             "dynamic-obstacles": "DynamicObstacles", "babyai-firstperson": "BabyAI-FirstPerson",
             "minatar-breakout": "MinAtar-Breakout", "minatar-freeway": "MinAtar-Freeway",
             "minatar-space-invaders": "MinAtar-SpaceInvaders"}
    for folder in worlds.SHIPPED.glob("*/config.json"):
        spec = gymnasium.spec(f"StarflowWorld/{names.get(folder.parent.name, folder.parent.name)}-v0")
        assert spec.entry_point
        assert spec.vector_entry_point
        assert spec.max_episode_steps
    assert gymnasium.spec("StarflowWorld/Custom-v0").vector_entry_point
    for name in starflow_world.__all__:
        assert callable(getattr(starflow_world, name)), name
    with pytest.raises(AttributeError, match="no attribute 'Wordl'"):
        _ = starflow_world.Wordl


def test_an_unknown_world_is_named_with_its_nearest_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "babyai-gotolocal").mkdir()
    monkeypatch.setattr(worlds, "SHIPPED", tmp_path)
    with pytest.raises(CheckpointError, match="did you mean 'babyai-gotolocal'"):
        WorldEnv("babyai-gotolocl")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"render_mode": "ansi"}, "render_mode: expected None or one of human, rgb_array"),
        ({"max_episode_steps": 0}, "max_episode_steps"), ({"max_episode_steps": 2.5}, "max_episode_steps"),
        ({"path": "somewhere"}, "as `world` or as `path`"), ({"world": None}, "as `world` or as `path`"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        WorldEnv(**{"world": env_world()} | arguments)


def test_envs_of_one_world_do_not_share_their_action_spaces() -> None:
    world = env_world()
    a, b = WorldEnv(world), WorldEnv(world)
    a.action_space.seed(0)
    expected = [a.action_space.sample() for _ in range(9)]
    a.action_space.seed(0)
    b.action_space.seed(1)
    assert [a.action_space.sample() for _ in range(9)] == expected


# ---- the window ------------------------------------------------------------------------------------------------------


def test_the_window_shows_every_frame_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setattr(viewer, "LONGEST_SIDE", 16)
    monkeypatch.setitem(WorldEnv.metadata, "render_fps", 1000)
    env = WorldEnv(env_world(), render_mode="human")
    for _ in range(2):  # close, and open again
        observation, _ = env.reset(seed=0)
        for _ in range(2):
            assert env.render() is None
            shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
            assert shown.shape == (16, 16, 3)
            assert (shown[::2, ::2] == observation).all()
            observation = env.step(1)[0]
        pickle.dump(env, io.BytesIO())
        env.close()
        assert not pygame.display.get_init()
        env.close()


def test_without_pygame_the_window_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"starflow-world\[envs\]"):
        WorldEnv(env_world(), render_mode="human")


def test_rendering_without_a_mode_says_so() -> None:
    env = WorldEnv(env_world())
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert env.render() is None
    assert OPTIONS == ("text", "frames", "actions", "state")


def test_an_action_of_another_shape_is_refused_with_the_number_of_rows_that_was_expected() -> None:
    world = env_world()
    frames = world.starts.frames[None, :3]
    for wrong in (torch.zeros(1, 3, 9), torch.tensor([[[float("nan")] * 5] * 3])):
        with pytest.raises(ActionError, match="expected 3 rows of 5 finite numbers"):
            world.log_prob(frames, wrong)
    with pytest.raises(ActionError, match="expected 2 rows of 5 finite numbers"):
        world.step(world.start(text=["a", "b"])[0], torch.zeros(3, 5))
