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
    """MP4 file, written as it is made (PNG for one frame); a JSON beside it says what it was made from. With --captions
    a folder."""
    record: Annotated[Path | None, arg(name="from")] = None
    """JSON beside a result: make the same again; other flags change what they name."""
    captions: Path | None = None
    """Text file, a caption a line: the videos go into the folder --out; started again, the run goes on. With torchrun
    its processes share the captions."""
    samples: int = 1
    """Videos of the prompt, or of each caption, with seeds --seed, --seed + 1 ...; several are named NAME-SEED."""
    actors: int = 0
    """Ray actors that make the videos of captions; 0: this process."""
    gpus_per_actor: float = 0.0
    """GPUs of each actor, such as 1; 0: CPU."""
    resume: bool = False
    """Go on from what an interrupted run of the same request left, to the same bytes."""
    latents: Path | None = None
    """Safetensors file for the latents that the video is decoded from."""
    preview: int = 0
    """Frames after which NAME-preview.png shows the newest one, again and again until the video is there; 0: never."""
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
    offload: bool = False
    """Keep text encoder, flow and VAE in memory only while they work; a video is decoded when all of it is sampled."""

    def run(self) -> None:
        """Check what was asked, load the model and write the video, or those of the captions."""
        from starflow_world.model.checkpoint import load_video
        from starflow_world.video.generation import generate, result_path
        from starflow_world.video.model import VideoModel, prompts_of
        from starflow_world.video.record import is_made, refuse_other_parts
        from starflow_world.video.sources import measure_given

        request, old = self.asked()
        folder = self.model or Path(old.model)
        config, _ = load_video(folder)
        for note in measure_given(request, config).notes:
            print(note, file=sys.stderr)
        if self.captions is not None:
            self._run_captions(folder, request, self.captions)
            return
        result_path(self.out, request)
        model = VideoModel.from_pretrained(
            folder, text=self.text or old.text, codec=self.vae or old.vae, cache=self.cache or folder / "prompts",
            device=old.device if self.device == "auto" else self.device,
            dtype=old.dtype if self.dtype == "auto" else self.dtype,
            prompts=prompts_of(request, config), offload=self.offload,
        )
        if self.record is not None:
            refuse_other_parts(self.record, old, model.origin)
        for seed in range(request.seed, request.seed + self.samples):
            asked, name = replace(request, seed=seed), f"-{seed}" if self.samples > 1 else ""
            out = result_path(self.out.with_name(f"{self.out.stem}{name}{self.out.suffix}"), asked)
            latents = self.latents and self.latents.with_stem(f"{self.latents.stem}{name}")
            if not (name and self.resume and is_made(out, asked, model.origin)):
                out = generate(model, asked, out, resume=self.resume, latents=latents,
                               preview=self.preview)
            print(out, flush=True)

    def _run_captions(self, folder: Path, request: Request, path: Path) -> None:
        from starflow_world.cli import environment
        from starflow_world.commands.generate.captions import CaptionWork, make_all, read_captions, share_of

        captions = read_captions(path, request.seed, self.samples)
        mine, device = share_of(captions, environment(), self.device)
        work = CaptionWork(folder, self.out, request, mine, self.text, self.vae, self.cache or folder / "prompts",
                           device, self.dtype, self.offload)
        for made in make_all(work, self.actors, self.gpus_per_actor):
            print(made, flush=True)

    def asked(self) -> "tuple[Request, ModelOrigin]":
        """Return the request, of the record or of the flags, and what the record says it was made with. Raises
        ConfigError."""
        from starflow_world.video.model import ModelOrigin
        from starflow_world.video.record import read_record

        self._check_captions()
        if self.record is None:
            if self.model is None or not (self.request.prompt or self.captions):
                name, what = ("prompt", "a text") if self.model else ("model", "the folder that convert wrote")
                raise ConfigError(f"{name}: expected {what}, or --from, found neither")
            return self.request, ModelOrigin(device="auto", dtype="auto")
        recorded, origin = read_record(self.record)
        asked, plain = vars(self.request), vars(Request())
        return replace(recorded, **{key: value for key, value in asked.items() if value != plain[key]}), origin

    def _check_captions(self) -> None:
        """Raise ConfigError for flags that do not go with --captions, or need it."""
        flags: dict[str, object] = {"prompt": self.request.prompt, "from": self.record, "latents": self.latents,
                                    "preview": self.preview}
        if self.captions is None:
            flags = {"actors": self.actors, "gpus-per-actor": self.gpus_per_actor}
        if given := [f"--{name}" for name, value in flags.items() if value]:
            expected = "without --captions" if self.captions else "only with --captions"
            raise ConfigError(f"generate: {', '.join(given)}: expected {expected}")
        if self.samples < 1 or self.actors < 0 or self.gpus_per_actor < 0:
            found = f"{self.samples}, {self.actors}, {self.gpus_per_actor}"
            raise ConfigError(f"samples, actors, gpus-per-actor: expected numbers >= 1, >= 0, >= 0, found {found}")
        if self.preview < 0 or (self.preview and self.offload):
            expected = "a number >= 0, and none with --offload, which keeps no VAE while frames are sampled"
            raise ConfigError(f"preview: expected {expected}, found {self.preview}")
        if self.captions is not None and self.out.suffix:
            raise ConfigError(f"out: expected a folder for the videos of --captions, found {self.out}")
