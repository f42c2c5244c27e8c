"""A stream of steps is the world's own, in files that continue each other, whatever interrupts it."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from starflow_world.agents import long_rollout as module
from starflow_world.agents.long_rollout import long_rollout, speed_figures, stream_files
from starflow_world.agents.policy import RandomPolicy
from starflow_world.agents.stream_env import StreamEnv, listed_actions
from starflow_world.cli import main
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, write_episode
from starflow_world.envs.world_env import WorldEnv
from starflow_world.errors import ActionError, ConfigError, DataError, StarflowError
from starflow_world.io.media import read_video
from starflow_world.world import World
from tests.io.test_files import forked
from tests.ray_work import contents
from tests.worlds import env_world

pytestmark = pytest.mark.usefixtures("one_thread")
END = 3
"""The action that ends an episode in the worlds of `ending`."""


@pytest.fixture(autouse=True)
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_STEPS", 7)


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let episodes end by the action END, or by every action."""
    original = StreamEnv._step_rows

    def install(always: bool) -> None:
        def step(self: StreamEnv, actions: list[Any]) -> Any:
            found = original(self, actions)
            ended = np.array([always or actions[0] == END])
            return replace(found, terminated=ended, after=replace(found.after, ended=ended | found.truncated))

        monkeypatch.setattr(StreamEnv, "_step_rows", step)

    return install


def imagine(world: Path, out: Path, **options: Any) -> list[Episode]:
    long_rollout(world, out, **({"steps": 30, "seed": 4, "progress": False} | options))
    return list(stream_files(out))


def same_bytes(a: Path, b: Path) -> None:
    one, other = contents(a), contents(b)
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {"speed.jsonl"}


def test_the_files_continue_each_other_and_are_what_the_env_shows(saved: Path, tmp_path: Path) -> None:
    files = imagine(saved, tmp_path)
    assert [len(file) - 1 for file in files] == [7, 7, 7, 7, 2]
    env = WorldEnv(World.load(saved, device="cpu"), max_episode_steps=1000)
    observation, info = env.reset(seed=files[0].info["env_seed"])
    for index, file in enumerate(files):
        assert (file.info["first_step"], file.info["since_start"], file.text) == (7 * index, 7 * index, info["text"])
        np.testing.assert_array_equal(observation, file.frames[0])
        assert not file.actions[0].any()
        for t in range(1, len(file)):
            observation, reward, *_, info = env.step(int(file.actions[t].argmax()))
            np.testing.assert_array_equal(observation, file.frames[t])
            assert (np.float32(reward), info["nats"]) == (file.rewards[t], file.info["nats"][t])
        assert (file.terminated[-1], file.truncated[-1]) == (False, True)
    for before, after in itertools.pairwise(files):
        assert all(before.info[name][-1] == after.info[name][0] for name in module.MEASURED)
    assert len(EpisodeDataset(tmp_path)) == 5


def test_a_stream_that_is_killed_goes_on_to_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    imagine(saved, tmp_path / "a", video=True)
    step, save = StreamEnv.step, module.write_episode

    def killed(call: str, at: int) -> None:
        calls = itertools.count(1)

        def deadly(*args: Any) -> Any:
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return (step if call == "step" else save)(*args)

        setattr(*((StreamEnv, "step") if call == "step" else (module, "write_episode")), deadly)
        imagine(saved, tmp_path / "b", video=True)

    for call, at in (("step", 1), ("step", 17), ("write_episode", 1), ("step", 9)):
        assert forked(lambda call=call, at=at: killed(call, at)) == -signal.SIGKILL
    assert 0 < len(list(stream_files(tmp_path / "b"))) < 5
    imagine(saved, tmp_path / "b", video=True)
    same_bytes(tmp_path / "a", tmp_path / "b")
    assert len(list(read_video(tmp_path / "b" / "rollout.mp4", 100))) == 31
    imagine(saved, tmp_path / "b", video=True)  # nothing is left to do
    same_bytes(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match="new folder"):
        imagine(saved, tmp_path / "b", steps=31)


def test_an_end_is_followed_by_a_new_start_from_the_set(
    saved: Path, tmp_path: Path, ending: Callable[[bool], None]
) -> None:
    ending(False)
    files = imagine(saved, tmp_path, video=True)
    starts = World.load(saved).starts
    assert starts is not None
    assert sum(len(file) - 1 for file in files) == 30
    for before, after in itertools.pairwise(files):
        assert before.terminated[-1] == (before.actions[-1].argmax() == END) == (after.info["since_start"] == 0)
        assert after.info["first_step"] == before.info["first_step"] + len(before) - 1
    fresh = [file for file in files if not file.info["since_start"]]
    assert len(fresh) > 2
    assert all((starts.frames.numpy() == file.frames[0]).all((1, 2, 3)).any() for file in fresh)
    assert len(list(read_video(tmp_path / "rollout.mp4", 100))) == 30 + len(fresh)


def test_without_ends_the_actions_that_would_end_are_drawn_again_and_else_ends_are_ignored(
    saved: Path, tmp_path: Path, ending: Callable[[bool], None]
) -> None:
    ending(False)
    files = imagine(saved, tmp_path / "a", steps=16, ends=False)
    assert not any((file.actions[:, END] == 1).any() or file.terminated.any() for file in files)
    assert [file.info["since_start"] for file in files] == [0, 7, 14]
    ending(True)
    assert not any(file.terminated.any() for file in imagine(saved, tmp_path / "b", steps=4, ends=False))


