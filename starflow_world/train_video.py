"""Training of text-to-video models as STARFlow-V was trained (section 3.2 of the paper): from clips and captions.

A step: frames become latents, and noisy; the flow learns their likelihood, and the denoiser the gradient that the
flow's own backward pass has left in the noisy latents. Both have an optimizer of their own, and the same step is
taken by both or by none. Everything that is drawn follows from (seed, step, row), so a resumed run is the undisturbed
one and several processes (distributed.py) learn what one does.

Shapes: B rows, T latent frames, n tokens per frame, c channels, L text length.
"""

from pathlib import Path

import torch
from torch import Tensor

from .clips import ClipBatch, ClipSampler
from .codec.wan import VAE_FILES, WanCodec
from .convert import empty_flow, load_video, write_model
from .distributed import ALONE, Processes, fill, recompute, shard, whole
from .errors import CheckpointError, ConfigError
from .files import remove_leftovers
from .flow import Flow
from .generate import VideoModel
from .noise import make_key, normals
from .optimizers import video_optimizers
from .recipe import VideoRecipe
from .sharded import STATE
from .shards import TensorSource, open_shards
from .steps import METRICS, Steps, keep_until, note, run
from .t5 import T5Text, local_folder

MODEL, PROMPTS = "model", "prompts"
MAY_CHANGE = (
    "train.steps", "train.save_minutes", "train.checkpointing", "train.rows_at_once", "video.text", "video.codec",
)


class VideoTrainer(Steps):
    """The training of a video model; its flow may be sharded."""

    def __init__(self, model: VideoModel, sampler: ClipSampler, recipe: VideoRecipe, processes: Processes) -> None:
        self.model, self.sampler, self.config = model, sampler, recipe.train
        optimizers = video_optimizers(model.flow, recipe.train)
        super().__init__(model.flow, optimizers, recipe.train, processes, sharded=True)

    def advance(self) -> dict[str, float]:
        """One training step; returns its figures."""
        self.begin()
        batch = self.sampler.batch(self.step)
        x, text = self.noisy(batch), self.model.text.encode(batch.prompts)
        figures = {"nats_per_dim": 0.0, "denoiser": 0.0}
        for first in range(0, len(x), self.config.rows_at_once):
            part = slice(first, first + self.config.rows_at_once)
            nats, denoiser = self._backward(x[part], text[part], len(x))
            figures["nats_per_dim"] += nats
            figures["denoiser"] += denoiser
        return self.finish({**figures, "latent_frames": x.shape[1]})

    def noisy(self, batch: ClipBatch) -> Tensor:
        """Noisy latents (B, T, n, c) of a step's frames."""
        rows = []
        for frames, key in zip(batch.frames, batch.keys.tolist(), strict=True):
            posterior = torch.tensor([make_key((key, self.step))])  # another draw in every step
            rows.append(self.model.codec.encode(frames[None], keys=posterior)[0])
        clean = torch.cat(rows).to(self.processes.device, torch.float32)
        noise = normals(batch.keys, torch.full_like(batch.keys, self.step), "observation", clean.shape[1:])
        x = clean + self.model.config.noise_level * noise.to(clean.device)
        return x[:, 1:] if batch.extend else x

    def _backward(self, x: Tensor, text: Tensor, rows: int) -> tuple[float, float]:
        """Gradients of rows x (B, T, n, c) of a process's `rows`; returns what they add to its means of nats per dim
        and of the denoiser's loss."""
        flow, config = self.model.flow, self.model.config
        tables = flow.tables(config.grid(self.config.aspect), x.shape[1])
        numbers, share = rows * x[0].numel(), len(x) / rows
        mixed = torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        x = x.detach().requires_grad_()
        with mixed:
            nats, _ = flow.nats(x, text, None, tables)
        loss = -nats.sum() / numbers
        loss.backward()
        if flow.denoiser is None:
            return -loss.item(), 0.0
        assert x.grad is not None
        target = x.grad * numbers * config.noise_level**2 / config.flow.denoiser_step
        with mixed:
            guess = flow.denoiser_output(x.detach(), text, tables)
        off = share * (guess - target).square().mean()
        off.backward()
        return -loss.item(), off.item()

    def save_model(self, folder: Path) -> None:
        """Write the model as `convert` does, for `generate`: tensor by tensor, by the main process; all call it."""
        state = self.model.flow.state_dict()
        kind = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        source = TensorSource(shapes, dict.fromkeys(shapes, kind), lambda name: whole(state[name]).to("cpu", kind))
        if self.processes.main:
            write_model(folder, self.model.config, source)
        else:
            for name in shapes:
                source.read(name)
        self.processes.wait()


def train_video(
    recipe: VideoRecipe, data: Path | str, out: Path | str, *, resume: bool = False, init: Path | str | None = None,
    processes: Processes = ALONE,
) -> Path:
    """Train a video model on the clips and pictures in `data` into the folder `out`; returns it.

    `init` starts from the weights of a folder that `convert` or this wrote, `resume` goes on where a run in `out` was
    saved last, with any number of processes. `out`/model is for `generate`.
    """
    out = Path(out)
    if not resume and any((out / name).exists() for name in (STATE, MODEL)):
        raise ConfigError(f"{out}: expected an empty folder, found a run; add --resume or choose another folder")
    processes.once(lambda: remove_leftovers(out))
    sampler = ClipSampler(data, recipe, processes)
    model = _model(recipe, out, init=None if resume else init, filled=resume, processes=processes)
    trainer, metrics = VideoTrainer(model, sampler, recipe, processes), out / METRICS
    if resume:
        trainer.resume(out, recipe, MAY_CHANGE)
    if processes.main:
        out.mkdir(parents=True, exist_ok=True)
        keep_until(metrics, trainer.step)

    def save() -> None:
        trainer.save(out, recipe)
        trainer.save_model(out / MODEL)

    for figures in run(trainer, recipe.train, recipe.video.name, save):
        if processes.main:
            note(metrics, figures)
    if not (out / MODEL).exists():  # the run had died between its last two files
        trainer.save_model(out / MODEL)
    return out


def _model(
    recipe: VideoRecipe, out: Path, *, init: Path | str | None, filled: bool, processes: Processes
) -> VideoModel:
    """The model, its flow sharded: with the weights of `init`, with any (`filled`: they come later), or random."""
    config, device = recipe.video, processes.device
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16  # of the encoders, which do not learn
    text = processes.in_turn(
        lambda: T5Text(config.text, config.flow.text_length, cache=out / PROMPTS, device=device, dtype=kind)
    )
    vae = processes.in_turn(lambda: local_folder(config.codec, VAE_FILES))
    codec = WanCodec.load(vae, device=device, dtype=kind, later=config.later)
    if init is None and not filled:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            flow = Flow(config.flow).to(device)
    else:
        flow = empty_flow(config)
    if recipe.train.checkpointing:
        recompute(flow)
    shard(flow, processes, recipe.train.precision, ("nats", "denoiser_output"))
    if init is not None or filled:
        flow.to_empty(device=device)
    if init is not None:
        source = open_shards(init, digest=load_video(init)[1])
        if source.shapes != {name: tuple(tensor.shape) for name, tensor in flow.state_dict().items()}:
            raise CheckpointError(f"{init}: expected the tensors of {config.name}, found others; see its video.json")
        fill(flow, source.read)
    return VideoModel(config, flow, text, codec)
