"""`generate --captions`: a video a line and seed, made once, by one process or several."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from starflow_world.agents import pool
from starflow_world.cli import main
from starflow_world.commands.generate.captions import Caption, share_of
from starflow_world.video.generation import generate
from starflow_world.video.partial import PartialResult
from tests.tiny_video import tiny_folders
from tests.video.test_partial import signalling

pytest.importorskip("diffusers")
NAMES = ["00000-7.mp4", "00000-8.mp4", "00002-7.mp4", "00002-8.mp4"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("captions")
    folders = tiny_folders(root)
    (root / "captions.txt").write_text("a red dog.\n\na cat.\n")
    parts = ["--text", str(folders["text"]), "--vae", str(folders["vae"]), "--device", "cpu"]
    return ["generate", str(folders["model"]), "--captions", str(root / "captions.txt"), "--seed", "7",
            "--samples", "2", "--frames", "5", "--aspect", "1:1", *parts, "--out"]


@pytest.fixture(scope="module")
def made(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("made")
    main([*words, str(out)])
    return videos(out)


def videos(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*[0-9].mp4"))}


def test_each_line_and_seed_has_the_video_that_the_command_makes_of_it(
    words: list[str], made: dict[str, bytes], tmp_path: Path
) -> None:
    assert list(made) == NAMES
    start = words.index("--captions")
    one = [*words[:start], *words[start + 2 :], str(tmp_path / "a.mp4"), "--prompt", "a cat."]
    del one[one.index("--samples") : one.index("--samples") + 2]
    one[one.index("--seed") + 1] = "8"
    main(one)
    assert (tmp_path / "a.mp4").read_bytes() == made["00002-8.mp4"]
    assert len(set(made.values())) == len(made)


def test_a_run_that_was_interrupted_goes_on_and_makes_nothing_twice(
    words: list[str], made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signalling(patch, PartialResult, "keep", 4, signal.SIGTERM)
        with pytest.raises(SystemExit):
            main([*words, str(tmp_path)])
    there = videos(tmp_path)
    assert 0 < len(there) < 4
    counted: list[str] = []
    monkeypatch.setattr("starflow_world.commands.generate.captions.generate",
                        lambda model, request, out, **options: counted.append(out.name) or generate(
                            model, request, out, **options))
    main([*words, str(tmp_path)])
    assert videos(tmp_path) == made
    assert sorted({*there, *counted}) == NAMES
    assert not set(there) & set(counted)


def test_a_folder_of_another_request_is_refused(words: list[str], tmp_path: Path, capsys: Any) -> None:
    main([*words, str(tmp_path)])
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path), "--guidance", "0"])
    said = capsys.readouterr().err
    assert "00000-7.json: guidance: expected 0.0, as is asked now, found None; choose a new folder" in said


def test_processes_of_torchrun_share_the_captions() -> None:
    captions = [Caption(line, 0, "a") for line in range(7)]
    shares = [share_of(captions, {"RANK": str(rank), "WORLD_SIZE": "3"}, "cpu") for rank in range(3)]
    assert sorted(caption.line for share, _ in shares for caption in share) == list(range(7))
    assert max(len(share) for share, _ in shares) - min(len(share) for share, _ in shares) <= 1
    assert share_of(captions, {}, "cpu") == (tuple(captions), "cpu")


def test_actors_make_the_same_videos(
    words: list[str], made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        """A pool whose only member is this process."""

        def __init__(self, work: pool.Work, crew: pool.Crew) -> None:
            self.work, self.crew = work, crew

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None: ...

        def run(self, tasks: Sequence[Caption], *, name: Callable[[int], str]) -> Any:
            pool.check_portable("work", self.work)
            pool.check_portable("tasks", tasks)
            assert [name(index) for index in range(len(tasks))] == NAMES
            assert self.crew.actors == 2
            work = self.work.open()
            return [(index, work(task)) for index, task in enumerate(tasks)]

    monkeypatch.setattr(pool, "Pool", Here)
    main([*words, str(tmp_path), "--actors", "2"])
    assert videos(tmp_path) == made
    assert json.loads((tmp_path / "00000-7.json").read_text())["made_with"]["device"] == "cpu"


@pytest.mark.parametrize(("more", "said"), [
    (["--prompt", "a"], "--prompt: expected without --captions"), (["--latents", "l"], "--latents: expected without"),
    (["--samples", "0"], "samples, actors, gpus-per-actor: expected numbers"),
    (["--preview", "8"], "--preview: expected without"),
    (["--preview", "-1"], "--preview: expected without"), (["--out", "a.mp4"], "out: expected a folder for the videos"),
    (["--captions", "absent.txt"], "absent.txt: expected a text file"),
])
def test_what_does_not_go_with_captions_is_said(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "out"), *more])
    assert said in capsys.readouterr().err


def test_flags_of_captions_need_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "model", "--prompt", "a", "--actors", "2"])
    assert "--actors: expected only with --captions" in capsys.readouterr().err


def test_empty_captions_are_an_error(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.txt").write_text("\n  \n")
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "out"), "--captions", str(tmp_path / "none.txt")])
    assert "expected a caption a line, found none" in capsys.readouterr().err
