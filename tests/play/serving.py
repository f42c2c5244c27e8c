"""A server in a thread and a headless Chromium beside it, for the tests of the page and for its screenshots."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starflow_world.play import server
from starflow_world.play.game import Game

CHROMIUM = "/usr/bin/chromium"


@contextmanager
def served(game: Game) -> Iterator[str]:
    """Serve a game; the address of its page."""
    place = server.bind("127.0.0.1", 0)
    port = place.getsockname()[1]
    running = server.make_server(server.make_app(game, server.names_of("127.0.0.1", port)))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        running.should_exit = True
        thread.join(30)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def step_of(page: Any) -> int:
    """The step that the first pane shows."""
    return int(page.inner_text("figcaption span").split()[1])


def press(page: Any, key: str, step: int | None = None) -> None:
    """Press a key and wait for the step it leads to; None: the next."""
    wanted = step_of(page) + 1 if step is None else step
    page.keyboard.press(key)
    arrives(page, wanted)


def arrives(page: Any, step: int) -> None:
    """Wait until the first pane shows a step."""
    page.wait_for_function("s => document.querySelector('figcaption span')?.textContent.split(' ')[1] === String(s)",
                           arg=step, timeout=60_000)


def pixels(page: Any, name: str = "imagined") -> list[int]:
    """The pixels of a pane's canvas, RGBA."""
    return page.evaluate(
        "id => { const c = document.getElementById(id);"
        " return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data) }", name)
