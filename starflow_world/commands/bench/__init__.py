"""The verb bench: speed of a world, relative to its hardware and to decoding as published for STARFlow-V."""

from starflow_world.commands.bench.settings import BenchSettings


class Bench(BenchSettings):
    """Measure how fast a world is, beside decoding as STARFlow-V was published, in minutes; keep the machine quiet."""

    def run(self) -> None:
        """Measure; print the report and write it, or only print a profile."""
        from starflow_world.commands.bench.figures import bench_figures
        from starflow_world.commands.bench.report import bench_markdown, profile_markdown, write_bench_report
        from starflow_world.commands.bench.run import measure_all, measure_profile
        from starflow_world.world import World

        world = World.load(self.world, device="cpu")
        if self.profile:
            print(profile_markdown(bench_figures(measure_profile(world, self))))
            return
        figures = bench_figures(measure_all(world, self))
        write_bench_report(figures, self.out)
        print(bench_markdown(figures))
