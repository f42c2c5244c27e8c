"""The command line as its user meets it: help, one-line errors, exit codes, and a whole small run."""

import ast
import contextlib
import inspect
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from starflow_world import __version__
from starflow_world.cli import VERBS, main, settings_class

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "configs/babyai-gotolocal.yaml")


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
    (["train-agent", "--algorithm", "a2c", "--out", "o"], 1, "algorithm: expected one of ppo, dqn, sac"),
    (["convert", "nothing.pth", "--out", "o"], 1, "nothing.pth"),
    (["collect", "--env", "CartPole-v2", "--out", "o", "--episodes", "1"], 1, "CartPole-v"),
    (["whatif", "--actions", "left", "--out", "o"], 1, "actions: expected integers, or JSON lists"),
    (["rank", "cartpole-pixels", "--out", "o"], 1, "pass --agents"),
    (["bench", "--envs", "0"], 1, "envs: expected numbers from 1"),
    (["planner", "--method", "luck", "--out", "o"], 1, "method: expected one of best-first"),
    (["rollout", "--out", ""], 2, "expected a path, found an empty text"),
    (["planner", "--env-kwargs", "[1]"], 2, "expected a JSON object"),
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


def test_only_the_module_of_the_verb_is_imported_and_help_imports_nothing_heavy(tmp_path: Path) -> None:
    look = (
        "import sys\nfrom starflow_world import cli\n"
        "before = {name for name in sys.modules if name.startswith('starflow_world.commands.')}\n"
        "for verb in cli.VERBS: cli.settings_class(verb)\n"
        "print(sorted(before), sorted({'torch', 'cv2', 'minigrid', 'ray', 'h5py', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=250, check=True)
    assert done.stdout == "['starflow_world.commands.flags'] []\n"


def test_every_verb_has_a_frozen_dataclass_of_its_own_and_a_help_text_for_each_flag() -> None:
    classes = [settings_class(verb) for verb in VERBS]
    assert len(set(classes)) == len(VERBS)
    for settings in classes:
        assert settings.__dataclass_params__.frozen, settings
        declared = next(one for one in settings.__mro__ if "__annotations__" in vars(one))
        body = ast.parse(inspect.getsource(declared)).body[0].body
        for field, text in itertools.pairwise([*body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign) and field.target.id != "_":
                assert isinstance(getattr(getattr(text, "value", None), "value", None), str), (declared, field.lineno)


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == f"starflow-world {__version__}\n"


def test_a_reader_that_has_seen_enough_ends_a_verb_without_a_traceback(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "starflow_world.cli", "info"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "BrokenPipe" not in error
    assert "Traceback" not in error
    assert process.returncode == 1


def test_a_package_that_an_extra_brings_is_one_line_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    for name in ("algorithms", "learning", "network", "sb3"):
        monkeypatch.delitem(sys.modules, f"starflow_world.agents.{name}", raising=False)
    done = run("train-agent", "--out", "o", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'starflow-world[sb3]'" in done.stderr


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    found = program("info", "/nowhere", "--debug", cwd=tmp_path)
    assert found.returncode == 1
    assert "Traceback" in found.stderr


def test_collect_train_resume_and_evaluate_make_a_world_that_can_be_stepped(tmp_path: Path) -> None:
    tiny = [
        "world.flow.deep_width=32", "world.flow.deep_layers=1", "world.flow.components=4", "world.flow.head_inner=16",
        "world.flow.features_width=8", "world.flow.features_layers=1",
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
    assert (tmp_path / "figures/rollouts.png").exists()
    assert "excess_nats" in done.stdout
