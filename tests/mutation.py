"""How many changes of one word of the product its tests notice.

    python -m tests.mutation --count 300 --seed 0 --out out/mutation.jsonl

Every change is made alone in a temporary copy of the tree, where first the tests that mirror the changed file run and
then those near it, until one fails. The changes of a seed are always the same, in the same order, and --out keeps what
became of each: a run that was ended goes on, and a longer one goes on behind a shorter one. Which of the survivors
change nothing that anybody could notice, a reader must tell.
"""

import ast
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
MEMORY = 16 << 30
FILES = ("flow/*.py", "world/*.py", "noise.py")
MIRRORS = {"dynamics": "world", "ahead": "world", "sample": "model", "denoiser": "golden_denoiser"}
REST = (
    "tests/world/test_world.py",
    "tests/world/test_world_rows.py",
    "tests/world/test_state.py",
    "tests/test_noise.py",
    "tests/world/test_video_world.py",
    "tests/world/test_video_world_states.py",
    "tests/commands/test_whatif.py",
    "tests/score/test_score.py",
    "tests/test_hostile_input.py",
    "tests/check/test_check.py",
)


def stages(file: str, tree: Path) -> tuple[tuple[str, ...], ...]:
    """The tests of a file: those that mirror it and one that nearly everything fails, then all that stand near it."""
    folder, _, name = file.removesuffix(".py").rpartition("/")
    mirror = str(Path("tests", folder, f"test_{MIRRORS.get(name, name)}.py"))
    first = tuple(test for test in ("tests/world/test_golden_world.py", mirror) if (tree / test).exists())
    return first, (f"tests/{folder}", *REST) if folder else REST


WORDS: dict[type[ast.AST], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")), ast.LtE: ("<=", ("<", ">")), ast.Gt: (">", (">=", "<")), ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)), ast.NotEq: ("!=", ("==",)), ast.Is: ("is", ("is not",)), ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)), ast.NotIn: ("not in", ("in",)),
    ast.Add: ("+", ("-",)), ast.Sub: ("-", ("+",)), ast.Mult: ("*", ("/",)), ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("*",)), ast.Mod: ("%", ("*",)), ast.Pow: ("**", ("*",)),
    ast.And: ("and", ("or",)), ast.Or: ("or", ("and",)),
}
NAMES = {"min": "max", "max": "min", "clamp_min": "clamp_max", "amax": "amin", "minimum": "maximum", "any": "all",
         "all": "any"}


@dataclass(frozen=True)
class Change:
    """In line `line` of a file, `new` in place of `old`; `start` and `end` are bytes of the file."""

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def applied(self, text: bytes) -> bytes:
        return text[: self.start] + self.new.encode() + text[self.end :]


def changes(file: str, text: bytes) -> Iterator[Change]:
    """All changes of one word of a file that leave it a program, and another one."""
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    tree = ast.parse(text)
    before = ast.dump(tree)

    def place(node: ast.AST, *, end: bool = False) -> int:
        row, column = ("end_lineno", "end_col_offset") if end else ("lineno", "col_offset")
        return int(lines[getattr(node, row) - 1] + getattr(node, column))

    for node in nodes(tree):
        for start, stop, new in replacements(node, text, place):
            line = text[:start].count(b"\n") + 1
            change = Change(file, line, start, stop, text[start:stop].decode(), new)
            try:
                if ast.dump(ast.parse(change.applied(text))) != before:
                    yield change
            except SyntaxError:
                pass


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, but not those of annotations, nor of messages, whose words are the product's to choose."""
    if isinstance(node, ast.JoinedStr):
        return
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                yield from nodes(child)


def replacements(node: ast.AST, text: bytes, place: Callable[..., int]) -> Iterator[tuple[int, int, str]]:
    """Where a node's own word stands, and what may stand there instead."""
    match node:
        case ast.Compare():
            sides = [node.left, *node.comparators]
            for left, word, right in zip(sides, node.ops, sides[1:], strict=False):
                yield from between(text, place(left, end=True), place(right), word)
        case ast.BinOp():
            yield from between(text, place(node.left, end=True), place(node.right), node.op)
        case ast.BoolOp():
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from between(text, place(left, end=True), place(right), node.op)
        case ast.AugAssign():
            yield from between(text, place(node.target, end=True), place(node.value), node.op)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield place(node), place(node) + (3 if isinstance(node.op, ast.Not) else 1), ""
        case ast.Constant(value=bool() as value):
            yield place(node), place(node, end=True), str(not value)
        case ast.Constant(value=int() | float() as value):
            for new in (value + 1, value - 1):
                yield place(node), place(node, end=True), f"({new})" if new < 0 else repr(new)
        case ast.Slice():
            for bound in (node.lower, node.upper):
                if bound is not None and not isinstance(bound, ast.Constant):
                    end = place(bound, end=True)
                    yield end, end, " + 1"
        case ast.Attribute(attr=name) if name in NAMES:
            yield place(node, end=True) - len(name), place(node, end=True), NAMES[name]
        case ast.Name(id=name) if name in NAMES:
            yield place(node), place(node, end=True), NAMES[name]


