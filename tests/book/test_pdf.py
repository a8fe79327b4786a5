"""The book as one PDF."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, missing
from pypdf import PdfReader

from bookkit import notebooks, pdf

pytestmark = pytest.mark.usefixtures("built_book")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> PdfReader:
    if pdf.chromium() is None:
        missing("there is no Chromium on this machine")
    with ThreadPoolExecutor(1) as elsewhere:  # this thread's browser is that of the other tests
        return PdfReader(elsewhere.submit(pdf.write, tmp_path_factory.mktemp("pdf") / "book.pdf").result())


def titles(source: Path) -> str:
    return next(line for line in source.read_text("utf-8").splitlines() if line.startswith("# ")).removeprefix("# ")


def test_every_chapter_is_in_the_outline_and_proofs_are_unfolded(printed: PdfReader) -> None:
    named = [" ".join(str(entry.title).split()) for entry in printed.outline if not isinstance(entry, list)]
    for number, source in enumerate(notebooks.chapters(ROOT), start=1):
        assert f"{number}. {titles(source)}" in named
    text = "\n".join(page.extract_text() for page in printed.pages)
    proofs = sum(source.read_text("utf-8").count("} Proof of") for source in notebooks.chapters(ROOT))
    assert len(re.findall(r"Proof of (?:Theorem|Proposition|Corollary|Lemma)", text)) >= proofs > 0
    assert "Click to show" not in text


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
