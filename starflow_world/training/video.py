"""Training of text-to-video models as STARFlow-V was trained (section 3.2 of the paper): from clips and captions; and
of the action adapter that makes a world of one, alone or with the rest: from episodes.

A step: frames become latents, and noisy; the flow learns their likelihood, and the denoiser the gradient that the
flow's own backward pass has left in the noisy latents. Both have an optimizer of their own, and the same step is
taken by both or by none. Everything that is drawn follows from (seed, step, row), so a resumed run is the undisturbed
one and several processes (distributed.py) learn what one does.

Shapes: B rows, T latent frames, n tokens per frame, c channels, L text length.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from starflow_world.codec.wan import VAE_FILES, WanCodec
from starflow_world.config.train import VideoRecipe
from starflow_world.config.world import NO_ACTIONS
from starflow_world.data.dataset import EpisodeDataset
from starflow_world.errors import CheckpointError, ConfigError
from starflow_world.flow import Flow
from starflow_world.io.files import remove_leftovers
from starflow_world.io.shards import TensorSource, open_shards
from starflow_world.model.actions import ActionEncoder, same_space, space_from_json
from starflow_world.model.t5 import T5Text, local_folder
from starflow_world.model.video_checkpoint import ADAPTER, empty_flow, load_adapter, load_video, write_model
from starflow_world.noise import make_key, normals
from starflow_world.training.clips import ClipBatch, ClipSampler, EpisodeSampler, are_episodes
from starflow_world.training.distributed import ALONE, Processes, fill, recompute, shard, whole
from starflow_world.training.loop import METRICS, Steps, choose, keep_until, note, run
from starflow_world.training.optimizers import video_optimizers
from starflow_world.training.state import STATE
from starflow_world.video.model import VideoModel

MODEL, PROMPTS = "model", "prompts"
MAY_CHANGE = (
    "train.steps", "train.save_minutes", "train.checkpointing", "train.rows_at_once", "video.text", "video.codec",
)


class VideoTrainer(Steps):
    """The training of a video model and its action adapter, which may be sharded."""

    def __init__(
        self, model: VideoModel, action: ActionEncoder, sampler: ClipSampler | EpisodeSampler, recipe: VideoRecipe,
        processes: Processes,
    ) -> None:
        self.model, self.action, self.sampler, self.config = model, action, sampler, recipe.train
        networks = parts(model.flow, action)
        super().__init__(networks, video_optimizers(networks, recipe.train), recipe.train, processes, sharded=True)

    def advance(self) -> dict[str, float]:
        """One training step; returns its figures."""
        self.begin()
        batch = self.sampler.batch(self.step)
        x, text = self.noisy(batch), self.model.text.encode(batch.prompts)
        actions = None if batch.actions is None else batch.actions.to(x.device)
        figures = {"nats_per_dim": 0.0, "denoiser": 0.0}
        for first in range(0, len(x), self.config.rows_at_once):
            part = slice(first, first + self.config.rows_at_once)
            nats, denoiser = self._backward(x[part], text[part], len(x), None if actions is None else actions[part])
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

    def _backward(self, x: Tensor, text: Tensor, rows: int, actions: Tensor | None = None) -> tuple[float, float]:
        """Gradients of rows x (B, T, n, c), actions (B, T, 1 + flat), of a process's `rows`; returns what they add to
        its means of nats per dim and of the denoiser's loss (0 where it does not learn)."""
        flow, config = self.model.flow, self.model.config
        denoises = flow.denoiser is not None and any(p.requires_grad for p in flow.denoiser.parameters())
        tables = flow.tables(config.grid(self.config.aspect), x.shape[1])
        numbers, share = rows * x[0].numel(), len(x) / rows
        mixed = torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        x = x.detach().requires_grad_(denoises)
        with mixed:
            nats, _ = flow.nats(x, text, None if actions is None else self.action(actions), tables)
        loss = -nats.sum() / numbers
        loss.backward()
        if not denoises:
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
        state = {name.removeprefix("flow."): t for name, t in parts(self.model.flow, self.action).state_dict().items()}
        kind = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        kinds = dict.fromkeys(shapes, kind) | {ADAPTER: torch.float32}
        source = TensorSource(shapes, kinds, lambda name: whole(state[name]).to("cpu", kinds[name]))
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
    """Train a video model on the clips and pictures in `data`, or on the episodes there, into the folder `out`; returns
    it.

    `init` starts from the weights of a folder that `convert` or this wrote, `resume` goes on where a run in `out` was
    saved last, with any number of processes. `out`/model is for `generate`, and a world: behind episodes, one of their
    actions in pictures of `train.aspect`. Raises ConfigError, DataError, CheckpointError.
    """
    out = Path(out)
    if not resume and any((out / name).exists() for name in (STATE, MODEL)):
        raise ConfigError(f"{out}: expected an empty folder, found a run; add --resume or choose another folder")
    if recipe.train.parts and init is None and not resume:
        raise ConfigError("init: expected a model, of which train.parts are to learn, found none; give its folder")
    processes.once(lambda: remove_leftovers(out))
    recipe, sampler = _sampler(recipe, data, processes)
    model, action = _model(recipe, out, init=None if resume else init, filled=resume, processes=processes)
    trainer, metrics = VideoTrainer(model, action, sampler, recipe, processes), out / METRICS
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


