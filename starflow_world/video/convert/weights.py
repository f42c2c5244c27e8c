"""Which of the names in a file are those of the model's tensors, and which set is taken of several.

    [prefix.]NAME      prefix: the mappings that the weights are in, such as model, state_dict, ema.model, or none

Words that wrappers of modules add to names (WRAPPERS) are left out. What training needs beside weights is dropped:
states of optimizers, and numbers such as a step.
"""

import math
import re
from pathlib import Path

from starflow_world.errors import CheckpointError
from starflow_world.io.shards import CODES, TensorSource

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
TRAINING = {
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim", "opt", "scheduler", "schedulers",
    "lr_scheduler", "lr_schedulers", "scaler", "grad_scaler",
}
PART = re.compile(r"(?:^|\.)(blocks\.\d+\.|learnable_self_denoiser\.|feat_rope\.freqs_|var$)")
"""How the names of the model's tensors begin, behind a prefix."""


def model_names(path: Path, source: TensorSource, weights: str = "") -> dict[str, str]:
    """Return the reference's names of the tensors of a model -> their names in the source.

    `weights`: a prefix or a word of one, such as ema; empty: the only set, or the only one that is no moving average.
    Tensors with the same prefix that belong to no part of the model are among them, to be refused as unknown. Raises
    CheckpointError.
    """
    sets: dict[str, dict[str, str]] = {}
    others: dict[str, str] = {}
    for name in source.shapes:
        if (split := split_name(name)) is None:
            continue
        prefix, own = split
        names = others if prefix is None else sets.setdefault(prefix, {})
        if own in names:
            raise CheckpointError(f"{path}: expected each name once, found {names[own]} and {name}")
        names[own] = name
    if not sets:
        some = ", ".join(sorted(source.shapes)[:3]) or "no tensors"
        raise CheckpointError(
            f"{path}: expected a STARFlow state dict with tensors named blocks.0.attn_blocks.0 ..., found {some}"
        )
    chosen = _chosen(path, list(sets), weights)
    for clean, name in others.items():
        inside = clean.startswith(f"{chosen}.") if chosen else not clean.startswith(tuple(f"{p}." for p in sets if p))
        if inside and source.dtypes.get(name) in CODES and math.prod(source.shapes[name]) > 1:
            sets[chosen][clean.removeprefix(f"{chosen}.")] = name
    return sets[chosen]


def split_name(name: str) -> tuple[str | None, str] | None:
    """Return the prefix (None if it belongs to no part of the model) and the rest of a name; None: of training."""
    clean = ".".join(word for word in name.split(".") if word not in WRAPPERS)
    found = PART.search(clean)
    prefix = clean[: found.start()] if found else clean
    if not TRAINING.isdisjoint(prefix.split(".")):
        return None
    return (prefix, clean[found.start(1) :]) if found else (None, clean)


def _chosen(path: Path, prefixes: list[str], weights: str) -> str:
    """Return the prefix of the set of weights to read."""
    listed = ", ".join(repr(prefix) for prefix in prefixes)
    if weights:
        fits = (
            [prefix for prefix in prefixes if weights == prefix]
            or [prefix for prefix in prefixes if weights in prefix.split(".")]
            or [prefix for prefix in prefixes if weights in re.split(r"[._]", prefix)]
        )
        if len(fits) != 1:
            raise CheckpointError(f"{path}: weights: expected a word of one prefix of {listed}, found {weights!r:.60}")
        return fits[0]
    plain = [prefix for prefix in prefixes if "ema" not in re.split(r"[._]", prefix)] or prefixes
    if len(plain) > 1:
        raise CheckpointError(
            f"{path}: expected one set of weights, found several, with the prefixes {listed}; choose one with --weights"
        )
    return plain[0]
