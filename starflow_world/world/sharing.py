"""Worlds to share: the folder that a repository of the Hugging Face hub holds, and a world from such a repository.

A repository holds config.json, the weights, starts.safetensors, card.json and README.md, the model card. Only JSON and
safetensors files of these names are fetched from it: nothing in a repository can run.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from starflow_world.config.world import WorldConfig
from starflow_world.errors import CheckpointError
from starflow_world.io.files import atomic, is_file, is_folder, not_written, write_text
from starflow_world.io.hub import check_names, fetch, push
from starflow_world.io.shards import INDEX
from starflow_world.model.checkpoint import (
    CARD,
    CONFIG,
    STARTS,
    WEIGHTS,
    find_weights,
    load_config,
    save_checkpoint,
    save_starts,
)
from starflow_world.model.networks import Networks
from starflow_world.world.model_card import model_card

SHARD = f"model-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors"
FETCHED = (CONFIG, WEIGHTS, INDEX, SHARD, STARTS, CARD)
README = "README.md"


def pretrained_folder(source: Path | str, revision: str | None) -> Path | str:
    """Return the local copy of a repository user/name, fetched if necessary; a folder or a name without "/" as it is.

    Raises CheckpointError for a repository that cannot be fetched or is not a world of ours.
    """
    if is_folder(source) or "/" not in str(source):
        if revision is not None:
            raise CheckpointError(f"revision: expected one of a repository user/name only, found {revision!r:.80} for "
                                  f"{str(source)!r:.120}")
        return source
    folder = fetch(str(source), FETCHED, revision)
    if not is_file(folder / CONFIG):
        raise CheckpointError(f"{source}: expected {CONFIG} and {WEIGHTS} in this repository, found no {CONFIG}; only "
                              "worlds in JSON and safetensors are read, as save_pretrained writes them")
    _check_whole(str(source), load_config(folder)[0])
    return folder


@dataclass(frozen=True)
class Shared:
    """What is shared of a world: its networks, starts (frames (N, H, W, 3) u8 and texts), card, and the folder that it
    was loaded from, whose weights are copied (None: those of the networks are written)."""

    networks: Networks
    starts: tuple[Tensor, Sequence[str]] | None
    card: dict[str, Any]
    source: Path | None


def save_shared(shared: Shared, folder: Path | str, repository: str = "") -> Path:
    """Write a world with its card and a model card, which names the repository, and return the folder; other files
    there stay. Raises CheckpointError."""
    out, config = Path(folder), shared.networks.config
    _check_whole(config.name, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if shared.source is None:
            save_checkpoint(out, shared.networks, shared.card)
        elif not out.samefile(shared.source):
            _copy_checkpoint(shared.source, out)
        if shared.starts is None:
            (out / STARTS).unlink(missing_ok=True)
        else:
            save_starts(out, *shared.starts)
        write_text(out / CARD, json.dumps(shared.card, indent=1) + "\n")
        write_text(out / README, model_card(config, shared.card, load_config(out)[1], repository))
    except OSError as error:
        raise CheckpointError(not_written(out, error)) from None
    return out


def push_shared(shared: Shared, repository: str, message: str, revision: str | None, private: bool | None) -> str:
    """Upload a world to a repository of the hub; return the address of the commit. Raises CheckpointError."""
    check_names(repository, revision)
    with tempfile.TemporaryDirectory() as folder:
        saved = save_shared(shared, folder, repository)
        message = message or f"Upload {shared.networks.config.name}"
        return push(saved, repository, message=message, revision=revision, private=private)


def _check_whole(name: str, config: WorldConfig) -> None:
    if config.codec.kind == "wan":
        raise CheckpointError(f"{name}: expected a world that holds all its parts, found a published video model, "
                              "whose codec and text encoder lie elsewhere; share and load it as its licence says")


def _copy_checkpoint(source: Path, out: Path) -> None:
    """Copy weights and config; config.json is removed first and written last, so that no mix of two worlds loads."""
    (out / CONFIG).unlink(missing_ok=True)
    weights = find_weights(source, load_config(source)[1])
    copies = {WEIGHTS: weights}
    if weights.name == INDEX:
        copies = {path.name: path for path in (*sorted(source.glob(SHARD)), weights)}
    for name, path in {**copies, CONFIG: source / CONFIG}.items():
        with atomic(out / name) as temporary:
            shutil.copyfile(path, temporary)
