"""The built book as one PDF, for print: ``python -m bookkit.pdf`` after ``make book``.

All pages are joined into one, proofs and solutions unfolded, links turned into links within it, and Chromium prints
that: mathematics, figures and tables are those of the HTML.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

from . import notebooks

BOOK = notebooks.ROOT / "_build" / "html"
TARGET = notebooks.ROOT / "_build" / "small-norm-large-margin.pdf"

#: What has no use on paper.
LEFT_OUT = (
    ".headerlink, .nc-run, .nc-take, .nc-symbols, .toggle-button, .copybtn, script, style, "
    ".prev-next-footer, iframe, .cell_input .nc-more"
)

_STYLE = """
@page { size: A4; margin: 18mm 17mm 20mm; }
html, body { font-size: 10pt; background: white; }
main { max-width: none; margin: 0; padding: 0; }
article { break-before: page; }
.nc-cover { height: 240mm; display: flex; flex-direction: column; justify-content: center; text-align: center; }
.nc-cover img { width: 40mm; margin: 0 auto 12mm; }
.nc-cover h1 { font-size: 30pt; }
.nc-contents ol { list-style: none; padding: 0; }
.bd-article h1 { font-size: 20pt; white-space: nowrap; } /* the outline runs words of two lines together */
h1, h2, h3, figcaption, .admonition-title { break-after: avoid; }
figure, .proof.admonition, tr, mjx-container { break-inside: avoid; }
.bd-article pre, .bd-article code { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 7.6pt; }
.bd-article table.nc-claims, .bd-article table { min-width: 0 !important; font-size: 7.4pt; }
.bd-article table td, .bd-article table th {
  white-space: normal !important; overflow-wrap: anywhere; min-width: 0 !important;
}
.cell_output, .highlight, .nc-claims-box, mjx-container { overflow: visible !important; }
img { max-height: 95mm; }
.nc-live { display: none; }
"""


#: Options with which Chromium asks nothing of the network of its own accord.
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def pages() -> list[str]:
    """Names of the pages in reading order, without ending."""
    toc = yaml.safe_load((notebooks.ROOT / "_toc.yml").read_text("utf-8"))
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def joined() -> str:
    """One HTML page of all pages."""
    names = pages()
    articles = [article(name, set(names)) for name in names]
    index = BeautifulSoup((BOOK / f"{names[0]}.html").read_text("utf-8"), "html.parser")
    summary = index.select_one(".nc-summary")
    last = BeautifulSoup((BOOK / f"{names[1]}.html").read_text("utf-8"), "html.parser")
    head = last.select('link[rel~="stylesheet"]')
    for tag in head:
        tag["href"] = _file(names[1], str(tag["href"]))
    title = notebooks.config()["title"]
    cover = (
        f'<section class="nc-cover"><img alt="" src="{(BOOK / "_static" / "logo.svg").as_uri()}"><h1>{title}</h1>'
        f"<p>An executable theory of the square loss</p>"
        f"<p>{summary.get_text() if summary else ''}</p></section>"
    )
    headings = zip(names, map(_heading, articles), strict=True)
    entries = "".join(f'<li><a href="#{_slug(name)}">{heading}</a></li>' for name, heading in headings)
    contents = f'<article class="bd-article nc-contents"><h1>Contents</h1><ol>{entries}</ol></article>'
    body = "".join(str(a) for a in articles)
    return (
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{''.join(map(str, head))}<style>{_STYLE}</style></head>"
        f"<body><main>{cover}{contents}{body}</main></body></html>"
    )


def article(name: str, names: set[str]) -> Tag:
    """A page's article, unfolded, with identifiers of its own and links into the joined page."""
    soup = BeautifulSoup((BOOK / f"{name}.html").read_text("utf-8"), "html.parser")
    found = soup.select_one("article.bd-article")
    assert found is not None, name
    for tag in found.select(LEFT_OUT):
        tag.decompose()
    for tag in found.select(".cell_input"):
        if not tag.get_text(strip=True):
            tag.decompose()
    for tag in found.find_all("details"):
        tag["open"] = ""
    for tag in found.select(".dropdown, .toggle, .toggle-hidden"):
        tag["class"] = [c for c in tag.get("class", []) if c not in ("dropdown", "toggle", "toggle-hidden")]
    for tag in found.find_all(id=True):
        tag["id"] = f"{_slug(name)}--{tag['id']}"
    for tag in found.find_all("img"):
        tag["src"] = str(tag["src"]) if str(tag["src"]).startswith("data:") else _file(name, str(tag["src"]))
    for tag in found.find_all("a", href=True):
        tag["href"] = _link(name, str(tag["href"]), names)
    found["id"] = _slug(name)
    return found


def _link(page: str, address: str, names: set[str]) -> str:
    path, _, anchor = address.partition("#")
    if urlsplit(address).scheme:
        return address
    target = (
        posixpath.normpath(posixpath.join(posixpath.dirname(page), path)).removesuffix(".html") if path else page
    )
    if target not in names:
        return "#"
    return f"#{_slug(target)}--{unquote(anchor)}" if anchor else f"#{_slug(target)}"


def _slug(name: str) -> str:
    return name.replace("/", "-")


def _file(page: str, address: str) -> str:
    if urlsplit(address).scheme:
        return address
    return (BOOK / posixpath.normpath(posixpath.join(posixpath.dirname(page), address.partition("?")[0]))).as_uri()


def _heading(found: Tag) -> str:
    heading = found.find("h1")
    return heading.get_text() if heading else ""


def chromium() -> str | None:
    """The browser's program."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write(target: Path = TARGET) -> Path:
    """Print the book."""
    from playwright.sync_api import sync_playwright

    source = notebooks.ROOT / "_build" / "print.html"
    source.write_text(joined(), "utf-8")
    footer = '<div style="width:100%;text-align:center;font-size:8px"><span class="pageNumber"></span></div>'
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        page = browser.new_page(color_scheme="light")
        page.goto(source.as_uri(), wait_until="load", timeout=300_000)  # all the chapters in one page
        page.pdf(
            path=target, prefer_css_page_size=True, print_background=True, outline=True, tagged=True,
            display_header_footer=True, header_template="<span></span>", footer_template=footer,
        )  # fmt: skip
        browser.close()
    return target


def main() -> int:
    """Write the PDF, or say what is missing."""
    if not (BOOK / "index.html").exists():
        print("The book is not built: run `make book` first.", file=sys.stderr)
        return 1
    if chromium() is None:
        print("Chromium prints the PDF and is not here; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    print(f"The PDF is at {os.path.relpath(write())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
