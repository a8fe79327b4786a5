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

ROOT = Path(__file__).resolve().parent.parent

#: Environment of a chapter that shares the cores with others: its matrices are small.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

#: What of a notebook's metadata is kept, as in pyproject.toml.
KEPT_METADATA = ("accelerator", "colab", "execution", "jupytext", "kernelspec")

#: First line of the set-up cell, by which it is recognised.
MARK = "# Set-up: find the book's package, nclib. Nothing is installed or upgraded."

_SETUP = """\
{mark}
import subprocess
import sys
from pathlib import Path

REPOSITORY = "{url}"  # `make sync` copies repository.url of _config.yml to here

try:
    import nclib as nc
except ModuleNotFoundError as missing:
    if missing.name != "nclib":
        raise
    if not REPOSITORY:
        raise ModuleNotFoundError(
            "nclib is not here, and this notebook does not know the book's repository. Either set "
            "repository.url in _config.yml and run `make sync`, or use the self-contained notebook "
            "that the book's page offers for download."
        ) from None
    folder = Path(REPOSITORY).stem
    if not Path(folder, "nclib").is_dir():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, folder], check=True)
    sys.path.insert(0, folder)
    import nclib as nc
"""

_SETUP_OPTIONS = """\
mystnb:
  code_prompt_show: Show the set-up
  code_prompt_hide: Hide the set-up
tags: [hide-input]
"""

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
    """Code of the set-up cell for a repository at `url` (empty: not published yet)."""
    return _SETUP.format(mark=MARK, url=url).rstrip("\n")


def with_setup(text: str, url: str) -> str:
    """A chapter's source with today's set-up cell as its first code cell."""
    cell = f"```{{code-cell}} ipython3\n---\n{_SETUP_OPTIONS}---\n{setup_source(url)}\n```"
    first = _FIRST_CODE_CELL.search(text)
    if first is None:
        return f"{text.rstrip()}\n\n{cell}\n"
    if MARK in first[0]:
        return text[: first.start()] + cell + text[first.end() :]
    return text[: first.start()] + cell + "\n\n" + text[first.start() :]


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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
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
