"""Training of text-to-video models as in STARFlow-V (section 3.2 of the paper), from clips and captions, and of the
action adapter that turns such a model into a world, alone or with the other parameters, from episodes.

Each step encodes frames as noisy latents. The flow maximises their likelihood; the denoiser regresses on the gradient
that the flow's backward pass leaves in the noisy latents. A step updates both or neither. All random numbers are a
function of (seed, step, element), so neither resuming nor the number of processes (distributed.py) changes the result.

Shapes: B batch elements, T latent frames, n tokens per frame, c channels, L text length.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starflow_world.codec.wan import VAE_FILES, WanCodec
from starflow_world.config.train import VideoRecipe
from starflow_world.config.world import NO_ACTIONS
from starflow_world.data.dataset import EpisodeDataset, origin
from starflow_world.errors import ConfigError, DataError
from starflow_world.flow import Flow
from starflow_world.io.shards import TensorSource, misfits, open_shards, refuse
from starflow_world.model.actions import ActionEncoder, same_space, space_from_json
from starflow_world.model.checkpoint import ADAPTER, empty_flow, load_adapter, load_video, save_video
from starflow_world.model.t5 import T5Text, local_folder
from starflow_world.noise import make_key, normals
from starflow_world.training import distributed
from starflow_world.training.clips import ClipBatch, ClipSampler, EpisodeSampler, are_episodes
from starflow_world.training.distributed import ALONE, Processes
from starflow_world.training.loop import Trainer, begun_recipe, cut_metrics, freeze_outside, open_folder
from starflow_world.training.optimizers import video_optimizers
from starflow_world.training.precision import resolve_precision
from starflow_world.training.recipe import scale_of_actions
from starflow_world.training.state import STATE
from starflow_world.video.model import VideoModel

MODEL, PROMPTS = "model", "prompts"


class VideoTrainer(Trainer[VideoRecipe]):
    """Trainer of a video model and its action adapter, which may be sharded; `card` is written to its card.json."""

    may_change = (
        "train.steps", "train.save_minutes", "train.checkpointing", "train.rows_at_once", "video.text", "video.codec",
    )

    def __init__(
        self, model: VideoModel, action: ActionEncoder, sampler: ClipSampler | EpisodeSampler, recipe: VideoRecipe,
        processes: Processes, card: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.action, self.sampler, self.config = model, action, sampler, recipe.train
        self.card = {**(card or {}), "precision": recipe.train.precision}
        super().__init__(
            _trainable(model.flow, action), video_optimizers(model.flow, action, recipe.train),
            [*model.flow.children(), action], recipe, processes, sharded=True,
        )

    def advance(self) -> dict[str, float]:
        """Take one training step; return its figures."""
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
        """Encode the frames of a batch and add noise; return noisy latents (B, T, n, c)."""
        rows = []
        for frames, key in zip(batch.frames, batch.keys.tolist(), strict=True):
            posterior = torch.tensor([make_key((key, self.step))])  # a new draw in every step
            rows.append(self.model.codec.encode(frames[None], keys=posterior)[0])
        clean = torch.cat(rows).to(self.processes.device, torch.float32)
        noise = normals(batch.keys, torch.full_like(batch.keys, self.step), "observation", clean.shape[1:])
        x = clean + self.model.config.noise_level * noise.to(clean.device)
        return x[:, 1:] if batch.extend else x

    def _backward(self, x: Tensor, text: Tensor, rows: int, actions: Tensor | None = None) -> tuple[float, float]:
        """Accumulate gradients of latents x (B, T, n, c) with actions (B, T, 1 + flat), a part of the process's `rows`.
        Returns the part's contribution to mean nats per dim and mean denoiser loss (0 if the denoiser is frozen)."""
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

    def write_model(self, out: Path) -> None:
        """Write the model to `out`/model in the format of `convert`, one tensor at a time."""
        networks = _trainable(self.model.flow, self.action)
        state = {name.removeprefix("flow."): tensor for name, tensor in networks.state_dict().items()}
        kind = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        kinds = dict.fromkeys(shapes, kind) | {ADAPTER: torch.float32}
        source = TensorSource(shapes, kinds, lambda name: distributed.full_tensor(state[name]).to("cpu", kinds[name]))
        if self.processes.main:
            save_video(out / MODEL, self.model.config, source, {**self.card, "steps": self.step})
        else:
            for name in shapes:
                source.read(name)
        self.processes.wait()


