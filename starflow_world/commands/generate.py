"""`starflow-world generate`: a video by a converted STARFlow-V."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from starflow_world.video.request import Request


@dataclass(frozen=True)
class Generate:
    """Make a video from text, from an image or from a video, by a converted STARFlow-V."""

    model: Positional[Path]
    """Folder that convert wrote."""
    request: OmitArgPrefixes[Request]
    """The video to make."""
    out: Path = Path("out/generated.mp4")
    """MP4 file, written as it is made (PNG for one frame)."""
    text: str = ""
    """Folder or hub name of the T5 encoder; empty: the model's own."""
    vae: str = ""
    """Folder or hub name of the Wan VAE; empty: the model's own."""
    cache: Path | None = None
    """Folder for the states of prompts; None: prompts/ in the model's folder."""
    device: str = "auto"
    """Device: auto, cpu, cuda ..."""
    dtype: str = "auto"
    """Precision: auto (bfloat16, float32 on a CPU), bfloat16 or float32."""

    def run(self) -> None:
        """Load the model and write the video."""
        from starflow_world.video.model import VideoModel, generate

        loaded = VideoModel.load(self.model, text=self.text, codec=self.vae, cache=self.cache or self.model / "prompts",
                                 device=self.device, dtype=self.dtype)
        print(generate(loaded, self.request, self.out))
