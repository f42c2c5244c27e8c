"""Who may import whom, and other promises about the source text.

Reads the syntax trees of all files of the product, imports inside functions included, so a new file is held to the
rules without anyone naming it here. A folder that LAYERS does not name is at the top: it may import everything, and
nothing below may import it.
"""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "starflow_world"
FOLDERS = {"starflow_world": PACKAGE, "envs": f"{PACKAGE}.envs", "agents": f"{PACKAGE}.agents"}

LAYERS = (  # folders and modules of starflow_world; each may import its own layer and the ones before it
    {"errors", "io"},
    {"config", "noise"},
    {"data", "flow"},
    {"codec"},
    {"model"},
    {"world", "video"},
    {"score", "check", "evaluation", "training"},
    {"envs"},
    {"agents", "recordings"},
    {"play"},
)
TOP = len(LAYERS)  # __init__, cli, commands

ROOMS = {  # packages that may be imported in these rooms only
    "diffusers": {"codec.wan"},
    "fastapi": {"play.server"},
    "gymnasium": {"", "model.actions", "envs", "agents", "recordings", "play", "commands", "lerobot_env"},
    "huggingface_hub": {"io.hub"},
    "minari": {"recordings.minari"},
    "pyarrow": {"recordings.table"},
    "ray": {"agents.pool", "envs.ray_runtime", "envs.ray_vector_env"},
    "stable_baselines3": {"agents.algorithms", "agents.learning", "agents.network", "agents.sb3"},
    "safetensors": {"io.files", "io.shards"},
    "transformers": {"model.text", "model.t5"},
    "uvicorn": {"play.server"},
    "yaml": {"io.yaml"},
}
NOWHERE = {"agents", "cloudpickle", "dill", "envs", "joblib", "marshal", "pickle", "shelve", "torchvision"}
NOWHERE |= {"tarfile", "zipfile"}  # archives are not unpacked
FLOW_MAY_IMPORT = {"torch", f"{PACKAGE}.config", f"{PACKAGE}.errors", f"{PACKAGE}.flow"}
UNSAFE_YAML = {"load", "load_all", "Loader", "CLoader", "full_load", "full_load_all", "FullLoader", "CFullLoader"}
UNSAFE_YAML |= {"unsafe_load", "unsafe_load_all", "UnsafeLoader", "CUnsafeLoader"}

LONGEST_FILE = 350
LONGEST_FUNCTION = 60
MODULES_AT_THE_TOP = 6
PARTS_THAT_MAY_BE_MISSING = {"features", "video", "published"}
MOST_BRANCHES_ON_A_MISSING_PART = 12
COMPILERS = {"cc", "c++", "gcc", "g++", "clang", "clang++", "cl", "nvcc", "ninja"}
PAGES = sorted(path.name for path in ROOT.glob("*.md")) + sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))
MADE = {"ALE", "build", "clips", "data", "dist", "models", "out", "prompts", "runs", "scorers", "StarflowWorld"}
"""Folders that commands make, and namespaces of environment ids: pages may name what is below them."""


@dataclass(frozen=True)
class Source:
    """One file: its dotted name as it is imported, whether it is a package's __init__, and its text."""

    name: str
    package: bool
    text: str

    @property
    def tree(self) -> ast.Module:
        return parse(self.text)

    @property
    def room(self) -> str:
        """The module name below starflow_world: "", "world", "flow.model"."""
        return self.name.removeprefix(PACKAGE).removeprefix(".")


@cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def product() -> tuple[Source, ...]:
    """All Python files of the product, envs/ and agents/ once and under the names they are imported by."""
    found = []
    for folder, prefix in FOLDERS.items():
        for parent, _, files in os.walk(ROOT / folder):  # does not follow the two links
            for file in sorted(files):
                path = Path(parent, file)
                if path.suffix == ".py":
                    parts = [prefix, *path.relative_to(ROOT / folder).with_suffix("").parts]
                    package = parts[-1] == "__init__"
                    found.append(Source(".".join(parts[:-1] if package else parts), package, path.read_text("utf-8")))
    return tuple(found)


