"""Can everyone read the book: a screen reader's rules, the weight of a page, and how soon it shows."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import BOOK
from playwright.sync_api import Browser
from test_book import CHAPTERS, PAGES, Reader, unfold

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.usefixtures("built_book")]

_MEGABYTE = 1e6


#: Chapters at one width each: what differs between widths is the frame, and that is the same on every page.
AXE = [(name, 390 if i % 2 else 1360) for i, name in enumerate(CHAPTERS)]
AXE += [(name, width) for name in [*PAGES, "404.html"] if name not in CHAPTERS for width in (390, 1360)]

#: Contrast is left to test_book, which looks at every text in both themes, in a hundredth of axe's time.
_RULES = {"resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": False}}}


@pytest.mark.parametrize(("name", "width"), AXE)
def test_axe_finds_nothing_serious(name: str, width: int, browser: Browser) -> None:
    with Reader(browser, viewport={"width": width, "height": 900}, reduced_motion="reduce") as reader:
        page = reader.open(f"{BOOK.as_uri()}/{name}")
        unfold(page)
        page.wait_for_timeout(200)  # what unfolding changes
        # Of each formula its container stays, for the rules on what is named; the thousands of boxes inside go.
        page.evaluate("document.querySelectorAll('mjx-math').forEach(math => math.replaceChildren())")
        found = Axe().run(page, options=_RULES).response["violations"]
        wrong = [
            f"{v['id']} ({v['help']}): {node['html'][:200]}"
            for v in found
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"][:3]
        ]
        assert wrong == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_weighs_at_most_three_megabytes(name: str, browser: Browser) -> None:
    with Reader(browser) as reader:
        files: dict[Path, int] = {}

        def weigh(request: object) -> None:
            path = Path(unquote(urlsplit(request.url).path))  # type: ignore[attr-defined]
            if path.is_file():
                files[path] = path.stat().st_size

        reader.page.on("request", weigh)
        page = reader.open(f"{BOOK.as_uri()}/{name}")
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")  # pictures that wait to be seen
        page.wait_for_timeout(300)
        assert BOOK / name in files
        heaviest = sorted(((path.name, size) for path, size in files.items()), key=lambda item: -item[1])[:5]
        assert sum(files.values()) <= 3 * _MEGABYTE, heaviest


@pytest.mark.parametrize("name", CHAPTERS)
def test_first_content_shows_within_a_second(name: str, browser: Browser) -> None:
    seconds = []
    while len(seconds) < 6 and (not seconds or min(seconds) > 1):  # a slow one may tell of the machine
        with Reader(browser) as reader:
            page = reader.open(f"{BOOK.as_uri()}/{name}")
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            seconds.append(page.evaluate(paint) / 1000)
    assert min(seconds) <= 1, seconds
