"""Videos of many captions, into one folder: in this process, in those of torchrun, or by Ray actors.

A video is made where its file and record are not there yet, so a run that was interrupted goes on when it is started
again, with any number of processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from starflow_world.errors import DataError
from starflow_world.model.checkpoint import load_video
from starflow_world.video.generation import generate, result_path
from starflow_world.video.model import VideoModel, prompts_of
from starflow_world.video.record import is_made
from starflow_world.video.request import Request

LIMIT = 24 * 3600.0
"""Seconds that an actor may take for a video."""


@dataclass(frozen=True)
class Caption:
    """A video to make: the line of its text in the file, from 0, and its seed."""

    line: int
    seed: int
    text: str


@dataclass(frozen=True)
class CaptionWork:
    """Work of a process: load a model, then make the videos of captions as `request` says."""

    folder: Path
    out: Path
    request: Request
    captions: tuple[Caption, ...]
    text: str
    vae: str
    cache: Path
    device: str
    dtype: str
    offload: bool

    def asked(self, caption: Caption) -> Request:
        """Return the request for a caption."""
        return replace(self.request, prompt=caption.text, seed=caption.seed)

    def path(self, caption: Caption) -> Path:
        """Return the name of a caption's video."""
        return result_path(self.out / f"{caption.line:05}-{caption.seed}", self.request)

    def open(self) -> Callable[[Caption], str]:
        """Encode all prompts and load the model; return a function that makes a video and returns its path."""
        config, _ = load_video(self.folder)
        prompts = [words for caption in self.captions for words in prompts_of(self.asked(caption), config)]
        model = VideoModel.from_pretrained(
            self.folder, text=self.text, codec=self.vae, cache=self.cache, device=self.device, dtype=self.dtype,
            prompts=list(dict.fromkeys(prompts)), offload=self.offload,
        )

        def make(caption: Caption) -> str:
            request, path = self.asked(caption), self.path(caption)
            if not is_made(path, request, model.origin):
                generate(model, request, path, resume=True)
            return str(path)

        return make


def read_captions(path: Path, first: int, samples: int) -> tuple[Caption, ...]:
    """Return the videos of a text file, a caption a line, with seeds first, first + 1 ... each. Empty lines are left
    out. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a text file in UTF-8, found {error}") from None
    named = [(number, line.strip()) for number, line in enumerate(lines) if line.strip()]
    if not named:
        raise DataError(f"{path}: expected a caption a line, found none")
    return tuple(Caption(line, first + seed, text) for line, text in named for seed in range(samples))


def share_of(
    captions: Sequence[Caption], environment: Mapping[str, str], device: str
) -> tuple[tuple[Caption, ...], str]:
    """Return the captions and the device of this process: all, or its own where torchrun started several."""
    rank, count = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    if count > 1 and device == "auto" and torch.cuda.is_available():
        device = f"cuda:{environment['LOCAL_RANK']}"
    return tuple(captions[rank::count]), device


def make_all(work: CaptionWork, actors: int, gpus_per_actor: float) -> Iterator[str]:
    """Make the videos, in this process or by Ray actors; yield the path of each."""
    if not actors:
        yield from map(work.open(), work.captions) if work.captions else ()
        return
    from starflow_world.agents.pool import Crew, Pool
    from starflow_world.envs.shard import own_threads

    device = "cuda" if gpus_per_actor > 0 else "cpu"
    portable = replace(work, folder=work.folder.resolve(), out=work.out.resolve(), cache=work.cache.resolve(),
                       device=device if work.device == "auto" else work.device)
    with Pool(portable, Crew(actors, gpus_per_actor, own_threads(actors), LIMIT)) as pool:
        made = pool.run(portable.captions, name=lambda index: portable.path(portable.captions[index]).name)
        yield from (path for _, path in made)