def between(text: bytes, start: int, end: int, word: ast.AST) -> Iterator[tuple[int, int, str]]:
    """The operator `word` between its two sides, of which the first may end with a bracket."""
    written, others = WORDS.get(type(word), ("", ()))
    found = text.find(written.encode(), start, end)
    if written and found >= 0:
        yield from ((found, found + len(written), new) for new in others)


def chosen(count: int, seed: int, tree: Path) -> list[Change]:
    """The first `count` changes in the order of a seed."""
    package = tree / "starflow_world"
    files = sorted(file for pattern in FILES for file in package.glob(pattern))
    found = [change for file in files for change in changes(str(file.relative_to(package)), file.read_bytes())]
    random.Random(seed).shuffle(found)
    return found[:count]


def run(tree: Path, tests: Sequence[str], limit: int) -> str:
    """The first of some tests that fails in a tree; "" if none does. `limit`: seconds of the processor.

    In a forked process, which has what takes long to import.
    """
    said = tree.parent / "said"
    process = os.fork()
    if not process:
        with said.open("wb", 0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            os._exit(pytest_in(tree, tests, limit))
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    lines = said.read_text("utf-8", "replace").splitlines() or [""]
    first = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
    return f"exit code {code}: {first:.300}" if code else ""


def pytest_in(tree: Path, tests: Sequence[str], limit: int) -> int:
    """Pytest's exit code; of this process nothing of ours stays imported."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # a change may take any amount of time
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # and of memory
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "starflow_world")]:
        del sys.modules[name]
    os.chdir(tree)
    sys.path[0], sys.dont_write_bytecode = str(tree), True
    os.environ["PYTHONPATH"] = str(tree)
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--timeout", "0", *tests]))


def copied(folder: str) -> Path:
    """A copy of the tree without what was built or trained."""
    left = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "data", "dist", "out", "runs", "scorers")
    return Path(shutil.copytree(ROOT, Path(folder) / "tree", symlinks=True, ignore=left))


def known(out: Path) -> dict[Change, dict[str, Any]]:
    """What became of the changes that were made before."""
    lines = map(json.loads, out.read_text("utf-8").splitlines()) if out.exists() else ()
    return {Change(**line["change"]): line for line in lines}


def mutate(changes: Sequence[Change], tree: Path, out: Path, limit: int) -> None:
    """Make changes one at a time, and write down what became of each."""
    sound = cache(lambda tests: run(tree, tests, limit))
    for change in tqdm(changes):
        path, begun, failed = tree / "starflow_world" / change.file, time.monotonic(), ""
        text = path.read_bytes()
        for tests in stages(change.file, tree):
            path.write_bytes(change.applied(text))
            failed = run(tree, tests, limit)
            path.write_bytes(text)
            if failed:
                one = re.search(r"(?:FAILED|ERROR) (tests/.*?)(?: - |$)", failed)
                if before := sound((one[1],) if one else tests):
                    sys.exit(f"fails without any change: {before}")
                break
        line = {"change": asdict(change), "by": failed, "seconds": round(time.monotonic() - begun, 1)}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def report(found: Sequence[dict[str, Any]]) -> None:
    survived = [Change(**line["change"]) for line in found if not line["by"]]
    print(f"{len(found) - len(survived)} of {len(found)} changes are noticed, {len(survived)} are not:")
    for change in survived:
        place = f"starflow_world/{change.file}:{change.line}, byte {change.start}"
        print(f"  {place}: {change.old!r} -> {change.new!r}")


def main(count: int = 300, seed: int = 0, out: Path = Path("out/mutation.jsonl"), limit: int = 900) -> None:
    """Change one word at a time and run the tests.

    Args:
        count: of changes.
        seed: which they are.
        out: what became of each; those that are in it are not made again.
        limit: seconds of the processor for the tests of one change.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in ("gymnasium", "h5py", "torch", "transformers"):
        import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(folder)
        picked, done = chosen(count, seed, tree), known(out)
        if fresh := [change for change in picked if change not in done]:
            mutate(fresh, tree, out, limit)
    done = known(out)
    report([done[change] for change in picked])


if __name__ == "__main__":
    tyro.cli(main)
