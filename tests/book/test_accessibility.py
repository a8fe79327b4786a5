"""Can everyone read the book from disk: without a fault, light, soon, and by a screen reader's rules."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import BOOK
from playwright.sync_api import Browser, Page
from test_book import CHAPTERS, PAGES, Reader, unfold

pytestmark = pytest.mark.usefixtures("built_book")

NARROW, WIDE = 390, 1360
#: Chapters at one width each: what differs between widths is the frame, and that is the same on every page.
VISITS = [(name, [NARROW if i % 2 else WIDE]) for i, name in enumerate(CHAPTERS)]
VISITS += [(name, [WIDE, NARROW]) for name in [*PAGES, "404.html"] if name not in CHAPTERS]

#: Contrast is left to test_book, which looks at every text in both themes, in a hundredth of axe's time.
_RULES = {"resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": False}}}


@pytest.mark.parametrize(("name", "widths"), VISITS)
def test_page_from_disk_is_whole_light_and_accessible(name: str, widths: list[int], browser: Browser) -> None:
    """One visit serves all that is looked at here: opening a chapter takes longer than most checks."""
    address = f"{BOOK.as_uri()}/{name}"
    with Reader(browser, viewport={"width": widths[0], "height": 900}, reduced_motion="reduce") as reader:
        page = reader.open(address)
        if name in CHAPTERS and first_paint(page) > 1:  # which may tell of the machine
            assert soonest(address, browser) <= 1
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")  # pictures that wait to be seen
        page.wait_for_timeout(300)
        assert reader.wrong == []
        assert name in reader.weights
        if name in CHAPTERS:
            heaviest = sorted(reader.weights.items(), key=lambda item: -item[1])[:5]
            assert sum(reader.weights.values()) <= 3e6, heaviest
        unfold(page)
        # Of each formula its container stays, for the rules on what is named; the thousands of boxes inside go.
        page.evaluate(
            "document.querySelectorAll('mjx-math, mjx-assistive-mml').forEach(e => e.replaceChildren('x'))"
        )
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(200)  # what unfolding and the width change
            assert seriously_wrong(page) == [], width


def seriously_wrong(page: Page) -> list[str]:
    """What axe finds serious, by rule and place."""
    found = Axe().run(page, options=_RULES).response["violations"]
    return [
        f"{v['id']} ({v['help']}): {node['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


FIRST = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def first_paint(page: Page) -> float:
    """Seconds until something of a page was seen."""
    page.wait_for_function(FIRST)
    return float(page.evaluate(FIRST)) / 1000


def soonest(address: str, browser: Browser) -> float:
    """The best of a few more visits, in seconds."""
    best = float("inf")
    for _ in range(11):
        if best > 1:
            with Reader(browser) as reader:
                reader.page.goto(address, wait_until="commit")
                best = min(best, first_paint(reader.page))
    return best
