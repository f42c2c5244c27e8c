"""Whatever lies in the place of a file of a recording, it is read or refused in one of our errors; nothing runs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from starflow_world.errors import DataError, StarflowError
from starflow_world.recordings import open_source
from starflow_world.recordings.archives import array_shapes
from starflow_world.recordings.importing import episodes_of
from starflow_world.recordings.source import Choice, action_space
from tests import written_recordings as written

pytest.importorskip("pyarrow")
pytest.importorskip("minari")


def pickled(path: Path) -> None:
    path.write_bytes(f"cos\nsystem\n(S'touch {path.parent / 'canary'}'\ntR.".encode())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), 97):
        content[place] ^= 0xFF
    path.write_bytes(content)


def of_json(path: Path) -> None:
    path.write_text('{"features": [], "fps": "x", "codebase_version": "v3.0", "episode_index": null}')


def replaced(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES = {
    "pickle": pickled, "cut": cut, "changed": changed, "json": of_json, "empty": lambda path: path.write_bytes(b""),
    "none": Path.unlink, "folder": replaced(Path.mkdir), "pipe": replaced(os.mkfifo),
    "device": replaced(lambda path: path.symlink_to("/dev/zero")),
}
WRITERS = {
    "videos": (lambda folder: written.videos(folder, (5,)), Choice()),
    "archives": (lambda folder: written.archives(folder, (5,)), Choice()),
    "minari": (lambda folder: written.minari_set(folder, (5,)), Choice()),
    "lerobot 2": (lambda folder: written.lerobot_2(folder, (5,), written.CAMERAS[:1]), Choice()),
    "lerobot 3": (lambda folder: written.lerobot_3(folder, (5,)), Choice()),
    "pictures": (lambda folder: written.lerobot_3(folder, (5,), pictures=True), Choice()),
}


def read_all(folder: Path, choice: Choice) -> None:
    source = open_source(folder, choice)
    space = action_space(source)
    for recording in source:
        for episode in episodes_of(recording, space, (16, 16), 100):
            episode.validate()


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", WRITERS)
def test_each_file_may_be_anything(name: str, damage: str, tmp_path: Path) -> None:
    write, choice = WRITERS[name]
    good = write(tmp_path / "good")
    files = [path.relative_to(good) for path in sorted(good.rglob("*")) if path.is_file()]
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        DAMAGES[damage](folder / file)
        said = ""
        try:
            read_all(folder, choice)
        except StarflowError as error:
            said = str(error)
        assert len(said) < 600
        assert not list(folder.rglob("canary"))


def test_an_archive_that_promises_huge_arrays_is_refused_before_they_are_read(tmp_path: Path) -> None:
    import io
    import zipfile

    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("actions.npy", head.getvalue())
    with pytest.raises(DataError, match="larger than any recording's"):
        array_shapes(tmp_path / "a.npz")


@pytest.mark.parametrize("path", ["..", "/nowhere/none", "a\0b", "x" * 300, "", " ", "http://127.0.0.1:1/x", "../x"])
def test_odd_paths_are_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StarflowError):
        read_all(Path(path) if "\0" in path else path, Choice())
    assert not list((tmp_path / "here").iterdir())
