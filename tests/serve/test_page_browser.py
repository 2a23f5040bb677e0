"""The page in a real browser: upload, type, click, look; on a desk and on a phone."""

from __future__ import annotations

import os
import shutil
import threading
import time

import pytest
import uvicorn
from playwright import sync_api as playwright

from vistoken.models.build import build
from vistoken.models.recipe import load_recipe
from vistoken.serve.app import create_app
from vistoken.serve.engine import EmbeddedEngine, EngineLimits
from vistoken.serve.page import page_for
from vistoken.serve.settings import ServeSettings

BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium here: apt-get install chromium, or set CHROMIUM"
    ),
    pytest.mark.timeout(600),
]
WAIT = 90_000  # a browser and a model on two busy cores


@pytest.fixture(scope="module")
def address():
    """Address of a server with the page, in this process; it closes its engine when it ends."""
    model, processor = build(load_recipe("pico"))
    engines = {"pico": EmbeddedEngine("pico", model.eval(), processor, EngineLimits(max_rows=4))}
    settings = ServeSettings()
    app = create_app(engines, settings, extend=page_for(engines, settings))
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, ws="none", log_level="warning", lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request, chromium, address):
    """The page, loaded; it asks nobody but the server."""
    width, height = request.param
    opened = chromium.new_page(viewport={"width": width, "height": height})
    opened.set_default_timeout(WAIT)
    asked = []
    opened.on("request", lambda one: asked.append(one.url))
    opened.goto(address, timeout=WAIT)
    opened.wait_for_selector("#question textarea")
    yield opened
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))]
    opened.close()
    assert elsewhere == []


def until(page, words, timeout=WAIT):
    page.wait_for_function(
        "words => document.querySelector('#status').innerText.includes(words)",
        arg=words,
        timeout=timeout,
    )


def test_upload_ask_and_look(page, picture, tmp_path):
    path = tmp_path / "shown.png"
    picture(120, 160).save(path)
    page.set_input_files("#picture input[type=file]", str(path))
    until(page, "120 x 160 pixels")
    # by keyboard alone: write, send
    page.focus("#question textarea")
    page.keyboard.type("What is it?")
    page.keyboard.press("Enter")
    until(page, "tokens out in")
    assert "18 visual" in page.inner_text("#status")
    assert "What is it?" in page.inner_text("#chat")
    drawing = page.frame_locator("#attention iframe")
    drawing.locator(".word").nth(1).wait_for()
    before = drawing.locator("#shares").inner_text()
    drawing.locator(".word").nth(2).click()
    assert drawing.locator(".word").nth(2).get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    assert drawing.locator(".word").nth(3).get_attribute("aria-pressed") == "true"
    assert drawing.locator("#shares").inner_text() != before
    page.get_by_role("tab", name="Visual tokens").click()
    cells = page.frame_locator("#tokens iframe").locator("rect.cell")
    cells.first.wait_for()
    assert cells.count() == 16
    assert len(page.screenshot(path=str(tmp_path / "page.png"))) > 10_000
    # nothing hangs over the edge of the screen
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_empty_question_is_refused_in_words(page):
    page.click("#ask")
    until(page, "Write what you want to know")


def stopped_in_time(page):
    """Ask, and stop the answer; False where it was whole before anybody could."""
    page.fill("#question textarea", "Tell me everything.")
    page.click("#ask")
    try:
        until(page, "Writing", timeout=10_000)
        page.click("#stop")
        until(page, "Stopped", timeout=10_000)
    except playwright.TimeoutError:
        return False
    return True


def test_stop_ends_an_answer(page):
    # pico's answers are short: on a fast machine one may be whole before the click
    assert any(stopped_in_time(page) for _ in range(6))
