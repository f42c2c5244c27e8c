"""A run that is stopped leaves a whole video, and goes on to the bytes that it would have written."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starflow_world.cli import main
from starflow_world.codec.wan import WanCodec
from starflow_world.errors import ConfigError
from starflow_world.io.files import TEMPORARY
from starflow_world.io.media import VideoWriter, read_picture, read_video, write_png
from starflow_world.video.generation import generate
from starflow_world.video.model import VideoModel
from starflow_world.video.partial import PartialResult
from starflow_world.video.request import Request
from tests.tiny_video import moving_spot, tiny_folders

pytest.importorskip("diffusers")
ASK = Request("a red dog.", frames=21, aspect="1:1", seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> VideoModel:
    return VideoModel.from_pretrained(
        folders["model"], text=str(folders["text"]), codec=str(folders["vae"]), cache=folders["cache"], device="cpu"
    )


@pytest.fixture(scope="module")
def undisturbed(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return generate(model, ASK, tmp_path_factory.mktemp("whole") / "a.mp4").read_bytes()


def signalling(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, count: int, number: int) -> None:
    """Let the process get a signal in the middle of the method's call number `count`."""
    calls, method = [0], getattr(kind, name)

    def called(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == count:
            signal.raise_signal(number)
        return method(*arguments, **options)

    monkeypatch.setattr(kind, name, called)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("kind", "name", "count"), [
    (VideoWriter, "add", 7), (PartialResult, "keep", 5), (WanCodec, "decode", 2),
])
def test_what_was_decoded_is_a_whole_video_and_the_rest_comes_to_the_same_bytes(
    model: VideoModel, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], kind: type, name: str, count: int, number: int,
) -> None:
    out, before = tmp_path / "a.mp4", signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalling(patch, kind, name, count, number)
        with pytest.raises(KeyboardInterrupt):
            generate(model, ASK, out)
    assert signal.getsignal(number) == before
    said = capsys.readouterr().err
    shown = list(read_video(tmp_path / "a-partial.mp4", 99))
    assert 0 < len(shown) < 21
    assert f"a-partial.mp4: the {len(shown)} frames that were complete" in said
    assert "with --resume goes on" in said
    kept = len(list((tmp_path / "a-partial").glob("*.safetensors")))
    assert 0 < kept <= 6
    assert not out.exists()
    generate(model, ASK, out, resume=True)
    assert out.read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.mp4"]


@pytest.mark.parametrize("changes", [{"image": True}, {"video": True, "extend": True}, {"video": True, "frames": 13}])
def test_runs_from_pictures_and_videos_go_on_too(
    model: VideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    clip = moving_spot(tmp_path / "clip.mp4", 14)
    write_png(tmp_path / "first.png", next(read_video(clip, 1)))
    files = {"image": tmp_path / "first.png", "video": clip}
    request = replace(ASK, **{key: files.get(key, value) for key, value in changes.items()})  # type: ignore[arg-type]
    expected = generate(model, request, tmp_path / "whole.mp4").read_bytes()
    with monkeypatch.context() as patch:
        signalling(patch, PartialResult, "keep", 2, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            generate(model, request, tmp_path / "a.mp4")
    assert generate(model, request, tmp_path / "a.mp4", resume=True).read_bytes() == expected


def test_frames_that_are_known_take_one_sweep_each(
    model: VideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signalling(patch, PartialResult, "keep", 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            generate(model, ASK, tmp_path / "a.mp4")
    kept, sweeps = len(list((tmp_path / "a-partial").glob("*.safetensors"))), []
    monkeypatch.setattr(PartialResult, "keep", lambda *_: None)
    run = model.run
    monkeypatch.setattr(model, "run", lambda request, show, keep, **options: run(
        request, show, lambda solved: (sweeps.append(int(solved.sweeps.max())), keep(solved))[1], **options))
    generate(model, ASK, tmp_path / "a.mp4", resume=True)
    assert sweeps[:kept] == [1] * kept
    assert min(sweeps[kept:]) > 1


def test_a_run_that_is_stopped_again_before_its_first_frame_keeps_what_was_there(
    model: VideoModel, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, name, count, resume in ((PartialResult, "keep", 4, False), (VideoModel, "task", 1, True)):
        with monkeypatch.context() as patch:
            signalling(patch, kind, name, count, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                generate(model, ASK, tmp_path / "a.mp4", resume=resume)
        assert len(list((tmp_path / "a-partial").glob("*.safetensors"))) == 4
    assert generate(model, ASK, tmp_path / "a.mp4", resume=True).read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.mp4"]


def test_a_preview_shows_the_newest_frame_while_the_same_video_is_made(
    model: VideoModel, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, show = [], PartialResult.show

    def watched(result: PartialResult, frame: np.ndarray) -> None:
        show(result, frame)
        shown.append(read_picture(tmp_path / f"{result.out.stem}-preview.png"))

    monkeypatch.setattr(PartialResult, "show", watched)
    generate(model, ASK, tmp_path / "a.mp4", preview=8)
    assert len(shown) == 3, "of the 6 latent frames, every second"
    assert len({frame.tobytes() for frame in shown}) == 3
    assert (tmp_path / "a.mp4").read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.mp4"]
    whole: list[np.ndarray] = []
    model.run(replace(ASK, frames=5), whole.append)
    generate(model, replace(ASK, frames=5), tmp_path / "b.mp4", preview=8)
    assert np.array_equal(shown[-1], whole[-1]), "where nothing follows, it is the frame itself"


def test_what_a_killed_run_left_is_removed_by_the_next(model: VideoModel, undisturbed: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "a-partial"
    other = tmp_path / "b-partial" / f"{TEMPORARY}x.mp4"
    for path in (folder / f"{TEMPORARY}x.mp4", folder / f"{TEMPORARY}y.safetensors", folder / "made.mp4", other):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    assert generate(model, ASK, tmp_path / "a.mp4", resume=True).read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.mp4", "b-partial"]
    assert other.exists(), "another run may still be writing it"


def test_a_run_goes_on_with_the_same_request_only(
    model: VideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        signalling(patch, PartialResult, "keep", 2, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            generate(model, ASK, tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match=r"resume: .*request.json: seed: expected 3 as before, found 4"):
        generate(model, replace(ASK, seed=4), tmp_path / "a.mp4", resume=True)
    capsys.readouterr()
    generate(model, replace(ASK, frames=5), tmp_path / "a.mp4")
    assert "--resume would have gone on with it" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.mp4"]


def test_the_command_line_says_what_is_kept_and_goes_on(
    folders: dict[str, Path], undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["generate", str(folders["model"]), "--prompt", ASK.prompt, "--frames", "21", "--aspect", "1:1", "--seed",
             "3", "--text", str(folders["text"]), "--vae", str(folders["vae"]), "--device", "cpu", "--out",
             str(tmp_path / "a.mp4")]
    with monkeypatch.context() as patch:
        signalling(patch, VideoWriter, "add", 6, signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            main(words)
    assert stopped.value.code == 130
    assert "a-partial.mp4" in capsys.readouterr().err
    main([*words, "--resume"])
    assert (tmp_path / "a.mp4").read_bytes() == undisturbed
