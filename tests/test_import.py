"""Importing the package from a checkout that Git made without symbolic links."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_link_that_became_a_text_file_is_one_clear_sentence(tmp_path: Path) -> None:
    package = tmp_path / "starflow_world"
    package.mkdir()
    shutil.copy(ROOT / "starflow_world" / "__init__.py", package)
    (package / "envs").write_text("../envs")
    command = [sys.executable, "-c", "import starflow_world"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError")
    assert "expected a link to the folder ../envs, found a text file" in last
