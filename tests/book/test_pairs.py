"""Chapters and their notebooks: the .md is the truth, the .ipynb follows from it byte for byte."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from conftest import ROOT, python
from jupytext.compare import compare_notebooks
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output

from bookkit import base_seeds, notebooks

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
    for name in ("_config.yml", "_toc.yml", "pyproject.toml"):
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


def test_a_checkout_with_the_line_ends_of_windows_is_in_order(copied: Path) -> None:
    for path in (copied / "chapters").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert notebooks.sync(copied) == []
    source = CHAPTERS[0]
    assert base_seeds.code_hash(copied / "chapters" / source.name) == base_seeds.code_hash(source)


@pytest.fixture
def chapter(copied: Path) -> Path:
    """The source of the only chapter, in step with its notebook."""
    toc = {"parts": [{"chapters": [{"file": f"chapters/{CHAPTERS[0].stem}"}]}]}
    (copied / "_toc.yml").write_text(yaml.safe_dump(toc), "utf-8")
    return copied / "chapters" / CHAPTERS[0].name


def sync(chapter: Path) -> int:
    """What the command does in its folder."""
    return notebooks.main(["sync"], chapter.parent.parent)


def work(chapter: Path, change: Callable[[list[NotebookNode]], object]) -> NotebookNode:
    """Change the cells of a chapter's notebook and save it as Jupyter does."""
    pair = chapter.with_suffix(".ipynb")
    opened = nbformat.read(pair, as_version=4)
    change(opened.cells)
    opened.metadata["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    opened.metadata["language_info"] = {"name": "python", "version": "3.12"}
    nbformat.write(opened, pair)
    os.utime(pair, (time.time() + 5,) * 2)
    return opened


def add_text(cells: list[NotebookNode]) -> None:
    """Edit the first cell."""
    cells[0]["source"] += "\n\nMy own words.\n"


def run_all(cells: list[NotebookNode]) -> None:
    """What Jupyter leaves where a notebook was run and looked at."""
    code = next(cell for cell in cells if cell.cell_type == "code")
    code["outputs"], code["execution_count"] = [new_output("stream", text="1\n")], 3
    code.metadata["scrolled"] = True
    cells.append(new_code_cell())


EDITS: list[Callable[[list[NotebookNode]], object]] = [
    add_text,
    lambda cells: cells.append(new_code_cell("1 + 1")),
    lambda cells: cells.pop(),
    lambda cells: cells.append(cells.pop(1)),
    lambda cells: cells[-1].metadata.update(tags=["mine"]),
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_notebook_is_not_written_over_and_can_be_kept(
    chapter: Path, edit: Callable[[list[NotebookNode]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    before, opened = chapter.read_bytes(), work(chapter, edit)
    pair = chapter.with_suffix(".ipynb")
    saved = pair.read_bytes()
    assert sync(chapter) == 1
    assert (pair.read_bytes(), chapter.read_bytes()) == (saved, before)
    told = capsys.readouterr().err
    assert told.startswith(f"chapters/{pair.name} was edited, but the book is made from chapters/{chapter.name}; ")
    assert f"or dropped it:  rm chapters/{pair.name}" in told
    assert "first" not in told.lower()
    keep = re.search(r"kept the edit: +\S+ (.*)", told)
    assert keep
    done = python(*keep[1].split(), cwd=chapter.parent.parent)
    assert done.returncode == 0, done.stdout
    os.utime(chapter)
    assert sync(chapter) == 0
    kept = nbformat.read(pair, as_version=4).cells
    assert [cell.source for cell in kept] == [cell.source.rstrip("\n") for cell in opened.cells]


def test_an_edit_of_both_is_not_written_over_either(chapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work(chapter, add_text)
    text = chapter.read_text("utf-8")
    title = next(line for line in text.splitlines() if line.startswith("# "))
    chapter.write_text(text.replace(title, f"{title}, again"), "utf-8")
    assert sync(chapter) == 1
    assert f"chapters/{chapter.name} was edited too, and to keep the one edit would drop" in capsys.readouterr().err


@pytest.mark.parametrize("look", [run_all, lambda cells: cells])
def test_a_notebook_that_was_only_run_is_made_anew(
    chapter: Path, look: Callable[[list[NotebookNode]], object]
) -> None:
    before = chapter.with_suffix(".ipynb").read_bytes()
    work(chapter, look)
    assert sync(chapter) == 0
    assert chapter.with_suffix(".ipynb").read_bytes() == before


@pytest.mark.parametrize("change", ["words", "a cell more", "a cell less"])
def test_an_edited_source_makes_its_notebook_anew(chapter: Path, change: str) -> None:
    text = chapter.read_text("utf-8")
    cell = re.search(r"^```\{code-cell\}.*?^```\n", text, re.MULTILINE | re.DOTALL)
    assert cell
    chapter.write_text({
        "words": text + "\nMore words.\n",
        "a cell more": text + "\n```{code-cell} ipython3\n1 + 1\n```\n",
        "a cell less": text.replace(cell[0], ""),
    }[change], "utf-8")  # fmt: skip
    assert sync(chapter) == 0
    assert notebooks.sync(chapter.parent.parent) == []


def test_a_notebook_in_conflict_is_made_anew(chapter: Path) -> None:
    pair = chapter.with_suffix(".ipynb")
    pair.write_text("<<<<<<< HEAD\n" + pair.read_text("utf-8"), "utf-8")
    assert sync(chapter) == 0
    assert notebooks.edited(chapter) == ""


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
