"""Reference STARFlow-V checkpoints -> our folder with flow.safetensors and flow.json.

The only place where torch.load is allowed, with weights_only. Loading is strict: nine entries that nothing reads are
dropped by name, every other one must fit. Weights keep their dtype and layout; only names change:

    reference                                    ours
    blocks.k, blocks.{last}                      shallow.k, deep            block 0 is nearest the data in both
    learnable_self_denoiser                      denoiser
    sos_embed (1, 1, c)                          start (c,)
    proj_in, proj_txt, final_norm, proj_out      project_in, project_text, norm, head
    attn_blocks.l.attention.{norm,qkv,proj}      layers.l.attention.{norm,qkv,out}
    attn_blocks.l.mlp.{norm,main.0,main.2}       layers.l.feed_forward.{norm,up,down}
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import FORMAT, digest, read_json
from .config import FlowConfig, from_dict, to_dict
from .errors import CheckpointError, ConfigError
from .files import is_file, read_tensors, write_tensors, write_text
from .flow import Flow

WEIGHTS, CONFIG = "flow.safetensors", "flow.json"
NOT_READ = {*(f"blocks.{k}.attn_mask" for k in range(6)), "var", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
SAFE_TORCH = (2, 10)
DENOISER = "learnable_self_denoiser"
PARTS = {
    "start": "sos_embed",
    "project_in": "proj_in",
    "project_text": "proj_txt",
    "norm": "final_norm",
    "head": "proj_out",
    "attention.norm": "attention.norm",
    "attention.qkv": "attention.qkv",
    "attention.out": "attention.proj",
    "feed_forward.norm": "mlp.norm",
    "feed_forward.up": "mlp.main.0",
    "feed_forward.down": "mlp.main.2",
}


def convert(
    source: Path | str, folder: Path | str, *, head_width: int = 64, text_length: int = 256,
    position_scale: float = 32.0, denoiser_window: int = 10, denoiser_look_ahead: int = 1,
) -> FlowConfig:
    """Write the flow of a reference state dict (.pth or .safetensors) to `folder`; returns its config.

    Sizes come from the shapes; what no shape tells is said by the caller, with the published 7B model as the default.
    """
    state = _read(Path(source))
    try:
        config = _infer(state, head_width, text_length, position_scale, denoiser_window, denoiser_look_ahead)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None
    ours = _empty(config).state_dict()
    names = {name: reference_name(name, config.shallow_blocks) for name in ours}
    expected = {names[name]: (1, 1, *t.shape) if name.endswith(".start") else t.shape for name, t in ours.items()}
    _refuse(source, _misfits(state, expected))
    _refuse(source, [f"{name} is not finite" for name, t in state.items() if not bool(torch.isfinite(t).all())])
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, {name: state[names[name]].reshape(t.shape) for name, t in ours.items()})
    values = {"format": FORMAT, "weights": digest(folder / WEIGHTS), "flow": to_dict(config)}
    write_text(folder / CONFIG, json.dumps(values, indent=1) + "\n")
    return config


def load_flow(folder: Path | str) -> Flow:
    """The flow that `convert` wrote to `folder`, on the CPU, in the dtype of its weights and in eval mode."""
    folder = Path(folder)
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG}: expected format {FORMAT}; it is damaged or of another version")
    try:
        config = from_dict(FlowConfig, values.get("flow"))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    tensors, _ = read_tensors(folder / WEIGHTS)
    if digest(folder / WEIGHTS) != values.get("weights"):
        raise CheckpointError(f"{folder / WEIGHTS}: expected the digest that {CONFIG} names; convert the source again")
    flow = _empty(config)
    _refuse(folder / WEIGHTS, _misfits(tensors, {name: t.shape for name, t in flow.state_dict().items()}))
    flow.load_state_dict(tensors, strict=True, assign=True)
    return flow.eval()


def _empty(config: FlowConfig) -> Flow:
    """A flow of shapes only, without memory for its weights."""
    with torch.device("meta"):
        return Flow(config)


def reference_name(name: str, shallow_blocks: int) -> str:
    """What the reference calls our parameter `name`."""
    room, rest = name.split(".", 1)
    if room == "shallow":
        index, rest = rest.split(".", 1)
        room = f"blocks.{index}"
    else:
        room = DENOISER if room == "denoiser" else f"blocks.{shallow_blocks}"
    if rest.startswith("layers."):
        _, index, rest = rest.split(".", 2)
        room = f"{room}.attn_blocks.{index}"
    part, leaf = (rest, "") if rest == "start" else rest.rsplit(".", 1)
    return ".".join(word for word in (room, PARTS[part], leaf) if word)


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without the prefix `model.` and without what nothing reads."""
    if not is_file(path):
        raise CheckpointError(f"{path}: expected a reference checkpoint (.pth or .safetensors), found none")
    state = read_tensors(path)[0] if path.suffix == ".safetensors" else _unpickle(path)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}")
    tensors = {str(name).removeprefix("model."): tensor for name, tensor in state.items()}
    if len(tensors) < len(state):
        raise CheckpointError(f"{path}: expected each name once, found some with and without the prefix `model.`")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in NOT_READ}
    odd = [name for name, t in tensors.items() if not isinstance(t, Tensor) or not t.is_floating_point()]
    _refuse(path, [f"{name} is no tensor of floats" for name in odd])
    dtypes = sorted({str(t.dtype) for t in tensors.values()})
    if len(dtypes) > 1:
        raise CheckpointError(f"{path}: expected one dtype, found {', '.join(dtypes)}")
    return tensors


