"""`starflow-world plan`: memory and time that a video model needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanVideo:
    """Print the memory that a video model needs, and the least time that a GPU takes, from arithmetic."""

    config: str = "starflow-v-7b"
    """Model: starflow-v-7b, or a YAML file."""
    gpu: str = "h200"
    """GPU: h200, h100, a100 or rtx4090."""
    aspect: str = "16:9"
    """Aspect of the frames, as for generate."""
    frames: int = 81
    """Frames of the video: 1 + 4k."""
    guidance: float | None = None
    """Guidance weight; 0: no guidance; None: the model's own."""
    measured: bool = False
    """Also time deep sweeps with random weights on `device`."""
    device: str = "cuda"
    """Device on which sweeps are timed."""

    def run(self) -> None:
        """Print the report."""
        from starflow_world.config.video import load_video_config
        from starflow_world.video.plan import requirements_report
        from starflow_world.video.requirements import sweep_timings

        known = load_video_config(self.config)
        print(requirements_report(known, self.gpu, aspect=self.aspect, frames=self.frames, guidance=self.guidance))
        if self.measured:
            print(sweep_timings(known, self.gpu, aspect=self.aspect, guidance=self.guidance, device=self.device))
