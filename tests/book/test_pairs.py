"""Chapters and their notebooks: the .md is the truth, the .ipynb follows from it byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import ROOT
from jupytext.compare import compare_notebooks

from bookkit import notebooks

CHAPTERS = notebooks.chapters(ROOT)
each_chapter = pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)


def test_every_notebook_and_chapter_is_in_the_book() -> None:
    assert sorted((ROOT / "chapters").glob("*.md")) == sorted(CHAPTERS)
    assert sorted((ROOT / "chapters").glob("*.ipynb")) == sorted(p.with_suffix(".ipynb") for p in CHAPTERS)


@each_chapter
def test_notebook_says_what_its_chapter_says(source: Path) -> None:
    pair = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    compare_notebooks(pair, jupytext.read(source), fmt="md:myst")


@each_chapter
def test_notebook_holds_no_outputs(source: Path) -> None:
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@each_chapter
def test_sync_would_change_nothing(source: Path) -> None:
    text = source.read_text("utf-8")
    assert text == notebooks.with_setup(text, notebooks.config()["repository"]["url"])
    made = notebooks.as_text(notebooks.notebook(text))
    assert made == notebooks.as_text(notebooks.notebook(text))
    assert made == source.with_suffix(".ipynb").read_text("utf-8")


@each_chapter
def test_the_first_code_cell_imports_the_package_and_opens_the_chapter(source: Path) -> None:
    code = [c.source for c in notebooks.notebook(source.read_text("utf-8")).cells if c.cell_type == "code"]
    if notebooks.config()["repository"]["url"]:
        assert code.pop(0) == notebooks.setup_source(notebooks.config()["repository"]["url"])
    lines = code[0].splitlines()
    assert "import nclib as nc  # comes with the book's repository and its notebooks for download" in lines
    assert f'nc.chapter("{source.stem}")' in lines
    assert sum("import nclib" in cell for cell in code) == 1
    assert not any(notebooks.MARK in cell for cell in code)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of what sync reads and writes."""
    shutil.copytree(ROOT / "chapters", tmp_path / "chapters")
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_sync_is_idempotent(copied: Path) -> None:
    for path in (copied / "chapters").glob("*.ipynb"):
        path.unlink()
    assert len(notebooks.sync(copied)) == len(CHAPTERS)
    assert notebooks.sync(copied) == []
    for source in CHAPTERS:
        pair = source.with_suffix(".ipynb")
        assert (copied / "chapters" / pair.name).read_text("utf-8") == pair.read_text("utf-8")


def test_repository_address_reaches_every_set_up_cell(copied: Path) -> None:
    config = (copied / "_config.yml").read_text("utf-8")
    address = "https://host.invalid/somebody/small-norm.git"
    url = notebooks.config(copied)["repository"]["url"]
    (copied / "_config.yml").write_text(config.replace(f'url: "{url}"', f'url: "{address}"'), "utf-8")
    notebooks.sync(copied)
    for source in notebooks.chapters(copied):
        pair = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
        first = next(cell for cell in pair.cells if cell.cell_type == "code")
        assert first.source == notebooks.setup_source(address)
        assert f"git clone --quiet --depth 1 {address} small-norm" in first.source
        assert first.metadata.tags == ["hide-input"]
    # Without an address again, the chapters are what they were.
    (copied / "_config.yml").write_text(config, "utf-8")
    notebooks.sync(copied)
    for source in CHAPTERS:
        assert (copied / "chapters" / source.name).read_text("utf-8") == source.read_text("utf-8")


def test_set_up_goes_before_the_first_code_and_takes_the_place_of_an_older_one() -> None:
    text = "# A chapter\n\n```{code-cell} ipython3\nprint(1)\n```\n"
    made = notebooks.with_setup(text, "https://host.invalid/a/book.git")
    assert [cell.cell_type for cell in notebooks.notebook(made).cells] == ["markdown", "code", "code"]
    assert notebooks.notebook(made).cells[1].source == notebooks.setup_source("https://host.invalid/a/book.git")
    assert notebooks.with_setup(made, "https://host.invalid/b/book.git") == made.replace("/a/", "/b/")
    assert notebooks.with_setup(made.replace("import sys\n", "import sys  # as it was\n"), "") == text
    assert notebooks.with_setup("# Only text\n", "https://host.invalid/a/book.git") == "# Only text\n"


def test_cell_ids_survive_an_insertion() -> None:
    cell = "```{code-cell} ipython3\nprint(%d)\n```\n\n"
    before = [c.id for c in notebooks.notebook(cell % 1 + cell % 2 + cell % 2).cells]
    after = [c.id for c in notebooks.notebook(cell % 1 + cell % 3 + cell % 2 + cell % 2).cells]
    assert len(set(after)) == 4
    assert [name for name in after if name in before] == before
