"""The server: who may talk to it, the page's files, and one WebSocket per visitor.

All work on the world happens in one thread, in turns: a turn does one waiting event of every visitor in one forward.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, Response

from starflow_world.errors import ConfigError, DataError, StarflowError
from starflow_world.play.game import Game
from starflow_world.play.messages import LONGEST, read_message, say
from starflow_world.play.session import Reply, Session, advance, in_words

PAGE = {path.name: path for path in sorted((Path(__file__).parent / "page").iterdir()) if path.is_file()}
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
MOST_VISITORS, IDLE = 4, 300.0
RATE, BURST, MOST_UNSENT = 120.0, 240.0, 16
"""Messages per second that a visitor may send, at once, and messages to a visitor that may wait to be sent."""
COOKIE = "starflow_token"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
HEADERS = {  # {host}: in Firefox 'self' is no WebSocket
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self' ws://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Refuses, before anything else: a Host that is not ours (a foreign name that was made to point here), an Origin
    other than that host, and, where there is a token, whoever has not shown it. Adds the security headers."""

    def __init__(self, app: Any, hosts: frozenset[str], token: str) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        shown = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not self._may(scope, headers, shown):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await Response("forbidden", 403)(scope, receive, send)
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = {name: value.format(host=headers["host"]) for name, value in HEADERS.items()}
                if shown:
                    extra["set-cookie"] = f"{COOKIE}={shown}; HttpOnly; SameSite=Strict; Path=/"
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        await self.app(scope, receive, answer)

    def _may(self, scope: Scope, headers: dict[str, str], shown: str) -> bool:
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if sum(name == b"host" for name, _ in scope["headers"]) != 1 or host not in self.hosts:
            return False
        if origin not in (None, f"http://{host}") or (scope["type"] == "websocket" and origin is None):
            return False
        if not self.token:
            return not shown
        with suppress(CookieError):
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            shown = shown or ("" if morsel is None else morsel.value)
        return secrets.compare_digest(shown.encode(), self.token.encode())


class Visitor:
    """A session, and the messages that wait to be sent to it."""

    def __init__(self, game: Game) -> None:
        self.session = Session(game)
        self.unsent: asyncio.Queue[Reply] = asyncio.Queue(4 * MOST_UNSENT)
        self.allowance, self.seen = BURST, time.monotonic()

    def say(self, replies: list[Reply]) -> None:
        """Queue messages. Those that a page does not fetch are dropped: the next frame replaces them."""
        for reply in replies:
            with suppress(asyncio.QueueFull):
                self.unsent.put_nowait(reply)

    @property
    def ready(self) -> bool:
        """Return whether an event waits, and the page keeps up with what it is sent."""
        return bool(self.session.waiting) and self.unsent.qsize() < MOST_UNSENT

    def within_rate(self) -> bool:
        """Count a message; return whether the visitor may send it."""
        now = time.monotonic()
        self.allowance = min(BURST, self.allowance + RATE * (now - self.seen)) - 1
        self.seen = now
        return self.allowance > 0


