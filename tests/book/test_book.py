"""The built book in a real browser: from disk and from a local server, with the network off."""

from __future__ import annotations

import functools
import html
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from conftest import BOOK, ROOT
from playwright.sync_api import Browser, Page, Request

from bookkit import myst, notebooks

#: Every page that the theme dresses.
PAGES = sorted(
    path.relative_to(BOOK).as_posix()
    for path in BOOK.rglob("*.html")
    if "_static" not in path.parts and path.name != "404.html"
)
CHAPTERS = [f"chapters/{path.stem}.html" for path in notebooks.chapters(ROOT)]

WIDE = {"width": 1360, "height": 900}

pytestmark = pytest.mark.usefixtures("built_book")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """Address of a local server of the book."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=BOOK))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


class Reader:
    """A page in the browser, with all that went wrong on it; nothing beyond this machine is reached."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(120_000)  # the machine may be busy
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.weights: dict[str, int] = {}  # in bytes, of the files on this disk that the page asked for
        self.page.on("console", lambda m: self._note(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self._note(f"script: {error}"))
        self.page.on("requestfailed", lambda r: self._note(f"request failed: {r.url}"))
        self.page.on("response", lambda r: self._note(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.on("request", self._weigh)
        self.context.route("**/*", self._local_only)

    def _note(self, what: str) -> None:
        self.wrong.append(what)

    def _weigh(self, request: Request) -> None:
        path = Path(unquote(urlsplit(request.url).path))
        if path.is_file():
            self.weights[path.relative_to(BOOK).as_posix()] = path.stat().st_size

    def _local_only(self, route: Any) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("file", "data", "blob") or address.hostname == "127.0.0.1":
            route.continue_()
        else:
            self._note(f"asked the network for {route.request.url}")
            route.abort()

    def open(self, address: str) -> Page:
        """Open a page."""
        self.page.goto(address, wait_until="load")
        return self.page

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


class Sheet(NamedTuple):
    """A page of the book, open on a wide screen."""

    name: str
    page: Page
    wrong: list[str]


@pytest.fixture(scope="module", params=PAGES)
def sheet(request: pytest.FixtureRequest, browser: Browser, served: str) -> Iterator[Sheet]:
    """Each page in turn, from the server; it is opened once for all the tests that look at it."""
    with Reader(browser, viewport=WIDE, color_scheme="light", reduced_motion="reduce") as reader:
        yield Sheet(request.param, reader.open(served + request.param), reader.wrong)


@pytest.fixture(params=["disk", "server"])
def base(request: pytest.FixtureRequest, served: str) -> str:
    """Where the book is read."""
    return served if request.param == "server" else f"{BOOK.as_uri()}/"


def test_page_loads_without_a_fault_from_a_server(sheet: Sheet) -> None:
    assert sheet.wrong == []
    assert sheet.page.title()


def test_search_finds_margin(base: str, browser: Browser) -> None:
    with Reader(browser) as reader:
        page = reader.open(f"{base}search.html?q=margin")
        page.locator("#search-results li a").first.wait_for(timeout=20_000)
        page.wait_for_load_state("networkidle")
        assert page.locator("#search-results li a").first.get_attribute("href")
        assert "\\" not in page.locator("#search-results").inner_text()  # words, not LaTeX
        page.goto(f"{base}{CHAPTERS[1]}?highlight=norm")  # as a result's link does
        page.locator("span.highlighted").first.wait_for(state="attached")
        page.wait_for_timeout(500)
        assert reader.wrong == []


@pytest.mark.parametrize("width", [1360, 390])
def test_links_into_a_page_land_where_they_point(width: int, served: str, browser: Browser) -> None:
    with Reader(browser, viewport={"width": width, "height": 844}) as reader:
        page = reader.open(served + CHAPTERS[5])
        labels = page.evaluate("[...document.querySelectorAll('.proof.admonition[id]')].map(e => e.id)")
        for label in (labels[len(labels) // 2], labels[-1]):
            page.goto("about:blank")
            reader.open(f"{served}{CHAPTERS[5]}#{label}")
            page.wait_for_timeout(300)
            top = page.evaluate("label => document.getElementById(label).getBoundingClientRect().top", label)
            assert 0 <= top <= 200, (label, top)


OVERFLOWING = """() => {
    const limit = document.documentElement.clientWidth;
    const boxed = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
        if (getComputedStyle(p).overflowX !== 'visible') return true; return false; };
    return [...document.querySelectorAll('article *')]
        .filter(e => e.getBoundingClientRect().right > limit + 1 && !boxed(e))
        .map(e => e.tagName + '.' + e.className).slice(0, 5);
}"""


def unfold(page: Page) -> None:
    """Open everything that is folded."""
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate("document.querySelectorAll('.toggle-hidden .toggle-button').forEach(b => b.click())")


def test_page_does_not_scroll_sideways(sheet: Sheet) -> None:
    unfold(sheet.page)
    too_wide = {}
    for width in (390, 820, 1000, 1360):
        sheet.page.set_viewport_size({"width": width, "height": 844})
        inner, outer = sheet.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        found = sheet.page.evaluate(OVERFLOWING)
        if found or inner > outer:
            too_wide[width] = found
    sheet.page.set_viewport_size(WIDE)
    assert too_wide == {}


CONTRAST = """() => {
    const parse = text => { const m = text.match(/[\\d.]+/g).map(Number);
        return [m[0], m[1], m[2], m[3] ?? 1]; };
    const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
    const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92
        : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
    const ground = e => { const stack = [];
        for (let p = e; p; p = p.parentElement) stack.push(parse(getComputedStyle(p).backgroundColor));
        return stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]); };
    const bad = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !e.closest('.bd-main, .bd-sidebar-primary')) continue;
        if (e.closest('script, style, svg, mjx-assistive-mml, .headerlink, .visually-hidden, kbd')) continue;
        if (e.closest('.search-button__kbd-shortcut')) continue;
        const style = getComputedStyle(e);
        if (style.visibility !== 'visible' || !e.getClientRects().length || style.opacity === '0') continue;
        const back = ground(e), text = over(parse(style.color), back);
        const [a, b] = [light(text), light(back)].sort((x, y) => y - x);
        const ratio = (a + .05) / (b + .05);
        if (ratio < 4.5) bad.push(ratio.toFixed(2) + ' ' + e.tagName + '.' + e.className + ' '
            + walker.currentNode.data.trim().slice(0, 40) + ' ' + style.color + ' on ' + back);
    }
    return bad;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable_in_both_themes(sheet: Sheet, theme: str) -> None:
    sheet.page.emulate_media(color_scheme=theme)
    unfold(sheet.page)
    sheet.page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
    ground = sheet.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 150) == (theme == "dark")
    assert sheet.page.evaluate(CONTRAST) == []


def test_figures_have_alt_text_and_a_caption(sheet: Sheet) -> None:
    unfold(sheet.page)
    for picture in sheet.page.locator("article img").all():
        alt = picture.get_attribute("alt") or ""
        assert len(alt.split()) > 2, f"{picture.get_attribute('src')}: alt text is {alt!r}"
        assert not re.search(r"[0-9a-f]{16,}", alt)
        assert picture.evaluate("e => e.complete && e.naturalWidth > 0")
        caption = picture.evaluate("e => e.closest('figure')?.querySelector('figcaption')?.innerText ?? ''")
        assert re.match(r"(Figure \d+\.\d+|To play with\.)\s+\S", caption), f"{alt}: caption is {caption!r}"


def test_links_inside_the_book_lead_somewhere() -> None:
    ids, links = {}, []
    for name in PAGES:
        text = (BOOK / name).read_text("utf-8")
        named = re.findall(r'\bid="([^"]+)"', text)
        ids[name] = set(named)
        assert len(named) == len(ids[name]), f"{name} gives one id to several elements"
        found = re.findall(r'<(?:a|link)\b[^>]*\bhref="([^"]+)"', text)
        links += [(name, html.unescape(link).partition("?")[0]) for link in found]
    inside = [(name, link) for name, link in links if not re.match(r"[a-z]+:", link)]
    assert inside
    for name, link in inside:
        path, _, anchor = link.partition("#")
        target = os.path.normpath((Path(name).parent / path).as_posix()) if path else name
        assert (BOOK / target).is_file(), f"{name}: {link}"
        assert not anchor or target not in ids or unquote(anchor) in ids[target], f"{name}: {link}"


def test_verdicts_are_found_and_sorted(browser: Browser) -> None:
    with Reader(browser, viewport=WIDE) as reader:
        page = reader.open(f"{BOOK.as_uri()}/reference/verdicts.html")
        claims, told = page.locator(".nc-claim:visible"), page.locator(".nc-find output")
        every = page.locator(".nc-claim").count()
        assert told.inner_text() == f"{every} claims"
        assert f"{every} of {every} claims hold" in page.locator(".nc-summary").inner_text()
        page.get_by_label("nearest to their tolerance first").check()
        assert claims.count() == every
        shares = [float(claim.get_attribute("data-share") or -1) for claim in claims.all()]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > 0
        page.get_by_label("chapter").select_option("The absolute minimum")
        page.get_by_label("Find").fill("convex")
        assert 0 < claims.count() < every / 10
        page.get_by_label("nearest to their tolerance first").uncheck()
        assert page.locator(".nc-verdict-head:visible").count() > 0
        assert page.locator("h2:visible").all_inner_texts() == ["The absolute minimum"]
        page.locator("[name=verdict]").select_option("fails")
        assert told.inner_text() == "0 claims"
        assert reader.wrong == []


def test_tables_of_base_seeds_are_accessible() -> None:
    page = BeautifulSoup((BOOK / "reference/how_often.html").read_text("utf-8"), "html.parser")
    boxes = page.select(".nc-claims-box")
    assert [len(box.select("table.nc-claims thead th[scope=col]")) for box in boxes] == [6, 6]
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    assert page.html["lang"] == "en"


def test_nothing_is_linked_from_elsewhere() -> None:
    """Scripts, styles, pictures and frames are all in the book."""
    for path in BOOK.rglob("*.html"):
        text = path.read_text("utf-8")
        tags = re.findall(r"<(?:script|img|iframe|source|video|audio|link)\b[^>]*>", text)
        outside = [tag for tag in tags if re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", tag)]
        assert not [tag for tag in outside if 'rel="canonical"' not in tag], path.name
    for path in (BOOK / "_static").glob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text("utf-8")), path.name


def test_chapters_offer_their_self_contained_notebook(sheet: Sheet) -> None:
    line = sheet.page.locator(".nc-run")
    assert line.count() == (sheet.name in CHAPTERS)
    if sheet.name in CHAPTERS:
        told = sheet.page.locator(".nc-made").text_content() or ""
        assert re.search(
            r"executed in .+ on \d{4}-.+Scale (quick|full), device .+, base seed \d+, threads \d+; ", told
        )
        with sheet.page.expect_download() as download:
            line.locator("a").click()
        assert "@title Set-up" in Path(download.value.path()).read_text("utf-8")


def test_plain_notebooks_number_things_as_the_book_does() -> None:
    sources = notebooks.chapters(ROOT)
    read = [(path, notebooks.notebook(path.read_text("utf-8"))) for path in sources]
    targets = myst.collect(read, ROOT / "references.bib").targets
    numbered = {label: t for label, t in targets.items() if label and t.number and t.kind != "equation"}
    assert numbered
    text = "".join((BOOK / name).read_text("utf-8") for name in CHAPTERS)
    for label, target in numbered.items():
        place = text.partition(f'id="{label}"')[2]
        caption = re.search(r'<span class="caption-number">\s*([^<]+?)\s*</span>', place)
        assert caption, label
        assert caption[1] == str(target), label


# ----------------------------------------------------------------------------------------------------- completeness

STATEMENT = re.compile(r"^:::\{prf:(theorem|proposition|corollary|observation)\}.*\n:label: (\S+)", re.MULTILINE)


def statements(*kinds: str) -> set[str]:
    """Labels of the book's statements of some kinds."""
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "chapters").glob("*.md"))]
    return {label for text in texts for kind, label in STATEMENT.findall(text) if kind in kinds}


def test_every_statement_has_its_verdict_told() -> None:
    text = (ROOT / "reference/verdicts.md").read_text("utf-8")
    told = re.findall(
        r"^```\{verdict\} (\S+)\n(?:.+\n)?```\n\n\*\*Predicted\.\*\* .+\n\n\*\*Found\.\*\* ", text, re.MULTILINE
    )
    assert len(told) == len(set(told)) >= 40
    assert statements("theorem", "proposition", "corollary", "observation") <= set(told)


def test_every_theorem_has_its_assumptions() -> None:
    text = (ROOT / "reference/verdicts.md").read_text("utf-8")
    told = re.findall(r"^```\{verdict\} (\S+)\n(?:[^|\n]+ \| ){5}[^|\n]+\n```$", text, re.MULTILINE)
    assert sorted(told) == sorted(statements("theorem", "proposition", "corollary"))
