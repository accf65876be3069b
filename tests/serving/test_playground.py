"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect, sync_playwright

from steersman.models.load import LoadedModel
from steersman.serving.app import ServerOptions, create_app
from steersman.serving.service import Limits

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-background-networking"]
SHOTS = Path(os.environ.get("STEERSMAN_SCREENSHOTS", "runs/screenshots"))

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A page whose console must stay silent."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.said = said
    set_length(page, 24)
    yield page
    context.close()


@pytest.fixture
def address(listening, loaded: LoadedModel) -> Iterator[str]:
    """Where the tiny model is served, which judges its own answers."""
    with listening(create_app(loaded, loaded, ServerOptions(name="tiny"))) as port:
        yield f"http://127.0.0.1:{port}/"


def set_length(page: Page, num_tokens: int) -> None:
    """Let every answer be so long, and the same: random weights may end at once, or write more than the window."""

    def change(route: Route) -> None:
        length = {"min_tokens": num_tokens, "max_tokens": num_tokens, "seed": 5}
        route.continue_(post_data={**route.request.post_data_json, **length})

    page.route("**/v1/chat/completions", change)


def move(page: Page, label: str, value: int, setting: str = "Setting A") -> None:
    page.get_by_label(setting).get_by_label(label, exact=True).fill(str(value))


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")


def answered(page: Page, num: int) -> None:
    expect(page.locator(".answer .bars:not([hidden])")).to_have_count(num, timeout=20_000)


def test_ask_compare_and_reload(page: Page, address: str):
    page.goto(address)
    page.get_by_text("Sampling").click()
    page.get_by_label("Longest answer").fill("24")
    page.get_by_label("Longest answer").blur()
    move(page, "humor", 4)
    move(page, "quality", 1)
    ask(page, "Tell me a joke.")
    answered(page, 1)
    expect(page.locator(".facts")).to_contain_text("quality:1, humor:4")
    expect(page.locator(".bars")).to_contain_text("(asked 4)")
    page.get_by_label("Compare two settings").check()
    move(page, "humor", 0, "Setting B")
    ask(page, "And another one.")
    answered(page, 3)
    page.screenshot(path=SHOTS / "playground.png")
    page.reload()
    expect(page.get_by_label("Setting B")).to_be_visible()
    assert page.get_by_label("Setting A").get_by_label("humor", exact=True).input_value() == "4"
    assert page.get_by_label("Setting B").get_by_label("humor", exact=True).input_value() == "0"
    assert page.get_by_label("Longest answer").input_value() == "24"
    assert page.said == []


def test_nothing_can_be_set_before_the_page_knows_the_model(page: Page, address: str):
    held: list[Route] = []
    page.route("**/v1/attributes", lambda route: held.append(route))
    page.goto(address)
    controls = [page.get_by_label("Compare two settings"), page.get_by_label("Your question")]
    controls += [page.get_by_role("button", name=name) for name in ("Ask", "New conversation")]
    for control in controls:
        expect(control).to_be_disabled()
    page.unroute("**/v1/attributes")
    held[0].continue_()
    for control in controls:
        expect(control).to_be_enabled()
    controls[0].check()
    ask(page, "Why?")
    answered(page, 2)
    assert page.said == []


def test_tokens_stream(page: Page, address: str):
    set_length(page, 100)
    page.goto(address)
    page.get_by_text("Sampling").click()
    page.get_by_label("Longest answer").fill("200")
    page.get_by_label("Longest answer").blur()
    page.evaluate("""() => {
        window.lengths = [];
        const watch = () => window.lengths.push(document.querySelector(".answer .text")?.textContent.length ?? 0);
        new MutationObserver(watch).observe(document.body, { subtree: true, childList: true, characterData: true });
    }""")
    ask(page, "Tell me everything.")
    answered(page, 1)
    lengths = page.evaluate("() => [...new Set(window.lengths)]")
    assert len(lengths) > 10
    assert lengths == sorted(lengths)


def test_stop_keeps_what_was_said(page: Page, address: str):
    set_length(page, 400)
    page.goto(address)
    page.get_by_text("Sampling").click()
    page.get_by_label("Longest answer").fill("400")
    page.get_by_label("Longest answer").blur()
    ask(page, "Tell me everything.")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")


def test_errors_are_shown_in_the_servers_words(page: Page, listening, loaded: LoadedModel):
    with listening(create_app(loaded, None, ServerOptions(limits=Limits(max_queue=0), max_batch=1))) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_label("Compare two settings").check()
        page.get_by_text("Sampling").click()
        page.get_by_label("Longest answer").fill("300")
        page.get_by_label("Longest answer").blur()
        ask(page, "Why?")
        expect(page.get_by_role("alert")).to_contain_text("find no room in the queue")
        expect(page.get_by_role("alert")).to_contain_text("Try again in")
    with_key = create_app(loaded, None, ServerOptions(api_key="sesame"))
    with listening(with_key) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_label("Setting A").get_by_label("humor", exact=True)).to_be_visible()


def test_snippets_can_be_copied_and_say_what_is_set(page: Page, address: str):
    page.goto(address)
    move(page, "toxicity", 3)
    page.get_by_label("Your question").fill("It's?")
    for name, words in (("Copy as curl", "It'\\''s?"), ("Copy as Python", "from openai import OpenAI")):
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert words in copied
        assert '"toxicity":3' in copied.replace(" ", "")
        assert address.rstrip("/") in copied
        expect(page.get_by_role("button", name=name)).to_be_visible(timeout=5000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everybody_can_use_it(page: Page, address: str, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(address)
    page.get_by_label("Compare two settings").check()
    ask(page, "Why?")
    answered(page, 2)
    page.screenshot(path=SHOTS / f"playground-{scheme}-{width}.png", full_page=True)
    found = Axe().run(page).response["violations"]
    assert [fault["help"] for fault in found if fault["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.said == []
