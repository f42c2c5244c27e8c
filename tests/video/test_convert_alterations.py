"""A checkpoint or a config that differs from the usual is read to the published numbers, or refused by name.

The numbers are those of tests/published.py. Of what is refused nothing is written.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter

from starflow_world.cli import main
from starflow_world.errors import CheckpointError, StarflowError
from starflow_world.model.checkpoint import load_flow, load_video
from starflow_world.video.convert import convert
from starflow_world.video.convert.buffers import UNUSED
from tests.published import Published, Sizes

SIZES = Sizes(
    channels=5, layers=(1, 2, 1, 2), width=20, deep_width=40, head=20, text=(4, 6), scale=3, denoiser_layers=8, ahead=1,
    reach=2, grid=(2, 3),
)
WHOLE, EMA = SIZES.checkpoint(), SIZES.checkpoint(seed=1)
WEIGHTS = {name: tensor for name, tensor in WHOLE.items() if not UNUSED.fullmatch(name)}
DENOISER = {"denoiser_window": 2}
State = dict[str, Any]
ARGUMENTS = {
    "img_size": 640, "vid_size": "17:16", "txt_size": 4, "channel_size": 5, "patch_size": 1, "channels": 20,
    "top_block_channels": 40, "layers_per_block": "1 2 1 2", "head_dim": 20, "noise_std": 0.5, "rope": 1, "sos": 1,
    "seq_order": "L2R", "pt_seq_len": 3, "use_softplus": 1, "cond_top_only": 1, "use_final_norm": 1, "nvp": 1,
    "learnable_self_denoiser": 1, "conditional_denoiser": 1, "denoiser_window": 2, "temporal_causal": 2,
    "shallow_block_local": 1, "soft_clip": 4, "cond_noise_level": 1, "fps_cond": 1, "mix_aspect": 1,
    "vae": "Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6", "text": "google/flan-t5-xl", "lr": "5e-5", "finetuned_vae": "none",
}
"""What the published YAML says of the 7B model, for SIZES."""


@dataclass(frozen=True)
class Case:
    """What a file holds, what `convert` is told, and the numbers of `meant`, or else the error that is `said`."""

    state: State = field(default_factory=lambda: WHOLE)
    options: dict[str, Any] = field(default_factory=lambda: DENOISER)
    said: str = ""
    meant: State = field(default_factory=lambda: WHOLE)
    sizes: Sizes = SIZES


def prefixed(prefix: str, state: State = WHOLE) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def without(*parts: str, state: State = WHOLE) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(parts)}


def renumbered(state: State) -> State:
    """Without block 1: a model of three blocks."""
    new = {"blocks.2.": "blocks.1.", "blocks.3.": "blocks.2."}
    kept = without("blocks.1.", state=state)
    return {new.get(name[:9], name[:9]) + name[9:]: tensor for name, tensor in kept.items()}


def mixed() -> State:
    """Half-precision weights with norms, start tokens and biases of full precision."""
    return {name: t.to(torch.bfloat16 if t.ndim == 2 and "sos" not in name else torch.float32)
            for name, t in WHOLE.items()}


def told(**options: Any) -> dict[str, Any]:
    return {**DENOISER, **options}


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-4}]}
BARE = {"head_width": 20, "text_length": 4, "position_scale": 3.0, **DENOISER}
CHECKPOINTS = {
    "as published": Case(),
    "prefix model": Case(prefixed("model.")),
    "prefix module, of several processes": Case(prefixed("module.")),
    "prefix _orig_mod, compiled": Case(prefixed("_orig_mod.")),
    "all prefixes": Case(prefixed("module._orig_mod.model.")),
    "compiled blocks": Case({name.replace("blocks.2.attn", "blocks.2._orig_mod.attn"): t for name, t in WHOLE.items()}),
    "nested, with optimizer and step": Case({"model": WHOLE, "optimizer": OPTIMIZER, "step": 1000, "epoch": 3}),
    "an optimizer with the names of weights": Case({
        "model": WHOLE, "optim": {"state": {"blocks.0.proj_in.weight": {"exp_avg": torch.ones(20, 5), "step": 3}}},
    }),
    "as Lightning saves": Case({
        "epoch": 1, "global_step": 7, "pytorch-lightning_version": "2.5", "state_dict": prefixed("model."),
        "optimizer_states": [OPTIMIZER], "lr_schedulers": [], "loops": {"fit_loop": {"done": 1}}, "callbacks": {},
    }),
    "an integer step among the tensors": Case({**WHOLE, "step": torch.tensor(1000), "epoch": 7}),
    "a step inside the weights": Case({"model": {**WHOLE, "step": torch.tensor([1000])}}),
    "weights and their average": Case({"model": WHOLE, "ema": EMA}),
    "the average is chosen": Case({"model": WHOLE, "ema": EMA}, told(weights="ema"), meant=EMA),
    "the weights are chosen": Case({"state_dict": WHOLE, "ema": {"module": EMA, "decay": 0.999}}, told(weights="ema"),
                                   meant=EMA),
    "one set inside another": Case({"model": WHOLE, "ema": {"model": EMA}}, told(weights="model")),
    "an average of another name": Case({"net": WHOLE, "net_ema": EMA}, told(weights="ema"), meant=EMA),
    "an average alone": Case({"ema": EMA, "step": 3}, meant=EMA),
    "an average that is not there": Case({"model": WHOLE}, told(weights="ema"), "weights: .*'model', found 'ema'"),
    "two sets of equal rank": Case({"teacher": WHOLE, "student": EMA}, said="'teacher', 'student'; choose .*--weights"),
    "one name twice": Case({**WHOLE, "module.var": WHOLE["var"]}, said="each name once, found var and module.var"),
    "one nested name twice": Case({"model": WHOLE, "model.var": WHOLE["var"]}, said="model.var is there twice"),
    "bfloat16 with norms of float32": Case(mixed(), meant=mixed()),
    "float16 and float64": Case({**WHOLE, **{n: t.half() for n, t in WEIGHTS.items() if ".mlp." in n}},
                                meant={**WHOLE, **{n: t.half() for n, t in WEIGHTS.items() if ".mlp." in n}}),
    "integer weights": Case({**WHOLE, "blocks.1.proj_in.bias": torch.ones(20).long()}, said="bias is no tensor"),
    "infinite weights": Case({**WHOLE, "blocks.1.proj_in.bias": torch.full((20,), torch.inf)}, said="is not finite"),
    "no unused buffers, sizes said": Case(WEIGHTS, BARE),
    "no unused buffers, nothing said": Case(WEIGHTS, said="head_width: expected it from .*freqs_cos.*say --head-width"),
    "no unused buffers, no text length": Case(
        WEIGHTS, without("text_length", state=BARE), said="text_length: .*say --text-length"),
    "no unused buffers, no scale": Case(
        WEIGHTS, without("position_scale", state=BARE), said="position_scale: .*say --position-scale"),
    "sizes said that are right": Case(options=BARE),
    "a wrong head width": Case(options=told(head_width=40), said="head_width: expected 20, as .*freqs_cos.*, found 40"),
    "a wrong text length": Case(options=told(text_length=256), said="text_length: expected 4, .*mask.* found 256"),
    "a wrong scale": Case(options=told(position_scale=32.0), said="position_scale: expected 3, as .*var .*found 32.0"),
    "buffers of another size": Case({**WHOLE, "var": torch.ones(16, 5)}, said="text_length|freqs_cos|rows"),
    "buffers of other channels": Case({**WHOLE, "var": torch.ones(9, 20)}, said=r"var has shape \(9, 20\) instead of"),
    "buffers of two sizes": Case(
        {**WHOLE, "blocks.1.attn_mask": torch.ones(14, 14)}, said=r"mask has shape \(14, 14\) instead of \(13, 13\)"),
    "a flat mask": Case({**WHOLE, "blocks.1.attn_mask": torch.ones(13)}, said=r"blocks.1.attn_mask has shape \(13,\)"),
    "positions on two axes": Case(
        {**WHOLE, **{n: torch.ones(9, 9 if "mask" in n else 20) for n in WHOLE if UNUSED.fullmatch(n) and n != "var"}},
        said="has 9 rows, none of them for a text"),
    "an odd number of blocks": Case(renumbered(WHOLE), said="blocks: expected an even number, found 3"),
    "a block that is missing": Case(without("blocks.1."), said="blocks.1.sos_embed is missing"),
    "a layer that is missing": Case(without("blocks.1.attn_blocks.0."), said="blocks.1.attn_blocks.0.* is missing"),
    "a deep block without text": Case(without("blocks.3.proj_txt"), said="blocks.3.proj_txt.weight is missing"),
    "learned positions": Case({**WHOLE, "blocks.0.pos_embed": torch.ones(9, 20)}, said="blocks.0.pos_embed is unknown"),
    "text in a shallow block": Case(
        {**WHOLE, "blocks.0.proj_txt.weight": torch.ones(20, 6)}, said="blocks.0.proj_txt.weight is unknown"),
    "a tensor of no part": Case({**WHOLE, "scale": torch.ones(3)}, said="scale is unknown"),
    "heads that share keys": Case(
        {**WHOLE, "blocks.3.attn_blocks.0.attention.qkv.weight": torch.ones(80, 40)}, said=r"qkv.weight has shape"),
    "arguments in the file": Case({"model": WHOLE, "args": {"soft_clip": 4.0, "rope": True, "lr": 1e-4}}),
    "other arguments in the file": Case({"model": WHOLE, "args": {"soft_clip": 3.0}}, said="args: .*soft_clip:"),
    "a causal denoiser": Case(options=told(denoiser_look_ahead=0), sizes=replace(SIZES, ahead=0)),
    "a denoiser that looks two frames ahead": Case(options=told(denoiser_look_ahead=2), sizes=replace(SIZES, ahead=2)),
    "a denoiser of another window": Case(options={"denoiser_window": 4}, sizes=replace(SIZES, reach=4)),
    "a denoiser that looks further than its window": Case(
        options=told(denoiser_look_ahead=3), said="denoiser_look_ahead: .* from 0 to denoiser_window 2"),
    "no denoiser": Case(without("learnable"), sizes=replace(SIZES, denoiser_layers=0)),
}


def config(**changes: Any) -> State:
    """The arguments of a published YAML; None leaves one out."""
    return {name: value for name, value in {**ARGUMENTS, **changes}.items() if value is not None}


CONFIGS: dict[str, tuple[Any, str | Sizes]] = {
    "as published": (config(), SIZES),
    "arguments of training and sampling": (config(cfg=2.5, drop_image=0.25, gradient_checkpoint=1), SIZES),
    "temporal_causal 1": (config(temporal_causal=1), replace(SIZES, ahead=0)),
    "temporal_causal 3": (config(temporal_causal=3), replace(SIZES, ahead=2)),
    "no temporal_causal": (config(temporal_causal=None), "temporal_causal: expected a whole number of at least 1"),
    "no denoiser_window": (config(denoiser_window=None), replace(SIZES, reach=99)),
    "soft_clip 3": (config(soft_clip=3), "soft_clip: expected 4, found 3"),
    "no soft_clip": (config(soft_clip=None), "soft_clip: expected 4, found 0"),
    "use_softplus 0": (config(use_softplus=0), "use_softplus: expected 1, found 0"),
    "no use_softplus": (config(use_softplus=None), "use_softplus: expected 1, found 0"),
    "shallow_block_local 0": (config(shallow_block_local=0), "shallow_block_local: expected 1, found 0"),
    "seq_order R2L": (config(seq_order="R2L"), "seq_order: expected L2R, found R2L"),
    "patch_size 2": (config(patch_size=2), "patch_size: expected 1, found 2"),
    "no sos": (config(sos=None), "sos: expected 1, found 0"),
    "two at once": (config(rope=0, use_bias=0), "2 arguments .*rope: expected 1, found 0; use_bias: expected 1,"),
    "no captions of noise": (config(cond_noise_level=0), "cond_noise_level: expected 1, found 0"),
    "a misspelt argument": (config(soft_clp=3), "'soft_clp'; did you mean 'soft_clip'?"),
    "an argument twice": ([config(), {"soft_clip": 4}], "expected each argument once, found 'soft_clip'"),
    "another head_dim": (config(head_dim=40, channels=40), "head_width: expected 20, as .*freqs_cos.*found 40"),
    "another txt_size": (config(txt_size=8), "text_length: expected 4, as .*attn_mask.* found 8"),
    "another pt_seq_len": (config(pt_seq_len=32), "position_scale: expected 3, as .*var.* found 32.0"),
    "no pt_seq_len": (config(pt_seq_len=None), "position_scale: expected 3, as .*var.* found 40.0"),
    "other layers": (config(layers_per_block="1 2 2 2"), "blocks.2.attn_blocks.1.* is missing"),
    "layers that are none": (config(layers_per_block="1 0 1 2"), "layers_per_block: expected numbers .*'1 0 1 2'"),
    "another number of blocks": (config(blocks=6), "blocks: expected 4, as layers_per_block has, found 6"),
    "equal layers": (config(layers_per_block=2, blocks=4), "blocks.0.attn_blocks.1.* is missing"),
    "no denoiser": (config(learnable_self_denoiser=0), "learnable_self_denoiser.* is unknown"),
    "a model of pictures": (config(vid_size=None), "vid_size: expected FRAMES:FPS"),
    "an unquoted clip": (config(vid_size=1036), "vid_size: expected FRAMES:FPS in quotes"),
    "another VAE": (config(vae="stabilityai/sd-vae-ft-ema"), "vae: expected the Wan2.2 VAE"),
    "no list": ("soft_clip", "expected arguments such as"),
}


def save_yaml(path: Path, arguments: Any) -> Path:
    lines = ["arguments:"]
    for part in arguments if isinstance(arguments, list) else [arguments]:
        lines += [f"- {name}: {value!r}" for name, value in part.items()] if isinstance(part, dict) else [f"- {part}"]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def numbers() -> Callable[[Path, State, Sizes], float]:
    """The largest difference between a converted flow and the published model of `meant`."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, SIZES.grid[0] * SIZES.grid[1], SIZES.channels, generator=generator, dtype=torch.float64)
    text = torch.randn(*SIZES.text, generator=generator, dtype=torch.float64)

    known: dict[tuple[int, Sizes], list[Tensor]] = {}

    def expected(meant: State, sizes: Sizes) -> list[Tensor]:
        published = Published({name: t.double() for name, t in meant.items()}, sizes)
        return [published.to_noise(x, text)[0], *([published.denoiser(x, text)] if sizes.denoiser_layers else [])]

    def difference(folder: Path, meant: State, sizes: Sizes) -> float:
        flow = load_flow(folder).requires_grad_(False)
        tables = flow.tables(sizes.grid, len(x))
        u, _ = flow.shallow(x[None], tables)
        found = [flow.deep_forward(u, text[None], None, tables).to_noise(u.flatten(1, 2))[0][0].reshape(x.shape)]
        if flow.denoiser is not None:
            found.append(flow.denoiser_output(x[None], text[None], tables)[0])
        if (key := (id(meant), sizes)) not in known:
            known[key] = expected(meant, sizes)
        return max(float((a - b).abs().max()) for a, b in zip(found, known[key], strict=True))

    return difference


