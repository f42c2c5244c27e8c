"""Prompts that change on the way are read in one place, for videos and for rollouts."""

import pytest

from starflow_world.config.prompts import check_times, prompt_at, timed_prompts
from starflow_world.errors import ConfigError


def test_a_text_without_times_is_one_prompt_and_times_name_where_the_next_begins() -> None:
    assert timed_prompts("") == ((0, ""),)
    assert timed_prompts("at 5: a dog") == ((0, "at 5: a dog"),)
    prompts = timed_prompts("0: a red dog. 6: a cat.  120: a bird: blue.")
    assert prompts == ((0, "a red dog."), (6, "a cat."), (120, "a bird: blue."))
    held = [prompt_at(prompts, step) for step in (0, 5, 6, 119, 120, 9000)]
    assert held == ["a red dog."] * 2 + ["a cat."] * 2 + ["a bird: blue."] * 2


@pytest.mark.parametrize("text", ["0: a 3: b 3: c", "0: a 5: b 4: c", "0: a 10: b"])
def test_times_that_do_not_rise_or_come_too_late_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"text: expected steps that rise from 0, below 10, found \[0, "):
        check_times(timed_prompts(text), 10, "text: expected steps")
