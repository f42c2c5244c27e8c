"""A device that is none, or that this machine lacks, is one clear error, whoever is asked for it."""

from collections.abc import Callable

import pytest
import torch

from starflow_world.cli import main
from starflow_world.errors import ConfigError
from starflow_world.model.devices import read_device
from starflow_world.video.model import VideoModel
from starflow_world.video.requirements import sweep_timings
from starflow_world.world import World
from tests.tiny_video import TINY_VIDEO

SAID = r"device: expected one of this machine \(auto, cpu.*\), found '{}'"
NONE = ["tpu", "quantum", "", "cpu:x", "meta", "cuda:99", "xla"]


@pytest.mark.parametrize("name", NONE)
def test_a_device_that_this_machine_lacks_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=SAID.format(name)):
        read_device(name)


def test_a_gpu_is_refused_where_there_is_none_and_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert read_device("auto") == torch.device("cpu")
    assert read_device("cpu") == torch.device("cpu")
    if not torch.cuda.device_count():
        with pytest.raises(ConfigError, match=SAID.format("cuda")):
            read_device("cuda")


@pytest.mark.parametrize("load", [
    lambda: VideoModel.from_pretrained("nowhere", device="tpu"), lambda: World.load("babyai-gotolocal", device="tpu"),
    lambda: sweep_timings(TINY_VIDEO, "h200", device="tpu"),
])
def test_all_devices_go_through_the_one_reader_before_anything_is_loaded(load: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=SAID.format("tpu")):
        load()


def test_the_command_line_says_in_one_line_that_there_is_no_such_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--measured", "--device", "tpu"])
    said = capsys.readouterr().err
    assert said.startswith("starflow-world: device: ")
    assert said.count("\n") == 1
