"""Any environment is collected as it is, or refused with one clear error before anything is written."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import EzPickle
from gymnasium.vector import SyncVectorEnv

from starflow_world.agents import collect as collecting
from starflow_world.agents.babyai.bot import BotPolicy, MixedPolicy, TinkerPolicy
from starflow_world.agents.cartpole import BalancePolicy
from starflow_world.agents.collect import collect, play, reward_kind
from starflow_world.agents.environment import make_env
from starflow_world.agents.policy import Held, NoEnd, Policy, RandomPolicy, policy_record, recipe_of
from starflow_world.agents.registry import POLICIES, default_policy, make_policy
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode
from starflow_world.errors import ActionError, ConfigError, DataError

ROOM = "BabyAI-GoToLocalS8N4-v0"
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


class Plain(gymnasium.Env):
    """An env of five steps that draws into one buffer, as many simulators do."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space: Any = gymnasium.spaces.Box(0, 1, (1,))
    action_space: Any = gymnasium.spaces.Discrete(4)
    reward, last = 0.0, 5

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.screen, self.t = render_mode, np.zeros((64, 64, 3), np.uint8), 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.zeros(1, np.float32), self.reward, self.t == self.last, False, {}

    def render(self) -> Any:
        self.screen[:] = 40 * self.t % 256
        return self.screen


@pytest.fixture
def gather(tmp_path: Path) -> Any:
    """Collect a few episodes of an env class."""
    registered = []

    def run(kind: type[gymnasium.Env], **options: Any) -> list[Episode]:
        name = f"Case{len(registered)}-v0"
        registered.append(name)
        gymnasium.register(name, entry_point=kind)
        settings = {"episodes": 1, "policy": RandomPolicy(), "seed": 0, "progress": False, "frame_size": 64} | options
        out = settings.pop("out", tmp_path / name)
        return list(EpisodeDataset(collect(name, out, **settings)))

    yield run
    for name in registered:
        del gymnasium.registry[name]


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 32])
def test_frames_are_copied_where_they_are_kept(gather: Any, size: int) -> None:
    (episode,) = gather(Plain, frame_size=size)
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]


