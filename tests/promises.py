"""The promises of the project and the tests that hold them: reads tests/promises.yaml, writes docs/promises.md.

    python -m pytest -m "not gpu" --junit-xml out/tests.xml
    python -m tests.promises out/tests.xml

The page says how each test went in the given runs and which figures it recorded (pytest's `record_property`).
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starflow_world.io.files import write_text
from starflow_world.io.yaml import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
TABLE, PAGE = ROOT / "tests/promises.yaml", ROOT / "docs/promises.md"
PASSED, FAILED, BROKEN, UNTESTED, NOT_RUN = "passed", "FAILED", "BROKEN", "no test", "not run"
INTRODUCTION = """# Promises

What this project promises, the tests that hold each promise, and how they went when they were run last.
`make promises` runs them all, the slow ones too, and writes this page anew; the promises themselves are in
`tests/promises.yaml`. Figures are those that the cases of a test recorded, from the smallest to the largest.
"""


@dataclass(frozen=True)
class Promise:
    """One row. `tests`: node ids without parameters; `missing`: what no test holds, and why; `changed`: where it says
    something else than was planned at first, and why; `broken`: what is known not to hold."""

    id: str
    says: str
    tests: Sequence[str] = ()
    missing: str = ""
    changed: str = ""
    broken: str = ""


@dataclass(frozen=True)
class Case:
    """A test with one set of parameters: passed, failed or skipped, and the figures it recorded."""

    ended: str
    figures: list[tuple[str, float]]


@dataclass
class Run:
    """What junit files say: the cases of each test by their names, and when and with which software they ran."""

    cases: dict[str, dict[str, Case]] = field(default_factory=lambda: defaultdict(dict))
    days: set[str] = field(default_factory=set)
    software: set[str] = field(default_factory=set)

    def ended(self, test: str) -> Counter[str]:
        """How many of its cases ended how."""
        return Counter(case.ended for case in self.cases.get(test, {}).values()) or Counter({NOT_RUN: 1})

    def figures(self, test: str) -> dict[str, list[float]]:
        """What its cases recorded, by name."""
        found: dict[str, list[float]] = defaultdict(list)
        for case in self.cases.get(test, {}).values():
            for name, value in case.figures:
                found[name].append(value)
        return found


def promises() -> dict[str, list[Promise]]:
    """Title of each section of tests/promises.yaml -> its promises."""
    found = parse_yaml(TABLE.read_text("utf-8"), TABLE.name)
    return {title: [Promise(id, **fields) for id, fields in rows.items()] for title, rows in found.items()}


def read_runs(paths: Sequence[Path]) -> Run:
    """The junit files of several runs as one: of a case that is in more than one of them the last counts."""
    run = Run()
    for path in paths:
        for suite in ElementTree.parse(path).iter("testsuite"):
            run.days.add(suite.get("timestamp", "")[:10])
            run.software |= {one.get("value", "") for one in suite.iterfind("properties/property[@name='software']")}
            for case in suite.iterfind("testcase"):
                file, name = case.get("classname", "").replace(".", "/"), case.get("name", "")
                figures = [(one.get("name", ""), float(one.get("value", ""))) for one in case.iterfind("*/property")]
                run.cases[f"{file}.py::{name.partition('[')[0]}"][name] = Case(_ending(case), figures)
    return run


def _ending(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def result(promise: Promise, run: Run) -> str:
    """In a word what is worst about a promise, or that it was kept."""
    ended = sum((run.ended(test) for test in promise.tests), Counter[str]())
    if ended["failed"]:
        return FAILED
    if promise.broken:
        return BROKEN
    if not promise.tests:
        return UNTESTED
    if not ended["passed"]:
        return NOT_RUN
    left = ended["skipped"] + ended[NOT_RUN]
    return PASSED + f", {left} {NOT_RUN}" * bool(left) + ", in part" * bool(promise.missing)


def page(table: dict[str, list[Promise]], run: Run) -> str:
    """docs/promises.md."""
    rows = [(promise, result(promise, run)) for section in table.values() for promise in section]
    parts = [INTRODUCTION, f"Last run: {', '.join(sorted(run.days))}, with {'; '.join(sorted(run.software))}.\n"]
    counted = Counter(word.partition(",")[0] for _, word in rows)
    words = ", ".join(f"{counted[word]} {word}" for word in (PASSED, FAILED, BROKEN, NOT_RUN, UNTESTED))
    parts.append(f"Of {len(rows)} promises: {words}.\n\n## Not kept, or not known to be\n")
    parts += [f"- **{promise.id} {word}**: {_says(promise)}" for promise, word in rows if word != PASSED]
    for title, section in table.items():
        parts.append(f"\n## {title}\n\n| | promise | result | tests, and what they found |\n| --- | --- | --- | --- |")
        parts += [_row(promise, run) for promise in section]
    return "\n".join(parts) + "\n"


def _says(promise: Promise) -> str:
    notes = {"Changed": promise.changed, "Broken": promise.broken, "No test": promise.missing}
    return " ".join([promise.says, *(f"*{name}:* {words}" for name, words in notes.items() if words)])


def _row(promise: Promise, run: Run) -> str:
    word, tests = result(promise, run), "<br>".join(_told(test, run) for test in promise.tests)
    return "| " + " | ".join((promise.id, _says(promise), word if word == PASSED else f"**{word}**", tests)) + " |"


def _told(test: str, run: Run) -> str:
    """A test with a link, how its cases ended, and its figures."""
    file, _, name = test.partition("::")
    words = [f"{count} {end}" if end == "passed" else f"**{count} {end}**" for end, count in run.ended(test).items()]
    for figure, values in run.figures(test).items():
        ends = dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values)))  # one where they look alike
        words.append(f"{figure} {' to '.join(ends)}")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{file}) ({', '.join(words)})"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("expected the junit files of one run or more: python -m tests.promises out/tests.xml")
    write_text(PAGE, page(promises(), read_runs([Path(name) for name in sys.argv[1:]])))