def _unpickle(path: Path) -> object:
    """What a .pth file holds; its pickle may name tensors and plain data only."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise CheckpointError(
            f"{path}: expected torch 2.10 or newer, found {torch.__version__}; a hostile .pth file can harm older ones"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever a damaged stream makes it do
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise CheckpointError(f"{path}: expected a state dict in torch's zip format, found {reason:.200}") from None


def _infer(
    state: Mapping[str, Tensor], head_width: int, text_length: int, position_scale: float, window: int, look_ahead: int
) -> FlowConfig:
    """Sizes from shapes. What is not there counts as one head wide; the comparison that follows then names it."""

    def size(name: str, axis: int, otherwise: int) -> int:
        tensor = state.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else otherwise

    shallow = _count(state, r"blocks\.(\d{1,3})\.attn_blocks\.") - 1
    deep = f"blocks.{shallow}"
    if shallow < 0:
        raise ConfigError("expected a STARFlow state dict, found no tensors named blocks.0.attn_blocks.0 ...")
    layers, deep_layers, shallow_layers = (
        _count(state, rf"{room}\.attn_blocks\.(\d{{1,3}})\.") for room in (DENOISER, deep, "blocks.0")
    )
    if shallow * shallow_layers + deep_layers + layers > len(state):
        raise ConfigError(f"expected several tensors per layer, found {len(state)} in all")
    text_width = size(f"{deep}.proj_txt.weight", 1, 0)
    shallow_width = size("blocks.0.proj_in.weight", 0, head_width)
    return FlowConfig(
        channels=size(f"{deep}.proj_in.weight", 1, 1),
        shallow_blocks=shallow,
        shallow_layers=shallow_layers if shallow else 0,
        shallow_width=shallow_width,
        deep_layers=deep_layers,
        deep_width=size(f"{deep}.proj_in.weight", 0, head_width),
        head_width=head_width,
        text_length=text_length if text_width else 0,
        text_width=text_width,
        position_scale=position_scale,
        denoiser_layers=layers,
        denoiser_width=size(f"{DENOISER}.proj_in.weight", 0, shallow_width),
        denoiser_window=window,
        denoiser_look_ahead=(look_ahead,) * layers,
        denoiser_text=f"{DENOISER}.proj_txt.weight" in state,
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern` finds in the names."""
    found = [re.match(pattern, name) for name in state]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _misfits(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    return (
        [f"{name} is missing" for name in expected if name not in found]
        + [f"{name} is unknown" for name in found if name not in expected]
        + [
            f"{name} has shape {tuple(found[name].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items() if name in found and found[name].shape != shape
        ]
    )


def _refuse(path: Path | str, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{path}: {len(problems)} tensors do not fit: {'; '.join(problems[:5])}")
