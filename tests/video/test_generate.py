"""`starflow-world generate`, end to end on small models of the published structure."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from starflow_world.cli import main
from starflow_world.codec.wan import WanCodec
from starflow_world.errors import CheckpointError, ConfigError, DataError
from starflow_world.io.media import fitted, read_picture, read_video, write_png
from starflow_world.noise import make_key
from starflow_world.video.generation import generate
from starflow_world.video.model import VideoModel
from starflow_world.video.pipeline import synthesize
from starflow_world.video.request import Request
from tests.tiny_video import TINY_VIDEO, moving_spot, tiny_folders

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return tiny_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(folders) -> VideoModel:
    return VideoModel.from_pretrained(
        folders["model"], text=str(folders["text"]), codec=str(folders["vae"]), cache=folders["cache"], device="cpu"
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return moving_spot(tmp_path_factory.mktemp("clip") / "clip.mp4", 14)


def frames_of(model: VideoModel, request: Request, **options) -> np.ndarray:
    shown: list[np.ndarray] = []
    model.run(request, shown.append, **options)
    return np.stack(shown)


TEXT = Request("a red dog.", frames=5, aspect="16:9", seed=3)


def test_frames_follow_from_the_request_and_its_seed(model):
    first = frames_of(model, TEXT)
    assert first.shape == (5, *model.config.size("16:9"), 3)
    assert np.array_equal(first, frames_of(model, TEXT))
    for change in ({"seed": 4}, {"prompt": "a cat."}, {"guidance": 0.0}):
        assert not np.array_equal(first, frames_of(model, replace(TEXT, **change))), change
    assert first.std() > 2


def test_a_longer_video_begins_like_a_shorter_one_where_the_denoiser_cannot_know(model):
    short, long = (frames_of(model, replace(TEXT, frames=frames)) for frames in (13, 29))
    assert np.array_equal(long[:9], short[:9])  # the first window of the denoiser is the same, but for its overlap
    assert not np.array_equal(long[9:13], short[9:])


def test_an_image_is_the_first_frame_in_noise(model, clip, tmp_path):
    picture = next(read_video(clip, 1))
    write_png(tmp_path / "first.png", picture)
    request = replace(TEXT, image=tmp_path / "first.png")
    task, hidden = model.task(request)
    assert (hidden, task.noise.shape[1], task.given.shape[1]) == (0, 1, 1)
    assert torch.equal(task.noise, model.task(TEXT)[0].noise[:, 1:]), "a frame's noise follows from seed and number"
    size = model.config.size("16:9")
    frames = torch.from_numpy(fitted(picture, size))[None, None]
    posterior = model.codec.encode(frames, keys=torch.tensor([make_key(TEXT.seed)]))[0]
    assert (task.given - posterior).std() == pytest.approx(0.5, rel=0.3)  # 36 numbers
    found = frames_of(model, request)
    assert found.shape == (5, *size, 3)
    assert not np.array_equal(found, frames_of(model, TEXT))


def test_a_video_goes_on_or_is_translated(model, clip):
    longer = replace(TEXT, video=clip, frames=17, extend=True)
    task, hidden = model.task(longer)
    assert (task.given.shape[1], task.noise.shape[1], hidden) == (4, 1, 0)  # 13 of the 14 frames
    assert frames_of(model, longer).shape[0] == 17
    other = replace(TEXT, video=clip, frames=9)
    task, hidden = model.task(other)
    assert (task.given.shape[1], task.noise.shape[1], hidden, task.window) == (3, 3, 3, 6)
    assert any(b"(v2v) a red dog." in path.read_bytes() for path in model.text.cache.iterdir())


def test_a_translation_is_decoded_as_a_clip_of_its_own(model, clip):
    request = replace(TEXT, video=clip)
    task, hidden = model.task(request)
    parts: list[Tensor] = []
    synthesize(model.flow, task, model.config.decode, parts.append)
    clean = torch.cat(parts, dim=1)[:, hidden:]
    assert np.array_equal(frames_of(model, request), model.codec.on_grid(task.grid).decode(clean)[0][0].numpy())


def test_one_frame_is_a_picture_and_its_prompt_says_so(model, tmp_path):
    path = generate(model, replace(TEXT, frames=1, aspect="2:3"), tmp_path / "still.mp4")
    assert path == tmp_path / "still.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["still.json", "still.png"]
    assert read_picture(path).shape == (*model.config.size("2:3"), 3)
    assert any(b"An image:" in path.read_bytes() for path in model.text.cache.iterdir())


def test_the_command_writes_a_video_that_others_can_read(folders, tmp_path, capsys):
    out = tmp_path / "made" / "clip.mp4"
    words = ["generate", str(folders["model"]), "--prompt", "a dog.", "--frames", "9", "--aspect", "3:2", "--out",
             str(out), "--text", str(folders["text"]), "--vae", str(folders["vae"]), "--device", "cpu"]
    main(words)
    frames = list(read_video(out, 99))
    assert len(frames) == 9
    assert frames[0].shape == (*TINY_VIDEO.size("3:2"), 3)
    said = capsys.readouterr()
    assert str(out) in said.out
    assert "9/9" in said.err
    assert "sweeps per latent frame" in said.err
    assert len(list((folders["model"] / "prompts").glob("*.safetensors"))) == 2  # the prompt and the empty one
    assert sorted(path.name for path in out.parent.iterdir()) == ["clip.json", "clip.mp4"]


def test_what_fails_leaves_no_video(model, tmp_path, monkeypatch):
    monkeypatch.setattr(WanCodec, "decode", lambda *args: (_ for _ in ()).throw(DataError("planted")))
    (tmp_path / "a.mp4").write_text("old")
    with pytest.raises(DataError, match="planted"):
        generate(model, TEXT, tmp_path / "a.mp4")
    assert [path.read_text() for path in tmp_path.glob("*.mp4")] == ["old"]


@pytest.mark.parametrize(("changes", "error", "said"), [
    ({"frames": 80}, ConfigError, r"expected 1 \+ 4k, such as 81, found 80"),
    ({"aspect": "4:3"}, ConfigError, "aspect: expected one of"),
    ({"image": Path("a.png"), "video": Path("b.mp4")}, ConfigError, "found a.png and b.mp4"),
    ({"image": Path("absent.png")}, DataError, "absent.png: expected a picture"),
    ({"video": Path("absent.mp4")}, DataError, "absent.mp4: expected a video"),
    ({"fps_policy": "loose"}, ConfigError, "fps-policy: expected time or strict, found 'loose'"),
    ({"prompt": "0: a. 8: b."}, ConfigError, r"prompt: expected frames that rise from 0, below 5, found \[0, 8\]"),
    ({"prompt": "0: a. 3: b. 2: c."}, ConfigError, r"found \[0, 3, 2\]"),
    ({"codec": "gif"}, ConfigError, "codec: expected h264 or h265, found 'gif'"),
    ({"quality": 52}, ConfigError, "quality: expected a CRF from 0 to 51, found 52"),
    ({"negative_prompt": "blur", "guidance": 0.0}, ConfigError, "negative-prompt: expected guidance > 0"),
    ({"extend": True}, ConfigError, "expected a video to go on with"),
    ({"guidance": -1.0}, ConfigError, "guidance: expected a number >= 0"),
    ({"prompt": "dog " * 60}, DataError, "expected at most 80 tokens"),
])
def test_what_cannot_be_made_is_one_clear_error(model, changes, error, said):
    with pytest.raises(error, match=said):
        frames_of(model, replace(TEXT, **changes))


def test_a_video_that_is_no_shorter_than_the_result_cannot_go_on(model, clip):
    said = "expected more than the 13 that .*clip.mp4 gives, found 9; .* pass --frames 93"
    with pytest.raises(ConfigError, match=said):
        frames_of(model, replace(TEXT, video=clip, frames=9, extend=True))


def test_a_codec_of_another_model_is_refused(model):
    config = replace(model.config, flow=replace(model.config.flow, channels=8))
    with pytest.raises(CheckpointError, match="VAE: expected 8 channels and 16 pixels per token, found 6 and 16"):
        VideoModel(config, model.flow, model.text, model.codec)


def words(folders: dict[str, Path], out: Path, *more: str) -> list[str]:
    """A command line for the small model."""
    parts = ["--text", str(folders["text"]), "--vae", str(folders["vae"]), "--device", "cpu"]
    return ["generate", str(folders["model"]), "--prompt", "a red dog.", "--out", str(out), *parts, *more]


@pytest.mark.parametrize(("more", "said"), [
    (["--frames", "80"], "frames: expected 1 + 4k"),
    (["--frames", "5", "--aspect", "4:3"], "aspect: expected one of"),
    (["--frames", "5", "--image", "absent.png"], "absent.png: expected a picture"),
    (["--frames", "5", "--out", "a.gif"], "out: expected a file name ending in .mp4, found 'a.gif'"),
    (["--frames", "1", "--out", "a.jpg"], "out: expected a file name ending in .png, found 'a.jpg'"),
    (["--frames", "5", "--prompt", "dog " * 60], "prompt: expected at most 80 tokens"),
    (["--frames", "5", "--negative-prompt", "dog " * 60], "prompt: expected at most 80 tokens"),
    (["--frames", "9", "--video", "clip.mp4", "--extend"], "expected more than the 13 that clip.mp4 gives, found 9"),
    (["--frames", "17", "--video", "clip.mp4"], "expected at most the 13 that clip.mp4 gives to translate, found 17"),
    (["--frames", "5", "--device", "tpu"], "device: expected one of this machine"),
    (["--prompt", ""], "prompt: expected a text"),
])
def test_what_cannot_be_made_is_said_before_weights_are_loaded(
    folders, clip, tmp_path, monkeypatch, capsys, more, said
):
    monkeypatch.chdir(clip.parent)
    monkeypatch.setattr("starflow_world.video.model.load_flow", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(WanCodec, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(SystemExit):
        main(words(folders, tmp_path / "a.mp4", *more))
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_bar_of_a_longer_video_knows_how_many_frames_are_to_come(folders, clip, tmp_path, capsys):
    main(words(folders, tmp_path / "a.mp4", "--video", str(clip), "--extend", "--frames", "17"))
    said = capsys.readouterr().err
    assert "4/4" in said
    assert "clip.mp4: the first 13 of 14 frames are used" in said
    assert len(list(read_video(tmp_path / "a.mp4", 99))) == 17


def test_guidance_moves_away_from_a_negative_prompt(model):
    away = replace(TEXT, negative_prompt="a dog.")
    assert not np.array_equal(frames_of(model, away), frames_of(model, TEXT))
    none, negative = (model.task(request)[0] for request in (TEXT, away))
    assert torch.equal(none.text, negative.text)
    assert not torch.equal(none.null_text, negative.null_text)


def test_latents_are_those_that_the_video_is_decoded_from(model, tmp_path):
    generate(model, TEXT, tmp_path / "a.mp4", latents=tmp_path / "a.safetensors")
    (latents,) = load_file(tmp_path / "a.safetensors").values()
    frames = model.codec.on_grid(model.config.grid("16:9")).decode(latents)[0][0].numpy()
    assert np.array_equal(frames, frames_of(model, TEXT))


def test_frames_are_written_as_pictures_and_as_exactly_as_asked(model, tmp_path):
    (tmp_path / "a-frames").mkdir()
    for name in ("00009.png", "mine.png"):
        (tmp_path / "a-frames" / name).write_text("old")
    video = generate(model, replace(TEXT, png=True, quality=0), tmp_path / "a.mp4")
    shown = frames_of(model, TEXT)
    pictures = sorted((tmp_path / "a-frames").iterdir())
    assert [path.name for path in pictures] == [f"{k:05}.png" for k in range(5)] + ["mine.png"]
    assert all(np.array_equal(read_picture(path), frame) for path, frame in zip(pictures, shown, strict=False))
    exact = np.abs(np.stack(list(read_video(video, 9))).astype(int) - shown).mean()
    small = generate(model, replace(TEXT, quality=51), tmp_path / "b.mp4")
    assert exact < np.abs(np.stack(list(read_video(small, 9))).astype(int) - shown).mean()
    assert video.stat().st_size > small.stat().st_size


def test_a_prompt_changes_on_the_way_at_the_frame_that_it_names(model):
    assert replace(TEXT, prompt="at 5: a dog").prompts == ((0, "at 5: a dog"),)
    request = replace(TEXT, prompt="0: a red dog. 6: a cat.", frames=13)
    assert request.prompts == ((0, "a red dog."), (6, "a cat."))
    task, _ = model.task(request)
    assert list(task.changes) == [2]  # frames 5 to 8
    assert torch.equal(task.text, model.task(TEXT)[0].text)
    assert torch.equal(task.changes[2], model.task(replace(TEXT, prompt="a cat."))[0].text)
    found, plain = frames_of(model, request), frames_of(model, replace(TEXT, frames=13))
    assert np.array_equal(found[0], plain[0])
    assert not np.array_equal(found[5:], plain[5:])


def test_the_prompt_of_a_translation_changes_at_the_frame_of_the_result(model, clip):
    task, hidden = model.task(replace(TEXT, prompt="0: a dog. 5: a cat.", video=clip, frames=9))
    assert (hidden, list(task.changes)) == (3, [5])