def imports(source: Source, known: frozenset[str] = frozenset()) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of all that a file imports; `from a import b` is a.b if that is a `known` module."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = source.name.split(".")
                parts = parts[: len(parts) - node.level + source.package]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in known else base
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def dotted(node: ast.expr) -> str:
    """`a.b.c` as written; "" for what is not a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def inside(name: str, room: str) -> bool:
    """Whether a dotted name is `room` or lies below it; the room "" holds itself only."""
    return name == room or (room != "" and name.startswith(f"{room}."))


def layer(name: str) -> int:
    """The rank of a module of ours; what no layer names is at the top."""
    first = name.split(".")[1] if "." in name else name
    return next((rank for rank, names in enumerate(LAYERS) if first in names), TOP)


def layer_faults(source: Source, known: frozenset[str] = frozenset()) -> Iterator[str]:
    """Imports of a higher layer."""
    for line, name in imports(source, known):
        if inside(name, PACKAGE) and layer(name) > layer(source.name):
            yield f"{source.name}:{line} imports {name}, which lies above it"


def room_faults(source: Source, known: frozenset[str] = frozenset()) -> Iterator[str]:
    """Third-party packages outside their rooms, and what may be imported nowhere."""
    for line, name in imports(source, known):
        first = name.split(".")[0]
        here = f"{source.name}:{line} imports {name}"
        if first in NOWHERE:
            yield f"{here}: nothing here may"
        rooms = ROOMS.get(first, {source.room})
        if not any(inside(source.room, room) for room in rooms):
            yield f"{here}: only {sorted(rooms)} may"
        if inside(source.room, "flow"):
            allowed = first in sys.stdlib_module_names or any(inside(name, module) for module in FLOW_MAY_IMPORT)
            if not allowed and name != PACKAGE:
                yield f"{here}: flow may import torch, config and errors"
        if (inside(source.room, "flow") or inside(source.room, "world")) and inside(name, "torch.distributed"):
            yield f"{here}: only training/ may wrap a model for several processes"


def code_faults(source: Source) -> Iterator[str]:
    """Ways to run foreign code from data, hidden inputs, and hidden module state."""
    for node in ast.walk(source.tree):
        here = f"{source.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in {"eval", "exec", "__import__", "builtins.eval", "builtins.exec"}:
                yield f"{here} calls {called}"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg == "allow_pickle" and value is not False) or (
                    keyword.arg == "weights_only" and value is not True
                ):
                    yield f"{here} allows pickles: {keyword.arg}={ast.unparse(keyword.value)}"
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            if name == "torch.load" and not inside(source.room, "video.convert"):
                yield f"{here} uses torch.load: only convert may"
            if name.startswith("yaml.") and node.attr in UNSAFE_YAML:
                yield f"{here} uses {name}: it builds any object; take yaml.safe_load"
            if name in {"os.environ", "os.getenv"} and source.room != "cli":
                yield f"{here} uses {name}: only cli.py reads the environment"
            if inside(name, "torch.distributed") and (inside(source.room, "flow") or inside(source.room, "world")):
                yield f"{here} uses torch.distributed: only training/ may wrap a model for several processes"
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module == "yaml" and names & UNSAFE_YAML:
                yield f"{here} takes {sorted(names & UNSAFE_YAML)} from yaml"
            if node.module == "torch" and "load" in names:
                yield f"{here} hides torch.load under another name"
            if node.module == "os" and names & {"environ", "getenv"}:
                yield f"{here} hides os.environ under another name"
        elif isinstance(node, ast.Global):
            yield f"{here} changes module state: global {', '.join(node.names)}"


def length_faults(source: Source) -> Iterator[str]:
    """Files and functions that are too long to be read in one go."""
    lines = len(source.text.splitlines())
    if lines > LONGEST_FILE:
        yield f"{source.name} has {lines} lines, {LONGEST_FILE} at most"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield f"{source.name}:{node.lineno} {node.name} has {lines} lines, {LONGEST_FUNCTION} at most"


def definitions(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Public classes and functions at the top of modules: name -> the modules that define it."""
    modules: dict[str, list[str]] = {}
    for source in sources:
        for node in source.tree.body:
            defines = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if defines and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(source.name)
    return modules


