"""The published structure at a size for a CPU, random weights: our decoder beside the published way of decoding.

On a quiet machine, from the root of the repository (ten minutes):
    python -m tests.benchmarks.structure --out out/structure
One normal per channel and no features: the deep block has all of the work. 8 layers of 384, 5 shallow blocks of 2
layers of 256, 64 tokens of 16 channels a frame, 16 frames, 32 positions of text. It is `starflow-world bench` on that
world: the goal is 1.5 times the speed of the published-style Jacobi decoder at an error that is no larger. How fast
sweeps converge with random weights says nothing of trained ones.
"""

import tempfile
from pathlib import Path

import torch
import tyro

from starflow_world.commands.bench import Bench
from starflow_world.config.world import CodecConfig, DecodeConfig, FlowConfig, TextConfig, WorldConfig
from starflow_world.model.checkpoint import save_checkpoint
from starflow_world.model.networks import Networks
from tests.worlds import randomise

FLOW = FlowConfig(
    channels=16, shallow_blocks=5, shallow_layers=2, shallow_width=256, deep_layers=8, deep_width=384, head_width=64,
    text_length=32, text_width=64, denoiser_layers=0,
)


def main(*, out: Path = Path("out/structure"), envs: tuple[int, ...] = (1, 4), gain: float = 0.5, chunk: int = 0,
         repeats: int = 3, steps: int = 60) -> None:
    """Measure, print and write the report.

    Args:
        out: folder for the report.
        envs: numbers of rows.
        gain: about the standard deviation of what the heads give.
        chunk: tokens that are iterated together by our decoder; 0: a frame.
        repeats: turns of each decoder.
        steps: of the long run.
    """
    config = WorldConfig(
        "structure", FLOW, codec=CodecConfig("pca", patch=8, components=16), text=TextConfig("t5", 32, 64, 1, 4),
        decode=DecodeConfig(chunk=chunk), window=16, context=4,
    )
    torch.manual_seed(0)
    networks = randomise(Networks(config), gain)
    networks.codec.fit(torch.randint(0, 256, (64, 64, 64, 3), dtype=torch.uint8))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), networks, {})
        Bench(folder, out, envs, repeats, steps).run()


if __name__ == "__main__":
    tyro.cli(main)
