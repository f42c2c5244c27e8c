"""`starflow-world doctor`: the text of a bug report, and a self-test that can fail."""

import json
import math

import pytest
import torch

from starflow_world.check import golden
from starflow_world.cli import main
from starflow_world.commands.doctor import facts

SECTIONS = ["versions", "processor", "threads", "gpu", "kernels", "precision", "extras", "folders", "self-test"]


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "measured_rates", lambda sizes, device: {torch.float32: 2e9, torch.bfloat16: 1e9})


def test_text_and_json_have_every_section_and_the_self_test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == SECTIONS
    assert found["versions"]["torch"] == torch.__version__
    assert found["precision"]["training"] == "float32"
    assert found["precision"]["float32, GFLOP/s"] == 2.0
    assert found["self-test"]["passed"] is True
    main(["doctor"])
    text = capsys.readouterr().out
    assert all(f"\n{section}\n" in f"\n{text}" for section in SECTIONS)
    assert text.endswith("self-test: passed\n")


def test_wrong_numbers_and_broken_ones_fail_the_self_test(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "NATS", [[nats * (1 + 1e-5) for nats in row] for row in golden.NATS])
    with pytest.raises(SystemExit, match="1"):
        main(["doctor"])
    assert capsys.readouterr().out.endswith("self-test: FAILED\n")
    monkeypatch.setattr(facts, "golden_error", lambda: 1 / 0)
    assert facts.self_test()["failure"] == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(facts, "golden_error", lambda: math.nan)
    assert facts.self_test()["passed"] is False


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "EXTRAS", {"no_such_package": ("none", "nothing")})
    monkeypatch.setattr(facts, "golden_error", lambda: 0.0)
    told = facts.examine_machine({})["extras"]["no_such_package"]
    assert told == "not installed (nothing): pip install 'starflow-world[none]'"


def test_processors_without_the_files_of_linux_have_a_name_and_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_cpuinfo", lambda key: [])
    for system, answer in (("win32", ""), ("darwin", "hw.optional.arm.FEAT_BF16: 1\nhw.optional.neon: 1")):
        monkeypatch.setattr(facts.sys, "platform", system)
        monkeypatch.setattr(facts, "_output", lambda *command, answer=answer: answer)
        assert isinstance(facts.processor_name(), str)
        assert isinstance(facts.instruction_sets(), list)
    assert facts.instruction_sets() == ["neon", "bf16"]