def branches_on_a_missing_part(source: Source) -> Iterator[str]:
    """Comparisons of a part that a model may lack with None."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
            right = node.comparators[0]
            part = dotted(node.left).rpartition(".")[2]
            if part in PARTS_THAT_MAY_BE_MISSING and isinstance(right, ast.Constant) and right.value is None:
                yield f"{source.name}:{node.lineno} {ast.unparse(node)}"


def calls_a_compiler(source: Source) -> Iterator[str]:
    """Imports, names and file names by which a program reaches a C compiler. The doctor may look for one."""
    if inside(source.room, "commands.doctor"):
        return
    for line, name in imports(source):
        if name.split(".")[0] in {"ctypes", "cffi", "distutils", "setuptools", "sysconfig"}:
            yield f"{source.name}:{line} imports {name}"
    if "cpp_extension" in source.text:
        yield f"{source.name} names torch's cpp_extension"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if words and (words[0] in COMPILERS or words[0].endswith((".c", ".cc", ".cpp", ".cu"))):
                yield f"{source.name}:{node.lineno} names {words[0]}"


def missing_paths(page: str, text: str) -> Iterator[str]:
    """What a page writes as `code`, and where its links lead, that looks like a file, a folder or a module of ours."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for word in re.findall(r"`([^`\n]+)`", prose):
        if re.fullmatch(rf"{PACKAGE}(\.\w+)+", word):
            if not is_ours(word):
                yield f"{page}: {word}"
        elif re.fullmatch(r"[\w.-]+/[\w./*-]*|[\w-]+\.(py|yaml|sh|toml)", word) and word.split("/")[0] not in MADE:
            places = (ROOT, ROOT / PACKAGE, ROOT / "configs", ROOT / "tests", (ROOT / page).parent)
            if not any(any(place.glob(word.rstrip("/"))) for place in places):
                yield f"{page}: {word}"
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        if not ((ROOT / page).parent / target).exists():
            yield f"{page}: {target}"


def is_ours(name: str) -> bool:
    """Whether a dotted name is a module of the product, or a name that a module (or the package) gives."""
    known = {source.name: source for source in product()}
    if name in known:
        return True
    module, _, last = name.rpartition(".")
    if module not in known:
        return False
    body = known[module].tree.body
    given = {alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    given |= {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    given |= {dotted(target) for node in body if isinstance(node, ast.Assign) for target in node.targets}
    return last in given or (module == PACKAGE and f'"{last}"' in known[module].text)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of an import graph as a path whose ends are equal; empty when there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(graph.get(name, ())):
                if found := walk(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def known_modules() -> frozenset[str]:
    return frozenset(source.name for source in product())


def report(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def test_no_module_imports_a_layer_above_its_own():
    report([fault for source in product() for fault in layer_faults(source, known_modules())])


def test_modules_do_not_import_each_other_in_circles():
    known = known_modules()
    graph = {
        source.name: {name for _, name in imports(source, known) if name in known and name != source.name}
        for source in product()
    }
    assert cycle(graph) == []


def test_each_outside_package_stays_in_its_rooms():
    report([fault for source in product() for fault in room_faults(source, known_modules())])


def test_no_data_is_run_as_code_and_no_input_is_hidden():
    report([fault for source in product() for fault in code_faults(source)])


def test_files_and_functions_are_short():
    report([fault for source in product() for fault in length_faults(source)])


def test_a_public_name_is_defined_in_one_module():
    report([f"{name} is defined in {' and in '.join(modules)}"
            for name, modules in sorted(definitions(product()).items()) if len(modules) > 1])


def test_few_modules_lie_directly_in_the_package():
    here = sorted(path.name for path in (ROOT / PACKAGE).glob("*.py"))
    assert len(here) <= MODULES_AT_THE_TOP, here


def test_few_branches_depend_on_a_part_that_may_be_missing():
    branches = [branch for source in product() for branch in branches_on_a_missing_part(source)]
    print(f"{len(branches)} branches on a missing part")
    assert len(branches) <= MOST_BRANCHES_ON_A_MISSING_PART, "\n" + "\n".join(branches)


def test_nothing_calls_a_compiler():
    report([fault for source in product() for fault in calls_a_compiler(source)])


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_no_path_or_module_that_does_not_exist(page):
    report(list(missing_paths(page, (ROOT / page).read_text("utf-8"))))


def test_tests_do_not_make_second_copies_of_envs_and_agents():
    faults = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for line, name in imports(Source(f"tests.{path.stem}", False, path.read_text("utf-8"))):
            if name.split(".")[0] in FOLDERS.keys() - {PACKAGE}:
                faults.append(f"{path}:{line} imports {name}: take {PACKAGE}.{name}")
    report(faults)


def test_envs_and_agents_are_links_into_the_package():
    for folder in ("envs", "agents"):
        link = ROOT / PACKAGE / folder
        assert link.is_symlink(), f"{link} must be a link to ../{folder}"
        assert link.resolve() == ROOT / folder


PLANTED = [
    ("flow.block", "from starflow_world.world import World", layer_faults),
    ("flow.block", "from starflow_world import World", layer_faults),
    ("flow.block", "def f():\n    from ..world import World", layer_faults),
    ("world", "import starflow_world.envs.world_env", layer_faults),
    ("world.state", "import starflow_world.unheard_of", layer_faults),
    ("model.networks", "from starflow_world.world.dynamics import Dynamics", layer_faults),
    ("io.files", "from starflow_world.noise import normals", layer_faults),
    ("envs.monitor", "from starflow_world.agents import policy", layer_faults),
    ("flow.block", "import numpy", room_faults),
    ("flow.block", "from starflow_world.noise import normals", room_faults),
    ("flow.block", "import torch.distributed as dist", room_faults),
    ("world", "from torch.distributed import all_reduce", room_faults),
    ("world", "import gymnasium as gym", room_faults),
    ("video.pipeline", "from gymnasium import spaces", room_faults),
    ("agents.collect", "import ray", room_faults),
    ("agents.collect", "import importlib\nimportlib.import_module('ray.util')", room_faults),
    ("envs.sources", "import envs.world_env", room_faults),
    ("training.world", "import yaml", room_faults),
    ("model.checkpoint", "from safetensors.torch import save_file", room_faults),
    ("video.model", "from transformers import T5EncoderModel", room_faults),
    ("io.shards", "import torch\ntorch.load(path)", code_faults),
    ("data.episodes", "import pickle", room_faults),
    ("video.convert.sources", "import zipfile", room_faults),
    ("codec.conv", "from torchvision import models", room_faults),
    ("codec.conv", "from diffusers import AutoencoderKLWan", room_faults),
    ("config.world", "import yaml\nyaml.load(text)", code_faults),
    ("config.world", "from yaml import load", code_faults),
    ("data.episodes", "eval('1')", code_faults),
    ("data.episodes", "np.load(path, allow_pickle=True)", code_faults),
    ("model.checkpoint", "import torch\ntorch.load(path)", code_faults),
    ("model.checkpoint", "from torch import load", code_faults),
    ("video.convert", "torch.load(path, weights_only=False)", code_faults),
    ("world", "import os\nos.environ.get('X')", code_faults),
    ("world", "import torch\ntorch.distributed.barrier()", code_faults),
    ("noise", "def f():\n    global counter\n    counter += 1", code_faults),
    ("noise", "\n" * LONGEST_FILE + "x = 1", length_faults),
    ("noise", "def f():\n" + "    x = 1\n" * LONGEST_FUNCTION, length_faults),
]


@pytest.mark.parametrize(("room", "text", "rule"), PLANTED)
def test_a_planted_fault_is_found(room, text, rule):
    assert list(rule(Source(f"{PACKAGE}.{room}", False, text)))


SOUND = [
    ("flow.model", "import math\nimport torch\nfrom torch import nn\nfrom starflow_world.flow.block import Block"),
    ("flow.model", "from starflow_world import errors"),
    ("world", "from starflow_world.model.checkpoint import read\nmodel.eval()"),
    ("io.yaml", "import yaml\nyaml.safe_load(text)\nyaml.compose(text, yaml.SafeLoader)"),
    ("video.convert", "import torch\ntorch.load(path, weights_only=True)"),
    ("envs.world_env", "import gymnasium as gym\nfrom starflow_world.world import World"),
    ("agents.pool", "import ray\nfrom starflow_world.envs.world_env import WorldEnv"),
    ("commands.whatif", "import gymnasium\nimport starflow_world"),
]


def test_faults_of_names_branches_compilers_and_paths_are_found():
    twice = [Source(f"{PACKAGE}.{room}", False, "def read(): ...\nclass _Hidden: ...") for room in ("a", "b")]
    assert definitions(twice) == {"read": [f"{PACKAGE}.a", f"{PACKAGE}.b"]}
    branch = Source(f"{PACKAGE}.world", False, "x = 1 if self.flow.features is not None else 2\ny = features == None")
    assert list(branches_on_a_missing_part(branch)) == [f"{PACKAGE}.world:1 self.flow.features is not None"]
    for text in ("import ctypes", "from torch.utils import cpp_extension", "run(['gcc', 'x.c'])", "run('cc -O2')"):
        assert list(calls_a_compiler(Source(f"{PACKAGE}.flow", False, text))), text
    page = ("`starflow_world/nowhere.py` `starflow_world.nowhere` `nowhere.py` [here](nowhere.md) `runs/x` "
            "`cartpole-pixels.yaml`")
    assert len(list(missing_paths("README.md", page))) == 4


@pytest.mark.parametrize(("room", "text"), SOUND)
def test_sound_code_is_not_blamed(room, text):
    source = Source(f"{PACKAGE}.{room}", False, text)
    known = frozenset({f"{PACKAGE}.errors"})
    report([*layer_faults(source, known), *room_faults(source, known), *code_faults(source), *length_faults(source)])


def test_a_planted_circle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_torchvision_is_not_installed():
    assert importlib.util.find_spec("torchvision") is None, "something pulled it in: it breaks beside the CPU torch"


IMPORT_PROBE = """
import json, sys, time
start = time.process_time()
import torch
middle = time.process_time()
import starflow_world
print(json.dumps([middle - start, time.process_time() - middle, sorted(sys.modules)]))
"""


def test_importing_the_package_is_quick_and_lazy(record_property):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_PROBE], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    of_torch, ours, loaded = json.loads(done.stdout)
    heavy = {"ray", "transformers", "diffusers", "stable_baselines3", "fastapi"} & set(loaded)
    assert not heavy
    modules = [name for name in loaded if name.startswith(f"{PACKAGE}.")]
    eager = [name for name in modules if inside(name, f"{PACKAGE}.training") or layer(name) == TOP]
    assert not eager, "import them when they are asked for"
    record_property("seconds beyond torch", ours)
    assert ours <= of_torch, "promised is a second on a quiet machine; torch takes longer than that on any"


def test_mypy_sees_envs_and_agents(tmp_path):
    """In a tree of the package and its two links alone: the question is which of the files mypy reads."""
    pytest.importorskip("mypy")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").touch()
    for folder in ("envs", "agents"):
        shutil.copy(ROOT / PACKAGE / folder, tmp_path / PACKAGE, follow_symlinks=False)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
        (tmp_path / folder / "planted.py").write_text('x: int = "a"\n', encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "-p", PACKAGE, "--cache-dir", os.devnull]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    for folder in ("envs", "agents"):
        assert f"{PACKAGE}/{folder}/planted.py:1: error: Incompatible types" in done.stdout, done.stdout