def check(
    numbers: Callable[[Path, State, Sizes], float], folder: Path, source: Path, case: Case, at_most: Callable[..., None]
) -> None:
    out = folder / "out"
    if case.said:
        with pytest.raises(StarflowError, match=case.said) as error:
            convert(source, out, dtype=torch.float64, **case.options)
        assert str(folder) in str(error.value), "the file is named"
        assert not out.exists()
    else:
        convert(source, out, dtype=torch.float64, **case.options)
        at_most("error", numbers(out, case.meant, case.sizes), 1e-10)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_altered_checkpoint_is_read_to_its_own_numbers_or_refused_by_name(numbers, tmp_path, at_most, name):
    torch.save(CHECKPOINTS[name].state, tmp_path / "altered.pth")
    check(numbers, tmp_path, tmp_path / "altered.pth", CHECKPOINTS[name], at_most)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_altered_config_is_read_to_its_own_numbers_or_refused_by_name(numbers, tmp_path, at_most, name):
    torch.save(WHOLE, tmp_path / "published.pth")
    arguments, expected = CONFIGS[name]
    options = {"config": save_yaml(tmp_path / "altered.yaml", arguments)}
    case = Case(options=options, **{"said" if isinstance(expected, str) else "sizes": expected})
    check(numbers, tmp_path, tmp_path / "published.pth", case, at_most)


