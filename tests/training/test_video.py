"""Training of video models on clips: what a step shows, what both networks learn from it, and runs that go on.

Clips of 12 frames and one picture at 32 x 32 pixels, 4 tokens a latent frame; a tiny model of the published structure.
"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from starflow_world.codec.wan import WanCodec
from starflow_world.config.train import VideoRecipe, VideoTrainConfig, load_recipe
from starflow_world.errors import CheckpointError, ConfigError, DataError
from starflow_world.io.media import VideoWriter, measure_video, read_video, write_png
from starflow_world.io.yaml import read_yaml
from starflow_world.model.actions import ActionEncoder, space_from_json
from starflow_world.model.checkpoint import load_flow
from starflow_world.model.t5 import T5Text
from starflow_world.training import distributed
from starflow_world.training.clips import ClipSampler, find_items
from starflow_world.training.distributed import ALONE, Processes
from starflow_world.training.video import MODEL, VideoTrainer, train_video
from starflow_world.video.model import VideoModel
from tests.processes import Work, alone, together
from tests.tiny_video import TINY_VIDEO, tiny_t5, tiny_video, tiny_wan

pytest.importorskip("diffusers")
ROOT = Path(__file__).resolve().parents[2]
FAST = VideoTrainConfig(
    steps=4, clips=4, frames=9, pictures=2, picture_rate=0.4, rows_at_once=1, aspect="1:1", image_dropout=0.5, warmup=1,
    learning_rate=2e-4, denoiser_learning_rate=2e-4, precision="f32", checkpointing=False, seed=7, save_minutes=9.0,
)


def frame(clip: int, t: int) -> np.ndarray:
    """The brightness of the left half tells the clip, that of the right half the time."""
    found = np.full((32, 32, 3), 40 * clip + 40, np.uint8)
    found[:, 16:] = 15 * t
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/, t5/, wan/, and the converted model start/."""
    root = tmp_path_factory.mktemp("video")
    tiny_t5(root / "t5"), tiny_wan(root / "wan"), tiny_video(root / "start", TINY_VIDEO)
    (root / "clips").mkdir()
    for clip in range(3):
        with VideoWriter(root / "clips" / f"{clip}.mp4", 8) as video:
            for t in range(12):
                video.add(frame(clip, t))
        (root / "clips" / f"{clip}.txt").write_text(f"clip {clip}.\n")
    write_png(root / "clips" / "still.png", frame(4, 0))
    return root


def recipe(root: Path, **changes: object) -> VideoRecipe:
    config = replace(TINY_VIDEO, text=str(root / "t5"), codec=str(root / "wan"))
    return VideoRecipe(config, replace(FAST, **changes))  # type: ignore[arg-type]


def sampler(root: Path, **changes: object) -> ClipSampler:
    return ClipSampler(root / "clips", recipe(root, **changes), ALONE)


def trainer(root: Path, **changes: object) -> VideoTrainer:
    made = recipe(root, **changes)
    text = T5Text(str(root / "t5"), made.video.flow.text_length, cache=root / "prompts")
    model = VideoModel(made.video, load_flow(root / "start").train(), text, WanCodec.load(root / "wan"))
    action = ActionEncoder(space_from_json(made.video.action_space), made.video.flow.deep_width)
    return VideoTrainer(model, action, ClipSampler(root / "clips", made, ALONE), made, ALONE)


# ---- what a step shows -----------------------------------------------------------------------------------------------


def test_a_folder_is_read_with_captions_lengths_and_rates(root, tmp_path):
    found = find_items(root / "clips", fps=16)
    assert [(item.path.name, item.caption, item.frames, item.fps) for item in found] == [
        ("0.mp4", "clip 0.", 12, 8), ("1.mp4", "clip 1.", 12, 8), ("2.mp4", "clip 2.", 12, 8), ("still.png", "", 1, 0),
    ]
    assert measure_video(root / "clips" / "0.mp4") == (12, 8.0)
    assert len(list(read_video(root / "clips" / "0.mp4", 9, 8))) == 4
    with pytest.raises(DataError, match="expected clips or pictures"):
        find_items(tmp_path, fps=16)
    with pytest.raises(DataError, match=r"clips of at least train.frames = 13 frames, found 12"):
        sampler(root, frames=13)
    shutil.copy(root / "clips" / "still.png", tmp_path)
    with pytest.raises(DataError, match=r"set train.picture_rate to 1"):
        ClipSampler(tmp_path, recipe(root), ALONE)


