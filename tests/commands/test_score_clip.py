"""`starflow-world score --video`: the likelihood of a real clip under a small model of the published structure."""

import copy
import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from starflow_world.cli import main
from starflow_world.commands.score.clip import ClipScores, clip_nats, score_clip, window_nats
from starflow_world.commands.score.settings import ScoreSettings
from starflow_world.errors import CheckpointError, ConfigError, DataError
from starflow_world.flow import Flow
from starflow_world.io.media import read_picture, read_video
from starflow_world.noise import make_key
from starflow_world.video.model import VideoModel
from starflow_world.video.sources import nearest_aspect
from tests.tiny_video import moving_spot, tiny_folders

pytest.importorskip("diffusers")
ASPECT = "16:9"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return tiny_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(folders) -> VideoModel:
    places = {"text": str(folders["text"]), "codec": str(folders["vae"])}
    return VideoModel.from_pretrained(folders["model"], **places, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> ScoreSettings:
    """31 frames: 29 that make 8 latent ones, where the window holds 4, and two that are left."""
    folder = tmp_path_factory.mktemp("clip")
    return ScoreSettings(out=folder, video=moving_spot(folder / "spot.mp4", 31), prompt="a red dog.", seed=3)


def scored(model: VideoModel, clip: ScoreSettings, most: int = 99) -> ClipScores:
    return clip_nats(model, clip, read_video(clip.video, most), ASPECT)


@pytest.fixture(scope="module")
def scores(model, clip) -> ClipScores:
    return scored(model, clip)


def noisy(model: VideoModel, clip: ScoreSettings) -> Tensor:
    """The clip's noisy latents (1, T, n, c)."""
    keys = torch.tensor([make_key(clip.seed)])
    return torch.cat(list(model.noisy(read_video(clip.video, 99), model.config.size(ASPECT), keys)), dim=1)


@torch.no_grad()
def streamed(model: VideoModel, x: Tensor, text: Tensor) -> list[float]:
    """Nats frame by frame through the cache; where the window is full, what it keeps is encoded anew."""
    flow, config, length = model.flow, model.config, text.shape[1]
    tables = flow.tables(config.grid(ASPECT), config.window)
    u, logdet = flow.shallow(x, tables)
    cache, found, begin = flow.start_cache(text, 1, tables), [], 0
    for t in range(x.shape[1]):
        if t - begin == config.window:
            begin = t - config.context
            inputs = flow.deep.shift(u[:, begin:t].flatten(1, 2))
            cache, _ = flow.extend(cache.rollback(length), inputs, None, tables, text=length)
        before = flow.deep.shift(u[:, :1, :1].flatten(1, 2)) if t == begin else u[:, t - 1, -1:]
        cache, affine = flow.extend(cache, torch.cat((before, u[:, t, :-1]), dim=1), None, tables, text=length)
        found.append(float(affine.nats(u[:, t]).sum() + logdet[:, t].sum()))
    return found


def test_one_parallel_pass_a_window_gives_what_the_cache_gives_frame_by_frame(model, clip, scores):
    text = model.text.encode([model.config.prompt(clip.prompt, fps=16, aspect=ASPECT)])
    assert scores.nats.shape == (1, 8)
    assert scores.dims == 6 * 6
    np.testing.assert_allclose(scores.nats[0], streamed(model, noisy(model, clip), text), atol=1e-3)


def test_nats_are_those_of_the_normal_distribution_where_the_flow_is_the_identity(model, clip):
    plain = VideoModel(model.config, copy.deepcopy(model.flow), model.text, model.codec)
    for name, parameter in plain.flow.named_parameters():
        if "head" in name:
            torch.nn.init.zeros_(parameter)
    x = noisy(model, clip).double()
    expected = -0.5 * (x.square() + math.log(2 * math.pi)).sum((2, 3))
    np.testing.assert_allclose(scored(plain, clip).nats, expected, rtol=1e-4)


def test_the_prompt_and_the_frames_per_second_that_it_names_count(model, clip, scores):
    for change in ({"prompt": "a cat."}, {"fps": 8}, {"seed": 4}):
        assert not np.allclose(scored(model, replace(clip, **change)).nats, scores.nats, atol=1e-3), change


def test_the_past_does_not_depend_on_the_future(model, clip, scores):
    np.testing.assert_allclose(scored(model, clip, most=15).nats, scores.nats[:, :4], atol=1e-3)  # 13 of 15 frames


def test_several_draws_are_those_of_as_many_seeds_and_are_averaged(model, clip, scores):
    both = scored(model, replace(clip, draws=2), most=13)
    other = scored(model, replace(clip, seed=4), most=13)
    np.testing.assert_allclose(both.nats, np.concatenate((scores.nats[:, :4], other.nats)), atol=1e-3)
    line = both.lines()[2]
    assert line["nats"] == pytest.approx(both.nats[:, 2].mean())
    assert line["spread"] == pytest.approx(abs(both.nats[0, 2] - both.nats[1, 2]) / math.sqrt(2))
    assert (line["first_frame"], line["last_frame"]) == (5, 8)
    assert scores.lines()[2]["spread"] is None


def test_what_is_computed_at_once_does_not_grow_with_the_clip_or_the_draws(model, clip, monkeypatch):
    seen: list[tuple[int, ...]] = []
    real = Flow.nats
    monkeypatch.setattr(Flow, "nats", lambda self, x, *rest: seen.append(tuple(x.shape[:2])) or real(self, x, *rest))
    scored(model, replace(clip, draws=2))
    assert seen == [(1, 4)] * 6


def test_windows_are_the_same_however_the_clip_comes(model, clip, scores, monkeypatch):
    monkeypatch.setattr("starflow_world.video.model.ENCODED", 1)
    np.testing.assert_allclose(scored(model, clip).nats, scores.nats, atol=1e-3)


def test_half_precision_gives_nearly_the_same(folders, model, clip, scores):
    half = VideoModel.from_pretrained(
        folders["model"], text=str(folders["text"]), codec=str(folders["vae"]), device="cpu", dtype="bfloat16"
    )
    x, text = noisy(model, clip)[:, :4], model.text.encode(["a dog."])
    tables = model.flow.tables(model.config.grid(ASPECT), 4)
    found, exact = (window_nats(which, x, text, tables) for which in (half, model))
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05 * scores.dims


@pytest.mark.parametrize(("height", "width", "aspect"), [(40, 64, "3:2"), (480, 848, "16:9"), (64, 40, "2:3")])
def test_the_aspect_is_the_nearest_to_the_videos_own(height, width, aspect):
    assert nearest_aspect(np.empty((height, width, 3))) == aspect


def command(folders: dict[str, Path], out: Path, *words: str) -> None:
    main(["score", str(folders["model"]), "--out", str(out), *words])


def models(folders: dict[str, Path]) -> tuple[str, ...]:
    return "--text", str(folders["text"]), "--vae", str(folders["vae"]), "--device", "cpu"


def test_the_command_prints_a_table_and_writes_the_same_figures(folders, clip, tmp_path, capsys):
    command(folders, tmp_path / "out", "--video", str(clip.video), "--prompt", clip.prompt, "--draws", "2",
            *models(folders))
    record = json.loads((tmp_path / "out/clip.json").read_text())
    lines, whole = record["latent_frames"], record["whole"]
    assert (record["aspect"], record["fps"], record["noise_level"], record["draws"]) == ("3:2", 16, 0.5, 2)
    assert whole["nats"] == pytest.approx(sum(line["nats"] for line in lines))
    assert whole["nats_per_dim"] == pytest.approx(whole["nats"] / (8 * record["dims_per_latent_frame"]))
    assert whole["bits_per_dim"] == pytest.approx(-whole["nats_per_dim"] / math.log(2))
    rows = list(csv.DictReader((tmp_path / "out/clip.csv").read_text().splitlines()))
    assert [float(row["nats"]) for row in rows] == [line["nats"] for line in lines]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1:10]] == [*map(str, range(8)), "clip"]
    assert printed[9].split()[1] == f"{whole['nats']:.1f}"
    assert read_picture(tmp_path / "out/clip.png").std() > 10