def written(folder: Path, state: dict[str, Tensor], kind: str) -> Path:
    whole = {name: t.contiguous().clone() for name, t in state.items()}
    if kind == "safetensors":
        save_file(whole, folder / "all.safetensors")
        return folder / "all.safetensors"
    dcp.save(whole, storage_writer=FileSystemWriter(folder / "all"))
    return folder / "all"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["safetensors", "distributed"])
def test_other_files_may_hold_several_weights_and_a_step_too(numbers, tmp_path, at_most, kind):
    state = {**prefixed("model."), **prefixed("ema.module.", EMA), "step": torch.tensor(1000)}
    source = written(tmp_path, state, kind)
    for weights, meant in (("", WHOLE), ("ema", EMA)):
        convert(source, tmp_path / f"out{weights}", dtype=torch.float64, weights=weights, **DENOISER)
        at_most("error", numbers(tmp_path / f"out{weights}", meant, SIZES), 1e-10)


def test_a_nested_file_that_is_mapped_again_while_it_is_read_gives_the_same_numbers(numbers, tmp_path, monkeypatch):
    monkeypatch.setattr("starflow_world.video.convert.sources.MOST_MAPPED", 0)
    torch.save({"step": 1, "model": WHOLE, "ema": EMA}, tmp_path / "large.pth")
    convert(tmp_path / "large.pth", tmp_path / "out", dtype=torch.float64, weights="ema", **DENOISER)
    assert numbers(tmp_path / "out", EMA, SIZES) <= 1e-10


