"""The benchmark of the shipped world, at two widths, once; what is asserted are errors and memory, no timings."""

import json
from typing import Any

import pytest

from starflow_world.commands.bench import Bench

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of one run."""
    out = tmp_path_factory.mktemp("bench")
    Bench("babyai-gotolocal", out, envs=(1, 64), repeats=1, steps=3000).run()
    found: dict[str, Any] = json.loads((out / "bench.json").read_text())
    return found


def test_the_shipped_world_does_not_grow_over_thousands_of_steps(measured, record_property):
    growth = next(figure for figure in measured["figures"] if figure["name"].startswith("growth of memory"))
    record_property("MB per 1,000 steps", growth["value"])
    assert growth["value"] <= growth["most"]


def test_the_shipped_world_is_decoded_as_exactly_as_its_tolerance_says(measured, at_most):
    for line in measured["envs"]:
        at_most("rms error from token by token, noise units", line["error, own"]["rms"], TOLERANCE)
        assert line["error, sequential"]["rms"] < 1e-4


@pytest.mark.xfail(
    strict=True,
    reason="A sweep that is verified, to 1e-3, is returned as it is. The published way returns the iterate behind it, "
    "which nothing verified and whose keys are not in its cache; it is nearer.",
)
def test_the_shipped_world_is_decoded_no_less_exactly_than_in_the_published_way(measured):
    for line in measured["envs"]:
        assert line["error, own"]["rms"] <= line["error, jacobi"]["rms"]