GREY = np.repeat(PICTURE[..., :1], 3, axis=2)
FORMATS = {
    "rgb": (PICTURE, PICTURE), "rgba": (np.dstack((PICTURE, PICTURE[..., 0])), PICTURE),
    "grey": (PICTURE[..., 0], GREY), "one channel": (PICTURE[..., :1], GREY),
    "channels first": (PICTURE.transpose(2, 0, 1), PICTURE), "grey channels first": (PICTURE[None, ..., 0], GREY),
    "integers": (PICTURE.astype(np.int64), PICTURE), "floats": (PICTURE.astype(np.float32) / 255, PICTURE),
    "bools": (PICTURE > 100, 255 * (PICTURE > 100)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_frames_that_envs_render_is_taken(gather: Any, name: str) -> None:
    given, expected = FORMATS[name]
    (episode,) = gather(type("Drawn", (Plain,), {"render": lambda self: given}))
    np.testing.assert_array_equal(episode.frames[2], expected)


@pytest.mark.parametrize("given", [None, [], [PICTURE], "frame", PICTURE[..., :2], PICTURE[:0],
                                   PICTURE.astype(np.float32), np.full((64, 64, 3), np.nan), PICTURE.astype(int) - 9,
                                   PICTURE.astype(object), PICTURE[None]])
def test_a_frame_that_no_episode_can_hold_is_refused_before_anything_is_written(
    gather: Any, tmp_path: Path, given: Any
) -> None:
    with pytest.raises(DataError, match=r"frame: expected .* found .*rgb_array") as caught:
        gather(type("Drawn", (Plain,), {"render": lambda self: given}), out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_frames_may_be_oblong(gather: Any, tmp_path: Path) -> None:
    (episode,) = gather(type("Drawn", (Plain,), {"render": lambda self: PICTURE[:40]}), frame_size=(20, 32))
    assert episode.frames.shape[1:] == (20, 32, 3)
    record = json.loads(next(tmp_path.glob("*/collection.json")).read_text())
    assert record["recipe"]["frame_size"] == [20, 32]


def test_an_env_that_changes_its_frame_size_is_one_clear_error(gather: Any) -> None:
    with pytest.raises(DataError, match=r"expected frames of one size, found \(64, 64, 3\) and then \(62, 64, 3\)"):
        gather(type("Drawn", (Plain,), {"render": lambda self: PICTURE[2 * (self.t > 2):]}))


# ---- environments that cannot be played ------------------------------------------------------------------------------


def test_an_unknown_environment_claims_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'BabyAI-GoToLocalS8N4-v0'"):
        collect("BabyAI-GoToLoclS8N4-v0", tmp_path / "out", episodes=1, policy=RandomPolicy(), seed=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("space", [gymnasium.spaces.Dict({}), gymnasium.spaces.Tuple(()),
                                   gymnasium.spaces.Box(0, 1, (0,))])
def test_an_empty_action_space_is_refused(gather: Any, space: gymnasium.Space) -> None:
    with pytest.raises(ActionError, match="action space: expected at least one number"):
        gather(type("Idle", (Plain,), {"action_space": space}))


def test_a_vector_env_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected a single gymnasium\.Env, found SyncVectorEnv"):
        play(SyncVectorEnv([Plain] * 2), RandomPolicy(), seed=0, index=0)  # type: ignore[arg-type]


def test_an_episode_without_end_or_limit_is_refused_and_a_limit_helps(
    gather: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "MOST_STEPS", 20)
    endless = type("Endless", (Plain,), {"last": -1})
    with pytest.raises(DataError, match=r"at most 20 steps without a time limit.*--max-steps"):
        gather(endless)
    assert len(gather(endless, max_steps=30)[0]) == 31


@pytest.mark.parametrize("attributes", [
    {"mission": None}, {"mission": 7}, {"mission": "Apollo"}, {"carrying": 2}, {"carrying": None},
    {"front_pos": (0, 0)}, {"tile_size": 3, "highlight": True}, {"instrs": 1},
])
def test_only_a_minigrid_is_asked_the_questions_of_minigrid(gather: Any, attributes: dict[str, Any]) -> None:
    (episode,) = gather(type("Other", (Plain,), attributes))
    assert (episode.text, "carrying" in episode.info) == ("", False)


def test_a_text_is_taken_where_gymnasium_has_a_place_for_it_if_it_is_one(gather: Any) -> None:
    def says(observation: Any, info: dict) -> type:
        return type("Says", (Plain,), {"reset": lambda self, **_: Plain.reset(self) and (observation, info)})

    assert gather(says({"mission": "go"}, {}))[0].text == gather(says(0, {"text": "go"}))[0].text == "go"
    assert gather(says({"mission": None}, {"text": None}))[0].text == gather(says(0, {"text": 3}))[0].text == ""


# ---- no end ----------------------------------------------------------------------------------------------------------


class Bomb(Plain, EzPickle):
    """A copy of it is a new env, as of every MuJoCo, Box2D and Atari env, and a new one is not armed."""

    def __init__(self, render_mode: str | None = None) -> None:
        EzPickle.__init__(self, render_mode)
        Plain.__init__(self, render_mode)
        self.armed = False

    def reset(self, **options: Any) -> tuple[np.ndarray, dict]:
        self.armed = True
        return super().reset(**options)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), 0.0, bool(self.armed and action == 3), False, {}


def quiet(self: Any, **options: Any) -> tuple[np.ndarray, dict]:
    """A reset that does not seed the generator of Gymnasium."""
    self.armed = True
    return np.zeros(1, np.float32), {}


def bare(self: Any, action: Any) -> Any:
    """A step that fails in an env that was not reset."""
    assert self.armed
    return Bomb.step(self, action)


BLACK = {"render": lambda self: np.zeros((64, 64, 3), np.uint8)}
NO_COPIES = {
    "fresh": BLACK, "fresh, generator of its own": {"reset": quiet, **BLACK},
    "fails unless reset": {"step": bare, **BLACK}, "refuses": {"__deepcopy__": lambda self, memo: {}["no"], **BLACK},
    "looks different": {"__deepcopy__": lambda self, memo: Sane(), "reset": quiet,
                        "render": lambda self: np.full((64, 64, 3), 9 * self.armed, np.uint8)},
}


class Sane(Bomb):
    """Its copies are as they should be."""

    def __deepcopy__(self, memo: dict) -> "Sane":
        other = type(self)()
        other.__dict__.update(self.__dict__)
        return other


@pytest.mark.parametrize("name", NO_COPIES)
def test_no_end_is_refused_where_copies_do_not_go_on_as_the_env_does(gather: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"can be copied.*--no-end") as caught:
        gather(type("Case", (Bomb,), NO_COPIES[name]), ends=False, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_end_works_where_copies_go_on_as_the_env_does(gather: Any) -> None:
    episodes = gather(Sane, ends=False, episodes=5, max_steps=30)
    assert [(len(episode), bool(episode.terminated[-1])) for episode in episodes] == [(31, False)] * 5


# ---- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env", "policy"), [
    ("CartPole-v1", BotPolicy()), ("CartPole-v1", MixedPolicy()), ("CartPole-v1", TinkerPolicy()),
    ("CartPole-v1", BalancePolicy()), (ROOM, BalancePolicy()), ("MiniGrid-Empty-5x5-v0", BotPolicy()),
    ("CartPole-v1", Held(BotPolicy(), 2)), ("CartPole-v1", NoEnd(TinkerPolicy())), (ROOM, RandomPolicy((1.0, 2.0))),
])
def test_a_policy_made_for_another_environment_is_refused_before_anything_is_written(
    tmp_path: Path, env: str, policy: Policy
) -> None:
    with pytest.raises((ConfigError, ActionError), match="expected"):
        collect(env, tmp_path / "out", episodes=1, policy=policy, seed=0, progress=False)
    assert not (tmp_path / "out").exists()
    made = make_env(env)
    made.reset(seed=0)
    with pytest.raises((ConfigError, ActionError), match="expected"):
        play(made, policy, seed=0, index=0)


@pytest.mark.parametrize(("env", "kind"), [
    (ROOM, MixedPolicy), ("MiniGrid-Empty-5x5-v0", TinkerPolicy), ("CartPolePixels-v0", BalancePolicy),
    ("CartPole-v1", RandomPolicy), ("Pendulum-v1", RandomPolicy),
])
def test_the_default_policy_is_one_that_fits(env: str, kind: type) -> None:
    assert type(default_policy(make_env(env))) is kind


def test_the_default_policy_is_recorded_by_what_it_plays(gather: Any, tmp_path: Path) -> None:
    (episode,) = gather(Plain, policy=None)
    assert episode.info["policy"] == "random"
    record = json.loads(next(tmp_path.glob("*/collection.json")).read_text())
    assert record["recipe"]["policy"] == {"type": "RandomPolicy", "weights": None, "name": "random"}


def test_a_collection_of_an_older_version_is_continued_and_another_is_refused(tmp_path: Path) -> None:
    def more(count: int, policy: Policy) -> Path:
        return collect(ROOM, tmp_path, episodes=count, policy=policy, seed=5, max_steps=6, progress=False)

    record = json.loads((more(1, MixedPolicy()) / "collection.json").read_text())
    old = {"env": ROOM, "env_kwargs": {}, "seed": 5, "max_steps": 6, "reward": "event", "frame_size": 64}
    old["policy"] = ("MixedPolicy(noise=0.08, random=0.15, tinker=0.3, careful=0.6, "
                     "weights=(2.0, 2.0, 4.0, 0.6, 0.6, 0.5, 0.1))")
    (tmp_path / "collection.json").write_text(json.dumps(record | {"recipe": old}))
    more(2, MixedPolicy())
    assert json.loads((tmp_path / "collection.json").read_text())["recipe"] == old
    with pytest.raises(DataError, match="new folder"):
        more(2, MixedPolicy(noise=0.1))


def test_fewer_episodes_do_not_shrink_the_record(tmp_path: Path) -> None:
    for count in (3, 1):
        collect(ROOM, tmp_path, episodes=count, policy=RandomPolicy(), seed=5, max_steps=3, progress=False)
        assert json.loads((tmp_path / "collection.json").read_text())["episodes"] == 3


def test_environment_settings_are_recorded_and_part_of_the_recipe(tmp_path: Path) -> None:
    def run(**options: Any) -> dict[str, Any]:
        out = collect("CartPole-v1", tmp_path, episodes=1, seed=0, max_steps=3, progress=False, **options)
        return dict(json.loads((out / "collection.json").read_text())["recipe"])

    sticky = [["gymnasium.wrappers.StickyAction", {"repeat_action_probability": 0.5}]]
    recipe = run(env_kwargs={"sutton_barto_reward": True}, wrappers=sticky)
    assert (recipe["env_kwargs"], recipe["wrappers"]) == ({"sutton_barto_reward": True}, sticky)
    with pytest.raises(DataError, match="new folder"):
        run()


def test_a_recipe_says_settings_as_json_and_nested_policies_in_full() -> None:
    held = recipe_of(Held(NoEnd(RandomPolicy((1.0, 2.0))), 3))
    inner = {"type": "RandomPolicy", "weights": [1.0, 2.0], "name": "random"}
    assert held == json.loads(json.dumps(held)) == {"type": "Held", "policy": {"type": "NoEnd", "policy": inner},
                                                    "steps": 3}
    assert policy_record(RandomPolicy(), repr(RandomPolicy())) == repr(RandomPolicy())
    assert policy_record(RandomPolicy(), "BotPolicy(name='bot')") == recipe_of(RandomPolicy())


def test_a_policy_need_not_be_derived_from_policy(gather: Any) -> None:
    class Own:
        name = "own"

        def reset(self, seed: int, env: gymnasium.Env) -> None:
            pass

        def __call__(self, observation: Any) -> int:
            return 2

    assert gather(Plain, policy=Own())[0].actions[1:].argmax(1).tolist() == [2] * 5
    assert recipe_of(Own()) == {"type": "Own", "name": "own"}


def test_every_policy_has_a_name_it_is_made_by() -> None:
    assert {name: type(make_policy(name)) for name in POLICIES} == POLICIES
    with pytest.raises(ConfigError, match=r"expected one of random, .* found 'expert'"):
        make_policy("expert")


OWN_POLICIES = """
from dataclasses import dataclass
from starflow_world.agents.policy import Policy

@dataclass
class Always(Policy):
    action: int = 2
    name: str = "always"
    def reset(self, seed, env): pass
    def __call__(self, observation): return self.action

class Needing:
    def __init__(self, size): pass

class Nothing:
    name = "nothing"
"""


def test_a_policy_of_ones_own_is_named_by_its_module_and_class(
    gather: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_policies.py").write_text(OWN_POLICIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = make_policy("own_policies:Always")
    assert recipe_of(policy) == {"type": "Always", "action": 2, "name": "always"}
    assert gather(Plain, policy=policy)[0].actions[1:].argmax(1).tolist() == [2] * 5
    for name, said in (
        ("own_policies:Needing", "without arguments, .* found 'own_policies:Needing' .TypeError"),
        ("own_policies:Other", "AttributeError"), ("no_such_module:Always", "ModuleNotFoundError"), (":", "ValueError"),
        ("own_policies:Nothing", "found 'own_policies:Nothing' without reset, __call__"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_policy(name)


# ---- rewards ---------------------------------------------------------------------------------------------------------


def pays(values: Callable[[int], float]) -> type[gymnasium.Env]:
    """An env that pays this at step t."""
    return type("Pays", (Plain,), {"reward": property(lambda self: values(self.t))})


@pytest.mark.parametrize(("values", "kind"), [
    (lambda t: float(t == 3), "event"), (lambda t: 5.0 * (t == 3), "event"), (lambda t: 1.0, "event"),
    (lambda t: -20.0, "raw"), (lambda t: float(t), "raw"), (lambda t: 0.0, "raw"), (lambda t: (-1.0) ** t, "raw"),
])
def test_rewards_are_an_event_only_where_one_positive_value_is_paid(
    gather: Any, tmp_path: Path, values: Callable[[int], float], kind: str
) -> None:
    (episode,) = gather(pays(values))
    record = json.loads(next(tmp_path.glob("*/collection.json")).read_text())
    assert record["recipe"]["reward"] == kind
    paid = [values(t) for t in range(1, 6)]
    assert episode.rewards[1:].tolist() == (paid if kind == "raw" else [float(gain > 0) for gain in paid])


def test_rewards_of_a_minigrid_are_an_event_and_a_collection_keeps_the_kind_it_has(tmp_path: Path) -> None:
    assert reward_kind(make_env(ROOM)) == "event"
    for options in ({"reward": "raw"}, {}):
        collect(ROOM, tmp_path, episodes=1, policy=RandomPolicy(), seed=5, max_steps=3, progress=False, **options)
        assert json.loads((tmp_path / "collection.json").read_text())["recipe"]["reward"] == "raw"


def test_negative_rewards_stored_as_events_are_said_once_with_their_range(gather: Any) -> None:
    with pytest.warns(UserWarning, match=r"stores 0 for negative rewards.*from -2 to 4; raw keeps them") as said:
        gather(pays(lambda t: 4.0 if t == 2 else -2.0), reward="event", episodes=3)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gather(pays(lambda t: -2.0), reward="raw")
        gather(pays(lambda t: float(t)), reward="event")
