"""The book as one PDF."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, missing
from pypdf import PdfReader

from bookkit import notebooks, pdf

pytestmark = [pytest.mark.usefixtures("built_book"), pytest.mark.paper]


@pytest.fixture(scope="module")
def printed() -> PdfReader:
    if not pdf.TARGET.exists() or pdf.TARGET.stat().st_mtime < (pdf.BOOK / "index.html").stat().st_mtime:
        missing("the book is not printed: run `make pdf`")
    return PdfReader(pdf.TARGET)


def titles(source: Path) -> str:
    return next(line for line in source.read_text("utf-8").splitlines() if line.startswith("# ")).removeprefix("# ")


def test_every_chapter_is_in_the_outline_and_proofs_are_unfolded(printed: PdfReader) -> None:
    named = [" ".join(str(entry.title).split()) for entry in printed.outline if not isinstance(entry, list)]
    for source in notebooks.chapters(ROOT):
        number = source.stem.partition("_")[0]
        assert (f"{int(number)}. " if number.isdecimal() else "") + titles(source) in named
    text = "\n".join(page.extract_text() for page in printed.pages)
    proofs = sum(source.read_text("utf-8").count("} Proof of") for source in notebooks.chapters(ROOT))
    assert len(re.findall(r"Proof of (?:Theorem|Proposition|Corollary|Lemma)", text)) >= proofs > 0
    assert "Click to show" not in text


def test_what_cells_put_out_is_on_paper_whatever_is_folded() -> None:
    names = pdf.pages()
    for name in names:
        page = BeautifulSoup((pdf.BOOK / f"{name}.html").read_text("utf-8"), "html.parser")
        printed = pdf.article(name, set(names))
        assert len(printed.select(".cell_output")) == len(page.select(".cell_output")), name


def test_links_lead_to_pages_of_the_same_file(printed: PdfReader) -> None:
    targets = [
        annotation.get_object()
        for page in printed.pages
        for annotation in page.get("/Annots", [])
        if annotation.get_object().get("/Subtype") == "/Link"
    ]
    addresses = [str(t["/A"]["/URI"]) for t in targets if "/A" in t and "/URI" in t["/A"]]
    assert any("/Dest" in t or "/D" in t.get("/A", {}) for t in targets)
    assert not [address for address in addresses if address.startswith("file:")]
