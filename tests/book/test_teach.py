"""The page for teachers: what it gathers is what the chapters say."""

from __future__ import annotations

import re

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from test_book import BOOK

from bookkit import notebooks, page_parts, teach

LECTURES = [path for path in notebooks.chapters(ROOT) if re.match(r"\d", path.stem)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Chapter 2: the resting norm", {2}),
        ("Chapters 1 and 2, and from Chapter 12 the end", {1, 2, 12}),
        ("Chapters 1 to 3, 6, 7 and 12", {1, 2, 3, 6, 7, 12}),
        ("Chapters 12 to 14: what training leaves", {12, 13, 14}),
        ("this chapter, and 3 seeds", set()),
    ],
)
def test_chapters_are_found_in_words(text: str, numbers: set[int]) -> None:
    assert page_parts.chapter_numbers(text) == numbers


def test_arrows_that_follow_from_others_go() -> None:
    graph = {"a": set[str](), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c"}, "e": {"b", "c"}}
    assert teach.reduced(graph) == {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"c"}, "e": {"c"}}


@pytest.fixture(scope="module")
def page() -> BeautifulSoup:
    file = BOOK / "reference" / "teach.html"
    if not file.exists():
        pytest.skip("the book is not built")
    return BeautifulSoup(file.read_text("utf-8"), "html.parser")


def test_every_chapter_has_a_box_an_entry_and_a_notebook(page: BeautifulSoup) -> None:
    names = [f"../chapters/{path.stem}.html" for path in LECTURES]
    assert [str(box["href"]) for box in page.select(".nc-lecture-map a")] == names
    entries = page.select(".nc-lecture")
    assert [str(entry.select("h3 a")[0]["href"]) for entry in entries] == names
    for entry, path in zip(entries, LECTURES, strict=True):
        assert entry.select_one(f'a[href="../colab/{path.stem}.ipynb"][download]')
        assert (BOOK / "colab" / f"{path.stem}.ipynb").exists()
        assert [term.text for term in entry.select("dt")] == [teach.GIVE, teach.NEED]
        assert all(len(told.text) > 10 for told in entry.select("dd"))
        assert "{" not in entry.text  # no role is left as it was written


def test_no_chapter_needs_a_later_one_but_the_first_is_needed(page: BeautifulSoup) -> None:
    boxes = {str(box["href"]): float(box.rect["y"]) for box in page.select(".nc-lecture-map a") if box.rect}
    assert len(set(boxes.values())) > 2
    assert min(boxes, key=lambda name: boxes[name]).endswith("01_setting_the_stage.html")
    assert len(page.select(".nc-lecture-map path")) >= len(LECTURES) - 1  # all but the first need some other


def test_every_exercise_is_listed_by_its_stars(page: BeautifulSoup) -> None:
    written = {}
    for path in LECTURES:
        for title, label in re.findall(r"\{exercise\} (.*)\n:label: (\S+)", path.read_text("utf-8")):
            written[f"../chapters/{path.stem}.html#{label}"] = title.count("★")
    listed = {}
    for head, items in zip(page.select("p:has(+ ul.nc-columns)"), page.select("ul.nc-columns"), strict=True):
        listed |= {str(link["href"]): head.text.count("★") for link in items.select("a")}
    assert listed == written
    assert len(listed) > 20
