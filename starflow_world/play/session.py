"""One visitor: one or two branches of an episode, bookmarks, and the real environment beside them."""

from collections import deque
from typing import Any

import numpy as np
import torch

from starflow_world.errors import ConfigError, StarflowError, StateError
from starflow_world.play.branch import Branch, Event, Moment, step_branches
from starflow_world.play.controls import action_of
from starflow_world.play.game import Game
from starflow_world.play.messages import pack, say
from starflow_world.play.reality import Reality, differs
from starflow_world.play.saving import Recorder
from starflow_world.score import ScoreStream

MOST_BOOKMARKS = 16
LONGEST_RECORDING = 10_000
Reply = str | bytes


class Session:
    """The play of one visitor. Every method runs in the one thread that steps the world.

    branches: one, or two side by side that get the same actions; waiting: events that are still to be done.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self.waiting: deque[Event] = deque()
        self.branches: list[Branch] = []
        self.bookmarks: dict[int, Branch] = {}
        self.marked = 0
        self.reality: Reality | None = None
        self.beside = False
        self.recorder: Recorder | None = None
        self.watch: ScoreStream | None = None
        self.verdict: dict[str, Any] = {}

    # ---- commands ------------------------------------------------------------------------------------------------

    def do(self, command: dict[str, Any]) -> list[Reply]:
        """Obey a command that `messages.read_message` returned; return the answers. Raises StarflowError."""
        values = dict(command)
        verb = values.pop("do")
        if verb not in ("start", "replay", "step") and not self.branches:
            raise StateError(f"{verb}: expected an episode under way, found none; start one")
        if verb in ("start", "replay", "back", "goto", "other", "alone", "beside"):
            self.waiting.clear()
        replies: list[Reply] | None = getattr(self, f"_{verb}")(**values)
        return [self.frame()] if replies is None else replies

    def begin(self, start: dict[str, Any], given: Any = None) -> None:
        """Begin an episode from a start; `given` as for `Game.first`."""
        if start["kind"] == "real":
            given, text = self._real().reset(start["seed"])
            first = self.game.first({**start, "text": text}, given)
        else:
            first = self.game.first(start, given)
        self.branches = [Branch(start, first)]
        self.beside = start["kind"] == "real"
        self._look_anew()

    def _start(self, kind: str, seed: int, text: str | None, name: str) -> None:
        given = self.game.shelf.path(name) if kind == "state" else None
        self.begin({"kind": kind, "seed": seed, "text": text}, given)

    def _replay(self, start: dict[str, Any], path: list[Event]) -> None:
        for event in path:
            if isinstance(event, list):
                action_of(self.game.world.action_space, event)
        self.begin(start)
        self.waiting.extend(path)

    def _step(self, action: list[Any]) -> list[Reply]:
        action_of(self.game.world.action_space, action)
        if not self.branches:
            raise StateError("step: expected an episode under way, found none; start one")
        if not self.waiting:  # a page that asks faster than the world steps is not obeyed later
            self.waiting.append(action)
        return []

    def _back(self, to: int) -> None:
        for branch in self.branches:
            branch.back(to)
        self._jumped()

    def _mark(self) -> list[Reply]:
        if len(self.bookmarks) >= MOST_BOOKMARKS:
            raise ConfigError(f"bookmarks: expected at most {MOST_BOOKMARKS}, found one more; remove some")
        self.marked += 1
        self.bookmarks[self.marked] = self.branches[0].copy()
        now = self.branches[0].now
        return [pack({"say": "bookmark", "id": self.marked, "step": now.facts["step"]}, [now.frame])]

    def _goto(self, id: int) -> None:
        self.branches = [self._bookmark(id).copy()]
        self._jumped()

    def _forget(self, id: int) -> list[Reply]:
        self._bookmark(id)
        del self.bookmarks[id]
        return []

    def _bookmark(self, id: int) -> Branch:
        if id not in self.bookmarks:
            raise StateError(f"bookmark: expected one of {sorted(self.bookmarks)}, found {id}")
        return self.bookmarks[id]

    def _branch(self, luck: int, beside: bool) -> None:
        main = self.branches[0]
        self.branches = [main, main.copy()] if beside else [main]
        self.branches[-1].change(self.game.world, {"luck": luck})

    def _other(self, action: list[Any]) -> list[Reply]:
        """Take another action in place of the last, with the same luck; what was stays beside."""
        action_of(self.game.world.action_space, action)
        was, now = self.branches[0], self.branches[0].copy()
        if len(now.moments) < 2 or not isinstance(now.path[-1], list):
            raise StateError("other: expected a step before, found none; take one first")
        now.back(now.moments[-2].facts["step"])
        now.add(action, step_branches(self.game.world, [now], [action_of(self.game.world.action_space, action)])[0])
        self.branches = [now, was]
        self._jumped()
        return [self.frame()]

    def _alone(self, keep: int) -> None:
        self.branches = [self.branches[min(keep, len(self.branches) - 1)]]
        self._jumped()

    def _text(self, text: str) -> list[Reply]:
        if len(self.waiting) < 2:
            self.waiting.append({"text": text})
        return []

    def _beside(self, on: bool) -> None:
        start = self.branches[0].start
        if on and start["kind"] != "real":
            self.begin({"kind": "real", "seed": start["seed"], "text": None})
        elif on:
            self.beside = True
            self._jumped()
        self.beside = on

    def _record(self, on: bool, overlay: bool) -> list[Reply]:
        if not on:
            return self.stop_recording()
        if self.recorder is None:
            self.recorder = Recorder(self.game.shelf.free("play", ".mp4"), self.game.fps, overlay=overlay)
            self._filmed()
        return [say("recording", on=True)]

    def stop_recording(self) -> list[Reply]:
        """Finish the video, if there is one; return its name."""
        if self.recorder is None:
            return [say("recording", on=False)]
        name, self.recorder = self.recorder.close(), None
        return [say("recording", on=False), say("saved", name=name)]

    def _save(self) -> list[Reply]:
        path = self.game.shelf.free("state", ".safetensors")
        self.branches[0].now.state.save(path, exact=False)
        return [say("saved", name=path.name)]

    def _link(self) -> list[Reply]:
        branch = self.branches[0]
        if branch.start["kind"] in ("frame", "state"):
            raise StateError("link: expected an episode that follows from its seed, found one that began from a "
                             "picture or a saved state; save the state instead")
        return [say("link", start=branch.start, path=branch.path)]

    # ---- steps ---------------------------------------------------------------------------------------------------

    def stepped(self, event: Event, moments: list[Moment | None]) -> list[Reply]:
        """Append what an action led to, a moment per branch (None: it has ended), and return the frame."""
        assert isinstance(event, list)
        action = action_of(self.game.world.action_space, event)
        for branch, moment in zip(self.branches, moments, strict=True):
            if moment is not None:
                branch.add(event, moment)
        if self.beside and self.reality is not None:
            self.reality.step(action)
            self._compare()
        self._judge(action)
        self._filmed()
        return [self.frame()]

    def changed(self, event: Event) -> list[Reply]:
        """Apply an event that makes no frame to every branch."""
        assert isinstance(event, dict)
        for branch in self.branches:
            branch.change(self.game.world, event)
        return [self.frame()]

    def frame(self) -> bytes:
        """Return the message that shows the newest moments: imagined, the other branch, real."""
        panes, parts = [], []
        for name, branch in zip(("imagined", "branch"), self.branches, strict=False):
            now = branch.now
            panes.append({"name": name, **now.facts, "heat": now.heat.shape})
            parts += [now.frame, now.heat]
        if self.beside and self.reality is not None and self.reality.now is not None:
            real = self.reality.now
            panes.append({"name": "real", "reward": real.reward, "ended": real.ended, "heat": (0, 0),
                          "differs": differs(self.branches[0].now.frame, real.frame), "first": self.branches[0].apart})
            parts.append(real.frame)
        start = self.branches[0].start
        header = {"say": "frame", "panes": panes, "kind": start["kind"], "seed": start["seed"],
                  "waiting": len(self.waiting), "recording": self.recorder is not None, **self.verdict}
        return pack(header, parts)

    def close(self) -> None:
        """Finish the video and close the real environment."""
        self.stop_recording()
        if self.reality is not None:
            self.reality.close()

    # ---- the real environment, alarms, video ---------------------------------------------------------------------

    def _real(self) -> Reality:
        if self.game.source is None:
            raise ConfigError(f"real environment: expected one beside the world, found none: {self.game.why}")
        if self.reality is None:
            self.reality = Reality(self.game.source)
        return self.reality

    def _jumped(self) -> None:
        """Bring the real environment to the same moment, and let alarms begin there."""
        branch = self.branches[0]
        self.beside = self.beside and branch.start["kind"] == "real"
        if self.beside:
            space = self.game.world.action_space
            self._real().replay(branch.start["seed"], [action_of(space, numbers) for numbers in branch.actions()])
            self._compare()
        self._look_anew()

    def _compare(self) -> None:
        assert self.reality is not None
        main, real = self.branches[0], self.reality.now
        if main.apart is None and real is not None and differs(main.now.frame, real.frame):
            main.apart = main.now.facts["step"]

    def _watched(self) -> np.ndarray:
        """Return the frame that alarms are about: the real one if there is one."""
        real = self.reality.now if self.beside and self.reality is not None else None
        return self.branches[0].now.frame if real is None else real.frame

    def _look_anew(self) -> None:
        if self.game.scorer is not None:
            self.watch = ScoreStream(self.game.scorer)
            self.watch.begin(self._watched()[None], [self.branches[0].now.facts["text"]])
            self.verdict = {"alarm": False, "p": 1.0}

    def _judge(self, action: Any) -> None:
        if self.watch is not None:
            verdict = self.watch.see([action], self._watched()[None])[0]
            self.verdict = {"alarm": bool(verdict.alarm), "p": float(verdict.p)}

    def _filmed(self) -> None:
        if self.recorder is None:
            return
        frames = [branch.now.frame for branch in self.branches]
        if self.beside and self.reality is not None and self.reality.now is not None:
            frames.append(self.reality.now.frame)
        self.recorder.add(frames, self.branches[0].now.facts)
        if self.recorder.frames >= LONGEST_RECORDING:
            self.stop_recording()


@torch.inference_mode()
def advance(sessions: list[Session]) -> dict[Session, list[Reply]]:
    """Do the next waiting event of every session, all actions in one forward, and return the answers of each."""
    events = {session: session.waiting.popleft() for session in sessions if session.waiting}
    rows = [(branch, action_of(session.game.world.action_space, event)) for session, event in events.items()
            if isinstance(event, list) for branch in session.branches if not branch.now.facts["ended"]]
    moments = _forward(sessions[0].game, rows) if rows else {}
    replies: dict[Session, list[Reply]] = {}
    for session, event in events.items():
        found = [moments.get(branch) for branch in session.branches]
        try:
            if isinstance(event, dict):
                replies[session] = session.changed(event)
            elif failed := next((moment for moment in found if isinstance(moment, Exception)), None):
                raise failed
            else:
                replies[session] = session.stepped(event, [one for one in found if not isinstance(one, Exception)])
        except Exception as error:  # whatever networks and environments raise: the page is told, the server lives
            session.waiting.clear()
            replies[session] = [say("error", text=in_words(error))]
    return replies


def _forward(game: Game, rows: list[tuple[Branch, Any]]) -> dict[Branch, Moment | Exception]:
    """Return the next moment of every branch. If stepping them together fails, each steps alone, and has its error."""
    branches = [branch for branch, _ in rows]
    try:
        return dict(zip(branches, step_branches(game.world, branches, [action for _, action in rows]), strict=True))
    except Exception as error:
        if len(rows) == 1:
            return {branches[0]: error}
        return {branch: moment for row in rows for branch, moment in _forward(game, [row]).items()}


def in_words(error: Exception) -> str:
    """Return what a page is told of an error: our own words, and no more than the kind of any other."""
    return str(error) if isinstance(error, StarflowError) else f"the step failed ({type(error).__name__}); start anew"
