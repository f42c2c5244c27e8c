"""The table of promises is whole, names tests that exist, and docs/promises.md says what became of them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from starflow_world.check import CHECKS
from tests.promises import BROKEN, FAILED, NOT_RUN, PAGE, PASSED, ROOT, UNTESTED, Promise, page, promises, read_runs

SIZES = {"N": 30, "E": 16, "V": 10, "S": 11, "T": 17, "F": 16, "G": 10, "R": 20, "K": 6, "A": 10, "P": 9, "C": 7,
         "X": 4}
"""How many promises of each kind there are: one that is withdrawn is withdrawn here as well."""

TABLE = [promise for section in promises().values() for promise in section]


def test_no_promise_is_left_out():
    expected = [f"{kind}{number}" for kind, size in SIZES.items() for number in range(1, size + 1)]
    assert [promise.id for promise in TABLE] == expected
    assert {check.id for check in CHECKS} <= {promise.id for promise in TABLE}
    for promise in TABLE:
        assert promise.says.endswith("."), promise.id
        assert promise.tests or promise.missing or promise.broken, promise.id


def test_every_test_that_is_named_exists():
    named = {test for promise in TABLE for test in promise.tests}
    found = set()
    for file in {test.partition("::")[0] for test in named if (ROOT / test.partition("::")[0]).is_file()}:
        body = ast.parse((ROOT / file).read_text("utf-8")).body
        found |= {f"{file}::{node.name}" for node in body if isinstance(node, ast.FunctionDef)}
    assert sorted(named - found) == []


def test_the_page_is_of_this_table():
    """Where it is not: make promises."""
    text = PAGE.read_text("utf-8")
    for promise in TABLE:
        assert f"| {promise.id} | {promise.says}" in text, promise.id
        line = next(line for line in text.splitlines() if line.startswith(f"| {promise.id} |"))
        for test in promise.tests:
            file, _, name = test.partition("::")
            assert f"[{name.removeprefix('test_').replace('_', ' ')}](../{file}) (" in line, promise.id
    assert str(ROOT) not in text


SOME_TESTS = """
import pytest

@pytest.mark.parametrize("error", [1e-9, 2.5e-6])
def test_kept(error, record_property):
    record_property("error", error)

def test_lost():
    assert not "kept"

@pytest.fixture
def nothing():
    raise OSError

def test_without_fixture(nothing):
    pass

@pytest.mark.skipif("True", reason="no GPU")
def test_left():
    pass

@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_both(size):
    assert size == 1
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small project with its own tests: without the slow ones, and those alone."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tests" / "deep").mkdir(parents=True)
    (folder / "tests" / "deep" / "test_some.py").write_text(SOME_TESTS)
    (folder / "tests" / "conftest.py").write_text(
        "import pytest\n@pytest.fixture(autouse=True, scope='session')\ndef f(record_testsuite_property):\n"
        "    record_testsuite_property('software', 'python 3')\n"
    )
    settings = ("markers = slow", "addopts = --import-mode=importlib", "junit_family = xunit1")
    (folder / "pytest.ini").write_text("\n".join(["[pytest]", *settings]))
    for marks in ("not slow", "slow"):
        command = [sys.executable, "-m", "pytest", "-q", "-m", marks, "--junit-xml", str(folder / f"{marks}.xml")]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins take seconds to import
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return [folder / "not slow.xml", folder / "slow.xml"]


def of(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/deep/test_some.py::test_{name}" for name in names)


SOME = [  # a promise, and what a run of the quick tests makes of it
    (Promise("A1", "One.", of("kept")), PASSED),
    (Promise("A2", "Two.", of("kept", "lost")), FAILED),
    (Promise("A3", "Three.", of("without_fixture")), FAILED),
    (Promise("A4", "Four.", of("left")), NOT_RUN),
    (Promise("A5", "Five.", of("kept", "left", "both")), f"{PASSED}, 2 {NOT_RUN}"),
    (Promise("A6", "Six.", missing="no time"), UNTESTED),
    (Promise("A7", "Seven.", of("kept"), missing="the rest"), f"{PASSED}, in part"),
    (Promise("A8", "Eight.", of("kept"), broken="it is known"), BROKEN),
    (Promise("A9", "Nine.", of("both")), NOT_RUN),
]


def test_the_page_says_how_each_test_ended_and_what_it_found(runs):
    text = page({"Some": [promise for promise, _ in SOME]}, read_runs(runs[:1]))
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in text.splitlines()}
    for promise, word in SOME:
        assert rows[promise.id][1] == (word if word == PASSED else f"**{word}**")
        assert (f"- **{promise.id} {word}**: {promise.says}" in text) == (word != PASSED)
    assert rows["A1"][2] == "[kept](../tests/deep/test_some.py) (2 passed, error 1e-09 to 2.5e-06) |"
    assert "(**1 failed**)" in rows["A2"][2]
    assert "(**1 skipped**)" in rows["A4"][2]
    assert rows["A6"][0] == "Six. *No test:* no time"
    assert rows["A8"][0] == "Eight. *Broken:* it is known"
    assert "with python 3." in text
    assert "Of 9 promises: 3 passed, 2 FAILED, 1 BROKEN, 2 not run, 1 no test." in text


def test_several_runs_count_as_one_in_which_the_last_of_a_case_counts(runs, tmp_path):
    together = read_runs(runs)
    assert together.ended(of("both")[0]) == {"passed": 1, "failed": 1}
    assert together.ended(of("kept")[0]) == {"passed": 2}
    mended = tmp_path / "mended.xml"
    mended.write_text(runs[1].read_text().replace("<failure", "<properties").replace("</failure", "</properties"))
    assert read_runs([*runs, mended]).ended(of("both")[0]) == {"passed": 2}