class Guests:
    """The visitors of a game."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.present: list[Visitor] = []
        self.work = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "world")

    async def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call in the thread of the world."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, call, *arguments)

    async def turns(self) -> None:
        """Take turns for ever: one event of every visitor that has one."""
        while True:
            await self.work.wait()
            self.work.clear()
            ready = {visitor.session: visitor for visitor in self.present if visitor.ready}
            if ready:
                for session, replies in (await self.run(advance, list(ready))).items():
                    ready[session].say(replies)
                self.work.set()

    async def receive(self, place: WebSocket) -> None:
        """Play with one visitor until it leaves."""
        await place.accept()
        if len(self.present) >= MOST_VISITORS:
            await place.send_text(say("full", text=f"{MOST_VISITORS} visitors play already; come back later"))
            await place.close(1013)
            return
        visitor = Visitor(self.game)
        self.present.append(visitor)
        visitor.say([say("hello", **self.game.describe())])
        writer = asyncio.create_task(self._write(place, visitor))
        try:
            while True:
                message = await asyncio.wait_for(place.receive(), IDLE)
                if message["type"] == "websocket.disconnect":
                    return
                if not visitor.within_rate():
                    await place.close(1008)
                    return
                await self._obey(visitor, message.get("text"), message.get("bytes"))
        except TimeoutError:
            await place.close(1001)
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            self.present.remove(visitor)
            writer.cancel()
            with suppress(RuntimeError):  # the server stops
                await self.run(visitor.session.close)

    async def _write(self, place: WebSocket, visitor: Visitor) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                reply = await visitor.unsent.get()
                await (place.send_text(reply) if isinstance(reply, str) else place.send_bytes(reply))
                self.work.set()

    async def _obey(self, visitor: Visitor, text: str | None, data: bytes | None) -> None:
        """Do what a message asks; tell the page what is wrong with it otherwise."""
        try:
            if data is not None:
                visitor.say(await self.run(self._picture, visitor.session, data))
            else:
                visitor.say(await self.run(visitor.session.do, read_message(text or "")))
        except Exception as error:  # as in `advance`: networks and environments may raise anything
            visitor.say([say("error", text=in_words(error))])
        self.work.set()

    def _picture(self, session: Session, data: bytes) -> list[Reply]:
        """Begin from a picture, sent as the bytes of a frame."""
        height, width = self.game.world.config.height, self.game.world.config.width
        if len(data) != height * width * 3:
            raise DataError(f"picture: expected {height} x {width} x 3 bytes, found {len(data)}")
        frame = np.frombuffer(data, np.uint8).reshape(height, width, 3).copy()
        session.begin({"kind": "frame", "seed": 0, "text": None}, frame)
        return [session.frame()]


def make_app(game: Game, hosts: frozenset[str], token: str = "") -> Any:
    """Return the ASGI app of a game. hosts: the values of the Host header that it answers to."""
    guests = Guests(game)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        turns = asyncio.create_task(guests.turns())
        yield
        turns.cancel()
        guests.thread.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)

    @app.get("/{name}")
    async def file(name: str) -> Response:
        if name not in PAGE:
            raise HTTPException(404)
        return Response(PAGE[name].read_bytes(), media_type=KINDS.get(PAGE[name].suffix, "application/octet-stream"))

    @app.get("/")
    async def index() -> Response:
        return await file("index.html")

    @app.get("/saved/{name}")
    async def saved(name: str) -> FileResponse:
        try:
            return FileResponse(game.shelf.path(name), filename=name, content_disposition_type="inline")
        except StarflowError:
            raise HTTPException(404) from None

    @app.websocket("/play")
    async def play(place: WebSocket) -> None:
        await guests.receive(place)

    return Guard(app, hosts, token)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this address; port 0: any free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
        place.listen(64)
    except (OSError, OverflowError) as error:
        place.close()
        raise ConfigError(f"--port: expected a free port of {host}, found {port} ({error}); choose another") from None
    return place


def names_of(host: str, port: int) -> frozenset[str]:
    """Return the values of the Host header by which a browser reaches this address."""
    names = {"127.0.0.1", "localhost", "[::1]"} if host in ("127.0.0.1", "::1", "localhost") else set()
    names |= {f"[{host}]" if ":" in host else host.lower()}
    return frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == 80 else frozenset())


def make_server(app: Any, longest: int = LONGEST) -> uvicorn.Server:
    """Return the HTTP server of an app: headers of at most 16 KB, messages of at most `longest` bytes or 64 KB."""
    config = uvicorn.Config(
        app, http="h11", ws_max_size=max(longest, LONGEST), ws_max_queue=8, h11_max_incomplete_event_size=1 << 14,
        timeout_keep_alive=10, timeout_graceful_shutdown=1, log_level="warning", access_log=False,
        server_header=False, proxy_headers=False, lifespan="on",
    )
    return uvicorn.Server(config)
