"""What a world was learned from stands in its card, and the real environment is made from there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

from starflow_world.agents.environment import WRAPPERS, Environment, make_env, source_environment
from starflow_world.errors import ConfigError
from starflow_world.world import World, find_world


def learned(**card: Any) -> Any:
    """A stand-in for a world with this card."""
    return SimpleNamespace(card=card, config=SimpleNamespace(name="toy", height=48, width=32))


@pytest.mark.parametrize(("name", "env"), [("babyai-gotolocal", "BabyAI-GoToLocalS8N4-v0"),
                                           ("cartpole-pixels", "CartPolePixels-v0")])
def test_the_card_of_a_shipped_world_names_its_environment(name: str, env: str) -> None:
    card = json.loads((find_world(name) / "card.json").read_text(encoding="utf-8"))
    found = source_environment(learned(**card))
    assert (found.env, found.size, found.max_steps, found.reward) == (env, (64, 64), 64, "event")
    made = found.make()
    made.reset(seed=0)
    assert made.render().shape == (64, 64, 3)


def test_a_loaded_world_has_its_card_and_a_world_without_one_an_empty_one(saved: Path, tmp_path: Path) -> None:
    saved = Path(shutil.copytree(saved, tmp_path / "world"))
    (saved / "card.json").write_text('{"env": "CartPole-v1"}', encoding="utf-8")
    world = World.load(saved, device="cpu")
    assert world.card == world.decoded(world.config.decode).card == {"env": "CartPole-v1"}
    (saved / "card.json").unlink()
    assert World.load(saved, device="cpu").card == {} == World(world.networks).card


def test_a_world_whose_card_names_no_environment_says_so_and_takes_a_name() -> None:
    with pytest.raises(ConfigError, match=r"world toy names no environment in its card \(key `env`"):
        source_environment(learned(steps=3))
    assert source_environment(learned(), "CartPole-v1") == Environment("CartPole-v1", frame_size=(48, 32))
    both = learned(env="CartPole-v1", env_kwargs={"sutton_barto_reward": True})
    assert source_environment(both, "CartPole-v1").env_kwargs == {"sutton_barto_reward": True}
    assert source_environment(both, "Acrobot-v1").env_kwargs == {}


def test_an_environment_survives_its_card() -> None:
    wrappers = ("gymnasium.wrappers.ClipAction", ("gymnasium.wrappers.StickyAction", {"repeat_action_probability": 0}))
    given = Environment("CartPole-v1", {"sutton_barto_reward": True}, wrappers, (40, 60), 7, "raw")
    card = json.loads(json.dumps(given.to_dict()))
    assert source_environment(learned(**card)).to_dict() == given.to_dict() == card
    assert Environment("a", frame_size=(32, 32)).frame_size == 32


def test_wrappers_are_applied_in_their_order_and_the_limit_counts_their_steps() -> None:
    skip = ("gymnasium.wrappers.RepeatAction", {"num_repeats": 2})
    env = Environment("Pendulum-v1", wrappers=("gymnasium.wrappers.ClipAction", skip), max_steps=3).make()
    names = [type(layer).__name__ for layer in layers(env)]
    assert names[:3] == ["TimeLimit", "RepeatAction", "ClipAction"]
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]


def layers(env: gymnasium.Env) -> list[gymnasium.Env]:
    return [env, *(layers(env.env) if isinstance(env, gymnasium.Wrapper) else [])]


def test_every_listed_wrapper_is_one_of_gymnasium() -> None:
    assert set(WRAPPERS) <= set(gymnasium.wrappers.__all__)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"wrappers": ("gymnasium.wrappers.ClipActoin",)}, "did you mean gymnasium.wrappers.ClipAction?"),
    ({"wrappers": ("os.system",)}, "known are gymnasium.wrappers."),
    ({"wrappers": (("gymnasium.wrappers.TimeLimit", {"steps": 3}),)}, "expected arguments of"),
    ({"wrappers": (("gymnasium.wrappers.TimeLimit", 3),)}, "a pair of name and arguments, found ('gymnasium.wrap"),
    ({"wrappers": (5,)}, "found 5; known are"),
    ({"wrappers": ("gymnasium.wrappers.RecordVideo",)}, "did you mean gymnasium.wrappers."),
    ({"wrappers": ("gymnasium.wrappers.AtariPreprocessing",)}, "expected arguments of gymnasium.wrappers.Atari"),
    ({"env_kwargs": {"sutton": 1}}, "'sutton'"),
    ({"env": "CartPol-v1"}, "did you mean 'CartPole-v1'?"),
    ({"env": "BabyAI-GoToLocl-v0"}, "did you mean 'BabyAI-GoToLocal-v0'?"),
    ({"env": "nowhere:Mine-v0"}, "module:Id"),
])
def test_an_environment_that_cannot_be_made_is_one_line_with_the_nearest_name(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(Environment("CartPole-v1"), **wrong).make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [
    {"env": ""}, {"frame_size": 0}, {"frame_size": (3, 4, 5)}, {"frame_size": (64, 0)}, {"frame_size": "64"},
    {"max_steps": 0}, {"max_steps": 2.5}, {"reward": "shaped"}, {"env_kwargs": {"f": print}}, {"env_kwargs": {3: 4}},
])
def test_settings_of_an_environment_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        replace(Environment("CartPole-v1"), **wrong)


def test_an_id_with_its_module_is_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
    text += "gymnasium.register('Own-v0', entry_point=CartPoleEnv)\n"
    (tmp_path / "own_environments.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_environments", raising=False)
    try:
        assert make_env("own_environments:Own-v0", max_steps=5).spec.max_episode_steps == 5
    finally:
        gymnasium.registry.pop("Own-v0", None)


def test_a_process_that_has_drawn_an_environment_still_ends_on_sigterm() -> None:
    """SDL, by which pygame draws, would take the signal for a closed window that nobody looks at."""
    code = """
import os, signal
from starflow_world.agents.environment import make_env
env = make_env("CartPole-v1")
env.reset(), env.render(), print("drawn", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""
    free = {key: value for key, value in os.environ.items() if key != "SDL_NO_SIGNAL_HANDLERS"}
    ended = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGTERM, ended.stderr
    assert "drawn" in ended.stdout
