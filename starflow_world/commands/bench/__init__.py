"""The verb bench: how fast a world is, against its hardware and against decoding as STARFlow-V was published."""

from starflow_world.commands.bench.settings import BenchSettings


class Bench(BenchSettings):
    """Measure how fast a world is, beside decoding as STARFlow-V was published, in minutes; keep the machine quiet."""

    def run(self) -> None:
        """Measure, print the report and write it."""
        from starflow_world.commands.bench.run import run_bench

        run_bench(self)
