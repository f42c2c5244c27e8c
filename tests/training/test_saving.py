"""Whoever dies while a checkpoint is saved leaves the old one or the new one, never a part and never a mixture."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from starflow_world.model.checkpoint import NEXT, load_networks, save_checkpoint
from starflow_world.model.networks import Networks
from tests.io.test_files import dying, forked, launched
from tests.model.test_checkpoint import content, small


def stages() -> Iterator[tuple[object, str, int]]:
    for owner, call in ((os, "fsync"), (Path, "replace")):
        for moment in range(1, 9):
            yield owner, call, moment


def test_a_writer_killed_between_any_two_calls_leaves_the_old_or_the_new_checkpoint(tmp_path):
    one, other = small(0.5), small(0.4)
    save_checkpoint(tmp_path, one, {})
    now, killed, seen = content(one), 0, set()
    for owner, call, moment in stages():
        new = one if now == content(other) else other

        def save(owner: object = owner, call: str = call, moment: int = moment, new: Networks = new) -> None:
            dying(call, moment, owner)
            save_checkpoint(tmp_path, new, {})

        code = forked(save)
        killed += code == -signal.SIGKILL
        found = content(load_networks(tmp_path)[0])
        assert found in (now, content(new))
        assert code != 0 or found == content(new)
        seen.add(found == now)
        now = found
    assert killed >= 6
    assert seen == {True, False}
    save_checkpoint(tmp_path, one, {})
    assert not (tmp_path / NEXT).exists()


def test_a_writer_killed_at_random_moments_leaves_the_old_or_the_new_checkpoint(tmp_path):
    networks, rng = [small(0.5), small(0.4)], random.Random(0)
    save_checkpoint(tmp_path, networks[0], {})
    allowed = {content(n) for n in networks}

    def forever() -> None:
        while True:
            for each in networks:
                save_checkpoint(tmp_path, each, {})

    for _ in range(8):
        process = launched(forever)
        time.sleep(0.02 + 0.15 * rng.random())
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert content(load_networks(tmp_path)[0]) in allowed


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5])
def test_two_deaths_in_a_row_lose_no_more_than_the_last_save(tmp_path, moment):
    """The first dies before its very last call, when the new weights are not yet in their place."""
    one, other, third = small(0.5), small(0.4), small(0.3)
    save_checkpoint(tmp_path, one, {})

    def save(networks: Networks, moment: int) -> None:
        dying("replace", moment, Path)
        save_checkpoint(tmp_path, networks, {})

    assert forked(lambda: save(other, 4)) == -signal.SIGKILL
    assert (tmp_path / NEXT).exists()
    assert content(load_networks(tmp_path)[0]) == content(other)
    assert forked(lambda: save(third, moment)) == -signal.SIGKILL
    assert content(load_networks(tmp_path)[0]) in (content(other), content(third))