def test_steps_are_of_clips_or_pictures_and_captions_and_first_frames_are_dropped_as_promised(root):
    made, steps = sampler(root, caption_dropout=0.3), 200
    pictures, extended, silent, rows, starts = 0, 0, 0, 0, set()
    for step in range(steps):
        batch = made.batch(step)
        rows += len(batch.prompts)
        pictures += batch.frames.shape[1] == 1
        extended += batch.extend
        for prompt, shown in zip(batch.prompts, batch.frames.numpy(), strict=True):
            assert ("An image:" in prompt) == (len(shown) == 1) == ("8 fps" not in prompt)
            assert ("(extend)" in prompt) == batch.extend
            if len(shown) == 1:
                continue
            clip, times = round((int(shown[0, 8, 8, 0]) - 40) / 40), np.rint(shown[:, 8, 24, 0] / 15)
            assert np.array_equal(times, times[0] + np.arange(9))
            starts.add(int(times[0]))
            assert (f"clip {clip}." in prompt) == ("clip" in prompt)
            silent += "clip" not in prompt
    clips = rows - 2 * pictures
    assert starts == {0, 1, 2, 3}
    for count, total, share in ((pictures, steps, 0.4), (extended, steps - pictures, 0.5), (silent, clips, 0.3)):
        assert abs(count - share * total) < 4 * math.sqrt(total * share * (1 - share))


def test_two_processes_draw_the_rows_of_one(root):
    one, parts = sampler(root), [ClipSampler(root / "clips", recipe(root), Processes(rank, 2)) for rank in (0, 1)]
    for step in range(4):
        whole, (first, second) = one.batch(step), [part.batch(step) for part in parts]
        assert torch.equal(whole.frames, torch.cat((first.frames, second.frames)))
        assert whole.prompts == first.prompts + second.prompts
        assert torch.equal(whole.keys, torch.cat((first.keys, second.keys)))


# ---- what is learned -------------------------------------------------------------------------------------------------


def test_a_step_changes_flow_and_denoiser_and_leaves_no_gradient_to_the_next(root):
    """The published trainer changes neither, and would add up the gradients of the denoiser."""
    made = trainer(root, picture_rate=0.0)
    parameters = dict(made.model.flow.named_parameters())
    before, found = {name: p.clone() for name, p in parameters.items()}, []
    for peak in (1e-7, 0.0):  # twice the same step, from nearly the same weights
        made.step = 0
        for group in (group for optimizer in made.optimizers for group in optimizer.param_groups):
            group["peak"] = peak
        assert all(math.isfinite(value) for value in made.advance().values())
        found.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
    assert found[0].keys() == parameters.keys()
    for name, p in parameters.items():
        assert not torch.equal(p, before[name]), name
        gradient = found[0][name]
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0.1 * float(gradient.abs().max()), msg=name)


def test_only_what_has_a_gradient_is_clipped(root, monkeypatch):
    """Clips teach the adapter nothing, and torch puts the norm of nothing on the CPU, where it meets none of a GPU."""
    clipped: list[nn.Parameter] = []
    scale = distributed.clip_gradients
    clip = "starflow_world.training.loop.clip_gradients"
    monkeypatch.setattr(clip, lambda part, most: clipped.extend(part) or scale(part, most))
    made = trainer(root, picture_rate=0.0)
    made.advance()
    assert {id(p) for p in clipped} == {id(p) for p in made.model.flow.parameters()}


def test_the_denoiser_s_target_is_the_whole_gradient_of_the_flow(root, monkeypatch):
    made = trainer(root, picture_rate=0.0, image_dropout=0.0)
    flow, config = made.model.flow, made.model.config
    batch = made.sampler.batch(0)
    x, text = made.noisy(batch)[:2].double(), made.model.text.encode(batch.prompts)[:2].double()
    flow.double()
    leaf = x.clone().requires_grad_()
    nats, _ = flow.nats(leaf, text, None, flow.tables(config.grid("1:1"), 3))
    (gradient,) = torch.autograd.grad(-nats.sum(), leaf)
    target = gradient * config.noise_level**2 / config.flow.denoiser_step

    def perfect(x: Tensor, *rest: object) -> Tensor:
        return (target[:1] if torch.equal(x, leaf[:1]) else target[1:]).detach().requires_grad_()

    monkeypatch.setattr(flow, "denoiser_output", perfect)
    for row in (slice(0, 1), slice(1, 2)):
        assert made._backward(x[row], text[row], 7)[1] < 1e-20 < float(target.square().mean())


def test_rows_may_follow_each_other(root):
    found = []
    for rows in (1, 4):
        made = trainer(root, picture_rate=0.0, rows_at_once=rows, checkpointing=True)
        found.append((made.advance(), {name: p.grad for name, p in made.model.flow.named_parameters()}))
    (one, first), (four, second) = found
    assert one == pytest.approx(four, rel=1e-5)
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_the_shipped_recipe_sees_one_frame_ahead():
    found = load_recipe(ROOT / "configs" / "starflow_v_train.yaml", ("train.steps=7",))
    published = read_yaml(ROOT / "configs" / "starflow_v_7b.yaml")
    assert sum(found.video.flow.denoiser_look_ahead) == 1
    assert found.video.flow.deep_width == published["flow"]["deep_width"]
    assert (found.video.text, found.train.steps) == (published["text"], 7)
    with pytest.raises(ConfigError, match=r"unknown key video\.flow\.deep_with"):
        load_recipe(ROOT / "configs" / "starflow_v_train.yaml", ("video.flow.deep_with=1",))


