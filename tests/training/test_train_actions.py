"""Training of a video model's action adapter on episodes: what a window shows, what learns, and the world that results.

Frames are dark under action 0 and bright under 1, which alone decides; a little less blue tells the time.
"""

import json
import signal
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from starflow_world.cli import main
from starflow_world.codec.wan import WanCodec
from starflow_world.config.train import VideoRecipe, VideoTrainConfig
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import Episode, episode_path, flat_actions, write_episode
from starflow_world.errors import CheckpointError, ConfigError, DataError, StarflowError
from starflow_world.io.media import write_png
from starflow_world.model.actions import ActionEncoder, space_from_json
from starflow_world.model.checkpoint import load_flow, load_video
from starflow_world.model.t5 import T5Text
from starflow_world.training.clips import EpisodeSampler
from starflow_world.training.distributed import ALONE, Processes
from starflow_world.training.video import MODEL, VideoTrainer, train_video
from starflow_world.video.model import VideoModel
from starflow_world.world import World
from tests.processes import Work, alone, together
from tests.tiny_video import TEXT, TINY_VIDEO, tiny_t5, tiny_video, tiny_wan

pytest.importorskip("diffusers")
ROOT = Path(__file__).resolve().parents[2]
SPACE, OTHER = '{"n": 2, "start": 0, "type": "Discrete"}', '{"n": 3, "start": 0, "type": "Discrete"}'
FAST = VideoTrainConfig(
    steps=4, parts=("action",), clips=4, frames=9, rows_at_once=2, aspect="1:1", image_dropout=0.3, warmup=1,
    learning_rate=2e-4, denoiser_learning_rate=2e-4, action_learning_rate=0.1, precision="f32", checkpointing=False,
    seed=7,
)


