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
def test_set_up_is_the_first_code_cell(source: Path) -> None:
    cells = notebooks.notebook(source.read_text("utf-8")).cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert first.source == notebooks.setup_source(notebooks.config()["repository"]["url"])
    assert "hide-input" in first.metadata.tags
    assert sum(notebooks.MARK in cell.source for cell in cells) == 1


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
        assert f'REPOSITORY = "{address}"' in source.read_text("utf-8")
        assert address in source.with_suffix(".ipynb").read_text("utf-8")


def test_set_up_goes_first_where_a_chapter_has_none() -> None:
    text = "# A chapter\n\n```{code-cell} ipython3\nprint(1)\n```\n"
    cells = notebooks.notebook(notebooks.with_setup(text, "")).cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code", "code"]
    assert cells[1].source.startswith(notebooks.MARK)
    bare = notebooks.notebook(notebooks.with_setup("# Only text\n", "")).cells
    assert bare[-1].source.startswith(notebooks.MARK)


def test_cell_ids_survive_an_insertion() -> None:
    cell = "```{code-cell} ipython3\nprint(%d)\n```\n\n"
    before = [c.id for c in notebooks.notebook(cell % 1 + cell % 2 + cell % 2).cells]
    after = [c.id for c in notebooks.notebook(cell % 1 + cell % 3 + cell % 2 + cell % 2).cells]
    assert len(set(after)) == 4
    assert [name for name in after if name in before] == before


def test_an_older_set_up_cell_is_replaced() -> None:
    old = notebooks.with_setup("# A chapter\n", "").replace("import sys\n", "import sys  # as it was\n")
    assert notebooks.with_setup(old, "") == notebooks.with_setup("# A chapter\n", "")
