"""Minari datasets, by name or folder, whose observations are pictures or have a picture among them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minari
import numpy as np
from gymnasium import spaces

from starflow_world.errors import DataError
from starflow_world.io.files import DAMAGE, is_file, is_folder
from starflow_world.recordings.source import NONE, Choice, Recording, Source, chosen_camera

METADATA = "metadata.json"
SMALLEST_SIDE = 8
"""Smallest side of a picture in pixels; smaller arrays of bytes are symbols, as MiniGrid's."""


class MinariDataset(Source):
    """A Minari dataset. An episode has one observation more than actions."""

    kind = "minari"

    def __init__(self, place: Path | str, choice: Choice) -> None:
        self.choice = choice
        data = _data_folder(place)
        self.folder = data.parent
        if strange := [path for path in data.rglob("*") if not is_file(path) and not is_folder(path)]:
            raise DataError(f"{strange[0]}: expected a file, found a pipe, a device or a broken link; remove it")
        _refuse_code(data / METADATA)
        try:
            self._set = minari.MinariDataset(data)
        except (*DAMAGE, AssertionError) as damage:
            raise DataError(f"{data}: expected a Minari dataset, found {damage!r:.200}") from None
        self.space = self._set.action_space
        self._pictures = dict(_pictures(self._set.observation_space))
        self.cameras = tuple(self._pictures)
        if not self.cameras:
            raise DataError(f"{self.folder}: expected observations with pictures, (H, W, 3) or (H, W) uint8 with sides "
                            f"of {SMALLEST_SIDE} pixels or more, found {self._set.observation_space!s:.200}; record "
                            "the environment's frames: starflow-world collect")
        self.camera = chosen_camera(str(self.folder), self.cameras, choice.camera)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"name": self._set.id}

    def __len__(self) -> int:
        return int(self._set.total_episodes)

    def __iter__(self) -> Iterator[Recording]:
        for index in range(len(self)):
            name = f"episode {index} of {self.folder}"
            try:
                episode = self._set[index]
            except (*DAMAGE, AssertionError, StopIteration) as damage:
                raise DataError(f"{name}: expected an episode, found {damage!r:.160}; fetch it again") from None
            yield self._recording(name, episode)

    def _recording(self, name: str, episode: Any) -> Recording:
        def place(step: int) -> str:
            return f"{name}: row {step}"

        frames = np.asarray(_part(episode.observations, self._pictures[self.camera]))
        steps, rewards = len(frames) - 1, np.asarray(episode.rewards, np.float64)
        ends, limits = (np.asarray(flags, bool) for flags in (episode.terminations, episode.truncations))
        for part, numbers in (("rewards", rewards), ("terminations", ends), ("truncations", limits)):
            if numbers.shape != (steps,):
                raise DataError(f"{name}: {part}: expected {steps} for {steps + 1} observations, found {numbers.shape}")
        if not np.isfinite(rewards).all():
            wrong = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise DataError(f"{place(wrong)}: rewards: expected finite numbers, found {rewards[wrong]}")
        early = np.flatnonzero((ends | limits)[:-1])
        if len(early):
            raise DataError(f"{place(int(early[0]))}: expected an end in the last of {steps} rows, found one here")
        over = bool(ends[-1:].any()) and self.choice.end != NONE
        actions = [_step(episode.actions, step) for step in range(steps)]
        return Recording(name, steps + 1, lambda: iter(frames), actions,
                         np.zeros(steps) if self.choice.reward == NONE else rewards, over, not over,
                         self._text(episode), place)

    def _text(self, episode: Any) -> str:
        """Return the first text among the observations, such as MiniGrid's mission."""
        space, seen, wanted = self._set.observation_space, episode.observations, self.choice.text or "mission"
        if not isinstance(space, spaces.Dict) or not isinstance(space.spaces.get(wanted), spaces.Text):
            if self.choice.text not in ("", NONE):
                raise DataError(f"{self.folder}: expected a text {wanted!r:.80} (--text) in the observations, found "
                                f"{space!s:.200}")
            return ""
        words = seen[wanted]
        return "" if self.choice.text == NONE or not len(words) else str(words[0])


def _data_folder(place: Path | str) -> Path:
    """Return the folder `data` of a dataset that is given by its folder or its name. Raises DataError."""
    for folder in (Path(place) / "data", Path(place)):
        if is_file(folder / METADATA):
            return folder
    try:
        return Path(minari.load_dataset(str(place)).storage.data_path)
    except (*DAMAGE, AssertionError) as damage:
        raise DataError(f"{place}: expected a folder, or the name of a Minari dataset on this machine, found "
                        f"{damage!s:.160}; fetch it with `minari download`") from None


def _refuse_code(path: Path) -> None:
    """Raise DataError where Minari would have to make the environment, foreign code, to know the spaces."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {key for key in ("observation_space", "action_space") if isinstance(values.get(key), str)}
    except DAMAGE as damage:
        raise DataError(f"{path}: expected the description of a Minari dataset, found {damage!r:.120}") from None
    if len(known) < 2:
        raise DataError(f"{path}: expected observation_space and action_space, found {', '.join(known) or 'neither'}; "
                        "write the dataset again with both")


def _pictures(space: spaces.Space, names: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each picture in an observation space, and the keys that lead to it."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _pictures(part, (*names, str(key)))
    elif isinstance(space, spaces.Box) and space.dtype == np.uint8:
        shape = space.shape
        grey, last, first = len(shape) == 2, shape[2:] in ((1,), (3,)), len(shape) == 3 and shape[0] in (1, 3)
        sides = shape[1:] if first and not last else shape[:2]
        if (grey or last or first) and min(sides) >= SMALLEST_SIDE:
            yield ".".join(names) or "observation", names


def _part(observations: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        observations = observations[name]
    return observations


def _step(actions: Any, step: int) -> Any:
    """Return the action of one step of all actions of an episode."""
    if isinstance(actions, dict):
        return {key: _step(part, step) for key, part in actions.items()}
    if isinstance(actions, tuple):
        return tuple(_step(part, step) for part in actions)
    return actions[step]
