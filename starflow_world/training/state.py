"""Saved state of a distributed training run: each process writes its own shards, as safetensors.

training.json names the folder of the last complete save and holds the run's metadata. The folder is a torch distributed
checkpoint in Hugging Face format: any number of processes can resume from it, and `shards.open_shards` can read it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from starflow_world.errors import CheckpointError
from starflow_world.io.files import DAMAGE, write_text
from starflow_world.model.checkpoint import read_json, training_tensors
from starflow_world.training.distributed import Processes

STATE = "training.json"


def save_sharded(
    folder: Path | str, networks: nn.Module, optimizers: list[torch.optim.Optimizer], facts: dict[str, Any],
    processes: Processes,
) -> None:
    """Write weights, optimizer states and `facts` (JSON, with the step). If a process dies at any time, this save or
    the previous save can still be loaded."""
    folder = Path(folder)
    home = folder / f"training-{facts['step']:08}"
    processes.once(lambda: shutil.rmtree(home, ignore_errors=True))  # an incomplete save of a killed run
    save(
        training_tensors(networks, optimizers),
        storage_writer=HuggingFaceStorageWriter(str(home), save_distributed=True),
    )
    processes.once(lambda: _point(folder, home.name, facts))


def _point(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """Record the folder `name` as the last complete save, and remove older saves."""
    write_text(folder / STATE, json.dumps({"folder": name, "facts": facts}) + "\n")
    for old in folder.glob("training-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)


def sharded_facts(folder: Path | str) -> dict[str, Any]:
    """Return the `facts` that were given to `save_sharded`."""
    return dict(_state(Path(folder))["facts"])


def load_sharded(folder: Path | str, networks: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Restore the state that `save_sharded` wrote; each process reads its own shards. Raises CheckpointError."""
    home = Path(folder) / _state(Path(folder))["folder"]
    reader = HuggingFaceStorageReader(str(home))
    try:
        sizes = {name: part.size for name, part in reader.read_metadata().state_dict_metadata.items()}  # type: ignore[union-attr]
        _make_room(optimizers, sizes)
        tensors = training_tensors(networks, optimizers)
        if unmatched := sizes.keys() ^ tensors.keys():
            raise ValueError(f"{sorted(unmatched)[0]} in only one of checkpoint and run")
        load(tensors, storage_reader=reader)
    except (*DAMAGE, IndexError, CheckpointException) as damage:
        raise CheckpointError(f"{home}: expected the state of this training, found damage: {damage!r:.300}") from None


def _make_room(optimizers: list[torch.optim.Optimizer], sizes: dict[str, torch.Size]) -> None:
    """Allocate optimizer states of zeros, sharded like their parameters, for every optimizer tensor in `sizes`."""
    for index, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, size in sizes.items():
            kind, *rest = name.split("/")
            if kind == "optimizer" and int(rest[0]) == index:
                p = parameters[int(rest[1])]
                value = torch.zeros_like(p) if size == p.shape else torch.zeros(size)
                state.setdefault(int(rest[1]), {})[rest[2]] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("facts"), dict):
        raise CheckpointError(f"{path}: expected the state of a training, found damage")
    if not str(values.get("folder")).startswith("training-") or "/" in values["folder"]:
        raise CheckpointError(f"{path}: expected the name of a folder beside it, found {values.get('folder')!r:.80}")
    return values
