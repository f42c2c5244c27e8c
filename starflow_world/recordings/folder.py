"""A folder of our own episodes as a source: to look at it, to scale its frames, to join it with others."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from starflow_world.data.dataset import EpisodeDataset, origin
from starflow_world.errors import DataError
from starflow_world.model.actions import space_from_json
from starflow_world.recordings.source import Choice, Recording, Source


class EpisodeFolder(Source):
    """Episodes as `collect` and `data import` write them."""

    kind = "episodes"

    def __init__(self, folder: Path, choice: Choice) -> None:
        if choice != Choice():
            raise DataError(f"{folder}: expected no choice of cameras, columns or rates for episodes, found "
                            f"{choice.to_dict()}")
        self.folder, self.choice = folder, choice
        self._dataset = EpisodeDataset(folder)
        self.space = self._space = space_from_json(self._dataset.action_space_json)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"origin": origin(self.folder)}

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Recording]:
        for index, path in enumerate(self._dataset.paths):
            episode = self._dataset[index]
            actions = [spaces.unflatten(self._space, row) for row in episode.actions[1:]]
            yield Recording(
                str(path), len(episode), partial(iter, episode.frames), actions, episode.rewards[1:].astype(np.float64),
                bool(episode.terminated[-1]), bool(episode.truncated[-1]), episode.text, partial(_place, path),
            )


def _place(path: Path, step: int) -> str:
    return f"{path}: frame {step + 1}"
