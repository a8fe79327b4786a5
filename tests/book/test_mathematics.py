"""Formulas, set when the book is built."""

from __future__ import annotations

import re

import pytest
from bs4 import BeautifulSoup
from conftest import BOOK
from playwright.sync_api import Browser
from sphinx.errors import ExtensionError
from test_book import CHAPTERS, PAGES, Reader

from bookkit import mathematics
from bookkit.mathematics import Formula, pieces


@pytest.mark.parametrize(
    ("latex", "cut"),
    [
        ("a", ["a"]),
        ("a=b+c", ["a", "=b", "+c"]),
        (r"a=-b", ["a", "=-b"]),
        (r"a^+b_-", ["a^+b_-"]),
        (r"a\ \le\ -b\,+c", ["a\\ ", r"\le\ -b\,", "+c"]),
        (r"\langle a+b\rangle=\left(a+b\right.", [r"\langle a+b\rangle", r"=\left(a+b\right."]),
        (r"|a-b|\le c,\qquad d", ["|a-b|", r"\le c,\qquad ", "d"]),
        (r"\begin{aligned}a&=b\\&=c\end{aligned}", [r"\begin{aligned}a&=b\\&=c\end{aligned}"]),
        (r"x\in[0,1)+y", ["x", r"\in[0,1)", "+y"]),
        (r"x\in(0+1", [r"x\in(0+1"]),
    ],
)
def test_a_line_may_break_where_a_printer_would_break_it(latex: str, cut: list[str]) -> None:
    assert pieces(latex) == cut


def test_formulas_are_set_for_the_eye_and_for_screen_readers() -> None:
    page = (
        r'<p><span class="math notranslate">\(a&lt;b\)</span></p><div class="math notranslate" id="e">'
        "\n"
        r'<span class="eqno">(1)<a href="#e">#</a></span>\[c=d\]</div><p>\(not this\)</p>'
    )
    found = mathematics.formulas(page)
    assert found == {Formula("a<b", False), Formula("c=d", True)}
    made, css = mathematics.typeset(found)
    text = mathematics.set_page(page, made)
    done = BeautifulSoup(text, "html.parser")
    assert [one["data-latex"] for one in done.select("[data-latex]")] == ["a<b", "c=d"]
    assert [one.get_text() for one in done.select("math")] == ["a<b", "c", "=d"]
    assert done.select_one("#e .eqno a")
    assert r"\(not this\)" in done.get_text()
    assert "mjx-c.mjx-c3D::before" in css  # the glyph of =
    assert mathematics.formulas(text) == found  # a page that a later build leaves as it is


@pytest.mark.parametrize("latex", [r"\frac{a}", r"\nosuchcommand", r"\text{漢}", "{"])
def test_a_formula_that_cannot_be_set_stops_the_build_by_name(latex: str) -> None:
    with pytest.raises(ExtensionError, match=re.escape(f": {latex}")):
        mathematics.typeset([Formula("a", False), Formula(latex, True)])


@pytest.mark.usefixtures("built_book")
@pytest.mark.parametrize("name", PAGES)
def test_all_mathematics_of_a_page_is_set(name: str) -> None:
    page = (BOOK / name).read_text("utf-8")
    written = len(re.findall(r'<(?:span|div) class="math ', page))
    assert written or name not in CHAPTERS
    assert page.count(' data-latex="') == written <= page.count("<mjx-assistive-mml")
    assert not re.search(r'class="math [^>]*>\s*\\[(\[]|<script src="[^"]*mathjax|<mjx-merror|data-mjx-error', page)


@pytest.mark.usefixtures("built_book")
def test_fonts_and_style_sheet_are_in_the_book() -> None:
    style = BOOK / "_static" / mathematics.FOLDER / "style.css"
    fonts = re.findall(r'url\("([^"]+)"\)', style.read_text("utf-8"))
    assert fonts
    assert all((style.parent / font).is_file() for font in fonts)


@pytest.mark.usefixtures("built_book")
def test_a_copied_formula_is_its_latex(browser: Browser) -> None:
    with Reader(browser) as reader:
        page = reader.open(f"{BOOK.as_uri()}/{CHAPTERS[1]}")
        copied = page.evaluate("""() => {
            const formula = document.querySelector('p .math mjx-mi'), range = document.createRange();
            range.setStart(formula, 0);
            range.setEnd(formula, 1);
            getSelection().removeAllRanges();
            getSelection().addRange(range);
            const data = new DataTransfer();
            document.dispatchEvent(new ClipboardEvent('copy', { clipboardData: data, bubbles: true }));
            return [data.getData('text/plain'), formula.closest('[data-latex]').dataset.latex];
        }""")
    assert copied[0] == f"${copied[1]}$"