def parts(flow: Flow, action: ActionEncoder) -> nn.ModuleDict:
    """All that can learn, under the names that it has in a world."""
    return nn.ModuleDict({"flow": flow, "action": action})


def _sampler(
    recipe: VideoRecipe, data: Path | str, processes: Processes
) -> tuple[VideoRecipe, ClipSampler | EpisodeSampler]:
    """What draws steps from `data`, and the recipe; behind episodes it is that of a world of their actions."""
    if not are_episodes(data):
        if recipe.train.parts and all(part.startswith("action") for part in recipe.train.parts):
            raise ConfigError(f"train.parts: expected episodes, from which alone actions learn, found clips in {data}")
        return recipe, ClipSampler(data, recipe, processes)
    episodes, said = EpisodeDataset(data), recipe.video.action_space
    found = episodes.action_space_json
    if not same_space(said, found) and not same_space(said, NO_ACTIONS):
        raise ConfigError(f"video.action_space: expected that of the episodes, {found:.200}, found {said:.200}")
    recipe = replace(recipe, video=replace(recipe.video, action_space=found, aspect=recipe.train.aspect))
    return recipe, EpisodeSampler(episodes, recipe, processes)


def _model(
    recipe: VideoRecipe, out: Path, *, init: Path | str | None, filled: bool, processes: Processes
) -> tuple[VideoModel, ActionEncoder]:
    """The model and its action adapter, sharded: with the weights of `init`, with any (`filled`: they come later), or
    random."""
    config, device = recipe.video, processes.device
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16  # of the encoders, which do not learn
    text = processes.in_turn(
        lambda: T5Text(config.text, config.flow.text_length, cache=out / PROMPTS, device=device, dtype=kind)
    )
    vae = processes.in_turn(lambda: local_folder(config.codec, VAE_FILES))
    codec = WanCodec.load(vae, device=device, dtype=kind, later=config.later)
    empty = init is not None or filled
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        flow = empty_flow(config) if empty else Flow(config.flow).to(device)
        action = ActionEncoder(space_from_json(config.action_space), config.flow.deep_width).to(device)
    choose(parts(flow, action), recipe.train.parts)
    if recipe.train.checkpointing:
        recompute(flow)
    shard(flow, processes, recipe.train.precision, ("nats", "denoiser_output"))
    shard(action, processes, recipe.train.precision)
    if empty:
        flow.to_empty(device=device)
    if init is not None:
        source, adapter = open_shards(init, digest=load_video(init)[1]), load_adapter(init, config)
        shapes = {name: tuple(tensor.shape) for name, tensor in flow.state_dict().items()}
        if {name: shape for name, shape in source.shapes.items() if name != ADAPTER} != shapes:
            raise CheckpointError(f"{init}: expected the tensors of {config.name}, found others; see its video.json")
        fill(flow, source.read)
        fill(action, lambda _: adapter)
    return VideoModel(config, flow, text, codec), action
