"""The world that is played, and what all visitors share: controls, the real environment's description, saved files."""

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium.utils import seeding

from starflow_world.agents.environment import Environment, source_environment
from starflow_world.envs.episode import last_frames, start_row
from starflow_world.envs.options import StartCondition
from starflow_world.errors import ConfigError, DataError, StarflowError
from starflow_world.play.branch import Moment, moment_of
from starflow_world.play.controls import action_names, control_fields, keys_of
from starflow_world.play.saving import Shelf
from starflow_world.score import Scorer
from starflow_world.world import World
from starflow_world.world.state import WorldState

MOST_TEXTS = 60


@dataclass(frozen=True)
class Game:
    """A world with what is needed to play it. source: the real environment, or None with `why` it is missing."""

    world: World
    shelf: Shelf
    source: Environment | None = None
    why: str = ""
    names: list[str] = field(default_factory=list)
    scorer: Scorer | None = None
    fps: int = 10

    def describe(self) -> dict[str, Any]:
        """Return what a page has to know of the world."""
        config, starts = self.world.config, self.world.starts
        texts = [] if starts is None else sorted({text for text in starts.texts if text})
        return {
            "name": config.name, "height": config.height, "width": config.width, "fps": self.fps,
            "fields": control_fields(self.world.action_space), "names": self.names,
            "keys": [keys_of(name) for name in self.names], "takes_text": config.text.kind != "none",
            "texts": texts[:MOST_TEXTS], "has_starts": bool(starts), "why": self.why,
            "real": "" if self.source is None else self.source.env,
            "alarms": self.scorer is not None, "saved": self.shelf.names(".safetensors"),
        }

    @torch.inference_mode()
    def first(self, start: dict[str, Any], given: Any = None) -> Moment:
        """Return the first moment of a start. given: what the kind begins from, a frame (H, W, 3) u8 of a picture or
        of the real environment, or the path of a saved state."""
        kind, seed, text = start["kind"], start["seed"], start.get("text")
        if kind == "state":
            return self._restored(WorldState.load(given, self.world))
        if kind == "set":
            if text is None and not len(self.world.starts or ()):
                text = ""
            state, transition = start_row(self.world, StartCondition(text), seeding.np_random(seed)[0])
        elif kind == "text":
            state, transition = self.world.start(text=[text or ""], seed=[seed])
        else:
            shown = self.world.texts_for([text or ""])
            state, transition = self.world.start(given[None, None], text=shown, seed=[seed])
        return moment_of(self.world, state, transition, 0, 0)

    def _restored(self, state: WorldState) -> Moment:
        if len(state) != 1 or bool((state.step < 1).any()):
            raise DataError(f"saved state: expected one row with a frame, found {len(state)} rows")
        state = self.world.dynamics.rebuilt(state)
        blank = torch.zeros(1, 1)
        facts = {"step": int(state.step[0]) - 1, "text": state.texts[0], "nats": None, "reward": None,
                 "end_probability": None, "ended": False, "sweeps": 0, "converged": True}
        return Moment(state, last_frames(self.world, state)[0], blank.byte().numpy(), facts, 0)


def open_game(world: World, shelf: Shelf, source: Environment | None = None, scorer: Scorer | None = None,
              fps: int = 10) -> Game:
    """Return the game of a world. source: the real environment; None: the one in the card, if it can be made."""
    why, names = "", list[str]()
    try:
        source = source_environment(world) if source is None else source
        with closing(source.make()) as env:
            if env.action_space != world.action_space:
                raise ConfigError(f"env: expected the world's actions {world.action_space}, found {env.action_space}")
            names = action_names(env, world.action_space)
    except StarflowError as error:
        source, why = None, str(error)
    return Game(world, shelf, source, why, names, scorer, fps)
