"""Make the pictures of docs/play.md: five moments of shipped worlds. `python -m tests.play.screenshots`"""

import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from starflow_world.play.game import open_game
from starflow_world.play.saving import Shelf
from starflow_world.world import World
from tests.play.serving import arrives, chromium, press, served

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "play"
COLOURS = 96


def shoot(page: Any, name: str) -> None:
    """Write a screenshot with few colours, which is small."""
    page.wait_for_timeout(1000)
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture.save(FOLDER / f"{name}.png", optimize=True)
    print(name, (FOLDER / f"{name}.png").stat().st_size)


def obstacles(page: Any) -> None:
    """Heat and a bookmark; the real environment and two branches; what if; a narrow screen."""
    page.wait_for_selector("#imagined")
    for key in ("ArrowUp", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowUp"):
        press(page, key)
    page.keyboard.press("b")
    page.wait_for_selector("#bookmarks canvas")
    for key in ("ArrowUp", "ArrowRight", "ArrowRight"):
        press(page, key)
    page.keyboard.press("b")
    page.keyboard.press("h")
    shoot(page, "heat")
    page.keyboard.press("h")
    page.keyboard.press("x")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#branch")
    shoot(page, "whatif")
    page.set_viewport_size({"width": 360, "height": 740})
    shoot(page, "narrow")
    page.set_viewport_size({"width": 1280, "height": 720})
    page.keyboard.press("Tab")
    page.wait_for_selector("#real")
    arrives(page, 0)
    press(page, "ArrowUp")
    page.keyboard.press("t")
    page.wait_for_selector("#branch")
    for key in ("ArrowRight", "ArrowLeft"):
        press(page, key)
    shoot(page, "both")


def words(page: Any) -> None:
    """A text that is changed in the middle of an episode."""
    page.wait_for_selector("#imagined")
    for key in ("ArrowUp", "ArrowLeft", "ArrowUp"):
        press(page, key)
    page.fill("#text", "go to the red ball")
    page.click("#texting button:not([type])")
    page.wait_for_function("() => document.getElementById('mission').textContent === 'go to the red ball'")
    for key in ("ArrowUp", "ArrowRight"):
        press(page, key)
    shoot(page, "text")


def main() -> None:
    """Play both worlds in a headless Chromium."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for name, scene in (("dynamic-obstacles", obstacles), ("babyai-gotolocal", words)):
            with served(open_game(World.load(name), Shelf(Path(folder)))) as address:
                page = browser.new_page(viewport={"width": 1280, "height": 720})
                page.set_default_timeout(120_000)
                page.goto(address)
                scene(page)
                page.close()


if __name__ == "__main__":
    main()
