"""Recordings that others made: readers of their formats, and the import into folders of episodes."""

import re
from pathlib import Path

from starflow_world.data.episodes import NAME
from starflow_world.errors import DataError
from starflow_world.io.files import is_file, is_folder
from starflow_world.recordings.source import Choice, Source

FORMS = {"episodes": NAME, "videos": re.compile(r".*\.mp4"), "archives": re.compile(r".*\.npz")}
"""Formats that are recognised by the names of their files."""
FORMATS = ("episodes", "lerobot", "minari", "videos", "archives")


def open_source(place: Path | str, choice: Choice | None = None, kind: str = "") -> Source:
    """Open recordings: a folder of LeRobot, of Minari, of videos with tables, of NumPy archives or of episodes, one
    archive, or the name of a Minari dataset. kind: one of FORMATS; "": by what the folder holds. Raises DataError."""
    choice, path = choice or Choice(), Path(place)
    kind = kind or _kind(path)
    if kind == "episodes":
        from starflow_world.recordings.folder import EpisodeFolder

        return EpisodeFolder(path, choice)
    if kind == "lerobot":
        from starflow_world.recordings.lerobot import LeRobotFolder

        return LeRobotFolder(path, choice)
    if kind == "minari":
        try:
            from starflow_world.recordings.minari import MinariDataset
        except ModuleNotFoundError as error:
            if error.name != "minari" or is_folder(path):
                raise
            raise DataError(f"{place}: expected a folder of recordings or an .npz file, found none; if this is the "
                            "name of a Minari dataset: pip install 'starflow-world[data]'") from None
        return MinariDataset(place, choice)
    if kind == "videos":
        from starflow_world.recordings.videos import VideoFolder

        return VideoFolder(path, choice)
    if kind == "archives":
        from starflow_world.recordings.archives import ArchiveFolder

        return ArchiveFolder(path, choice)
    raise DataError(f"format: expected one of {', '.join(FORMATS)}, found {kind!r:.80}")


def _kind(path: Path) -> str:
    """Return the format of what lies at a path. Raises DataError."""
    if is_file(path) and path.suffix == ".npz":
        return "archives"
    if not is_folder(path):
        if is_file(path) or path.is_absolute():
            raise DataError(f"{path}: expected a folder of recordings, an .npz file or the name of a Minari dataset, "
                            "found no such thing")
        return "minari"
    names = sorted(child.name for child in path.iterdir())
    if is_file(path / "meta" / "info.json"):
        return "lerobot"
    if is_file(path / "metadata.json") or is_file(path / "data" / "metadata.json"):
        return "minari"
    for kind, form in FORMS.items():
        if any(form.fullmatch(name) for name in names):
            return kind
    raise DataError(f"{path}: expected recordings: meta/info.json (LeRobot), data/metadata.json (Minari), .mp4, .npz "
                    f"or episode-000000.h5, found {', '.join(names[:8]) or 'an empty folder'}")
