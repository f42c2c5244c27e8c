"""Another text in the middle of an episode: what it does to reward and picture is counted."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch

from starflow_world.data.episodes import Episode
from starflow_world.evaluation.texts import changed_text
from starflow_world.world import World
from tests.squares import episode


class Obedient:
    """A world that rewards the text "a" and, if it is `fickle`, paints what the text says."""

    def __init__(self, *, fickle: bool = False, text: bool = True) -> None:
        self.fickle = fickle
        self.networks = SimpleNamespace(text=object() if text else None, outcome=object())

    def start(self, frames: Any, flat: Any, *, text: list[str], seed: int) -> tuple[str, None]:
        return text[0], None

    def with_text(self, state: str, text: str) -> str:
        return text

    def step(self, state: str, action: Any) -> tuple[str, Any]:
        shown = torch.full((1, 1, 2, 2, 3), 10 if state == "a" else 20, dtype=torch.uint8)
        return state, SimpleNamespace(frames=shown * (8 if self.fickle else 1), reward=torch.tensor([state == "a"]))


def ended(text: str, reward: float) -> Episode:
    made = episode(0, 4)
    return replace(made, text=text, rewards=made.rewards * reward)


def test_a_changed_text_changes_the_reward_and_not_the_picture() -> None:
    episodes = [ended("a", 1.0), ended("b", 0.0), ended("a", 1.0)]
    found = changed_text(cast(World, Obedient()), episodes)
    assert {name: (share.hits, share.total) for name, share in found.items()} == {
        "own_text_reward": (2, 2), "other_text_reward": (0, 2), "other_text_same_frame": (2, 2),
    }
    assert changed_text(cast(World, Obedient(fickle=True)), episodes)["other_text_same_frame"].hits == 0
    assert changed_text(cast(World, Obedient(text=False)), episodes) == {}
    assert changed_text(cast(World, Obedient()), episodes[:1]) == {}, "there is no other text"