@pytest.mark.parametrize(("words", "says"), [
    (["--video", "absent.mp4"], "absent.mp4: expected a video"),
    (["--video", "short.mp4"], "short.mp4: expected at least 5 frames, two latent ones, found 4"),
    (["--video", "short.mp4", "--data", "data", "--overlays"], "--data, --overlays: expected only with --data and"),
    (["--prompt", "a dog."], "--prompt: expected only with --video"),
    (["--data", "data"], "expected --data and --scorer, or --video"),
    (["--video", "short.mp4", "--draws", "0"], "draws, seed, fps: expected numbers >= 1"),
    (["--video", "long.mp4", "--aspect", "4:3"], "aspect: expected one of"),
    (["--video", "long.mp4", "--dtype", "int8"], "dtype: expected auto"),
])
def test_what_cannot_be_scored_is_one_clear_error(folders, tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    for name, frames in (("short", 4), ("long", 5)):
        moving_spot(tmp_path / f"{name}.mp4", frames)
    with pytest.raises(SystemExit) as stopped:
        command(folders, tmp_path / "out", *words)
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_converted_model_is_refused(clip, tmp_path):
    with pytest.raises(CheckpointError, match=r"video\.json: expected the config of a converted video model"):
        score_clip(replace(clip, world=str(tmp_path), out=tmp_path / "out"), clip.video)


def test_a_model_of_pictures_and_a_prompt_that_is_too_long_are_refused(model, clip):
    pictures = copy.copy(model)
    pictures.config = replace(model.config, window=1, context=1)
    with pytest.raises(ConfigError, match="expected a model of videos, found a window of 1 frame"):
        scored(pictures, clip)
    with pytest.raises(DataError, match="expected at most 80 tokens"):
        scored(model, replace(clip, prompt="dog " * 60))