def episode(index: int, blocks: int, size: tuple[int, int] = (24, 40)) -> Episode:
    """Every action is held for 4 frames; the last frame's is not."""
    actions = np.append(np.random.default_rng(index).integers(2, size=blocks).repeat(4), 0)
    frames = np.full((len(actions) + 1, *size, 3), 100, np.uint8)
    frames[1:] = np.where(actions, 245, 20)[:, None, None, None]
    frames[..., 2] -= np.arange(len(frames), dtype=np.uint8)[:, None, None]
    flat, last = np.eye(2, dtype=np.float32)[np.insert(actions, 0, 0)], np.arange(len(frames)) == len(actions)
    flat[0] = 0
    return Episode(frames, flat, np.zeros(len(frames), np.float32), last, last & False, TEXT, SPACE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, t5/, wan/ (which tells dark from bright), and the converted model start/, which knows no actions."""
    root = tmp_path_factory.mktemp("actions")
    tiny_t5(root / "t5"), tiny_wan(root / "wan")
    path = root / "wan" / "config.json"
    spread = {"latents_mean": [0.2, 0.19, 0.22, -0.02, 0.15, 0.01], "latents_std": [0.02] * 6}
    path.write_text(json.dumps(json.loads(path.read_text()) | spread))
    tiny_video(root / "start", recipe(root).video)
    for index, blocks in enumerate((4, 3, 1, 4, 4, 4)):  # the third is too short
        write_episode(episode_path(root / "data", index), episode(index, blocks))
    return root


def recipe(root: Path, **changes: object) -> VideoRecipe:
    config = replace(TINY_VIDEO, text=str(root / "t5"), codec=str(root / "wan"), aspect="1:1")
    return VideoRecipe(config, replace(FAST, **changes))  # type: ignore[arg-type]


def sampler(root: Path, processes: Processes = ALONE, **changes: object) -> EpisodeSampler:
    episodes = EpisodeDataset(root / "data")
    return EpisodeSampler(episodes, episodes.memory_map(), recipe(root, **changes), processes)


def trainer(root: Path, **changes: object) -> VideoTrainer:
    made = recipe(root, **changes)
    text = T5Text(str(root / "t5"), made.video.flow.text_length, cache=root / "prompts")
    model = VideoModel(made.video, load_flow(root / "start").train(), text, WanCodec.load(root / "wan"))
    action = ActionEncoder(space_from_json(SPACE), made.video.flow.deep_width)
    return VideoTrainer(model, action, sampler(root, **changes), made, ALONE)


def training(root: Path, out: Path, *, resume: bool = False, **changes: object) -> Work:
    made = recipe(root, **changes)
    return lambda processes: train_video(
        made, root / "data", out, init=root / "start", resume=resume, processes=processes
    )


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return World.load(out, device="cpu").networks.state_dict()


# ---- what a step shows -----------------------------------------------------------------------------------------------


def test_a_latent_frame_carries_the_action_that_was_held_while_its_frames_came_about(root):
    made, starts, extended = sampler(root, caption_dropout=0.3, action_dropout=0.0, start_rate=0.5), [], 0
    for step in range(40):
        batch = made.batch(step)
        assert batch.frames.shape == (4, 9, 32, 32, 3)
        for frames, actions, prompt in zip(batch.frames, batch.actions, batch.prompts, strict=True):
            bright, blue = (frames[:, 16, 16, channel].int() for channel in (0, 2))
            time = bright - blue
            assert torch.equal(time, time[0] + torch.arange(9))
            assert TEXT in prompt or prompt == made.config.prompt("", fps=16, aspect="1:1")
            led = torch.tensor([[1.0, *np.eye(2)[int(bright[4 * t] > 128)]] for t in range(3)])
            led[0] *= float(time[0] > 0)
            assert torch.equal(actions, led[int(batch.extend) :])
            starts.append(int(time[0]))
        extended += batch.extend
    assert set(starts) == {0, 4, 8}
    assert starts.count(0) > 0.5 * len(starts)
    assert 0 < extended < 40


def test_actions_are_dropped_frame_by_frame_and_on_their_own(root):
    made = sampler(root, action_dropout=0.3, image_dropout=0.0, frames=13)
    dropped = torch.cat([1 - made.batch(step).actions[:, 1:, 0] for step in range(100)])
    alike = (dropped[:, None] * dropped[:, :, None]).mean(0)
    torch.testing.assert_close(alike, torch.full((3, 3), 0.09) + 0.21 * torch.eye(3), rtol=0, atol=0.08)
    assert not any(batch.actions[:, 1:, 1:][batch.actions[:, 1:, 0] == 0].any() for batch in map(made.batch, range(9)))


def test_two_processes_draw_the_windows_of_one(root):
    for step in range(3):
        whole, *parts = (sampler(root, of).batch(step) for of in (ALONE, Processes(0, 2), Processes(1, 2)))
        for key in ("frames", "actions", "keys"):
            assert torch.equal(getattr(whole, key), torch.cat([getattr(part, key) for part in parts]))
        assert whole.prompts == parts[0].prompts + parts[1].prompts


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "error", "reason"), [
    ({"frames": 21}, DataError, "data: expected an episode of at least train.frames = 21 frames, the longest has 18"),
    ({"parts": ("action", "flow.dep")}, ConfigError, "parts: expected modules such as flow, action, found 'flow.dep'"),
])
def test_what_cannot_be_learned_is_one_clear_error(root, tmp_path, changes, error, reason):
    with pytest.raises(error, match=reason):
        training(root, tmp_path / "out", **changes)(ALONE)


def test_parts_of_no_model_are_refused(root, tmp_path):
    with pytest.raises(ConfigError, match=r"^init: expected a model, of which train\.parts are to learn, found none"):
        train_video(recipe(root), root / "data", tmp_path / "out")


def test_an_action_that_changes_inside_a_latent_frame_is_refused_by_the_name_of_its_episode(root, tmp_path):
    changing = episode(0, 4)
    changing.actions[7] = 1 - changing.actions[7]
    write_episode(episode_path(tmp_path, 0), changing)
    reason = r"episode-000000\.h5: expected one action held for the 4 frames of a latent frame, 5 to 8, found several"
    with pytest.raises(DataError, match=reason):
        train_video(recipe(root), tmp_path, tmp_path / "out", init=root / "start")


def test_actions_of_another_space_are_refused(root, tmp_path):
    made = recipe(root)
    other = replace(made, video=replace(made.video, action_space=OTHER))
    with pytest.raises(ConfigError, match=r'action_space: expected that of the episodes, .*"n": 2.*, found .*"n": 3'):
        train_video(other, root / "data", tmp_path / "out", init=root / "start")
    tiny_video(tmp_path / "other", other.video)
    with pytest.raises(CheckpointError, match=r'other: expected a model of the actions .*"n": 2.*, found .*"n": 3'):
        train_video(made, root / "data", tmp_path / "out", init=tmp_path / "other")


def test_actions_alone_do_not_learn_from_clips(root, tmp_path):
    write_png(tmp_path / "still.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(StarflowError, match=r"train\.parts: expected episodes, from which alone actions learn, found"):
        train_video(recipe(root), tmp_path, tmp_path / "out", init=root / "start")


# ---- what is learned -------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_no_likelihood_to_the_bit_and_has_a_gradient(root):
    made = trainer(root, image_dropout=0.0)
    batch = made.sampler.batch(0)
    x, text = made.noisy(batch), made.model.text.encode(batch.prompts)
    assert made._backward(x, text, 4, batch.actions) == made._backward(x, text, 4)
    assert made.action.project.weight.grad.abs().max() > 1e-3


def test_with_the_rest_everything_learns(root, tmp_path):
    training(root, tmp_path, parts=(), steps=1)(ALONE)
    before, after = weights(root / "start"), weights(tmp_path / MODEL)
    same = [name for name, tensor in after.items() if torch.equal(tensor, before.get(name, torch.zeros(48, 3)))]
    assert not [name for name in same if not name.startswith("action")]
    assert after["action.project.weight"].abs().max() > 1e-3


@pytest.fixture(scope="module")
def learned(root: Path) -> Path:
    """The adapter alone, 40 steps."""
    alone(training(root, root / "learned", steps=40, image_dropout=0.0))
    return root / "learned"


def test_the_frames_that_came_about_are_likelier_under_their_actions_than_under_others(root, learned):
    world, fresh = (World.load(folder, device="cpu") for folder in (learned / MODEL, root / "start"))
    for index in range(100, 104):
        new = episode(index, 3, (32, 32))
        frames, actions = torch.from_numpy(new.frames[None, :13]), flat_actions(new)[None, :13:4]
        others = actions.clone()
        others[:, 1:, 1:] = 1 - actions[:, 1:, 1:]
        true, other = (world.log_prob(frames, led, text=TEXT).sum() for led in (actions, others))
        print(f"{true - other:.1f} nats")
        assert true - other > 5
        assert torch.equal(world.log_prob(frames, text=TEXT), fresh.log_prob(frames, text=TEXT)), "none is still none"


def test_the_adapter_alone_leaves_all_else_as_it_was_to_the_bit(root, learned):
    before, after = load_flow(root / "start").state_dict(), load_flow(learned / MODEL).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {line["denoiser"] for line in lines(learned)} == {0.0}


def test_the_result_is_a_world_of_these_actions(learned):
    assert load_video(learned / MODEL)[0].action_space == SPACE
    card = json.loads((learned / MODEL / "card.json").read_text())
    assert (card["data"], card["episodes"], card["precision"], card["steps"]) == ("data", 6, "f32", 40)
    env = gymnasium.make("StarflowWorld/Custom-v0", path=str(learned / MODEL), text=TEXT)
    env.reset(seed=0)
    assert env.action_space == gymnasium.spaces.Discrete(2)
    assert env.step(1)[0].shape == (32, 32, 3)
    env.close()


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("action",), ()])
def test_two_processes_learn_what_one_does(root, tmp_path, parts):
    alone(training(root, tmp_path / "one", parts=parts))
    together(2, training(root, tmp_path / "two", parts=parts))
    for mine, theirs in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-6)
    one, other = (weights(tmp_path / out / MODEL) for out in ("one", "two"))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-5
    assert one["action.project.weight"].abs().max() > 0.01


def test_a_run_that_was_told_to_stop_goes_on_to_the_bit(root, tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    def cut(processes: Processes) -> None:
        advance = VideoTrainer.advance

        def stop(made: VideoTrainer) -> dict[str, float]:
            if made.step == 1 and processes.main:
                signal.raise_signal(signal.SIGTERM)
            return advance(made)

        VideoTrainer.advance = stop  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            training(root, stopped)(processes)
        VideoTrainer.advance = advance  # type: ignore[method-assign]
        assert len(lines(stopped)) == 2
        training(root, stopped, resume=True)(processes)
        training(root, whole)(processes)

    together(2, cut)
    assert lines(stopped) == lines(whole)
    for path in (whole / MODEL).iterdir():
        assert (stopped / MODEL / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_shipped_recipe_trains_by_the_command_line(root, tmp_path):
    sizes = {key: value for key, value in vars(TINY_VIDEO.flow).items() if not isinstance(value, str)}
    settings = [f"video.flow.{key}={json.dumps(value)}" for key, value in sizes.items()]
    settings += [f"video.{key}={getattr(TINY_VIDEO, key)}" for key in ("side", "window", "context", "denoise_window")]
    settings += ["video.denoise_overlap=2", f"video.text={root / 't5'}", f"video.codec={root / 'wan'}"]
    settings += ["train.steps=1", "train.clips=2", "train.frames=9"]
    shipped = str(ROOT / "configs" / "starflow_v_actions.yaml")
    places = ["--data", str(root / "data"), "--init", str(root / "start"), "--out", str(tmp_path)]
    main(["train", shipped, *settings, *places])
    assert weights(tmp_path / MODEL)["action.project.weight"].shape == (48, 3)
