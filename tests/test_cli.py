"""The command line as its user meets it: help, one-line errors, exit codes, and a whole small run."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from starflow_world.cli import VERBS, main

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "configs/babyai.yaml")


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line in this process, which has imported torch already, and what it printed."""
    out, error, status = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main(list(words))
        except SystemExit as stopped:
            status = int(stopped.code or 0)
    return subprocess.CompletedProcess(words, status, out.getvalue(), error.getvalue())


def program(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line as a program of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "starflow_world.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)


WRONG = [
    (["info", "babyai-gotolocl"], 1, "did you mean 'babyai-gotolocal'"),
    (["info", "/nowhere"], 1, "shipped worlds"),
    (["train", "configs/nothing.yaml", "--data", "d", "--out", "o"], 1, "nothing.yaml"),
    (["train", RECIPE, "train.stepz=3", "--data", "d", "--out", "o"], 1, "did you mean 'steps'"),
    (["train", RECIPE, "--data", "nowhere", "--out", "o"], 1, "nowhere"),
    (["collect", "--env", "CartPole-v1", "--out", "o", "--policy", "clever"], 1, "expected one of random"),
    (["collect", "--env", "CartPole-v1", "--out", "o", "--episodes", "0"], 1, "episodes"),
    (["evaluate", "babyai-gotolocal", "--data", "nowhere"], 1, "nowhere"),
    (["train-agent", "--algo", "dqn", "--out", "o"], 1, "algo: expected ppo"),
    (["convert", "nothing.pth", "--out", "o"], 1, "nothing.pth"),
    (["collect", "--env", "CartPole-v1"], 2, "out"),
    (["fly"], 2, "fly"),
    (["demo", "--steps", "many"], 2, "steps"),
]


@pytest.mark.parametrize(("words", "status", "says"), WRONG, ids=[" ".join(words)[:40] for words, _, _ in WRONG])
def test_wrong_command_lines_exit_with_one_clear_message(
    words: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == status
    assert says in error
    assert "Traceback" not in error
    assert status == 2 or (error.startswith("starflow-world: ") and error.count("\n") == 1)


def test_every_verb_has_help(tmp_path: Path) -> None:
    found = run("--help", cwd=tmp_path)
    assert found.returncode == 0
    assert all(verb in found.stdout for verb in VERBS)


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    found = program("info", "/nowhere", "--debug", cwd=tmp_path)
    assert found.returncode == 1
    assert "Traceback" in found.stderr


def test_collect_train_resume_and_evaluate_make_a_world_that_can_be_stepped(tmp_path: Path) -> None:
    tiny = [
        "world.flow.shallow_blocks=1", "world.flow.shallow_layers=1",
        "world.flow.shallow_width=32", "world.flow.deep_width=32", "world.flow.deep_layers=1",
        "world.flow.motion_width=16", "world.flow.denoiser_width=32", "world.start.width=32", "world.start.layers=1",
        "world.window=8", "world.context=2",
        "train.frames=16", "train.lengths=[4]", "train.starts=2", "train.warmup=2",
    ]
    env = ["collect", "--env", "BabyAI-GoToLocalS8N4-v0", "--episodes", "4", "--max-steps", "20"]
    for words in (
        [*env, "--out", "data", "--seed", "1"],
        [*env, "--out", "long", "--seed", "2", "--no-end"],
        ["train", RECIPE, *tiny, "train.steps=3", "--data", "data", "--out", "run"],
        ["train", RECIPE, *tiny, "train.steps=5", "--data", "data", "--out", "run", "--resume"],
        ["evaluate", "run", "--data", "long", "--outcomes", "data", "--out", "figures", "--episodes", "4", "--card"],
        ["info", "run"],
    ):
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-1500:]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    figures = json.loads((tmp_path / "run/card.json").read_text())["figures"]
    assert {"excess_nats", "exact_frames_1", "reward_f1", "text_valid_frames", "gflop_per_step"} <= set(figures)
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    assert (tmp_path / "figures/text_starts.png").exists()
    assert "excess_nats" in done.stdout
