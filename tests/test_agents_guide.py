"""Every Python block of docs/agents.md runs as written; that of RLlib where RLlib is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", GUIDE, flags=re.DOTALL))
NEEDS = {"Stable-Baselines3": "stable_baselines3", "RLlib": "ray.rllib", "Policies": "minigrid"}


@pytest.mark.timeout(1000)  # RLlib starts three processes that import it
@pytest.mark.parametrize("name", BLOCKS)
def test_every_python_block_runs_as_written(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed", exc_type=ImportError)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOCKS[name]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_no_block_is_missed_and_links_lead_somewhere() -> None:
    assert len(BLOCKS) == GUIDE.count("```python") == 4
    for target in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target
