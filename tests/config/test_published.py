"""The YAML files of the published program are read as configs of ours, or refused by the name of an argument."""

from pathlib import Path

import pytest

from starflow_world.config.published import refuse_arguments
from starflow_world.config.video import load_video_config
from starflow_world.errors import ConfigError

PUBLISHED = {  # of the 7B video model, without most of what training alone reads
    "no_flip": 1, "fsdp": 1, "img_size": 640, "secondary_img_size": 512, "txt_size": 256, "vid_size": "'81:16'",
    "fps_cond": 1, "channel_size": 48, "patch_size": 1, "channels": 3072, "top_block_channels": 4096, "blocks": 6,
    "layers_per_block": "2 2 2 2 2 24", "noise_std": 0.5, "batch_size": 192, "lr": "5e-5", "nvp": 1, "rope": 1,
    "adaln": 0, "sos": 1, "seq_order": "L2R", "pt_seq_len": 32, "wds": 1, "mix_aspect": 1, "use_softplus": 1,
    "cond_top_only": 1, "use_final_norm": 1, "learnable_self_denoiser": 1, "conditional_denoiser": 1,
    "denoiser_window": 10, "cond_noise_level": 1, "temporal_causal": 2, "shallow_block_local": 1,
    "vae": "Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6", "finetuned_vae": "none", "text": "google/flan-t5-xl", "cfg": 2.5,
    "soft_clip": 4,
}
PICTURES = {  # of the 3B model of pictures
    "img_size": 256, "txt_size": 128, "channel_size": 4, "patch_size": 1, "channels": 3072, "blocks": 6,
    "layers_per_block": "2 2 2 2 2 24", "noise_std": 0.3, "nvp": 1, "rope": 1, "adaln": 0, "sos": 1, "seq_order": "L2R",
    "use_softplus": 1, "cond_top_only": 1, "use_final_norm": 1, "vae": "stabilityai/sd-vae-ft-ema",
    "text": "google/flan-t5-xl", "soft_clip": 4, "latent_norm_regularization": "1e-4",
}


def saved(path: Path, arguments: dict[str, object], *, more: str = "") -> Path:
    path.write_text("arguments:\n" + "".join(f"- {name}: {value}\n" for name, value in arguments.items()) + more)
    return path


def test_the_published_file_of_the_7b_model_is_the_config_that_ships(tmp_path):
    found = load_video_config(saved(tmp_path / "starflow-v-7b.yaml", PUBLISHED))
    assert found == load_video_config("starflow-v-7b")
    assert load_video_config(tmp_path / "starflow-v-7b.yaml", text_width=24).flow.text_width == 24


@pytest.mark.parametrize(("changes", "flow", "others"), [
    ({"layers_per_block": "[2, 1, 1, 2, 1, 24]"}, {"shallow_layers": (2, 1, 1, 2, 1)}, {}),
    ({"layers_per_block": 3, "blocks": 8}, {"shallow_blocks": 7, "shallow_layers": 3, "deep_layers": 3}, {}),
    ({"temporal_causal": 1, "denoiser_window": "none"}, {"denoiser_look_ahead": (0,) * 8, "denoiser_window": 10000},
     {"denoise_overlap": 20}),
    ({"top_block_channels": "none", "head_dim": 32}, {"deep_width": 3072, "head_width": 32}, {}),
    ({"pt_seq_len": "none"}, {"position_scale": 40.0}, {}),
    ({"learnable_self_denoiser": 0}, {"denoiser_layers": 0, "denoiser_look_ahead": ()}, {}),
    ({"vid_size": "'41:24:8'", "vae": "Wan2.2", "text": "google/flan-t5-large"}, {"text_width": 1024},
     {"window": 11, "context": 10, "fps": 24, "later": 1.0, "codec": "Wan2.2"}),
])
def test_each_argument_is_read_as_the_published_program_reads_it(tmp_path, changes, flow, others):
    shipped = load_video_config(saved(tmp_path / "model.yaml", PUBLISHED))
    found = load_video_config(saved(tmp_path / "model.yaml", {**PUBLISHED, **changes}))
    for name, value in flow.items():
        assert getattr(found.flow, name) == value
    for name, value in others.items():
        assert getattr(found, name) == value
    assert (found.guidance, found.noise_level) == (shipped.guidance, 0.5)


@pytest.mark.parametrize(("arguments", "more", "said"), [
    (PICTURES, "", "vid_size: expected FRAMES:FPS, found none; a model of pictures is not read: it has another VAE"),
    ({**PICTURES, "vid_size": "'81:16'"}, "",
     "4 arguments .*shallow_block_local: .*; mix_aspect: .*; fps_cond: .*; cond_noise_level: expected 1"),
    (PUBLISHED, "window: 21\n", "expected arguments alone, found also window"),
    (PUBLISHED, "- rope: 1\n", "each argument once, found 'rope' twice"),
    ({**PUBLISHED, "text": "gemma2_2b"}, "", "text: expected google/flan-t5"),
    ({**PUBLISHED, "text": "google/t5-3b"}, "", "text: expected google/flan-t5"),
    ({**PUBLISHED, "noise_std": "much"}, "", "noise_std: expected a number, found 'much'"),
    ({**PUBLISHED, "noise_std": "nan"}, "", "noise_std: expected a number, found 'nan'"),
    ({**PUBLISHED, "channels": 3000.5}, "", "channels: expected a whole number of at least 0, found 3000.5"),
    ({**PUBLISHED, "channels": 3000}, "", "widths: expected multiples of head_width 64, found 3000"),
    ({**PUBLISHED, "channels": "1e308"}, "", "shallow_width: expected a number from 1 to 1048576"),
    ({**PUBLISHED, "layers_per_block": f"'{'9' * 9000}'"}, "", "layers_per_block: expected numbers"),
    ({**PUBLISHED, "soft_clip": "{a: {b: 3}}"}, "", "soft_clip: expected 4, found dict"),
    ({**PUBLISHED, "soft_clip": "[[4]]"}, "", "soft_clip: expected 4, found list"),
    ({**PUBLISHED, "soft_clip": ".inf"}, "", "soft_clip: expected 4, found float"),
    ({**PUBLISHED, "vid_size": "81:16"}, "", "vid_size: expected FRAMES:FPS in quotes, .* found 4876"),
    ({**PUBLISHED, "vid_size": "'80:16'"}, "", r"frames: expected 1 \+ 4k"),
])
def test_what_is_not_read_is_refused_by_the_name_of_the_file_and_the_argument(tmp_path, arguments, more, said):
    path = saved(tmp_path / "model.yaml", arguments, more=more)
    with pytest.raises(ConfigError, match=rf"model\.yaml: .*{said}"):
        load_video_config(path)


def test_arguments_that_are_absent_or_of_no_plain_kind_are_handled(tmp_path):
    refuse_arguments({"rope": True, "other": object()})
    with pytest.raises(ConfigError, match=r"1 arguments .*rope: expected 1, found int"):
        refuse_arguments({"rope": 10**5000})
    with pytest.raises(ConfigError, match="rope: expected 1, found object"):
        refuse_arguments({"rope": object()})
