"""Models that other libraries load: a library fills what a folder lacks with random numbers, and says so in a log."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from starflow_world.errors import CheckpointError
from starflow_world.io.files import odd_numbers


@contextmanager
def unlogged(library: str) -> Iterator[None]:
    """Suppress what a library logs below errors: `check_pretrained` says the same in one line."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_pretrained(
    folder: Path, kind: str, module: torch.nn.Module, loading: Mapping[str, Any], *, unused: Sequence[str] = ()
) -> None:
    """Raise CheckpointError if a module of `kind`, loaded from `folder`, has numbers that the files do not hold.

    `loading`: what the library returned for output_loading_info. Names that begin with one of `unused` may be in the
    files without being in the module.
    """
    unknown = [name for name in loading["unexpected_keys"] if not name.startswith(tuple(unused))]
    problems = [f"{name} is missing" for name in sorted(loading["missing_keys"])]
    problems += [f"{name} is unknown" for name in sorted(unknown)]
    problems += [f"{name} has another shape" for name, *_ in sorted(loading["mismatched_keys"], key=str)]
    if not problems:
        floats = [(name, t) for name, t in module.state_dict().items() if t.is_floating_point()]
        problems = [f"{name} has {odd}" for name, t in floats if (odd := odd_numbers(t))]
    if problems:
        found = "; ".join(problems[:5])
        raise CheckpointError(
            f"{folder}: expected all tensors of {kind}, found {len(problems)} that do not fit: {found}; fetch it again"
        )
