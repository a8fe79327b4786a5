"""Chapters as notebooks: ``python -m bookkit.notebooks sync``.

``chapters/NN_name.md`` is the truth.  From it comes ``chapters/NN_name.ipynb``, without outputs and byte for byte
the same every time.  A notebook that somebody has edited is not written over.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode

from nclib import files

ROOT = Path(__file__).resolve().parent.parent

#: Environment of a chapter that shares the cores with others: its matrices are small.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

#: What of a notebook's metadata is kept, as in pyproject.toml.
KEPT_METADATA = ("accelerator", "colab", "execution", "jupytext", "kernelspec")

#: Letters of a cell's id.
ID = 12

#: First line of the set-up cell, by which it is recognised.
MARK = "# Set-up: find the book's package, nclib. Nothing is installed or upgraded."

_SETUP = """\
{mark}
import sys
from importlib.util import find_spec

if not find_spec("nclib"):
    !test -d {folder} || git clone --quiet --depth 1 {url} {folder}
    sys.path.insert(0, "{folder}")"""

_FIRST_CODE_CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.MULTILINE | re.DOTALL)


def config(root: Path = ROOT) -> dict[str, Any]:
    """The book's ``_config.yml``."""
    loaded: dict[str, Any] = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    return loaded


def chapters(root: Path = ROOT) -> list[Path]:
    """The chapters' sources, in the order of ``_toc.yml``."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [root / f"{name}.md" for name in files if name.startswith("chapters/")]


def setup_source(url: str) -> str:
    """Code that makes ``import nclib`` work in Colab, for a repository at `url`."""
    return _SETUP.format(mark=MARK, url=url, folder=Path(url).stem)


def with_setup(text: str, url: str) -> str:
    """A chapter's source with today's set-up cell before its first code cell; with none while there is no `url`."""
    first = _FIRST_CODE_CELL.search(text)
    if first and MARK in first[0]:
        text = text[: first.start()] + text[first.end() :].lstrip("\n")
        first = _FIRST_CODE_CELL.search(text)
    if not url or not first:
        return text
    cell = f"```{{code-cell}} ipython3\n:tags: [hide-input]\n\n{setup_source(url)}\n```\n\n"
    return text[: first.start()] + cell + text[first.start() :]


def notebook(text: str) -> NotebookNode:
    """The notebook of a chapter's source: no outputs, and cell ids that depend on the cells alone."""
    made = jupytext.reads(text, fmt="md:myst")
    made.metadata = nbformat.from_dict({k: v for k, v in made.metadata.items() if k in KEPT_METADATA})
    seen: set[str] = set()
    for cell in made.cells:
        cell["id"] = cell_id(cell, seen)
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def cell_id(cell: NotebookNode, seen: set[str]) -> str:
    """Hash of the cell's content, told apart from equal cells before it."""
    name = next(name for name in _names(cell) if name not in seen)
    seen.add(name)
    return name


def _names(cell: NotebookNode) -> Iterator[str]:
    """Ids that a cell with this content may bear, the first of equal cells, the second, and so on."""
    for turn in itertools.count():
        yield hashlib.sha256(f"{turn}\n{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:ID]


def as_text(made: NotebookNode) -> str:
    """The bytes of a notebook's file."""
    nbformat.validate(made)
    return nbformat.writes(made, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def write_if_changed(path: Path, text: str) -> bool:
    """Write `text` to `path` unless it says so already, so that file times mean something."""
    if path.exists() and path.read_text("utf-8") == text:
        return False
    files.write(path, text)
    return True


def sync(root: Path = ROOT) -> list[Path]:
    """Bring every chapter's set-up cell and notebook up to date; return the files that changed."""
    url = config(root)["repository"]["url"]
    changed = []
    for source in chapters(root):
        text = with_setup(source.read_text("utf-8"), url)
        pair = source.with_suffix(".ipynb")
        changed += [path for path, new in ((source, text), (pair, as_text(notebook(text))))
                    if write_if_changed(path, new)]  # fmt: skip
    return changed


def edited(source: Path) -> Literal["", "notebook", "both"]:
    """Whether somebody has worked on a chapter's notebook since it was made, and perhaps on the `source` too.

    Outputs, empty cells and what Jupyter writes into metadata do not count.  A cell was edited where the source has
    none like it and its id, the hash of what `sync` put there, is of other content.  Where cells are only gone,
    moved or tagged otherwise, it depends on which of the two files is the younger.
    """
    pair, made = source.with_suffix(".ipynb"), notebook(source.read_text("utf-8")).cells
    try:
        cells = [cell for cell in nbformat.read(pair, as_version=4).cells if cell.source.strip()]
    except (FileNotFoundError, ValueError):  # none, or none that can be read, as git leaves it in a conflict
        return ""
    known, ids = {_words(cell) for cell in made}, {cell.id for cell in made}
    others = [cell for cell in cells if _words(cell) not in known]
    if any(cell.get("id") not in itertools.islice(_names(cell), len(cells)) for cell in others):
        # An edited cell still bears the id under which the source has it, unless that has changed as well.
        return (
            "both" if any(len(cell.get("id", "")) == ID and cell.id not in ids for cell in others) else "notebook"
        )
    differs = [*map(_content, cells)] != [*map(_content, made)]
    younger = pair.stat().st_mtime_ns > source.stat().st_mtime_ns
    return "notebook" if differs and younger and not others else ""


def _words(cell: NotebookNode) -> tuple[str, str]:
    """What is written in a cell, but for blanks that end a line."""
    return cell.cell_type, "\n".join(line.rstrip() for line in cell.source.strip().splitlines())


def _content(cell: NotebookNode) -> tuple[Any, ...]:
    """All of a cell that its source holds."""
    return *_words(cell), cell.metadata.get("tags", []), cell.metadata.get("mystnb", {})


def refusal(root: Path) -> str:
    """Which notebooks somebody has edited, and the commands that keep an edit or drop it; empty if none."""
    python = Path(sys.executable)
    program = shlex.quote(str(python.relative_to(root) if python.is_relative_to(root) else python))
    told = []
    for source in chapters(root):
        if changed := edited(source):
            name, pair = (shlex.quote(str(p.relative_to(root))) for p in (source, source.with_suffix(".ipynb")))
            write = f"{program} -m jupytext --quiet --to md:myst"
            told.append(
                f"{pair} was edited, but the book is made from {name}; nothing was written.\n"
                f"Make again when you have\n"
                f"  kept the edit:  {write} {pair}\n"
                f"  or dropped it:  rm {pair}"
            )
            if changed == "both":
                told.append(
                    f"  {name} was edited too, and to keep the one edit would drop the other. First compare them:\n"
                    f"                  {write} --output - {pair} | diff {name} -"
                )
    return "\n".join(told)


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Run ``sync``, unless it would write over an edit."""
    if arguments != ["sync"]:
        print("usage: python -m bookkit.notebooks sync", file=sys.stderr)
        return 2
    if told := refusal(root):
        print(told, file=sys.stderr)
        return 1
    return report(sync(root), 2 * len(chapters(root)), root)


def report(changed: list[Path], total: int, root: Path = ROOT) -> int:
    """Say on the command line which of so many files were written."""
    for path in changed:
        print(f"wrote {path.relative_to(root)}")
    print(f"{len(changed)} written, {total - len(changed)} already right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
