"""Self-contained notebooks in ``_build/colab``: ``python -m bookkit.colab``.

Each is a chapter in plain Markdown that carries the package inside, needs nothing else and runs anywhere.
"""

from __future__ import annotations

import base64
import io
import sys
import zipfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from . import myst, notebooks, provenance

_CARRIER = '''\
# @title Set-up: unpack the package `nclib`, which this notebook carries {{ display-mode: "form" }}
# Nothing is installed, upgraded or downloaded.
import base64
import io
import sys
import tempfile
import zipfile

PACKAGE = """
{package}
"""

if "nclib" not in sys.modules:
    unpacked = tempfile.mkdtemp(prefix="nclib-")
    zipfile.ZipFile(io.BytesIO(base64.b64decode(PACKAGE))).extractall(unpacked)
    sys.path.insert(0, unpacked)
'''

#: Text of a zip's every entry is dated so: the archive depends on the package alone.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def package(root: Path) -> str:
    """The package and the stored results as a zip in base64, the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        files = [p for p in (root / "nclib").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        tables = [path for kind in ("csv", "json") for path in (root / "results").glob(f"*.{kind}")]
        files += [path for path in tables if not path.name.startswith(provenance.NO_INPUT)]
        for path in sorted(files):
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return "\n".join(encoded[i : i + 120] for i in range(0, len(encoded), 120))


def self_contained(chapter: Path, labels: myst.Labels, carried: str) -> NotebookNode:
    """The notebook of `chapter` in plain Markdown, with the package in a cell before its first code."""
    made = notebooks.notebook(notebooks.with_setup(chapter.read_text("utf-8"), url=""))
    labels.cited.clear()
    form = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    carrier = nbformat.v4.new_code_cell(_CARRIER.format(package=carried).rstrip("\n"), metadata=form)
    made.cells.insert([cell.cell_type for cell in made.cells].index("code"), carrier)
    cells = []
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = myst.plain(cell.source, labels, chapter.parent)
            if cell.source:
                cells.append(cell)
            continue
        cells.append(cell)
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if figure.get("caption"):
            cells.append(nbformat.v4.new_markdown_cell(myst.caption(figure, labels)))
    if labels.cited:
        cells.append(nbformat.v4.new_markdown_cell(f"## References\n\n{myst.references(labels)}"))
    made.cells = cells
    seen: set[str] = set()
    for cell in made.cells:
        cell["id"] = notebooks.cell_id(cell, seen)
    made.metadata["colab"] = {"provenance": [], "toc_visible": True}
    return made


def write(root: Path, target: Path) -> list[Path]:
    """Write every chapter's self-contained notebook into `target`; return those that changed."""
    sources = notebooks.chapters(root)
    read = [(path, notebooks.notebook(path.read_text("utf-8"))) for path in sources]
    labels = myst.collect(read, root / "references.bib")
    carried = package(root)
    changed = []
    for source in sources:
        path = target / source.with_suffix(".ipynb").name
        if notebooks.write_if_changed(path, notebooks.as_text(self_contained(source, labels, carried))):
            changed.append(path)
    for path in set(target.glob("*.ipynb")) - {target / p.with_suffix(".ipynb").name for p in sources}:
        path.unlink()  # of a chapter that is gone
    return changed


if __name__ == "__main__":
    written = write(notebooks.ROOT, notebooks.ROOT / "_build" / "colab")
    sys.exit(notebooks.report(written, len(notebooks.chapters())))
