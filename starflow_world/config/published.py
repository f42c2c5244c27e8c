"""The YAML files of the published program, whose `arguments:` say what kind of model a checkpoint holds.

A checkpoint holds tensors only: with the same tensors, a model with another soft clip, order or locality has other
numbers. So each argument is read, is known to say nothing of the model, or is refused by its name.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from starflow_world.errors import ConfigError

REQUIRED: dict[str, tuple[Any, Any]] = {  # the only value that we read, and what the program takes if none is given
    "patch_size": (1, 4), "rope": (1, 0), "sos": (1, 0), "seq_order": ("L2R", "R2L"), "nvp": (1, 1), "adaln": (0, 0),
    "use_softplus": (1, 0), "soft_clip": (4, 0), "cond_top_only": (1, 0), "shallow_block_local": (1, 0),
    "use_final_norm": (1, 0), "use_swiglu": (0, 0), "use_qk_norm": (0, 0), "use_post_norm": (0, 0), "use_bias": (1, 1),
    "norm_type": ("layer_norm", "layer_norm"), "num_heads": (None, None), "num_kv_heads": (None, None),
    "use_pretrained_lm": (None, None), "use_mm_attn": (0, 0), "noise_embed_denoiser": (0, 0),
    "noise_type": ("gaussian", "gaussian"), "finetuned_vae": (None, None), "vae_decoder_factor": (1, 1),
    "mix_aspect": (1, 0), "fps_cond": (1, 0), "cond_noise_level": (1, 0),
}
READ = {  # what the program takes if none is given
    "channel_size": 3, "channels": 512, "top_block_channels": None, "blocks": None, "layers_per_block": 8,
    "head_dim": 64, "txt_size": 0, "pt_seq_len": None, "img_size": 32, "vid_size": None, "noise_std": 0.3, "vae": None,
    "text": None, "learnable_self_denoiser": 0, "conditional_denoiser": 0, "temporal_causal": 0,
    "denoiser_window": None,
}
SILENT = {
    "model_config_path", "train_seed", "data", "logdir", "dataset", "wds", "no_flip", "caption_column",
    "secondary_dataset", "secondary_img_size", "secondary_vid_size", "batch_size", "secondary_batch_size",
    "secondary_ratio", "acc", "fp8", "use_8bit_adam", "epochs", "epoch_length", "lr", "min_lr", "drop_label",
    "drop_image", "last_frame_cond", "video_to_video", "resume_path", "resume_epoch", "warmup_steps", "fsdp",
    "fsdp_text_encoder", "gradient_checkpoint", "gradient_checkpoint_mlp", "compile", "latent_norm_regularization",
    "loss_scaling", "grad_clip", "grad_skip", "dry_run", "wandb_name", "save_every", "sample_freq", "cfg",
    "num_samples", "sample_batch_size", "local_attn_window",
}
"""Arguments of training, and of sampling that the published sampling script replaces by its own."""
DENOISER_LAYERS, BLOCKS, CONTEXT, MOST_LAYERS = 8, 4, 16, 1 << 10
UNLIMITED = 10000
"""Window of a denoiser without one, as the program has it."""
TEXT_WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
"""Widths of the encoders google/flan-t5-..."""


def refuse_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError that names the arguments of models that we do not read; absent ones do not count."""
    wrong = [
        f"{name}: expected {needed}, found {_plain(arguments[name])!s:.60}" for name, (needed, _) in REQUIRED.items()
        if name in arguments and _plain(arguments[name]) != needed
    ]
    if wrong:
        raise ConfigError(f"{len(wrong)} arguments are those of a model that is not read: {'; '.join(wrong)}")


