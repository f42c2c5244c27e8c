"""The pages: their Python blocks run as written, links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
BLOCKS = {f"{name}, block {index}": block for name, text in PAGES.items()
          for index, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL), 1)}
ALONE = {name: block for name, block in BLOCKS.items() if "RayVectorEnv" in block or "import ray" in block}
"""Blocks that start a Ray."""
CASES = {page: [block for name, block in BLOCKS.items() if name.startswith(f"{page},") and name not in ALONE]
         for page, text in PAGES.items()}
CASES = {page: blocks for page, blocks in CASES.items() if blocks}
"""The other blocks of each page, which run one after the other in one folder."""
NEEDS = {"stable_baselines3": "stable_baselines3", "ray.rllib": "ray.rllib", "RayVectorEnv": "ray", "import ray": "ray",
         "agents.rooms": "minigrid", "agents.babyai": "minigrid", "GoToLocalS8N4": "minigrid"}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in ALONE)])
@pytest.mark.timeout(1000)  # RLlib starts three processes that import it
def test_every_python_block_runs_as_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = [ALONE[name]] if name in ALONE else CASES[name]
    for package in {package for block in blocks for word, package in NEEDS.items() if word in block}:
        pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        if name in ALONE:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-c", block]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, done.stderr[-2000:]
            printed = done.stdout
        else:  # in this process, as a program of its own: importing torch again takes seconds
            exec(compile(block, name, "exec"), {"__name__": "__main__"})
            printed = capsys.readouterr().out
        assert printed.strip() or "print(" not in block


def test_no_block_is_missed() -> None:
    assert len(BLOCKS) == sum(text.count("```python") for text in PAGES.values()) >= 11


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[name]):
        assert ((ROOT / name).parent / target).exists(), target


def test_the_readme_names_the_two_commands() -> None:
    assert "make demo" in PAGES["README.md"]
    assert "make test" in PAGES["README.md"]


def test_figures_lie_in_cards_and_reports_and_not_as_generated_json_in_docs() -> None:
    assert not list((ROOT / "docs").rglob("*.json"))
