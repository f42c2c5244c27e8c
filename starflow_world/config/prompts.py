"""Prompts that change on the way: "0: A dog runs. 40: It sleeps." """

import re
from collections.abc import Sequence

from starflow_world.errors import ConfigError

Prompts = tuple[tuple[int, str], ...]
"""Texts and the frames or steps from which they hold, as (number, text)."""


def timed_prompts(text: str) -> Prompts:
    """Return the prompts of a text that begins with "0: "; any other text is one prompt, which holds from 0 on."""
    if not re.match(r"0:\s", text):
        return ((0, text),)
    _, *parts = re.split(r"(?:^|(?<=\s))(\d{1,9}):\s+", text)
    return tuple((int(number), prompt.strip()) for number, prompt in zip(parts[::2], parts[1::2], strict=True))


def check_times(prompts: Prompts, end: int, expected: str) -> None:
    """Raise ConfigError, which begins with `expected`, unless the numbers of the prompts rise and are below `end`."""
    starts = [number for number, _ in prompts]
    if sorted(set(starts)) != starts or starts[-1] >= end:
        raise ConfigError(f"{expected} that rise from 0, below {end}, found {starts}")


def prompt_at(prompts: Sequence[tuple[int, str]], number: int) -> str:
    """Return the text that holds at a frame or step."""
    return next(text for start, text in reversed(prompts) if start <= number)
