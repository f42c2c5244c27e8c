"""Conversion holds one tensor at a time, however large the checkpoint is."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from starflow_world.config.world import FlowConfig
from starflow_world.flow import Flow
from starflow_world.io.shards import INDEX
from starflow_world.video.convert import reference_name, reference_shapes

WIDE = FlowConfig(
    channels=48, shallow_blocks=1, shallow_layers=1, shallow_width=3072, deep_layers=2, deep_width=4096,
    text_length=256, text_width=2048,
)
MEASURED = """
import resource, sys, torch
from starflow_world.video.convert import convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], dtype=torch.bfloat16, head_width=64, text_length=256, position_scale=32)
print(before << 10, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


@pytest.mark.slow
def test_converting_a_file_of_two_gigabytes_takes_a_few_times_the_memory_of_its_largest_tensor(tmp_path):
    with FakeTensorMode():
        flow = Flow(WIDE)
        shapes = reference_shapes(flow)
        state = {reference_name(name, 1): t.detach().reshape(shapes[reference_name(name, 1)])
                 for name, t in flow.named_parameters()}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(state, tmp_path / "large.pth")  # a file with holes: all numbers are zero
    size, largest = (tmp_path / "large.pth").stat().st_size, max(t.nbytes for t in state.values())
    assert size > 2e9
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "large.pth"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    before, after = (int(number) for number in done.stdout.split())
    print(f"largest tensor {largest >> 20} MiB, file {size >> 20} MiB, memory {before >> 20} -> {after >> 20} MiB")
    assert after < 1.2 * largest + 2e9, "promised"
    assert after - before < 4.5 * largest, "4.5 times, where the file is 7.8 times"
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert 0.49 * size < written < 0.51 * size
    assert (tmp_path / "out" / INDEX).exists()
