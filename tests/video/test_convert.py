"""Reference checkpoints are read strictly, without running code from them, and come out as our own folder."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from torch import Tensor

from starflow_world.config.video import VideoConfig
from starflow_world.errors import CheckpointError
from starflow_world.model.actions import ActionEncoder
from starflow_world.model.checkpoint import VIDEO, load_flow
from starflow_world.video.convert import convert, reference_name
from tests.references import GOLDEN, OPTIONS, Canary, golden_state


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    """The golden state dict, its names without the prefix."""
    return {name.removeprefix("model."): t for name, t in golden_state().items()}


def run(tensors: object, folder: Path, **options) -> VideoConfig:
    torch.save(tensors, folder / "reference.pth")
    return convert(folder / "reference.pth", folder / "out", **{**OPTIONS, **options})


def test_sizes_come_from_shapes(reference, tmp_path):
    config = run(reference, tmp_path).flow
    assert (config.channels, config.shallow_blocks, config.shallow_layers, config.shallow_width) == (8, 5, 1, 64)
    assert (config.deep_layers, config.deep_width, config.text_width, config.text_length) == (3, 96, 24, 6)
    assert (config.denoiser_layers, config.denoiser_width, config.denoiser_text) == (8, 64, True)
    assert (config.denoiser_window, config.denoiser_look_ahead, config.denoiser_step) == (2, (1,) * 8, 0.3)
    assert load_flow(tmp_path / "out").config == config


def test_the_weights_are_those_of_the_source_and_all_of_them_but_nine(reference, tmp_path):
    run(reference, tmp_path)
    flow = load_flow(tmp_path / "out")
    ours = flow.state_dict()
    names = {name: reference_name(name, 5) for name in ours}
    assert len(set(names.values())) == len(names)
    dropped = {f"blocks.{k}.attn_mask" for k in range(6)} | {"var", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    assert reference.keys() - set(names.values()) == dropped
    for name, tensor in ours.items():
        assert torch.equal(tensor.flatten(), reference[names[name]].flatten()), name
    assert not flow.training


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefix_format_and_dtype_of_the_source_do_not_matter(reference, tmp_path, prefix, suffix, dtype):
    tensors = {prefix + name: t.to(dtype) for name, t in reference.items()}
    source = tmp_path / f"reference{suffix}"
    if suffix == ".pth":
        torch.save(tensors, source)
    else:
        save_file(tensors, source)
    convert(source, tmp_path / "out", **OPTIONS)
    weight = load_flow(tmp_path / "out").deep.head.weight
    assert torch.equal(weight, reference["blocks.5.proj_out.weight"].to(dtype))


def test_the_nine_entries_that_nothing_reads_may_be_absent(reference, tmp_path):
    dead = ("attn_mask", "var", "freqs_cos", "freqs_sin")
    run({name: t for name, t in reference.items() if not name.endswith(dead)}, tmp_path)
    assert load_flow(tmp_path / "out").config.deep_layers == 3


def test_a_source_without_denoiser_gives_a_flow_without_one(reference, tmp_path):
    config = run({name: t for name, t in reference.items() if name.startswith("blocks")}, tmp_path).flow
    assert config.denoiser_layers == 0
    assert load_flow(tmp_path / "out").denoiser is None


def broken(reference: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    state = dict(reference)
    if kind == "missing":
        for name in [name for name in state if "mlp.main.0" in name and name.startswith("blocks.")]:
            del state[name]
    elif kind == "unknown":
        state |= {f"blocks.{k}.attn_blocks.0.attention.query_norm.weight": torch.ones(3) for k in range(6)}
        state["blocks.6.attn_mask"] = torch.ones(3, 3)  # only nine names are dropped, and this is none of them
    elif kind == "shape":
        state["blocks.3.proj_in.weight"] = torch.ones(64, 9)
        state["blocks.5.sos_embed"] = torch.ones(8)
    elif kind == "width":
        state["blocks.5.proj_in.weight"] = torch.ones(97, 8)
    elif kind == "nan":
        state["blocks.1.proj_in.bias"] = torch.full((64,), torch.nan)
    elif kind == "integers":
        state["blocks.1.proj_in.bias"] = torch.ones(64, dtype=torch.long)
    elif kind == "twice":
        state["model.var"] = torch.ones(3)
    elif kind == "no block":
        state = {"weight": torch.ones(3)}
    elif kind == "far block":
        state["blocks.999.attn_blocks.999.mlp.norm.bias"] = torch.ones(3)
    return state


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", r"16 tensors do not fit: (blocks\.\d\.attn_blocks\.0\.mlp\.main\.0\.\w+ is missing(; |$)){5}$"),
        ("unknown", r"7 tensors do not fit: (blocks\..* is unknown(; |$)){5}"),
        ("shape", r"2 tensors .*blocks.3.proj_in.weight has shape \(64, 9\) instead of \(64, 8\); blocks.5.sos_embed"),
        ("width", "head_width 32, found 97"),
        ("nan", "1 tensors do not fit: blocks.1.proj_in.bias is not finite"),
        ("integers", "1 tensors do not fit: blocks.1.proj_in.bias is no tensor of floats"),
        ("twice", "expected one set of weights, found several, with the prefixes '', 'model'; choose"),
        ("no block", "expected a STARFlow state dict"),
        ("far block", "expected several tensors per layer"),
    ],
)
def test_what_does_not_fit_is_one_error_that_names_the_first_five_and_the_count(reference, tmp_path, kind, said):
    with pytest.raises(CheckpointError, match=said):
        run(broken(reference, kind), tmp_path)
    assert not (tmp_path / "out").exists()


def test_no_code_of_a_source_is_run(tmp_path):
    canary = tmp_path / "canary"
    for content in (Canary(canary), {"blocks.0.proj_in.weight": Canary(canary)}):
        with pytest.raises(CheckpointError, match="expected a state dict"):
            run(content, tmp_path)
    for suffix in (".pth", ".safetensors", ".pt"):
        renamed = tmp_path / f"renamed{suffix}"
        renamed.write_bytes((tmp_path / "reference.pth").read_bytes())
        with pytest.raises(CheckpointError):
            convert(renamed, tmp_path / "out")
    assert not canary.exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"blocks.0.proj_in.weight": 3}, "text", None])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError):
        run(content, tmp_path)


def test_damaged_sources_are_one_error(reference, tmp_path):
    run(reference, tmp_path)
    whole = (tmp_path / "reference.pth").read_bytes()
    legacy, archive = io.BytesIO(), io.BytesIO()
    torch.save(reference, legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("other.txt", "nothing")
    parts = (b"", b"PK", b"\x80\x02.", whole[: len(whole) // 2], whole[100:])
    for content in (*parts, legacy.getvalue(), archive.getvalue()):
        (tmp_path / "damaged.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged\.pth"):
            convert(tmp_path / "damaged.pth", tmp_path / "none")
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(CheckpointError, match="found none"):
            convert(path, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("version", "safe"), [("2.9.1", False), ("1.13", False), ("2.10.0a0+g", True), ("3.0", True)])
def test_an_old_torch_is_refused_before_it_reads_a_pickle(reference, tmp_path, monkeypatch, version, safe):
    monkeypatch.setattr(torch, "__version__", version)
    if safe:
        run(reference, tmp_path)
    else:
        with pytest.raises(CheckpointError, match=r"torch 2\.10 or newer"):
            run(reference, tmp_path)


def test_a_changed_folder_is_refused(reference, tmp_path):
    run(reference, tmp_path)
    folder = tmp_path / "out"
    weights = folder / "model-00001-of-00001.safetensors"
    config, content = (folder / VIDEO).read_text(), weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="digest"):
        load_flow(folder)
    weights.write_bytes(content)
    values = json.loads(config)
    flow = values["video"]["flow"]
    for change, said in [
        ({"format": 99}, "format"),
        ({"weights": "0" * 64}, "digest"),
        ({"video": {**values["video"], "flow": {**flow, "deep_layers": 4}}}, "12 tensors do not fit"),
        ({"video": {**values["video"], "depth": 4}}, "unknown key"),
        ({"video": {**values["video"], "fps": 0}}, "fps"),
        ({"video": None}, "mapping"),
    ]:
        (folder / VIDEO).write_text(json.dumps({**values, **change}))
        with pytest.raises(CheckpointError, match=said):
            load_flow(folder)
    (folder / VIDEO).write_text("[")
    with pytest.raises(CheckpointError, match="JSON"):
        load_flow(folder)
    with pytest.raises(CheckpointError):
        load_flow(tmp_path / "absent")


def test_a_fresh_action_adapter_leaves_the_likelihood_of_a_checkpoint_as_it_is_to_the_bit(reference, tmp_path):
    run(reference, tmp_path)
    flow, file = load_flow(tmp_path / "out"), load_file(GOLDEN / "forward.safetensors")
    x, text, tables = file["x"].flatten(-2).transpose(-1, -2), file["y"], flow.tables((3, 4), 5)
    adapter = ActionEncoder(spaces.Discrete(4), flow.config.deep_width)
    actions = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, _ = flow.nats(x, text, None, tables)
        assert torch.equal(flow.nats(x, text, adapter(actions), tables)[0], expected)
        adapter.project.weight.fill_(0.1)
        assert not torch.equal(flow.nats(x, text, adapter(actions), tables)[0], expected)
