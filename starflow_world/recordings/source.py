"""Recordings of any format as one type: frames that are decoded when they are asked for, and steps between them.

A reader derives from `Source` and yields `Recording`s. In a recording of T frames, step t leads from frame t to t + 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from gymnasium import spaces

from starflow_world.errors import ActionError, ConfigError, DataError
from starflow_world.model.actions import flatten_action

NONE = "none"
MOST_CHOICES = 64
"""Most values of an integer action that are choices; more are numbers."""


@dataclass(frozen=True)
class Choice:
    """Which parts of a source are read. "": found by their usual names; "none": left out.

    camera: key of the pictures. action: column of the actions, or several, separated by commas. reward, end, text:
    columns of rewards, of terminations and of the task. align: "next" where the action of a row was taken at the row's
    frame, "same" where it led to that frame; for sources with a row per frame. fps: rows of actions per second; 0: not
    compared.
    """

    camera: str = ""
    action: str = ""
    reward: str = ""
    end: str = ""
    text: str = ""
    align: Literal["next", "same"] = "next"
    fps: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not the default."""
        return {key: value for key, value in asdict(self).items() if value != getattr(Choice, key)}


@dataclass(frozen=True, eq=False)
class Recording:
    """One recording of T frames.

    name: where it lies. length: T. frames(): decodes them one after the other, (H, W, 3) u8 or what `shown` accepts.
    actions: T - 1 elements of the action space. rewards (T - 1,) float. terminated, truncated: how it ends. text: the
    task, "" for none. place(t): file and row of step t.
    """

    name: str
    length: int
    frames: Callable[[], Iterator[np.ndarray]]
    actions: Sequence[Any] | np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    text: str
    place: Callable[[int], str]


class Source(ABC):
    """Recordings in one place. Iterating reads one after the other, always in the same order.

    folder: the place. choice: what is read of it. camera: the pictures that were chosen; cameras: all of them. fps:
    frames per second, None if the source has no such number. space: the action space, None if the source names none.
    """

    kind: ClassVar[str]
    folder: Path
    choice: Choice
    camera: str = ""
    cameras: tuple[str, ...] = ()
    fps: float | None = None
    space: spaces.Space | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of recordings."""

    @abstractmethod
    def __iter__(self) -> Iterator[Recording]:
        """Read the recordings; raises DataError naming file and row."""

    def facts(self) -> dict[str, Any]:
        """Return what the record of an import says of this source, as JSON."""
        facts = {"format": self.kind, "name": self.folder.resolve().name, "camera": self.camera, "fps": self.fps}
        return {key: value for key, value in facts.items() if value} | self.choice.to_dict()


def chosen_camera(where: str, cameras: Sequence[str], wanted: str) -> str:
    """Return the camera that is wanted, or the only one. Raises DataError naming all of them."""
    if wanted in cameras:
        return wanted
    if not wanted and len(cameras) == 1:
        return cameras[0]
    found = ", ".join(cameras) or "none"
    if wanted:
        raise DataError(f"{where}: expected a camera {wanted!r:.80} (--camera), found {found}")
    raise DataError(f"{where}: expected one camera, found {found}" + ("; choose one with --camera" if cameras else ""))


def action_space(source: Source) -> spaces.Space:
    """Return the action space of a source: its own, or one for the actions of all its recordings.

    Numbers give a Box without bounds; one integer a Discrete space, several a MultiDiscrete one, as long as none has
    more than MOST_CHOICES values; truth values a Discrete(2) or MultiBinary space. Raises DataError.
    """
    if source.space is not None:
        return source.space
    shape: tuple[int, ...] | None = None
    kinds: set[str] = set()
    low, high = np.zeros(1), np.zeros(1)
    for recording in source:
        actions = np.asarray(recording.actions)
        if not len(actions):
            continue
        if shape is not None and shape != actions.shape[1:]:
            raise DataError(f"{recording.place(0)}: expected actions of shape {shape} as in the recordings before, "
                            f"found {actions.shape[1:]}")
        shape, kinds = actions.shape[1:], kinds | {actions.dtype.kind}
        low, high = np.minimum(low, actions.min(axis=0)), np.maximum(high, actions.max(axis=0))
    if shape is None:
        raise DataError(f"{source.folder}: expected actions, found none in {len(source)} recordings")
    if kinds == {"b"}:
        return spaces.Discrete(2) if np.prod(shape) == 1 else spaces.MultiBinary(int(shape[0]))
    if kinds <= set("biu") and (high - low).max() < MOST_CHOICES:
        start, count = low.astype(np.int64), (high - low + 1).astype(np.int64)
        if np.prod(shape) == 1:
            return spaces.Discrete(int(count.item()), start=int(start.item()))
        return spaces.MultiDiscrete(count, start=start)
    return spaces.Box(-np.inf, np.inf, shape or (1,), np.float32)


def flat_actions_of(recording: Recording, space: spaces.Space) -> np.ndarray:
    """Return the actions of a recording as an episode stores them, (T, A) float32: row 0 is zeros, row t led to frame
    t. Raises DataError naming file and row of an action outside the space."""
    flat = np.zeros((recording.length, spaces.flatdim(space)), np.float32)
    for step, action in enumerate(recording.actions):
        try:
            flat[step + 1] = flatten_action(space, _in_form(space, action))[1:]
        except ActionError as error:
            raise DataError(f"{recording.place(step)}: {error}") from None
        except ConfigError as error:
            raise DataError(f"{recording.name}: {error}") from None
    return flat


def _in_form(space: spaces.Space, action: Any) -> Any:
    """Return an action of a table in the form of its space: whole numbers for choices, one axis or none."""
    if not isinstance(action, np.ndarray | np.generic):
        return action
    numbers = np.asarray(action)
    if not isinstance(space, spaces.Box) and numbers.dtype.kind == "f" and np.array_equal(numbers, numbers.round()):
        numbers = numbers.astype(np.int64)
    return numbers.reshape(space.shape) if space.shape is not None and numbers.size == np.prod(space.shape) else numbers
