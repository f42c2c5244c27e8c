"""The flags of the verb score."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import tyro

from starflow_world.errors import ConfigError

EPISODES_ONLY = ("data", "scorer", "skip_bad", "overlays", "actors", "gpus_per_actor")
CLIP_ONLY = ("prompt", "aspect", "fps", "draws", "seed", "text", "vae", "device", "dtype")


@dataclass(frozen=True)
class ScoreSettings:
    """Settings of score."""

    world: tyro.conf.Positional[str] = "babyai-gotolocal"
    """Folder or name of a shipped world; for a clip: the folder that convert wrote."""
    _: KW_ONLY
    out: Path
    """Folder for the results."""
    data: Path | None = None
    """Folder of episodes."""
    scorer: Path | None = None
    """Folder that calibrate wrote for this world."""
    skip_bad: bool = False
    """Leave bad episodes out and list them."""
    overlays: bool = False
    """Also write an MP4 of each episode with its heat map."""
    actors: int = 0
    """Ray actors that score; 0: this process."""
    gpus_per_actor: float = 0.0
    """GPUs of each actor, such as 1 or 0.25; 0: CPU."""
    video: Path | None = None
    """Clip to score."""
    prompt: str = ""
    """Text that describes the clip."""
    aspect: str = ""
    """Aspect ratio that the model sees, as for generate; empty: the nearest to the clip's own."""
    fps: int = 0
    """Frames per second that the prompt names; 0: those of the model."""
    draws: int = 1
    """Draws of the noise that are averaged."""
    seed: int = 0
    """Seed of the noise."""
    text: str = ""
    """Folder or hub name of the T5 encoder; empty: the model's own."""
    vae: str = ""
    """Folder or hub name of the Wan VAE; empty: the model's own."""
    device: str = "auto"
    """Device for the clip: auto, cpu, cuda ..."""
    dtype: str = "auto"
    """Precision for the clip: auto (bfloat16, float32 on a CPU), bfloat16 or float32."""

    def __post_init__(self) -> None:
        unused, needs = (CLIP_ONLY, "--video") if not self.video else (EPISODES_ONLY, "--data and --scorer")
        given = [name for name in unused if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"score: {flags}: expected only with {needs}; score episodes or one clip")
        if not self.video and (self.data is None or self.scorer is None):
            given = [f"--{name}" for name in ("data", "scorer") if getattr(self, name) is not None]
            raise ConfigError(f"score: expected --data and --scorer, or --video, found {given or 'none of them'}")
        if self.draws < 1 or self.seed < 0 or self.fps < 0:
            values = f"{self.draws}, {self.seed}, {self.fps}"
            raise ConfigError(f"draws, seed, fps: expected numbers >= 1, >= 0, >= 0, found {values}")
