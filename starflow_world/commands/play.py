"""`starflow-world play`: a page in the browser to play a world."""

import secrets
import webbrowser
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from starflow_world.commands.flags import RealEnvironment
from starflow_world.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Play:
    """Play a world in the browser, on a page that only this machine can reach; Ctrl-C ends it."""

    world: Positional[str] = "dynamic-obstacles"
    """Folder or name of a shipped world."""
    port: int = 8765
    """Port of the page; 0: any free one."""
    host: str = "127.0.0.1"
    """Address to listen at; others than the loopback address need --allow-remote."""
    allow_remote: bool = False
    """Let other machines in, with the token that is printed."""
    browser: bool = True
    """Only print the address, and open no browser."""
    fps: int = 10
    """Frames per second of free-running play, and of videos."""
    out: Path = Path("out/play")
    """Folder for saved states and videos."""
    scorer: Path | None = None
    """Folder that calibrate wrote; its alarms are shown."""
    environment: OmitArgPrefixes[RealEnvironment] = field(default_factory=RealEnvironment)
    """The real environment to show beside the world"""

    def run(self) -> None:
        """Serve the page until Ctrl-C."""
        if self.host not in LOOPBACK and not self.allow_remote:
            raise ConfigError(f"--host: expected one of {', '.join(LOOPBACK)}, found {self.host!r:.60}; "
                              "add --allow-remote to let other machines in")
        if not 1 <= self.fps <= 60:
            raise ConfigError(f"--fps: expected a number from 1 to 60, found {self.fps}")
        from starflow_world.errors import StarflowError
        from starflow_world.play.game import open_game
        from starflow_world.play.saving import Shelf
        from starflow_world.play.server import bind, make_app, make_server, names_of
        from starflow_world.score import Scorer
        from starflow_world.world import World

        world = World.load(self.world)
        named = bool(self.environment.env or self.environment.env_kwargs or self.environment.wrappers)
        source = self.environment.source(world) if named else None
        scorer = None if self.scorer is None else Scorer.load(self.scorer, world)
        game = open_game(world, Shelf(self.out), source, scorer, self.fps)
        if named and game.source is None:
            raise StarflowError(game.why)
        place = bind(self.host, self.port)
        port, token = place.getsockname()[1], secrets.token_urlsafe(16) if self.host not in LOOPBACK else ""
        picture = world.config.height * world.config.width * 3
        server = make_server(make_app(game, names_of(self.host, port), token), picture)
        host = f"[{self.host}]" if ":" in self.host else self.host
        address = f"http://{host}:{port}/" + (f"?token={token}" if token else "")
        print(address, flush=True)
        if self.browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[place])
