"""`starflow-world generate`: a video by a converted STARFlow-V."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from starflow_world.errors import ConfigError
from starflow_world.video.request import Request

if TYPE_CHECKING:
    from starflow_world.video.model import ModelOrigin


@dataclass(frozen=True)
class Generate:
    """Make a video from text, from an image or from a video, by a converted STARFlow-V."""

    model: Positional[Path | None] = None
    """Folder that convert wrote; with --from: that of the record, unless it is named."""
    request: OmitArgPrefixes[Request] = field(default_factory=Request)
    """The video to make."""
    out: Path = Path("out/generated.mp4")
    """MP4 file, written as it is made (PNG for one frame); a JSON beside it says what it was made from."""
    record: Annotated[Path | None, arg(name="from")] = None
    """JSON beside a result: make the same again; other flags change what they name."""
    resume: bool = False
    """Go on from what an interrupted run of the same request left, to the same bytes."""
    latents: Path | None = None
    """Safetensors file for the latents that the video is decoded from."""
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
        """Check what was asked, load the model and write the video."""
        from starflow_world.model.checkpoint import load_video
        from starflow_world.video.generation import generate, result_path
        from starflow_world.video.model import VideoModel, prompts_of
        from starflow_world.video.record import refuse_other_parts
        from starflow_world.video.sources import measure_given

        request, old = self.asked()
        folder = self.model or Path(old.model)
        config, _ = load_video(folder)
        result_path(self.out, request)
        for note in measure_given(request, config).notes:
            print(note, file=sys.stderr)
        model = VideoModel.load(
            folder, text=self.text or old.text, codec=self.vae or old.vae, cache=self.cache or folder / "prompts",
            device=self.device, dtype=old.dtype if self.dtype == "auto" else self.dtype,
            prompts=prompts_of(request, config),
        )
        if self.record is not None:
            refuse_other_parts(self.record, old, model.origin)
        print(generate(model, request, self.out, resume=self.resume, latents=self.latents))

    def asked(self) -> "tuple[Request, ModelOrigin]":
        """Return the request, of the record or of the flags, and what the record says it was made with. Raises
        ConfigError."""
        from starflow_world.video.model import ModelOrigin
        from starflow_world.video.record import read_record

        if self.record is None:
            if self.model is None or not self.request.prompt:
                name, what = ("prompt", "a text") if self.model else ("model", "the folder that convert wrote")
                raise ConfigError(f"{name}: expected {what}, or --from, found neither")
            return self.request, ModelOrigin(dtype="auto")
        recorded, origin = read_record(self.record)
        asked, plain = vars(self.request), vars(Request())
        return replace(recorded, **{key: value for key, value in asked.items() if value != plain[key]}), origin
