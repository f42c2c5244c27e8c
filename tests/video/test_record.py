"""The JSON beside a result makes it again, or says what has changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from starflow_world.cli import main
from starflow_world.io.media import read_video, write_png
from starflow_world.model.t5 import T5Text
from tests.tiny_video import moving_spot, tiny_folders, tiny_t5

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, a picture, a video made of it (a.mp4), and its record."""
    root = tmp_path_factory.mktemp("made")
    folders = tiny_folders(root)
    write_png(root / "first.png", next(read_video(moving_spot(root / "clip.mp4", 2), 1)))
    main(["generate", str(folders["model"]), "--prompt", "a red dog.", "--frames", "9", "--aspect", "3:2", "--seed",
          "5", "--image", str(root / "first.png"), "--text", str(folders["text"]), "--vae", str(folders["vae"]),
          "--device", "cpu", "--dtype", "float32", "--guidance", "2", "--out", str(root / "a.mp4")])
    return root


def test_a_record_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    main(["generate", "--from", str(made / "a.json"), "--out", str(tmp_path / "b.mp4")])
    assert (tmp_path / "b.mp4").read_bytes() == (made / "a.mp4").read_bytes()
    first, second = (json.loads(path.read_text()) for path in (made / "a.json", tmp_path / "b.json"))
    assert first.pop("figures").keys() == second.pop("figures").keys() >= {"seconds", "sweeps_per_latent_frame"}
    assert first == second
    assert first["request"]["prompt"] == "a red dog."
    assert first["request"]["seed"] == 5


def test_other_flags_change_what_they_name(made: Path, tmp_path: Path) -> None:
    main(["generate", "--from", str(made / "a.json"), "--seed", "6", "--device", "cpu", "--out",
          str(tmp_path / "b.mp4")])
    assert (tmp_path / "b.mp4").read_bytes() != (made / "a.mp4").read_bytes()
    old, new = (json.loads(path.read_text())["request"] for path in (made / "a.json", tmp_path / "b.json"))
    assert new == old | {"seed": 6}


def test_each_of_several_samples_is_the_video_of_its_seed_alone(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--from", str(made / "a.json"), "--device", "cpu", "--out"]
    more = ["--seed", "4", "--samples", "2", "--latents", str(tmp_path / "l.safetensors")]
    main([*words, str(tmp_path / "b.mp4"), *more])
    assert (tmp_path / "b-5.mp4").read_bytes() == (made / "a.mp4").read_bytes() != (tmp_path / "b-4.mp4").read_bytes()
    names = [f"{name}.{kind}" for name in ("b-4", "b-5") for kind in ("json", "mp4")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "l-4.safetensors", "l-5.safetensors"]
    assert json.loads((tmp_path / "b-5.json").read_text())["request"]["seed"] == 5
    (tmp_path / "b-5.mp4").unlink()
    monkeypatch.setattr(T5Text, "_run", None)
    capsys.readouterr()
    times = (tmp_path / "b-4.mp4").stat().st_mtime_ns
    main([*words, str(tmp_path / "b.mp4"), *more, "--resume"])
    assert (tmp_path / "b-4.mp4").stat().st_mtime_ns == times, "what is complete is not made again"
    assert (tmp_path / "b-5.mp4").read_bytes() == (made / "a.mp4").read_bytes()
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["b-4.mp4", "b-5.mp4"]


def _other_text(root: Path, record: dict[str, dict[str, object]]) -> None:
    record["made_with"]["text"] = str(tiny_t5(root / "other", seed=1))


def _other_picture(root: Path, record: dict[str, dict[str, object]]) -> None:
    record["request"]["image"] = str(shutil.copy(record["request"]["image"], root / "other.png"))  # type: ignore[call-overload]
    write_png(root / "other.png", next(read_video(moving_spot(root / "c.mp4", 2), 1))[:16])


def _other_weights(root: Path, record: dict[str, dict[str, object]]) -> None:
    record["made_with"]["weights"] = "0" * 64


def _unknown_key(root: Path, record: dict[str, dict[str, object]]) -> None:
    record["request"]["promt"] = "a"


def _wrong_type(root: Path, record: dict[str, dict[str, object]]) -> None:
    record["request"]["frames"] = "9"


def _no_sources(root: Path, record: dict[str, dict[str, object]]) -> None:
    record["sources"] = 3  # type: ignore[assignment]


def _no_record(root: Path, record: dict[str, dict[str, object]]) -> None:
    record.clear()


@pytest.mark.parametrize(("change", "said"), [
    (_other_text, "text_digest: expected"), (_other_picture, "other.png of the digest"),
    (_other_weights, "weights: expected 000000000000"), (_unknown_key, "did you mean 'prompt'"),
    (_wrong_type, "request.frames: expected int"), (_no_record, "expected the JSON that generate writes"),
    (_no_sources, "expected the JSON that generate writes"),
])
def test_what_has_changed_since_is_refused_by_name(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: Callable[[Path, dict[str, dict[str, object]]], None], said: str,
) -> None:
    record = json.loads((made / "a.json").read_text())
    change(tmp_path, record)
    (tmp_path / "changed.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--from", str(tmp_path / "changed.json"), "--device", "cpu", "--out",
              str(tmp_path / "b.mp4")])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]
    assert not (tmp_path / "b.mp4").exists()
