"""Claims about the page in a real browser: Chromium over the real server, an embedded broker behind it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from aiokafka import AIOKafkaProducer
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dispatchai.console import Entry, Feed, json_view, mount
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker
from dispatchai.kafka.topics import Topics
from dispatchai.records import CallPacket, LiveCall
from tests.console.samples import BASE, SECOND, STORIES, final_packet, part, put

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
PATIENCE_S = 60.0

T = TypeVar("T")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)

# The smallest contrast of any text with the ground it stands on, as WCAG 2.2 defines it (1.4.3), and that text.
LOWEST_CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
const light = ([r, g, b]) => [r, g, b]
  .map((value) => value / 255)
  .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
let lowest = [21, ""];
for (const element of document.body.querySelectorAll("*")) {
  const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
  if (!text || !element.checkVisibility()) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < lowest[0]) lowest = [contrast, `${element.className}: ${text.slice(0, 40)}`];
}
return lowest;
"""


OVERFLOW = "return document.documentElement.scrollWidth - window.innerWidth"
"""Pixels that the page is wider than the window."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser with a fresh profile; left out, with the reason, where there is none."""
    missing = [str(path) for path in (CHROMIUM, CHROMEDRIVER) if not path.exists()]
    if missing:
        reason = f"the page's tests need a browser: {' and '.join(missing)} missing (Debian: chromium chromium-driver)"
        if os.environ.get("DISPATCHAI_REQUIRE_BROWSER") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@dataclass(frozen=True, slots=True)
class Page:
    """The page in the browser and the topics behind it."""

    browser: webdriver.Chrome
    producer: AIOKafkaProducer
    app: web.Application
    server: BaseTestServer

    async def put(self, *records: LiveCall | CallPacket | None, purge: str = "") -> None:
        """Write records to their topics, or with None a tombstone of the live call `purge`."""
        for record in records:
            topic = "dispatch-queue" if isinstance(record, CallPacket) else "live-calls"
            await put(self.producer, [(topic, record.call_id if record else purge, record)])

    async def shows(self, what: str, condition: Callable[[webdriver.Chrome], object]) -> None:
        """Return when the browser shows what is claimed."""
        wait = WebDriverWait(self.browser, PATIENCE_S, poll_frequency=0.05)
        await asyncio.to_thread(wait.until, condition, f"the page never showed: {what}")

    async def text(self, selector: str) -> list[str]:
        """The visible texts of the elements."""
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText)"
        return await asyncio.to_thread(self.browser.execute_script, script, selector)

    async def do(self, act: Callable[[webdriver.Chrome], T]) -> T:
        """Something done in the browser."""
        return await asyncio.to_thread(act, self.browser)


def browser_log(browser: webdriver.Chrome) -> Any:
    """The messages of the browser's console since the last call."""
    return browser.get_log("browser")  # type: ignore[no-untyped-call]  # selenium leaves its parameter untyped


def click_row(number: int) -> Callable[[webdriver.Chrome], None]:
    """What clicks on the row `number` of the queue, from 0."""
    return lambda browser: browser.find_elements(By.CSS_SELECTOR, "#queue .row")[number].click()