def train_video(
    recipe: VideoRecipe, data: Path | str, out: Path | str, *, resume: bool = False, init: Path | str | None = None,
    command: str = "", processes: Processes = ALONE, cache: Path | str | None = None,
) -> Path:
    """Train a video model on the clips and pictures, or the episodes, in `data`; write to and return the folder `out`.

    `init` is a folder with initial weights from `convert` or this function; `resume` continues from the last save in
    `out`, with any number of processes. `generate` reads `out`/model; trained on episodes, it is a world with their
    actions and frames of `train.aspect`. `cache`: folder for uncompressed copies of episodes (default: .cache in the
    folder of the episodes). Raises ConfigError, DataError, CheckpointError.
    """
    out, data = Path(out), Path(data)
    open_folder(out, (STATE, MODEL), processes, resume=resume)
    if recipe.train.parts and init is None and not resume:
        raise ConfigError("init: expected a model, of which train.parts are to learn, found none; give its folder")
    begun, init = begun_recipe(out, VideoRecipe, sharded=True) if resume else None, None if resume else init
    if begun is not None and recipe.train.precision == "auto":
        recipe = replace(recipe, train=replace(recipe.train, precision=begun.train.precision))
    card: dict[str, Any] = {"data": data.name, "seed": recipe.train.seed, "command": command}
    sampler: ClipSampler | EpisodeSampler
    if are_episodes(data):
        recipe, sampler = _from_episodes(recipe, data, cache, begun or init, processes)
        card |= {"episodes": len(sampler.windows.lengths), **origin(data)}
    elif recipe.train.parts and all(part.removesuffix(".").split(".")[0] == "action" for part in recipe.train.parts):
        raise ConfigError(f"train.parts: expected episodes, from which alone actions learn, found clips in {data}")
    else:
        sampler = ClipSampler(data, recipe, processes)
    model, action, precision = _model(recipe, out, init=init, filled=resume, processes=processes)
    recipe = replace(recipe, train=replace(recipe.train, precision=precision))
    _check_prompts(model.text, sampler)
    trainer = VideoTrainer(model, action, sampler, recipe, processes, card)
    if resume:
        trainer.resume(out)
    if processes.main:
        cut_metrics(out, trainer.step)
    trainer.run(out)
    if not (out / MODEL).exists():  # the run was killed between its last two writes
        trainer.write_model(out)
    return out


def _trainable(flow: Flow, action: ActionEncoder) -> nn.ModuleDict:
    """Return all trainable modules, keyed by their names in a world."""
    return nn.ModuleDict({"flow": flow, "action": action})


def _from_episodes(
    recipe: VideoRecipe, data: Path, cache: Path | str | None, before: VideoRecipe | Path | str | None,
    processes: Processes,
) -> tuple[VideoRecipe, EpisodeSampler]:
    """Return the recipe with the episodes' action space and action scale, and a sampler of their windows. `before`, the
    recipe of a resumed run or the initial model, gives the action scale if it has the same action space."""
    episodes, said = EpisodeDataset(data), recipe.video.action_space
    space = episodes.action_space_json
    if not same_space(said, space) and not same_space(said, NO_ACTIONS):
        raise ConfigError(f"video.action_space: expected that of the episodes, {space:.200}, found {said:.200}")
    windows = processes.in_turn(lambda: episodes.memory_map(cache))
    known = before.video if isinstance(before, VideoRecipe) else None if before is None else load_video(before)[0]
    scale = recipe.video.action_scale or scale_of_actions(windows, known)
    video = replace(recipe.video, action_space=space, action_scale=scale, aspect=recipe.train.aspect)
    recipe = replace(recipe, video=video)
    return recipe, EpisodeSampler(episodes, windows, recipe, processes)


def _check_prompts(text: T5Text, sampler: ClipSampler | EpisodeSampler) -> None:
    """Raise DataError, with the file's name, for a prompt that is too long for the text encoder."""
    for path, prompt in sampler.prompts():
        try:
            text.check(prompt)
        except DataError as error:
            raise DataError(f"{path}: {error}; {text.length} is video.flow.text_length of the model") from None


def _model(
    recipe: VideoRecipe, out: Path, *, init: Path | str | None, filled: bool, processes: Processes
) -> tuple[VideoModel, ActionEncoder, str]:
    """Return the model and its action adapter, sharded, and the precision of training. Weights are those of `init`,
    else random, or uninitialised if `filled` (loaded later)."""
    config, device = recipe.video, processes.device
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16  # dtype of the frozen encoders
    text = processes.in_turn(
        lambda: T5Text(config.text, config.flow.text_length, cache=out / PROMPTS, device=device, dtype=kind)
    )
    vae = processes.in_turn(lambda: local_folder(config.codec, VAE_FILES))
    codec = WanCodec.load(vae, device=device, dtype=kind, later=config.later)
    empty, space = init is not None or filled, space_from_json(config.action_space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        flow = empty_flow(config) if empty else Flow(config.flow).to(device)
        action = ActionEncoder(space, config.flow.deep_width, config.action_scale).to(device)
    freeze_outside(_trainable(flow, action), recipe.train.parts)
    precision = resolve_precision(recipe.train.precision, processes, flow)
    if recipe.train.checkpointing:
        distributed.checkpoint_activations(flow)
    distributed.shard_module(flow, processes, precision, ("nats", "denoiser_output"))
    distributed.shard_module(action, processes, precision)
    if empty:
        flow.to_empty(device=device)
    if init is not None:
        source, adapter = open_shards(init, digest=load_video(init)[1]), load_adapter(init, config)
        shapes = {name: tuple(tensor.shape) for name, tensor in flow.state_dict().items()}
        refuse(init, misfits({name: shape for name, shape in source.shapes.items() if name != ADAPTER}, shapes))
        distributed.fill_module(flow, source.read)
        distributed.fill_module(action, lambda _: adapter)
    return VideoModel(config, flow, text, codec), action, precision
