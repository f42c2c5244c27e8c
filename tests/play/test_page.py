"""The page in a real browser: a headless Chromium plays a small random world."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from starflow_world.play.game import Game
from tests.play.serving import CHROMIUM, arrives, chromium, pixels, press, served, step_of

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra play")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra dev")
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no {CHROMIUM}")


@pytest.fixture(scope="module")
def address(small_game: Game) -> Iterator[str]:
    with served(small_game) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A fresh visitor at step 0, and no error of the page or of its rules by the end of the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, permissions=["clipboard-write"])
    context.set_default_timeout(60_000)
    found, faults = context.new_page(), list[str]()
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    found.goto(address)
    arrives(found, 0)
    yield found
    context.close()
    assert not faults


def test_keys_and_buttons_move_the_picture(page):
    before = pixels(page)
    press(page, "ArrowLeft")
    after = pixels(page)
    assert after != before
    press(page, "Digit2")
    page.click("[data-action='0']")
    arrives(page, 3)
    assert page.inner_text("#nats")


def test_a_world_that_runs_goes_on_by_itself_until_it_is_paused(page):
    page.keyboard.press("f")
    page.wait_for_function("() => document.querySelector('figcaption span').textContent.split(' ')[1] > 3")
    page.keyboard.press("f")
    assert page.inner_text("#run").startswith("Run")


def test_a_bookmark_returns_to_the_same_pixels(page):
    press(page, "ArrowLeft")
    press(page, "ArrowRight")
    page.keyboard.press("b")
    page.wait_for_selector("#bookmarks canvas")
    there = pixels(page)
    press(page, "ArrowLeft")
    future = pixels(page)
    assert future != there
    page.click("#bookmarks canvas")
    arrives(page, 2)
    assert pixels(page) == there
    press(page, "ArrowLeft")
    assert pixels(page) == future
    page.click("#bookmarks button")
    assert page.query_selector("#bookmarks canvas") is None


def test_branches_stand_side_by_side_and_one_is_kept(page):
    press(page, "ArrowLeft")
    page.keyboard.press("t")
    page.wait_for_selector("#branch")
    press(page, "ArrowLeft")
    assert pixels(page) != pixels(page, "branch")
    kept = pixels(page, "branch")
    page.click("figure.branch button")
    page.wait_for_selector("#branch", state="detached")
    assert pixels(page) == kept


def test_what_if_takes_another_action_with_the_same_luck_beside_what_was(page):
    press(page, "ArrowLeft")
    was = pixels(page)
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#branch")
    assert pixels(page, "branch") == was
    assert pixels(page) != was
    assert step_of(page) == 1


def test_a_text_is_shown_as_it_was_typed(page):
    page.fill("#text", "<i>a")
    page.click("#texting button:not([type])")
    page.wait_for_function("() => document.getElementById('mission').textContent === '<i>a'")
    assert page.query_selector("#mission i") is None
    press(page, "ArrowLeft")


def test_tab_shows_the_real_environment_beside_the_imagined_one(page):
    page.keyboard.press("Tab")
    page.wait_for_selector("#real")
    arrives(page, 0)
    for _ in range(3):
        press(page, "ArrowLeft")
    assert "differs from step" in page.inner_text("figure.real span")
    page.keyboard.press("Tab")
    page.wait_for_selector("#imagined", state="detached")
    page.keyboard.press("Tab")
    page.wait_for_selector("#real", state="detached")
    arrives(page, 3)


def test_a_recording_and_a_state_can_be_opened(page, small_game: Game):
    page.keyboard.press("v")
    page.wait_for_selector("#record.on")
    press(page, "ArrowLeft")
    page.keyboard.press("v")
    page.wait_for_selector("#files a[href$='.mp4']")
    name = page.inner_text("#files a")
    answer = page.request.get(page.url + "saved/" + name)
    assert answer.body() == small_game.shelf.path(name).read_bytes()
    page.click("#save")
    page.wait_for_selector("#files a[href$='.safetensors']")
    there = pixels(page)
    press(page, "ArrowRight")
    page.select_option("#states", page.inner_text("#files a"))
    arrives(page, 1)
    assert pixels(page) == there


def test_a_reload_comes_back_to_the_same_moment_and_another_tab_begins_anew(page, address):
    for key in ("ArrowLeft", "ArrowRight", "ArrowLeft"):
        press(page, key)
    there = pixels(page)
    page.wait_for_function("() => JSON.parse(sessionStorage.getItem('starflow_world'))?.path.length === 3")
    page.reload()
    arrives(page, 3)
    assert pixels(page) == there
    other = page.context.new_page()
    other.goto(address)
    arrives(other, 0)
    press(other, "ArrowLeft")
    assert (step_of(page), step_of(other)) == (3, 1)
    other.close()


def test_a_link_leads_another_visitor_to_the_same_moment(page, browser):
    press(page, "ArrowLeft")
    press(page, "ArrowRight")
    page.keyboard.press("c")
    page.wait_for_function("() => location.hash.length > 20")
    other = browser.new_page()
    other.goto(page.url)
    arrives(other, 2)
    assert pixels(other) == pixels(page)
    other.close()


def test_a_picture_begins_an_episode(page, tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((30, 40, 3), (0, 0, 255), np.uint8))
    press(page, "ArrowLeft")
    page.set_input_files("#picture", str(tmp_path / "red.png"))
    arrives(page, 0)
    (tmp_path / "not.png").write_text("no picture")
    page.set_input_files("#picture", str(tmp_path / "not.png"))
    page.wait_for_selector("#status.bad")
    press(page, "ArrowLeft")


def test_a_step_of_the_chart_is_gone_back_to(page):
    for _ in range(4):
        press(page, "ArrowLeft")
    page.click("#chart", position={"x": 4 + 2 * 5, "y": 50})
    arrives(page, 2)


def test_a_key_reconnects_a_page_whose_socket_was_closed(page, monkeypatch):
    from starflow_world.play import server

    press(page, "ArrowLeft")
    page.wait_for_function("() => JSON.parse(sessionStorage.getItem('starflow_world'))?.path.length === 1")
    monkeypatch.setattr(server, "IDLE", 0.2)
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.getElementById('banner').textContent.startsWith('not connected')")
    monkeypatch.setattr(server, "IDLE", 300.0)
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.getElementById('banner').hidden")
    arrives(page, 1)
    press(page, "ArrowLeft")


def test_nothing_moves_when_the_picture_changes_and_nothing_is_cut_at_any_width(page):
    layout = ("() => [...document.querySelectorAll('button, canvas, h2')]"
              ".map(part => JSON.stringify(part.getBoundingClientRect()))")
    before = page.evaluate(layout)
    press(page, "ArrowLeft")
    press(page, "ArrowRight")
    assert page.evaluate(layout) == before
    for width, height in ((320, 640), (360, 740), (1280, 720), (3840, 2160)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function("w => innerWidth === w && document.documentElement.scrollWidth <= w", arg=width)
        page.wait_for_function(  # pixels are squares of whole size, and the frame fills its room
            "() => { const box = document.getElementById('imagined').getBoundingClientRect(), room = "
            "document.getElementById('panes').clientHeight; return box.width % 8 === 0 && box.width > room - 80 }")
    press(page, "ArrowLeft")
    page.keyboard.press("t")
    page.wait_for_selector("#branch")
    for width in (320, 360):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_function(  # words stay below their picture
            "() => [...document.querySelectorAll('figcaption')].every(words => words.scrollWidth <= words.clientWidth"
            " && words.scrollHeight <= words.clientHeight)")


def test_the_page_weighs_at_most_200_kilobytes_and_names_no_other_place():
    from starflow_world.play.server import PAGE

    assert {"index.html", "main.js", "style.css"} <= PAGE.keys()
    assert sum(path.stat().st_size for path in PAGE.values()) <= 200_000
    for path in PAGE.values():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text
        assert "innerHTML" not in text
