"""The wheel, in an environment that holds what it says it needs and no more: it is whole, and passes its examination.

What it needs is not downloaded again: the environment gets links to those packages of the one that runs the tests, and
to no others (no extras, no editable install). What is run there cannot reach the network.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent
NO_NETWORK = """
import socket
def refuse(*_, **__):
    raise OSError("there is no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


def run(*words: object, cwd: Path) -> str:
    """What a command prints; it ends well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def built(folder: Path) -> Path:
    """The wheel of a copy of the tree, made without a network."""
    tree = folder / "tree"
    tree.mkdir()
    for name in ("starflow_world", "envs", "agents"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*command, "-w", folder, tree, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def needed(names: set[str]) -> set[str]:
    """Distributions and all that they need without extras, by their plain names."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        for line in distribution(name).requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                names |= {re.sub(r"[-_.]+", "-", wanted.name).lower()} - found
    return found


def environment(folder: Path, wheel: Path) -> Path:
    """The folder of programs of a new environment with the wheel and links to what it needs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "-q", "--python", folder / "bin/python", "install", "--no-deps", "--no-index",
        wheel, cwd=folder.parent)
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    (record,) = site.glob("starflow_world-*.dist-info/METADATA")
    lines = [line for line in record.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    core = {Requirement(line.partition(": ")[2]).name.lower() for line in lines if "extra ==" not in line}
    for name in needed(core):
        for file in distribution(name).files or ():
            first, *_ = file.parts
            if first != ".." and not (site / first).exists():
                (site / first).symlink_to(Path(distribution(name).locate_file(first)))
    return folder / "bin"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return environment(folder / "environment", built(folder))


def test_a_wheel_in_an_empty_environment_passes_its_own_examination(programs: Path, tmp_path: Path) -> None:
    where = run(programs / "python", "-c", "import starflow_world; print(starflow_world.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent)
    for extra in ("ray", "minigrid", "stable_baselines3", "diffusers", "pytest"):
        looked = f"import importlib.util as u; print(u.find_spec({extra!r}) is None)"
        assert run(programs / "python", "-c", looked, cwd=tmp_path) == "True\n", extra
    for world in ("babyai-gotolocal", "cartpole-pixels"):
        assert "figures" in run(programs / "starflow-world", "info", world, cwd=tmp_path)
    assert ", 0 failed, 1 not applicable, " in run(programs / "starflow-world", "check", cwd=tmp_path)


def test_a_wheel_holds_all_that_the_tree_does(programs: Path) -> None:
    (installed,) = programs.parent.glob("lib/python*/site-packages/starflow_world")
    left = {"__pycache__"}
    tree = {path.relative_to(ROOT / "starflow_world") for folder in ("", "envs", "agents")
            for path in (ROOT / "starflow_world" / folder).rglob("*") if path.is_file() and not left & set(path.parts)}
    assert tree <= {path.relative_to(installed) for path in installed.rglob("*")}
