"""Every command line of README.md and docs/ is read by the program, and all that need no published weights run.

Runs are small: SMALL replaces numbers that cost time, and nothing else of a line is changed.
"""

import re
import shlex
from pathlib import Path

import pytest

from starflow_world import collect
from starflow_world.cli import main, settings_class
from tests import written_recordings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("starflow-world ", "PYTHONPATH=. starflow-world ", "torchrun ")

TINY = [
    "world.flow.deep_width=32", "world.flow.deep_layers=1", "world.flow.components=4", "world.flow.head_inner=16",
    "world.flow.features_width=8", "world.flow.features_layers=1", "world.window=8", "world.context=2",
    "train.steps=2", "train.frames=16", "train.lengths=[4]", "train.starts=2", "train.warmup=2",
]
SMALL = {
    "anomaly-bench": {"--episodes": "4", "--seeds": "1", "--predictor-steps": "2"},
    "bench": {"--envs": "1", "--repeats": "1", "--steps": "20"},
    "calibrate": {"--false-alarms": "0.2"},
    "collect": {"--episodes": "6", "--actors": "0"},
    "evaluate": {"--episodes": "2", "--draws": "20", "--rollouts": "4"},
    "planner": {"--episodes": "1", "--branches": "8", "--budget": "32", "--horizon": "2", "--rounds": "1"},
    "rank": {"--episodes": "1"},
    "rollout": {"--episodes": "1", "--steps": "4", "--actors": "0", "--gpus-per-actor": "0", "--max-steps": "3"},
    "score": {"--actors": "0"},
    "train-agent": {"--steps": "256", "--dream-steps": "512", "--envs": "8", "--seeds": "1", "--starts": "3",
                    "--episodes": "1", "--chunk": "256", "--collected": "2", "--world-steps": "2",
                    "--overtime": "1"},
}
ENDLESS = ("play",)  # verbs that serve until they are stopped: tests/play
ORDER = ("data", "new", "collect", "rollout", "train", "calibrate", "train-agent")  # what other lines read
MODULE = """
import gymnasium
from starflow_world.agents.policy import RandomPolicy
gymnasium.register("MyGame-v0", "gymnasium.envs.classic_control:AcrobotEnv", max_episode_steps=10)
class Swinger(RandomPolicy): ...
"""


def command_lines() -> list[str]:
    """The command lines of all pages, without comments, prompts and optional words."""
    lines = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if line.strip().startswith(STARTS) and "..." not in line:
                line = re.sub(r"\[(--[\w-]+)\]", r"\1", line)
                lines.append(re.sub(r"\s+# .*", "", line).strip())
    return list(dict.fromkeys(lines))


def words_of(line: str) -> list[str]:
    """What the program gets: the verb and what follows."""
    words = shlex.split(line)
    return words[next(i for i, word in enumerate(words) if word in ("starflow-world", "starflow_world.cli")) + 1 :]


LINES = {line: words_of(line) for line in command_lines()}


def needs_published_weights(words: list[str]) -> bool:
    recipe = "".join(words[1:2])
    clip = "--video" in words and words[0] != "rollout"
    return words[0] in ("convert", "generate") or "DIR" in words or clip or "starflow_v_" in recipe


def small(words: list[str]) -> list[str]:
    """The same command with small numbers, and tiny networks where it trains."""
    words = [*words, *TINY] if words[0] == "train" and "--init" not in words else list(words)
    if words[0] == "train" and "--init" in words:
        words += [setting for setting in TINY if setting.startswith("train.")]
    for flag, number in SMALL.get(words[0], {}).items():
        if flag in words:
            words[words.index(flag) + 1] = number
        elif flag != "--actors" and (words[0], flag) != ("rollout", "--steps"):
            words += [flag, number]
    if "--minutes" in words:
        words[words.index("--minutes") + 1] = "0"  # as many steps as the settings say
    return ["babyai-gotolocal" if words[0] in ("check", "bench") and word == "runs/babyai" else word for word in words]


def test_the_pages_have_command_lines_of_every_kind() -> None:
    verbs = {words[0] for words in LINES.values()}
    assert {"collect", "train", "evaluate", "check", "bench", "score", "whatif", "generate", "plan"} <= verbs
    assert any(line.startswith("torchrun") for line in LINES)


def test_the_program_reads_every_documented_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {}
    for line, words in LINES.items():
        seen: list[object] = []
        with monkeypatch.context() as patch:
            patch.setattr(settings_class(words[0]), "run", lambda settings, seen=seen: seen.append(settings))
            try:
                main(words)
            except SystemExit:
                refused[line] = capsys.readouterr().err
        assert len(seen) == (line not in refused)
    assert not refused


@pytest.mark.parametrize("verb", ["whatif", "plan"])
def test_documented_commands_that_take_seconds_run_as_written(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minigrid")
    monkeypatch.chdir(tmp_path)
    main(next(words for words in LINES.values() if words[0] == verb))
    assert capsys.readouterr().out.strip() or list(tmp_path.rglob("*.mp4"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_documented_commands_run_with_small_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("minigrid", "minatar", "minari", "pyarrow", "stable_baselines3"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mygame.py").write_text(MODULE)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    written_recordings.videos(tmp_path / "tapes")
    written_recordings.lerobot_2(tmp_path / "robot")
    written_recordings.minari_set(tmp_path / "sets/atari/pong/expert-v0")
    for seed, day in enumerate(("monday", "tuesday")):
        collect("CartPolePixels-v0", tmp_path / "data" / day, episodes=1, seed=seed, progress=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = [line for line, words in LINES.items() if words[0] not in ENDLESS and not needs_published_weights(words)]
    lines.sort(key=lambda line: ORDER.index(verb) if (verb := LINES[line][0]) in ORDER else len(ORDER))
    failed = {}
    for line in lines:
        try:
            main(small(LINES[line]))
        except (SystemExit, Exception) as error:
            failed[line] = repr(error)
            print(f"{line}: {error!r}")
    assert not failed