def published_values(
    name: str, arguments: Any, *, text_width: int, pixels: int, latent_frames: Callable[[int], int]
) -> dict[str, Any]:
    """Return the values of a video config that the `arguments` of a published YAML file describe.

    They do not say the width of the text's states: `text_width`, or 0 for that of the T5 encoder that they name.
    `pixels`: per side of a token; `latent_frames` counts those of a clip. Raises ConfigError.
    """
    given = _collected(arguments)
    if _plain(given.get("vid_size")) is None:
        reason = "it has another VAE, other prompts and no denoiser; docs/starflow_v.md says what would be needed"
        raise ConfigError(f"vid_size: expected FRAMES:FPS, found none; a model of pictures is not read: {reason}")
    refuse_arguments({key: given.get(key, default) for key, (_, default) in REQUIRED.items()})
    values = _Values({key: _plain(given.get(key, default)) for key, default in READ.items()})
    *shallow, deep = values.layers()
    side, width, denoisers = values.count("img_size"), values.count("channels"), values.count("learnable_self_denoiser")
    frames, fps = values.clip()
    window = latent_frames(frames)
    codec, later = values.codec()
    ahead = values.count("temporal_causal", least=1) - 1
    reach = values.count("denoiser_window", UNLIMITED)
    flow = {
        "channels": values.count("channel_size"), "shallow_blocks": len(shallow), "shallow_width": width,
        "shallow_layers": shallow if len(set(shallow)) > 1 else sum(shallow[:1]), "deep_layers": deep,
        "deep_width": values.count("top_block_channels", width), "head_width": values.count("head_dim"),
        "text_length": values.count("txt_size", least=1), "text_width": values.text_width(text_width),
        "position_scale": float(values.count("pt_seq_len", side // pixels)),
        "denoiser_layers": DENOISER_LAYERS * bool(denoisers), "denoiser_width": width, "denoiser_window": reach,
        "denoiser_look_ahead": [ahead] * DENOISER_LAYERS * bool(denoisers),
        "denoiser_text": bool(values.count("conditional_denoiser")),
    }
    return {
        "name": name, "flow": flow, "text": values["text"], "codec": codec, "later": later, "side": side, "fps": fps,
        "noise_level": values.number("noise_std"), "window": window, "context": min(CONTEXT, max(window - 1, 1)),
        "denoise_window": window, "denoise_overlap": min(reach, window - 1),
    }


def _collected(arguments: Any) -> dict[str, Any]:
    """Return a list of mappings as one; each argument is known, and there once."""
    given: dict[str, Any] = {}
    known = (*REQUIRED, *READ, *SILENT)
    for part in arguments if isinstance(arguments, list) else [arguments]:
        if not isinstance(part, dict):
            raise ConfigError(f"expected arguments such as `- rope: 1`, found {part!r:.80}")
        for key, value in part.items():
            if key in given:
                raise ConfigError(f"expected each argument once, found {key!r:.80} twice")
            if key not in known:
                near = difflib.get_close_matches(str(key)[:80], known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"expected an argument of the published program, found {key!r:.80}{hint}")
            given[key] = value
    return given


def _plain(value: Any) -> Any:
    """Return what the program, which reads words, takes a value for: None, a number, or the text itself."""
    try:
        if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
            value = " ".join(str(item) for item in value)
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return value.strip() if isinstance(value, str) else type(value).__name__
    if math.isfinite(number):
        return int(number) if number.is_integer() else number
    return value.strip() if isinstance(value, str) else type(value).__name__


class _Values(dict[str, Any]):
    """The arguments that are read, by name; each method raises ConfigError for one that cannot be meant."""

    def count(self, name: str, otherwise: int = 0, *, least: int = 0) -> int:
        """Return a whole number, `otherwise` if there is none."""
        value = otherwise if self[name] is None else self[name]
        if type(value) is not int or value < least:
            raise ConfigError(f"{name}: expected a whole number of at least {least}, found {value!r:.80}")
        return value

    def number(self, name: str) -> float:
        """Return a number."""
        if not isinstance(self[name], int | float):
            raise ConfigError(f"{name}: expected a number, found {self[name]!r:.80}")
        return float(self[name])

    def layers(self) -> list[int]:
        """Return the layers of each block: one number per block, or one for all `blocks`."""
        words = str(self["layers_per_block"]).split()
        if not words or not all(re.fullmatch(r"[1-9]\d{0,2}", word) for word in words):
            expected = "numbers of layers from 1 to 999, such as 2 2 2 2 2 24"
            raise ConfigError(f"layers_per_block: expected {expected}, found {self['layers_per_block']!r:.80}")
        blocks = self.count("blocks", len(words) if len(words) > 1 else BLOCKS, least=1)
        if blocks > MOST_LAYERS or len(words) not in (1, blocks):
            raise ConfigError(f"blocks: expected {len(words)}, as layers_per_block has, found {blocks}")
        return [int(word) for word in words] * (blocks // len(words))

    def clip(self) -> tuple[int, int]:
        """Return frames and frames per second of a clip."""
        found = re.fullmatch(r"(\d{1,6}):(\d{1,4})(:\d+)*", str(self["vid_size"]))
        if not found:
            expected = "FRAMES:FPS in quotes, such as '81:16', as video models have (others are not read)"
            raise ConfigError(f"vid_size: expected {expected}, found {self['vid_size']!r:.80}")
        return int(found[1]), int(found[2])

    def codec(self) -> tuple[str, float]:
        """Return the name of the VAE, and the factor on all latents of a clip but the first."""
        found = re.fullmatch(r"([^:]*Wan2\.2[^:]*)(?::(\d+\.?\d*|\.\d+))?", str(self["vae"]))
        if not found:
            expected = "the Wan2.2 VAE and its factor, such as Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6"
            raise ConfigError(f"vae: expected {expected}, found {self['vae']!r:.80}")
        return found[1], float(found[2] or 1)

    def text_width(self, known: int) -> int:
        """Return the width of the states of the T5 encoder; `known`: what it is, if not 0."""
        if known and "t5" in str(self["text"]).lower():
            return known
        found = re.search(r"t5-(?:v1_1-)?(\w+)$", str(self["text"]))
        if not found or found[1] not in TEXT_WIDTHS:
            raise ConfigError(f"text: expected google/flan-t5-{{{','.join(TEXT_WIDTHS)}}}, found {self['text']!r:.80}")
        return TEXT_WIDTHS[found[1]]
