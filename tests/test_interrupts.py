"""Ctrl-C at random moments, as the command line meets it: it ends soon, what is there is whole, and the run goes on.

Runs are forked, so that a moment may be early; each is interrupted a little after it has got on.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from starflow_world.cli import main
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.data.episodes import read_episode
from starflow_world.io.files import TEMPORARY
from starflow_world.io.media import read_video
from starflow_world.model.checkpoint import TRAINING, training_facts
from tests.io.test_files import launched
from tests.processes import over
from tests.ray_work import contents
from tests.tiny_video import tiny_folders

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MOMENTS, SOON = 10, 30.0
INTERRUPTED = 130
EPISODES = 400
"""More than a fast machine collects between all the interruptions."""
RECIPE = str(Path(__file__).parent.parent / "configs/babyai-gotolocal.yaml")
TINY = [
    "world.flow.deep_width=32", "world.flow.deep_layers=1", "world.flow.components=4", "world.flow.head_inner=16",
    "world.flow.features_width=8", "world.flow.features_layers=1", "world.window=8", "world.context=2",
    "train.frames=16", "train.lengths=[4]", "train.starts=2", "train.warmup=2", "train.precision=f32",
    "train.save_minutes=9",
]


def command(*words: str) -> int:
    """Start the command line in a process of its own."""

    def work() -> None:
        torch.set_num_threads(1)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(list(words))
        except SystemExit as error:
            os._exit(int(error.code or 0))

    return launched(work)


def code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def interrupted(process: int, got_on: Callable[[], bool], pause: float) -> tuple[int, float]:
    """Ctrl-C `pause` seconds after a run has got on: its exit code, and the seconds until it was over."""
    while not over(process) and not got_on():
        time.sleep(0.001)
    time.sleep(pause)
    begun = time.monotonic()
    os.kill(process, signal.SIGINT)
    return code(process), time.monotonic() - begun


def test_a_collection_that_is_interrupted_holds_whole_episodes_and_goes_on_to_the_same_bytes(
    tmp_path: Path, at_most: Callable[[str, float, float], None]
) -> None:
    pytest.importorskip("minigrid")
    rng, out, codes = random.Random(0), tmp_path / "out", []
    words = ["collect", "--env", "BabyAI-GoToLocalS8N4-v0", "--max-steps", "20", "--seed", "1"]
    words += ["--episodes", str(EPISODES)]

    def there() -> list[Path]:
        return sorted(out.glob("episode-*"))

    for _ in range(MOMENTS):
        before = len(there())
        run = command(*words, "--out", str(out))
        ended, took = interrupted(run, lambda before=before: len(there()) > before, rng.random() * 0.2)
        codes.append(ended)
        at_most("seconds until it was over", took, SOON)
        assert not list(out.glob(f"{TEMPORARY}*"))
        for episode in there():
            read_episode(episode)
    assert set(codes) <= {0, INTERRUPTED}
    assert codes.count(INTERRUPTED) >= MOMENTS // 2, "most were interrupted before they were through"
    assert code(command(*words, "--out", str(out))) == 0
    assert code(command(*words, "--out", str(tmp_path / "undisturbed"))) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert len(EpisodeDataset(out)) == EPISODES


def test_a_training_that_is_interrupted_is_saved_and_goes_on_to_the_bit(
    tmp_path: Path, at_most: Callable[[str, float, float], None]
) -> None:
    pytest.importorskip("minigrid")
    rng, data, out, codes = random.Random(0), tmp_path / "data", tmp_path / "out", []
    collect = ["collect", "--env", "BabyAI-GoToLocalS8N4-v0", "--episodes", "4", "--max-steps", "20", "--out"]
    assert code(command(*collect, str(data))) == 0
    words = ["train", RECIPE, *TINY, "train.steps=60", "--data", str(data), "--out"]
    metrics, saved = out / "metrics.jsonl", out / TRAINING

    def steps() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    for _ in range(MOMENTS):
        before = steps()
        run = command(*words, str(out), *["--resume"] * saved.exists())
        ended, took = interrupted(run, lambda before=before: steps() > before, rng.random() * 0.2)
        codes.append(ended)
        at_most("seconds until it was over", took, SOON)
        assert not list(out.glob(f"{TEMPORARY}*"))
        assert int(training_facts(out)["step"]) == steps(), "all that was learned is saved"
    assert set(codes) <= {0, INTERRUPTED}
    assert codes.count(INTERRUPTED) >= MOMENTS // 2, "most were interrupted before they were through"
    assert code(command(*words, str(out), "--resume")) == 0
    assert code(command(*words, str(tmp_path / "undisturbed"))) == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name


def test_a_video_that_is_killed_20_times_is_playable_each_time_and_comes_to_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    folders, rng, codes, played = tiny_folders(tmp_path), random.Random(0), [], 0
    out, partial = tmp_path / "out" / "a.mp4", tmp_path / "out" / "a-partial.mp4"
    words = ["generate", str(folders["model"]), "--prompt", "a red dog.", "--frames", "121", "--aspect", "1:1"]
    words += ["--text", str(folders["text"]), "--vae", str(folders["vae"]), "--device", "cpu", "--out"]
    begun = time.monotonic()
    assert code(command(*words, str(tmp_path / "undisturbed.mp4"))) == 0
    whole, expected = time.monotonic() - begun, (tmp_path / "undisturbed.mp4").read_bytes()
    while sum(ended != 0 for ended in codes) < 2 * MOMENTS:
        run = command(*words, str(out), "--resume")
        time.sleep(rng.random() * whole)
        os.kill(run, rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
        codes.append(code(run))
        if partial.exists():
            assert 0 < len(list(read_video(partial, 999))) <= 121
            played += 1
        if out.exists():
            assert out.read_bytes() == expected
            out.unlink()
    assert code(command(*words, str(out), "--resume")) == 0
    assert out.read_bytes() == expected
    assert played, "some runs were stopped after their first frames"
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.json", "a.mp4"]
    assert set(codes) <= {0, INTERRUPTED, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL}