def test_a_time_limit_begins_a_new_start_also_where_files_are_shorter(saved: Path, tmp_path: Path) -> None:
    files = imagine(saved, tmp_path, max_steps=10)
    assert [len(file) - 1 for file in files] == [7, 3] * 3
    assert [file.info["goes_on"] for file in files] == [True, False] * 3


def test_the_prompt_changes_at_its_step_as_in_the_world_itself(saved: Path, tmp_path: Path) -> None:
    files = imagine(saved, tmp_path, steps=12, prompts=((0, "a"), (5, "d")))
    assert [(file.text, len(file) - 1) for file in files] == [("a", 5), ("d", 7)]
    world = World.load(saved, device="cpu")
    env = WorldEnv(world)
    env.reset(seed=files[0].info["env_seed"], options={"text": "a"})
    for file in files:
        if file.text == "d":
            env.set_state(replace(env.snapshot(), world=world.with_text(env.get_state(), "d")))
        for t in range(1, len(file)):
            np.testing.assert_array_equal(env.step(int(file.actions[t].argmax()))[0], file.frames[t])


def test_given_actions_are_played_from_a_list_or_an_episode(saved: Path, tmp_path: Path) -> None:
    actions = [int(action) for action in np.random.default_rng(0).integers(0, 4, 16)]
    (tmp_path / "actions.json").write_text(json.dumps(actions))
    files = imagine(saved, tmp_path / "a", steps=0, actions=tmp_path / "actions.json")
    assert [int(row.argmax()) for file in files for row in file.actions[1:]] == actions
    long_rollout(saved, tmp_path / "b", steps=7, seed=4, actions=tmp_path / "actions.json", progress=False)
    again = imagine(saved, tmp_path / "c", steps=0, actions=tmp_path / "b" / "episode-000000.h5")
    np.testing.assert_array_equal(again[0].frames, files[0].frames)
    box = env_world(spaces.Box(-1, 1, (2,)))
    (tmp_path / "box.json").write_text("[[0.5, -1], [1, 1]]")
    assert len(listed_actions(tmp_path / "box.json", box).actions) == 2
    write_episode(tmp_path / "other" / "episode-000000.h5", files[0])
    with pytest.raises(DataError, match="expected actions of"):
        listed_actions(tmp_path / "other" / "episode-000000.h5", box)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"steps": 0}, ConfigError, "expected steps >= 1"),
    ({"seed": -1}, ConfigError, "a seed >= 0"),
    ({"max_steps": 0}, ConfigError, "a time limit >= 1"),
    ({"prompts": ((0, "a"), (30, "b"))}, ConfigError, r"text: expected steps that rise from 0, below 30"),
    ({"actions": "[]"}, ActionError, "expected a JSON list of one action or more"),
    ({"actions": "{"}, ActionError, "expected a JSON list of actions, or an episode"),
    ({"actions": "[1, 9]"}, ActionError, "action"),
    ({"actions": "[1, 2]"}, ConfigError, "steps: expected at most 2, as there are actions, found 30"),
    ({"actions": "[1, 2]", "policy": RandomPolicy()}, ConfigError, "a policy or actions, found both"),
])
def test_what_cannot_be_imagined_is_refused_before_anything_is_written(
    saved: Path, tmp_path: Path, options: dict[str, Any], error: type[StarflowError], message: str
) -> None:
    if "actions" in options:
        (tmp_path / "given.json").write_text(options["actions"])
        options = options | {"actions": tmp_path / "given.json"}
    with pytest.raises(error, match=message):
        imagine(saved, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_files_of_large_frames_are_shorter_so_that_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 3 * 8 * 8 * 5)
    env = StreamEnv(env_world(), render_mode="rgb_array")
    assert module.Stream(env, RandomPolicy(), Path(), 30, 0, None, True).limit == 5


def test_speed_and_memory_are_those_of_the_lines_that_were_written(tmp_path: Path) -> None:
    facts = ((500, 500, 5.0, 90.0), (1000, 500, 5.0, 100.0), (1600, 600, 6.0, 101.0), (2100, 500, 10.0, 101.5))
    lines = [{"end": end, "steps": steps, "seconds": seconds, "resident_mb": memory, "own_steps": end}
             for end, steps, seconds, memory in facts]
    (tmp_path / "speed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    figures = speed_figures(tmp_path)
    assert figures["steps_per_second_first"] == 100
    assert figures["steps_per_second_last"] == 1100 / 16
    assert figures["growth_mb"] == 1.5


def test_the_command_writes_the_stream_its_video_and_its_drift(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rollout", "--world", str(saved), "--steps", "20", "--out", str(tmp_path / "out"), "--video", "--no-end"]
    main([*words, "--text", "0: a 9: c"])
    figures = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert (figures["steps"], figures["starts"], figures["horizons"][0]["to"]) == (20, 1, 20)
    assert (tmp_path / "out" / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(read_video(tmp_path / "out" / "rollout.mp4", 100))) == 21
    assert "no blank, saturated or frozen frame" in capsys.readouterr().out
    for more in (["--actors", "1"], ["--gpus-per-actor", "1"], ["--steps", "0"]):
        with pytest.raises(SystemExit):
            main([*words, *more])
    assert "expected them with --steps" in capsys.readouterr().err
