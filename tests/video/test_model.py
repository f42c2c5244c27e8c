"""The model as a Python object: `VideoModel.from_pretrained`, `.generate`."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starflow_world import VideoModel
from starflow_world.codec.wan import WanCodec
from starflow_world.errors import ConfigError, DataError
from starflow_world.flow import Flow
from starflow_world.io.media import fitted, read_video, write_png
from starflow_world.model.t5 import T5Text
from starflow_world.video import model as video_model
from starflow_world.video.request import Request
from tests.tiny_video import moving_spot, tiny_folders

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_folders(tmp_path_factory.mktemp("models"))


def opened(folders: dict[str, Path], **options: object) -> VideoModel:
    places = {"text": str(folders["text"]), "codec": str(folders["vae"]), "device": "cpu"}
    return VideoModel.from_pretrained(folders["model"], **places, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> VideoModel:
    return opened(folders)


def frames_of(model: VideoModel, request: Request) -> np.ndarray:
    shown: list[np.ndarray] = []
    model.run(request, shown.append)
    return np.stack(shown)


def test_each_of_several_videos_is_that_of_its_seed_alone_and_the_prompt_is_encoded_once(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, run = [], T5Text._run
    monkeypatch.setattr(T5Text, "_run", lambda text, words: (encoded.append(words), run(text, words))[1])
    steps: list[tuple[int, int]] = []
    made = model.generate(prompt="a red dog.", negative_prompt="a cat.", num_frames=5, guidance_scale=2.0,
                          num_videos_per_prompt=2, seed=3, callback=lambda *step: steps.append(step))
    assert made.frames.shape == (2, 5, *model.config.size("16:9"), 3)
    assert made.seeds == (3, 4)
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert len(encoded) == 2
    for seed, frames in zip(made.seeds, made.frames, strict=True):
        request = Request("a red dog.", "a cat.", frames=5, guidance=2.0, seed=seed)
        assert np.array_equal(frames, frames_of(model, request))


def test_seeds_are_drawn_from_a_generator(model: VideoModel) -> None:
    first, again = (
        model.generate("a dog.", num_frames=1, num_videos_per_prompt=2, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert first.seeds == again.seeds
    assert len(set(first.seeds)) == 2
    assert np.array_equal(first.frames, again.frames)


def test_an_image_may_be_a_file_a_picture_or_an_array(model: VideoModel, tmp_path: Path) -> None:
    from PIL import Image

    pixels = next(read_video(moving_spot(tmp_path / "clip.mp4", 2), 1))
    write_png(tmp_path / "a.png", pixels)
    made = [model.generate("a dog.", image=image, num_frames=5, aspect="3:2").frames
            for image in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels, Image.fromarray(pixels))]
    assert all(np.array_equal(made[0], other) for other in made[1:])
    assert not np.array_equal(made[0], model.generate("a dog.", num_frames=5, aspect="3:2").frames)
    assert fitted(pixels, model.config.size("3:2")).shape == made[0].shape[2:]


def test_a_video_goes_on(model: VideoModel, tmp_path: Path) -> None:
    clip = moving_spot(tmp_path / "clip.mp4", 5)
    made = model.generate("a dog.", video=str(clip), extend=True, num_frames=9)
    assert np.array_equal(made.frames[0], frames_of(model, Request("a dog.", video=clip, extend=True, frames=9)))


def test_what_a_callback_raises_ends_the_call(model: VideoModel) -> None:
    def stop(video: int, step: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        model.generate("a dog.", num_frames=5, callback=stop)


def test_wrong_arguments_are_named(model: VideoModel) -> None:
    with pytest.raises(ConfigError, match="num_videos_per_prompt: expected a number >= 1, found 0"):
        model.generate("a dog.", num_videos_per_prompt=0)
    with pytest.raises(DataError, match=r"image: expected a file, .* found float64 \(4, 4, 3\)"):
        model.generate("a dog.", image=np.zeros((4, 4, 3)))
    with pytest.raises(ConfigError, match=r"frames: expected 1 \+ 4k"):
        model.generate("a dog.", num_frames=80)


def test_offloaded_parts_are_in_memory_only_while_they_work_and_the_bytes_are_the_same(
    folders: dict[str, Path], model: VideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.nn.Module]] = []
    seen: list[str] = []

    def watched(patch: pytest.MonkeyPatch, kind: type, name: str, part: str) -> None:
        method = getattr(kind, name)

        def called(*arguments: object, **options: object) -> object:
            parts = {type(module).__name__ for ref in alive if (module := ref()) is not None}
            seen.append(f"{part} beside {sorted(parts)}")
            return method(*arguments, **options)

        patch.setattr(kind, name, called)

    def made_by(patch: pytest.MonkeyPatch, owner: object, name: str, part: Callable[[Any], torch.nn.Module]) -> None:
        make = getattr(owner, name)

        def made(*arguments: object, **options: object) -> object:
            result = make(*arguments, **options)
            alive.append(weakref.ref(part(result)))
            return result

        patch.setattr(owner, name, made)

    asked = {"image": next(read_video(moving_spot(tmp_path / "clip.mp4", 2), 1)), "num_frames": 5, "seed": 2}
    with monkeypatch.context() as patch:
        made_by(patch, video_model, "load_flow", lambda flow: flow)
        made_by(patch, WanCodec, "load", lambda codec: codec.vae)
        made_by(patch, T5Text, "_encoder", lambda encoder: encoder)
        for kind, name, part in ((T5Text, "_run", "text"), (Flow, "decode", "flow"), (WanCodec, "_encode", "VAE"),
                                 (WanCodec, "_decode", "VAE")):
            watched(patch, kind, name, part)
        offloaded = opened(folders, offload=True)
        frames = offloaded.generate("a dog.", **asked).frames
    assert set(seen) == {"text beside []", "text beside ['T5EncoderModel']", "VAE beside ['AutoencoderKLWan']",
                         "flow beside ['Flow']"}
    assert not [ref for ref in alive if ref() is not None], "all is released at the end"
    assert np.array_equal(frames, model.generate("a dog.", **asked).frames)