def test_weights_of_several_types_are_written_in_the_widest(tmp_path):
    torch.save(mixed(), tmp_path / "mixed.pth")
    convert(tmp_path / "mixed.pth", tmp_path / "out", **DENOISER)
    flow = load_flow(tmp_path / "out")
    assert {t.dtype for t in flow.state_dict().values()} == {torch.float32}
    assert torch.equal(flow.deep.head.weight.double(), mixed()["blocks.3.proj_out.weight"].double())


def test_the_command_says_each_size_and_which_weights(tmp_path, capsys):
    torch.save({"model": WEIGHTS, "ema": {name: EMA[name] for name in WEIGHTS}}, tmp_path / "bare.pth")
    words = ["convert", str(tmp_path / "bare.pth"), "--dtype", "source", "--head-width", "20", "--text-length", "4"]
    words += ["--position-scale", "3", "--denoiser-window", "2", "--denoiser-look-ahead", "0", "--weights", "ema"]
    main([*words, "--out", str(tmp_path / "out")])
    assert "'denoiser_look_ahead': [0, 0" in capsys.readouterr().out
    flow = load_video(tmp_path / "out")[0].flow
    assert (flow.head_width, flow.text_length, flow.position_scale, flow.denoiser_window) == (20, 4, 3.0, 2)
    assert (flow.shallow_layers, flow.denoiser_look_ahead) == ((1, 2, 1), (0,) * 8)
    assert torch.equal(load_flow(tmp_path / "out").deep.head.weight, EMA["blocks.3.proj_out.weight"])


def test_options_and_config_that_disagree_are_refused(tmp_path):
    torch.save(WHOLE, tmp_path / "published.pth")
    path = save_yaml(tmp_path / "published.yaml", ARGUMENTS)
    other = {"head_width": 40, "text_length": 5, "position_scale": 4.0, "denoiser_window": 3, "denoiser_look_ahead": 0}
    for name, value in other.items():
        with pytest.raises(CheckpointError, match=rf"{name}: expected .* as the config says, found {value}"):
            convert(tmp_path / "published.pth", tmp_path / "out", path, **{name: value})
    convert(tmp_path / "published.pth", tmp_path / "out", path, head_width=20, denoiser_look_ahead=1)
