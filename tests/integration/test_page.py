"""The web page in a real browser, against the real server over the stub engine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.bench.bench_serve import stub_server

pytest.importorskip("playwright", reason="no Chromium")
from playwright.sync_api import expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = os.environ.get("NANOCHAT_TEST_SHOTS")  # a folder: the tests leave screenshots there
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def url():
    with stub_server("--step-ms", "15", "--max-running", "4") as (_, port):
        yield f"http://127.0.0.1:{port}/"


class Page:
    """A page that fails the test on any console error and any request to elsewhere."""

    def __init__(self, browser, url, **options):
        settings = {"viewport": DESKTOP, "locale": "en-US", "color_scheme": "light", **options}
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.problems = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.problems.append(said.text))
        self.page.on(
            "request",
            lambda request: request.url.startswith((url, "data:")) or self.problems.append(request.url),
        )
        self.page.goto(url)

    def ask(self, text):
        self.page.locator("#draft").fill(text)
        self.page.locator("#draft").press("Enter")

    def answers(self):
        return self.page.locator(".turn.assistant")

    def settled(self):
        expect(self.page.locator("#log")).to_have_attribute("aria-busy", "false")

    def shot(self, name):
        if SHOTS:
            self.page.screenshot(path=f"{SHOTS}/{name}.png")


@pytest.fixture
def open_page(browser, url):
    opened = []

    def make(where=url, **options):
        opened.append(Page(browser, where, **options))
        return opened[-1]

    yield make
    for one in opened:
        problems = one.problems
        one.context.close()
        assert problems == []


def test_an_answer_streams_in_word_by_word(open_page):
    chat = open_page()
    expect(chat.page.locator("#model-name")).to_have_text("stub")
    chat.shot("welcome")
    chat.ask("one two three four five six seven eight nine ten " * 4)
    expect(chat.answers().locator(".caret")).to_be_visible()
    half = chat.answers().locator(".text").inner_text()
    assert 0 <= len(half) < 180
    chat.shot("streaming")
    chat.settled()
    expect(chat.answers()).to_contain_text("You said: one two three")
    expect(chat.answers().locator(".meta")).to_have_text(re.compile(r"\d+ tokens · \d+ tokens/s"))
    expect(chat.page.locator("#welcome")).to_be_hidden()


def test_a_question_that_waits_for_the_model_can_be_stopped(open_page):
    chat = open_page()
    held = []
    chat.page.route("**/v1/models", lambda route: held.append(route))
    chat.page.reload()
    chat.ask("first")
    expect(chat.page.locator("#log")).to_have_attribute("aria-busy", "true")
    chat.page.get_by_role("button", name="Stop").click()
    for route in held:
        route.continue_()
    chat.page.unroute("**/v1/models")
    chat.ask("second")
    expect(chat.answers().nth(1)).to_be_visible()
    chat.settled()
    expect(chat.page.locator(".turn")).to_have_count(4)
    expect(chat.answers().first.locator(".meta")).to_contain_text("Stopped")
    expect(chat.answers().last).to_contain_text("second")


def test_a_suggestion_asks_and_shows_the_calculator(open_page):
    chat = open_page()
    chat.page.get_by_role("button", name="What is 127 + 358?").click()
    chat.settled()
    expect(chat.answers().locator(".chip")).to_contain_text("127+358 = 485")
    chat.shot("calculator")


def test_stop_ends_the_answer_and_frees_the_slot(open_page):
    chat = open_page()
    chat.ask("word " * 150)
    expect(chat.answers()).to_contain_text("word")
    chat.page.get_by_role("button", name="Stop").click()
    expect(chat.answers().locator(".meta")).to_contain_text("Stopped")
    chat.settled()
    kept = chat.answers().locator(".text").inner_text()
    assert "word" in kept
    chat.page.wait_for_function(
        "async () => (await (await fetch('metrics')).text()).includes('nanochat_requests_running 0.0')"
    )
    assert chat.answers().locator(".text").inner_text() == kept
    chat.ask("go on")
    chat.settled()
    expect(chat.answers().last).to_contain_text("You said: go on")


def test_a_turn_can_be_edited_and_what_followed_is_dropped(open_page):
    chat = open_page()
    for text in ("first", "second"):
        chat.ask(text)
        chat.settled()
    chat.page.locator(".turn.user").first.hover()
    chat.page.get_by_role("button", name="Edit").first.click()
    box = chat.page.get_by_role("textbox", name="Edit")
    expect(box).to_have_value("first")
    chat.shot("edit")
    box.press("Escape")
    expect(chat.page.locator(".turn")).to_have_count(4)
    chat.page.get_by_role("button", name="Edit").first.click()
    box.fill("better")
    box.press("Enter")
    chat.settled()
    expect(chat.page.locator(".turn")).to_have_count(2)
    expect(chat.answers()).to_contain_text("You said: better")


def test_any_answer_can_be_made_again(open_page):
    chat = open_page()
    for text in ("first", "second"):
        chat.ask(text)
        chat.settled()
    chat.answers().first.hover()
    chat.page.get_by_role("button", name="Regenerate").first.click()
    chat.settled()
    expect(chat.page.locator(".turn")).to_have_count(2)
    expect(chat.answers()).to_contain_text("You said: first")


def test_the_controls_reach_the_request_and_are_remembered(open_page):
    chat = open_page()
    chat.page.get_by_role("button", name="Settings").click()
    chat.page.get_by_label("Temperature").fill("0.25")
    chat.page.get_by_label("Top-k").fill("0")
    chat.page.get_by_label("Longest answer").fill("32")
    chat.page.get_by_label("Instructions").fill("Be brief.")
    chat.shot("settings")
    chat.page.get_by_role("button", name="Close").click()
    with chat.page.expect_request("**/v1/chat/completions") as sent:
        chat.ask("hi")
    body = sent.value.post_data_json
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.25, 0, 32)
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    chat.settled()
    chat.page.reload()
    expect(chat.answers()).to_contain_text("You said: Be brief.")
    chat.page.get_by_role("button", name="Settings").click()
    expect(chat.page.get_by_label("Temperature")).to_have_value("0.25")
    chat.page.get_by_role("button", name="Reset").click()
    expect(chat.page.get_by_label("Temperature")).to_have_value("0.8")


def test_the_page_speaks_chinese(open_page):
    chat = open_page()
    chat.page.get_by_role("button", name="切换到中文").click()
    expect(chat.page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(chat.page.locator("#draft")).to_have_attribute("placeholder", "想问什么都可以")
    chat.shot("chinese")
    chat.ask("数字 九十九 🌊 好")
    chat.settled()
    expect(chat.answers()).to_contain_text("You said: 数字 九十九 🌊 好")
    chat.page.reload()
    expect(chat.page.get_by_role("button", name="新对话")).to_be_visible()
    expect(open_page(locale="zh-CN").page.locator("#draft")).to_have_attribute(
        "placeholder", "想问什么都可以"
    )


def test_dark_and_light_follow_the_system_and_the_button(open_page):
    chat = open_page(color_scheme="dark")
    root = chat.page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    chat.ask("Tell me `code` and\n```py\nprint('hi')\n```\nbye")
    chat.settled()
    chat.shot("dark")
    chat.page.get_by_role("button", name="Switch to light").click()
    expect(root).to_have_attribute("data-theme", "light")
    chat.page.reload()
    expect(root).to_have_attribute("data-theme", "light")


def test_the_page_works_on_a_phone(open_page):
    chat = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    chat.shot("phone-welcome")
    chat.ask("What is 12 + 30?")
    chat.settled()
    chat.ask("a rather long message that must wrap on a narrow screen " * 2 + "x" * 120)
    chat.settled()
    chat.shot("phone-chat")
    assert chat.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert chat.page.locator("#send").bounding_box()["width"] >= 36
    chat.page.get_by_role("button", name="Settings").tap()
    chat.shot("phone-settings")
    assert chat.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_control_has_a_name_in_both_languages(open_page):
    chat = open_page()
    chat.ask("hi")
    chat.settled()
    script = """() => [...document.querySelectorAll('button, textarea, input')].filter((node) =>
        !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)
        ).map((node) => node.id)"""
    assert chat.page.evaluate(script) == []
    chat.page.get_by_role("button", name="切换到中文").click()
    assert chat.page.evaluate(script) == []
    assert "undefined" not in chat.page.locator("body").inner_text()


def test_text_is_never_taken_for_markup(open_page):
    chat = open_page()
    chat.ask('<img src=x onerror="document.title=1"> <b>bold</b>')
    chat.settled()
    expect(chat.answers()).to_contain_text("<b>bold</b>")
    assert chat.page.locator("#log img, #log b").count() == 0


def test_errors_are_told_in_words_with_a_way_on(open_page):
    chat = open_page()
    chat.ask("x" * 6000)
    chat.settled()
    expect(chat.page.get_by_role("alert")).to_contain_text("no longer fits into the model's context")
    chat.shot("error")
    chat.ask("short")
    chat.settled()
    expect(chat.page.locator(".turn")).to_have_count(2)
    expect(chat.answers()).to_contain_text("You said: short")
    chat.page.route("**/v1/chat/completions", lambda route: route.abort())
    chat.ask("anyone?")
    expect(chat.page.get_by_role("alert")).to_contain_text("cannot be reached")
    chat.page.unroute("**/v1/chat/completions")
    chat.page.get_by_role("button", name="Try again").click()
    chat.settled()
    expect(chat.answers().last).to_contain_text("You said: anyone?")
    assert len(chat.problems) == 2  # the browser itself logs the 400 and the aborted request
    chat.problems.clear()


def test_a_stream_that_breaks_off_keeps_its_part_and_says_so(open_page):
    chat = open_page()
    head = 'data: {"choices":[{"index":0,"delta":{"content":"half an ans"},"finish_reason":null}]}\n\n'
    error = 'data: {"error":{"message":"it broke","type":"server_error","param":null,"code":null}}\n\n'
    chat.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=head + error, content_type="text/event-stream"),
    )
    chat.ask("hi")
    expect(chat.page.get_by_role("alert")).to_contain_text("broke off")
    expect(chat.answers()).to_contain_text("half an ans")


def test_a_locked_server_asks_for_its_key(browser, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8")  # of "alpha"
    with stub_server("--api-keys", str(keys)) as (_, port):
        chat = Page(browser, f"http://127.0.0.1:{port}/")
        expect(chat.page.locator("#model-name")).to_have_text("needs a key")
        chat.ask("hi")
        expect(chat.page.get_by_role("alert")).to_contain_text("asks for an API key")
        chat.page.get_by_role("alert").get_by_role("button").click()
        chat.page.get_by_label("API key").fill("alpha")
        chat.page.get_by_role("button", name="Close").click()
        expect(chat.page.locator("#model-name")).to_have_text("stub")
        chat.ask("hi")
        expect(chat.answers()).to_contain_text("You said: hi")
        chat.context.close()