def resize(width: int, height: int) -> Callable[[webdriver.Chrome], object]:
    """What gives the window this size in pixels; a narrow one is a phone's."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    return lambda browser: browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
async def page(chromium: webdriver.Chrome) -> AsyncIterator[Page]:
    """The page, connected, with no calls yet."""
    async with EmbeddedBroker() as broker:
        connection = KafkaConnection(broker.bootstrap_servers)
        await apply(connection, Topics.load(), replication=1)
        async with Feed(connection) as feed, AIOKafkaProducer(**connection.client_options()) as producer:
            await feed.wait_ready()
            app = web.Application()
            mount(app, feed)
            async with TestServer(app) as server:
                page = Page(chromium, producer, app, server)
                await page.do(browser_log)
                await page.do(lambda browser: browser.get(str(server.make_url("/"))))
                await page.shows("that it is live", lambda browser: connection_text(browser) == "live")
                yield page
                await page.do(lambda browser: browser.get("about:blank"))


def connection_text(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "connection-text").text


def order(browser: webdriver.Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('#queue .row')].map((row) => row.dataset.callId)"
    found: list[str] = browser.execute_script(script)
    return found


def of(browser: webdriver.Chrome, selector: str) -> str:
    script = "return document.querySelector(arguments[0])?.textContent ?? ''"
    found: str = browser.execute_script(script, selector)
    return found


CARDIAC, FIRE, NOISE = STORIES


def heard(story_words: int, *, story: int = 0) -> LiveCall:
    return STORIES[story].after(story_words, BASE, BASE + story_words * SECOND)


async def test_a_transcript_grows_its_partial_is_replaced_in_place_and_the_call_rises(page: Page) -> None:
    await page.put(heard(14, story=2), heard(3))
    card = f"#live [data-call-id='{CARDIAC.call_id}']"
    await page.shows("the partial", lambda browser: of(browser, f"{card} .partial") == "My husband collapsed")
    assert await page.text(f"{card} .final") == [""]
    assert await page.do(order) == [NOISE.call_id, CARDIAC.call_id]

    await page.put(heard(10))
    await page.shows("the next partial", lambda browser: of(browser, f"{card} .partial") == "He is not breathing")
    assert await page.text(f"{card} .final") == ["My husband collapsed in the kitchen."]

    await page.put(heard(17))
    await page.shows("the critical level", lambda browser: of(browser, f"{card} .level") == "CRITICAL")
    await page.shows("the new order", lambda browser: order(browser) == [CARDIAC.call_id, NOISE.call_id])
    assert await page.text("#queue .rank") == ["1", "2"]
    points = [float(text) for text in await page.text(f"{card} .parts > div:not(.total) dd")]
    (total,) = await page.text(f"{card} .parts .total dd")
    assert points == [0.6, 0.25, 0.1]
    assert f"{sum(points):.2f}" == total == "0.95"
    assert await page.text(f"{card} .unknowns") == ["not stated: age of the patient"]

    await page.put(final_packet(heard(99)), None, purge=CARDIAC.call_id)
    await page.shows("that the call is over", lambda browser: of(browser, "#queue li:first-child .state") == "FINAL")
    await page.shows("one live call less", lambda browser: not browser.find_elements(By.CSS_SELECTOR, card))
    assert await page.do(order) == [CARDIAC.call_id, NOISE.call_id]


async def test_the_page_says_how_much_of_a_long_transcript_is_left_out(page: Page) -> None:
    said = "He is still not breathing. "
    await page.put(replace(heard(3), transcript=said, transcript_omitted=12_340))
    before = f"#live [data-call-id='{CARDIAC.call_id}'] .transcript .before"
    await page.shows("what is left out", lambda browser: of(browser, before) == "… 12,340 characters before")
    await page.put(replace(heard(3), transcript=60 * said, transcript_omitted=12_340))
    await page.shows("that a card shows the end", lambda browser: of(browser, before) == "…")
    await page.do(click_row(0))
    in_detail = "#detail .transcript .before"
    await page.shows("it in the detail", lambda browser: of(browser, in_detail) == "… 12,340 characters before")


async def test_what_a_caller_says_stays_text(page: Page) -> None:
    attack = '<script>window.owned = 1</script><img src=x onerror="window.owned = 2"><b>bold</b>'
    hostile = replace(
        heard(12, story=1),
        call_id="hostile'\"><script>window.owned = 3</script>",
        transcript=attack,
        partial=attack,
        summary=attack,
        tags=(attack,),
        unknowns=(attack,),
        degraded=attack,
        parts=(part("attack", 0.5, attack, attack),),
    )
    await page.put(hostile, replace(final_packet(hostile), call_id="done", hangup_cause=attack, from_number=attack))
    await page.shows("both calls", lambda browser: len(order(browser)) == 2)
    for row in range(2):
        await page.do(click_row(row))
        await page.shows("the detail", lambda browser: attack in of(browser, "#detail .transcript .final"))
    await page.shows("the number", lambda browser: "…" not in of(browser, "#detail .facts > div:first-child dd"))
    assert attack in (await page.text("#live .transcript .final"))[0]
    assert await page.text("#live .trouble") == [attack]
    script = "return [window.owned ?? null, document.querySelectorAll('main script, main img, main b').length]"
    assert await page.do(lambda browser: browser.execute_script(script)) == [None, 0]
    # The browser itself objected to nothing: no error of a script and no breach of the content security policy.
    assert await page.do(browser_log) == []


async def test_nothing_moves_under_the_pointer_and_the_order_comes_back_when_it_leaves(page: Page) -> None:
    await page.put(heard(14, story=2), heard(3))
    await page.shows("two calls", lambda browser: order(browser) == [NOISE.call_id, CARDIAC.call_id])
    rows = page.browser.find_elements(By.CSS_SELECTOR, "#queue .row")
    await page.do(lambda browser: ActionChains(browser).move_to_element(rows[0]).perform())
    await page.put(heard(17), heard(12, story=1))
    await page.shows("that it is held", lambda browser: "CRITICAL" in of(browser, "#held"))
    await page.shows("the new call at the end", lambda browser: len(order(browser)) == 3)
    assert await page.do(order) == [NOISE.call_id, CARDIAC.call_id, FIRE.call_id]
    assert await page.text("#queue .rank") == ["3", "1", "2"]
    away = page.browser.find_element(By.TAG_NAME, "h1")
    await page.do(lambda browser: ActionChains(browser).move_to_element(away).perform())
    await page.shows("its order", lambda browser: order(browser) == [CARDIAC.call_id, FIRE.call_id, NOISE.call_id])


async def test_a_call_opens_and_closes_by_keyboard_and_shows_the_number_to_call_back(page: Page) -> None:
    await page.put(heard(17), heard(14, story=2))
    await page.shows("two calls", lambda browser: len(order(browser)) == 2)
    assert CARDIAC.number not in (await page.text("body"))[0]
    body = page.browser.find_element(By.TAG_NAME, "body")
    await page.do(lambda _: body.send_keys(Keys.TAB, Keys.TAB))
    await page.do(lambda browser: browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN))
    focused = "return document.activeElement.dataset.callId"
    assert await page.do(lambda browser: browser.execute_script(focused)) == NOISE.call_id
    await page.do(lambda browser: browser.switch_to.active_element.send_keys(Keys.ARROW_UP))
    await page.do(lambda browser: browser.switch_to.active_element.send_keys(Keys.ENTER))
    number = "#detail .facts > div:first-child dd"
    await page.shows("the number", lambda browser: of(browser, number) == CARDIAC.number)
    await page.do(lambda browser: browser.switch_to.active_element.send_keys(Keys.ESCAPE))
    await page.shows("no detail", lambda browser: not browser.find_element(By.ID, "detail").is_displayed())
    assert await page.do(lambda browser: browser.execute_script(focused)) == CARDIAC.call_id


async def test_all_text_has_contrast_and_fits_on_a_desk_and_on_a_phone(page: Page) -> None:
    await page.put(heard(19), heard(12, story=1), heard(14, story=2), final_packet(replace(heard(17), call_id="done")))
    await page.shows("the calls", lambda browser: len(order(browser)) == 4)
    for width, height in ((1280, 800), (390, 844)):
        await page.do(resize(width, height))
        for opened in (False, True):
            if opened:
                await page.do(lambda browser: browser.find_element(By.CSS_SELECTOR, "#queue .row").click())
                await page.shows("the detail", lambda browser: browser.find_element(By.ID, "detail").is_displayed())
            found = await page.do(lambda browser: browser.execute_script(LOWEST_CONTRAST))
            assert found[0] >= 4.5, found
            assert await page.do(lambda browser: browser.execute_script(OVERFLOW)) <= 0
        await page.do(lambda browser: browser.find_element(By.ID, "detail-close").click())
    await page.do(lambda browser: browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {}))


async def test_a_lost_server_is_said_and_what_was_shown_stays(page: Page) -> None:
    await page.put(heard(17))
    await page.shows("the call", lambda browser: order(browser) == [CARDIAC.call_id])
    await page.server.close()
    await page.shows("the loss", lambda browser: connection_text(browser) == "reconnecting…")
    banner = page.browser.find_element(By.ID, "degraded")
    assert await page.do(lambda _: banner.is_displayed())
    assert await page.do(order) == [CARDIAC.call_id]


async def test_one_damaged_entry_is_shown_as_such_and_counted_and_the_others_stay(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    await page.put(heard(17), heard(14, story=2))
    await page.shows("two calls", lambda browser: len(order(browser)) == 2)
    damage = """
        const done = arguments[arguments.length - 1];
        Promise.all([import("/static/model.js"), fetch("/api/v1/queue").then((answer) => answer.json())])
          .then(([{ shownAs }, { queue }]) => {
            const entry = queue[0];
            const kept = shownAs(entry) === entry;
            const broken = [];
            for (const [name, value] of Object.entries(entry)) {
              for (const wrong of [null, 7, "text", {}, [null]]) {
                const shown = shownAs({ ...entry, [name]: wrong });
                if (shown.not_shown) broken.push([name, shown.call_id, Number.isFinite(shown.ranking.weight)]);
              }
            }
            done([kept, broken]);
          });
    """
    kept, broken = await page.do(lambda browser: browser.execute_async_script(damage))
    assert kept
    assert {"risk", "audio", "nlp", "parts", "ranking", "services", "unknowns", "summary"} <= {one[0] for one in broken}
    assert all(has_weight for _, _, has_weight in broken)

    def without_score(entry: Entry) -> dict[str, Any]:
        shown = json_view.queue_entry(entry)
        return {**shown, "risk": {"level": "LOW", "score": None}} if entry.call_id == FIRE.call_id else shown

    monkeypatch.setitem(json_view.FORMS, "queue", without_score)
    await page.put(heard(12, story=1), heard(19))
    await page.shows("all three", lambda browser: len(order(browser)) == 3)
    await page.shows("the count", lambda browser: of(browser, "#not-shown") == "1 call in the lists cannot be shown.")
    row = f"#queue [data-call-id='{FIRE.call_id}'] .summary"
    assert "cannot be shown" in await page.do(lambda browser: of(browser, row))
    assert await page.text(f"#live [data-call-id='{CARDIAC.call_id}'] .level") == ["CRITICAL"]
    monkeypatch.undo()
    await page.put(heard(14, story=1))
    await page.shows("that all can be shown", lambda browser: not of(browser, "#not-shown"))
    assert await page.do(browser_log) == []
