"""Files are written whole or not at all, and read whole or not at all, whenever the writer dies."""

import errno
import json
import os
import resource
import signal
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from starflow_world.errors import CheckpointError, ConfigError, DataError, StarflowError, StateError
from starflow_world.io.files import TEMPORARY, atomic, claim, read_tensors, remove_leftovers, write_tensors, write_text


def launched(work: Callable[[], object]) -> int:
    """Start `work` in a forked process; its id."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(launched(work), 0)[1])


def dying(call: str, moment: int, owner: object) -> None:
    """Replace a function of `owner` by one that kills the process when it is called for the `moment`-th time."""
    original, calls = getattr(owner, call), []

    def deadly(*args: object, **kwargs: object) -> object:
        calls.append(None)
        if len(calls) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, call, deadly)


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {
        "a": torch.full((50, 40), value), "b": torch.arange(7), "none": torch.zeros(0, 3), "one": torch.tensor(value),
        "half": torch.full((3,), value, dtype=torch.bfloat16), "mask": torch.tensor([True, False]),
    }


def test_a_text_is_replaced_whole_and_keeps_its_place(tmp_path):
    path = tmp_path / "deep" / "er" / "x.json"
    write_text(path, "old é\n")
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == path.parent
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace"), (Path, "chmod"), (os, "close")])
def test_a_writer_killed_at_any_call_leaves_old_or_new(tmp_path, owner, call):
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors(0.0), sealed=True)
    for moment in range(1, 10):
        code = forked(lambda moment=moment: (dying(call, moment, owner), write_tensors(path, tensors(moment))))  # type: ignore[misc]
        assert float(read_tensors(path)[0]["one"]) in (0.0, float(moment))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert moment > 1
    assert len(list(tmp_path.iterdir())) > 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_in_the_middle_of_a_file_leaves_nothing_that_is_not_removed(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, tensors(0.0))

    def halfway() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write_tensors(path, tensors(1.0))

    assert forked(halfway) == -signal.SIGXFSZ
    assert float(read_tensors(path)[0]["one"]) == 0.0
    assert len(list(tmp_path.iterdir())) > 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_no_room_is_one_clear_error_and_the_old_file_stays(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, tensors())

    def without_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(StateError, match="expected to write a file"):
            write_tensors(path, tensors(2.0), error=StateError)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write_text(tmp_path / "y", "x" * 5000)

    assert forked(without_room) == 0
    assert float(read_tensors(path)[0]["one"]) == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (f"{TEMPORARY}abc.json", "config.json", "x.writing"):
        (tmp_path / name).write_text("x")
    (tmp_path / f"{TEMPORARY}folder").mkdir()
    (tmp_path / f"{TEMPORARY}folder" / "x.json").write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "x.writing"]
    remove_leftovers(tmp_path / "none")


@pytest.mark.parametrize("sealed", [True, False])
def test_tensors_come_back_as_they_were(tmp_path, sealed):
    facts = {"format": "1", "texts": json.dumps(["é", "\u0000"])}
    write_tensors(tmp_path / "x", tensors(), facts, sealed=sealed)
    found, metadata = read_tensors(tmp_path / "x")
    assert {key: metadata[key] for key in facts} == facts
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
    write_tensors(tmp_path / "z", tensors(), dict(reversed(facts.items())), sealed=sealed)
    assert (tmp_path / "z").read_bytes() == (tmp_path / "x").read_bytes()  # equal content, equal bytes
    view = torch.zeros(4, 6).T[1:3]
    write_tensors(tmp_path / "y", {"view": view.requires_grad_()})
    assert torch.equal(read_tensors(tmp_path / "y")[0]["view"], view)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, wrong):
    for name in ("a", "half", "one"):
        content = {**tensors(), name: torch.full_like(tensors()[name], wrong)}
        write_tensors(tmp_path / "x", content, sealed=True)
        with pytest.raises(CheckpointError, match=f"{name}: expected finite numbers"):
            read_tensors(tmp_path / "x")


def test_any_change_to_a_sealed_file_is_noticed(tmp_path):
    path, rng = tmp_path / "x", np.random.default_rng(0)
    write_tensors(path, tensors(), {"format": "1"}, sealed=True)
    content = path.read_bytes()
    for _ in range(300):
        where, bit = int(rng.integers(len(content))), int(rng.integers(8))
        path.write_bytes(content[:where] + bytes([content[where] ^ 1 << bit]) + content[where + 1 :])
        with pytest.raises(StateError, match=str(path)):
            read_tensors(path, StateError, sealed=True)
    write_tensors(path, tensors())
    with pytest.raises(CheckpointError, match="digest"):
        read_tensors(path, sealed=True)


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


LIES = {
    "nothing": b"", "short": b"\1\2", "endless header": struct.pack("<Q", 2**63 - 1) + b"{}",
    "long header": struct.pack("<Q", 100) + b"{}", "no json": struct.pack("<Q", 4) + b"}}}}",
    "not utf-8": struct.pack("<Q", 2) + b"\xff\xfe", "list": struct.pack("<Q", 2) + b"[]",
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "huge shape": header(x={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}) + bytes(4),
    "negative": header(x={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + bytes(4),
    "overlap": header(x={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                      y={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
    "hole": header(x={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}) + bytes(8),
    "outside": header(x={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}) + bytes(4),
    "more bytes": header(x={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) + bytes(5),
    "unknown kind": header(x={"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
    "eight bits": header(x={"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}) + bytes([127] * 4),
    "four bits": header(x={"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}) + bytes(4),
    "scales": header(x={"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}) + bytes([255] * 4),
    "odd facts": header(__metadata__={"a": 1}), "odder facts": header(__metadata__={"starflow_world": "[]"}),
    "deep facts": header(__metadata__={"starflow_world": "[" * 99_999}),
    "facts of numbers": header(__metadata__={"starflow_world": '{"a": 1}'}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_about_itself_is_one_clear_error(tmp_path, lie):
    path = tmp_path / "x"
    path.write_bytes(LIES[lie])
    with pytest.raises(CheckpointError, match=str(path)):
        read_tensors(path)


def test_what_is_no_plain_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", tmp_path / "loop", "/dev/zero", "x" * 5000, "a\0b"):
        with pytest.raises(StarflowError, match="expected a safetensors file, found none"):
            read_tensors(path)


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, tensors())
    found, _ = read_tensors(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found["a"], tensors()["a"])


def test_a_folder_belongs_to_the_run_that_wrote_its_record(tmp_path: Path) -> None:
    path = tmp_path / "run" / "record.json"
    claim(path, {"fixed": {"sizes": (1, 2)}, "steps": 3}, key="fixed")
    (path.parent / f"{TEMPORARY}left.json").touch()
    claim(path, {"fixed": {"sizes": (1, 2)}, "steps": 4}, key="fixed")
    assert json.loads(path.read_text()) == {"fixed": {"sizes": [1, 2]}, "steps": 4}
    assert list(path.parent.iterdir()) == [path]
    before = path.read_bytes()
    for other, key in (({"fixed": {"sizes": (1, 3)}, "steps": 4}, "fixed"), ({"fixed": {"sizes": (1, 2)}}, None)):
        with pytest.raises(DataError, match="another run's; use a new folder"):
            claim(path, other, key=key)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b"3"])
def test_a_damaged_record_is_refused_and_stays(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "record.json").write_bytes(damage)
    with pytest.raises(DataError, match=r"record\.json: expected the record of a run.*use a new folder"):
        claim(tmp_path / "record.json", {"fixed": 1}, key="fixed")
    assert (tmp_path / "record.json").read_bytes() == damage


@pytest.mark.parametrize(("code", "todo"), [
    (errno.ENOSPC, "make room for it"), (errno.EROFS, "choose a folder that you may write"),
    (errno.EACCES, "choose a folder that you may write"), (errno.ENAMETOOLONG, "choose another path"),
])
def test_a_file_that_cannot_be_written_is_named_with_what_helps(code, todo, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("starflow_world.io.files.tempfile.mkstemp", refuse)
    with pytest.raises(DataError, match=f"record.json: expected to write a file, found .*; {todo}$"):
        claim(tmp_path / "record.json", {})
    with pytest.raises(CheckpointError, match=f"x.safetensors: expected to write a file, found .*; {todo}$"):
        write_tensors(tmp_path / "x.safetensors", {})


def test_an_empty_path_is_no_file():
    with pytest.raises(ConfigError, match="path: expected the name of a file, found"), atomic(""):
        pass