def test_a_caption_that_is_too_long_is_named_before_the_first_step(root, tmp_path):
    shutil.copytree(root / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "2.txt").write_text("word " * 40)
    with pytest.raises(DataError, match=r"2\.mp4: prompt: expected at most 80 tokens, found \d+.*video\.flow"):
        train_video(recipe(root), tmp_path / "clips", tmp_path / "out", init=root / "start")
    assert not (tmp_path / "out" / "training.json").exists()


# ---- runs ------------------------------------------------------------------------------------------------------------


def training(root: Path, out: Path, *, resume: bool = False, **changes: object) -> Work:
    made = recipe(root, **changes)
    return lambda processes: train_video(
        made, root / "clips", out, init=root / "start", resume=resume, processes=processes
    )


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two(root: Path) -> Path:
    together(2, training(root, root / "two"))
    return root / "two"


def test_two_processes_learn_what_one_does_and_write_a_model(root, two, tmp_path):
    alone(training(root, tmp_path))
    assert {line["latent_frames"] for line in lines(two)} == {1, 2, 3}, "pictures, clips to extend, clips"
    for mine, theirs in zip(lines(tmp_path), lines(two), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-6)
    one, other, begun = (load_flow(f).state_dict() for f in (tmp_path / MODEL, two / MODEL, root / "start"))
    error = max(float((one[name] - other[name]).abs().max()) for name in one)
    moved = min(float((one[name] - begun[name]).abs().max()) for name in one)
    print(f"{FAST.steps} steps: every tensor moves by at least {moved:.1g}; one and two are {error:.1g} apart")
    assert error <= 1e-5 < moved / 5


def test_a_run_goes_on_to_the_bit_and_as_it_began(root, two, tmp_path):
    """Ended in its middle as a killed one would be: the schedule is that of the whole run."""
    stopped = tmp_path / "stopped"

    def cut(processes: Processes) -> None:
        advance = VideoTrainer.advance

        def stop(made: VideoTrainer) -> dict[str, float]:
            if made.step == 2:
                made.save(stopped)
                raise KeyboardInterrupt
            return advance(made)

        VideoTrainer.advance = stop  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            training(root, stopped)(processes)
        VideoTrainer.advance = advance  # type: ignore[method-assign]
        training(root, stopped, resume=True)(processes)

    together(2, cut)
    assert lines(stopped) == lines(two)
    for path in (two / MODEL).iterdir():
        assert (stopped / MODEL / path.name).read_bytes() == path.read_bytes(), path.name
    with pytest.raises(ConfigError, match=r"found train\.learning_rate=1\.0 instead of 0\.0002$"):
        training(root, two, resume=True, learning_rate=1.0)(ALONE)
    with pytest.raises(ConfigError, match="add --resume"):
        training(root, two)(ALONE)


def test_a_model_takes_the_place_of_the_one_before(root, tmp_path):
    made = trainer(root)
    for _ in range(2):
        made.advance()
        made.write_model(tmp_path)
        found, expected = load_flow(tmp_path / MODEL).state_dict(), made.model.flow.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL]


def test_weights_of_another_model_are_refused(root, tmp_path):
    made = recipe(root)
    made = replace(made, video=replace(made.video, flow=replace(made.video.flow, deep_layers=3)))
    with pytest.raises(CheckpointError, match=r"start: \d+ tensors do not fit: deep\.layers\.2"):
        train_video(made, root / "clips", tmp_path, init=root / "start")


@pytest.mark.slow
def test_torchrun_trains_a_model_that_generates(root, tmp_path):
    """The command line, in bf16 with activation checkpointing, from random weights."""
    text = json.dumps({"video": {"like": "starflow-v-7b"}, "train": {"warmup": 1}})
    (tmp_path / "tiny.yaml").write_text(text)
    sizes = {key: value for key, value in vars(TINY_VIDEO.flow).items() if not isinstance(value, str)}
    settings = [f"video.flow.{key}={json.dumps(value)}" for key, value in sizes.items()]
    settings += [f"video.{key}={getattr(TINY_VIDEO, key)}" for key in ("side", "window", "context", "denoise_window")]
    settings += ["video.denoise_overlap=2", f"video.text={root / 't5'}", f"video.codec={root / 'wan'}"]
    settings += ["train.steps=3", "train.clips=2", "train.pictures=2", "train.frames=9", 'train.aspect="1:1"']
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "starflow_world.cli"]
    train = [*command, "train", str(tmp_path / "tiny.yaml"), *settings]
    subprocess.run([*train, "--data", str(root / "clips"), "--out", str(tmp_path / "run")], cwd=ROOT, check=True)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    generate = [sys.executable, "-m", "starflow_world.cli", "generate", str(tmp_path / "run" / MODEL), "--prompt", "x"]
    generate += ["--frames", "5", "--aspect", "1:1", "--out", str(tmp_path / "a.mp4")]
    subprocess.run(generate, cwd=ROOT, check=True)
    assert measure_video(tmp_path / "a.mp4")[0] == 5
