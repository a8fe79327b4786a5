"""Chapters as notebooks: ``python -m bookkit.notebooks sync``.

``chapters/NN_name.md`` is the truth.  From it comes ``chapters/NN_name.ipynb``, without outputs and byte for byte
the same every time.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

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
    content, turn = f"{cell.cell_type}\n{cell.source}", 0
    while True:
        name = hashlib.sha256(f"{turn}\n{content}".encode()).hexdigest()[:12]
        if name not in seen:
            seen.add(name)
            return name
        turn += 1


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


def main(arguments: list[str]) -> int:
    """Run ``sync``."""
    if arguments != ["sync"]:
        print("usage: python -m bookkit.notebooks sync", file=sys.stderr)
        return 2
    return report(sync(), 2 * len(chapters()))


def report(changed: list[Path], total: int) -> int:
    """Say on the command line which of so many files were written."""
    for path in changed:
        print(f"wrote {path.relative_to(ROOT)}")
    print(f"{len(changed)} written, {total - len(changed)} already right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
