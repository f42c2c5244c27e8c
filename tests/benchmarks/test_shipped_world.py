"""The benchmark of the shipped world, at two widths, once; what is asserted are errors and memory, no timings."""

import json
from pathlib import Path

import pytest

from starflow_world.bench import Plan, bench


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_shipped_world_decodes_no_worse_than_published_and_does_not_grow(tmp_path: Path) -> None:
    bench("babyai-gotolocal", tmp_path, Plan(envs=(1, 64), repeats=1, steps=3000))
    found = json.loads((tmp_path / "bench.json").read_text())
    for line in found["envs"]:
        assert line["error, own"]["rms"] <= line["error, jacobi"]["rms"]
        assert line["error, sequential"]["rms"] < 1e-4
    growth = next(figure for figure in found["figures"] if figure["name"].startswith("growth of memory"))
    assert growth["value"] <= growth["goal"]
