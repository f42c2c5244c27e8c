"""The tasks of `starflow-world data`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    from gymnasium import spaces

    from starflow_world.recordings.source import Source


@dataclass(frozen=True)
class _Reading:
    """Which recordings are read, and how."""

    source: Positional[str]
    """Folder of LeRobot (2.x, 3.x), of Minari, of MP4s with CSV or Parquet tables, of .npz files, or of episodes; one
    .npz file; or the name of a Minari dataset on this machine."""
    format: Literal["", "episodes", "lerobot", "minari", "videos", "archives"] = ""
    """Format; empty: by what the folder holds."""
    camera: str = ""
    """Pictures to read, where there are several."""
    action: str = ""
    """Column of the actions, or several, separated by commas; empty: action or actions, else all named action.*."""
    reward: str = ""
    """Column of the rewards; empty: by its usual names; none: without rewards."""
    end: str = ""
    """Column that says where an episode terminates; empty: by its usual names; none: without ends."""
    text: str = ""
    """Column of the task in words; empty: by its usual names; none: without texts."""
    align: Literal["next", "same"] = "next"
    """Where there is a row per frame: its action was taken at its frame (next), or led to it (same)."""
    fps: float = 0.0
    """Rows of actions per second, which must be those of the videos; 0: a row per frame, whatever the rate."""
    space: dict[str, Any] = field(default_factory=dict)
    """Action space as JSON, such as '{"type": "Discrete", "n": 4}'; none given: the source's, else from the actions."""

    def opened(self) -> "tuple[Source, spaces.Space | None]":
        """Open the source; return it and the action space that was given."""
        import json

        from starflow_world.model.actions import space_from_json
        from starflow_world.recordings import open_source
        from starflow_world.recordings.source import Choice

        choice = Choice(self.camera, self.action, self.reward, self.end, self.text, self.align, self.fps)
        space = space_from_json(json.dumps(self.space)) if self.space else None
        return open_source(self.source, choice, self.format), space


@dataclass(frozen=True)
class ImportRecordings(_Reading):
    """Write recordings as a folder of episodes for `train`; an interrupted import goes on where it stopped."""

    out: Path = field(kw_only=True)
    """Folder for the episodes."""
    frame_size: tuple[int, ...] = (64,)
    """Height and width of the frames in pixels, or one number for both; 0: as they are."""
    longest: int = 5000
    """Most frames of an episode; longer recordings become several episodes."""

    def run(self) -> None:
        """Import."""
        from starflow_world.recordings.importing import import_recordings

        source, space = self.opened()
        print(import_recordings(source, self.out, frame_size=self.frame_size, space=space, longest=self.longest))


@dataclass(frozen=True)
class InspectRecordings(_Reading):
    """Print counts, sizes, action space, rewards, texts and ends of recordings or episodes, and what fits a recipe."""

    def run(self) -> None:
        """Read all numbers, and print what they say."""
        from starflow_world.recordings.summary import summary

        source, space = self.opened()
        for key, value in summary(source, space=space).items():
            if key == "recipe":
                print("fits a recipe:")
                print("\n".join(f"  {name}: {fit}" for name, fit in value.items()))
            else:
                print(f"{key}: {value}")


@dataclass(frozen=True)
class PreviewRecordings(_Reading):
    """Write a contact sheet and a video of the first recordings, with actions and rewards below the frames."""

    out: Path = field(kw_only=True)
    """Folder for preview.png and preview.mp4."""
    recordings: int = 4
    """Number of recordings."""
    frames: int = 300
    """Most frames of each."""
    frame_size: tuple[int, ...] = (0,)
    """Height and width of the frames in pixels, as for import; 0: as they are."""

    def run(self) -> None:
        """Write both."""
        from starflow_world.recordings.preview import preview

        source, space = self.opened()
        size = None if 0 in self.frame_size else (self.frame_size[0], self.frame_size[-1])
        for path in preview(source, self.out, recordings=self.recordings, frames=self.frames, size=size, space=space):
            print(path)


@dataclass(frozen=True)
class MergeEpisodes:
    """Join folders of episodes that have one frame size, one action space and one environment."""

    folders: Positional[tuple[Path, ...]]
    """Folders of episodes, in the order of the new one."""
    out: Path
    """Folder for all episodes."""

    def run(self) -> None:
        """Copy the episodes."""
        from starflow_world.recordings.merging import merge

        print(merge(self.folders, self.out))
