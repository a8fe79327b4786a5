"""What the book knows of its theorems and claims, read from the executed chapters while Sphinx reads them.

Everything lies in Sphinx's environment under the page it came from, is thrown away with that page, and is
gathered anew whenever the page is read again: a verdict can't outlive the output that it stands beside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.environment import BuildEnvironment

from nclib import files
from nclib.book.claims import MIME, Record, criterion, number

#: What on stderr is a defect of the book: a traceback, as a thread leaves one; a warning that points to a cell or
#: to `nclib`; one about numbers, wherever it points.  The rest (a driver that is too old, a home folder that can't
#: be written to) is the machine's.
DEFECT = re.compile(
    r"^(?:Traceback \(most recent call last\)|.*:\d+: (?:Runtime|Convergence|LinAlg|Integration|Optimize)Warning: |"
    r".*(?:\bipykernel_\d+|\bnclib)[/\\](?!.*site-packages).*:\d+: \w+: ).*",
    re.MULTILINE,
)

#: Statements that must be checked by at least one claim.
MUST_BE_CHECKED = ("theorem", "proposition", "corollary")


@dataclass
class Theorem:
    """A labelled statement of the book."""

    label: str
    kind: str  # theorem, lemma, definition, …
    counter: str
    title: list[nodes.Node]  # may hold mathematics
    line: int | None


@dataclass
class Page:
    """What one page of the book contributes."""

    theorems: dict[str, Theorem] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    made_on: list[str] = field(default_factory=list)  # on what, as `nclib.chapter` said: scale, device, versions
    commit: str = ""  # that made its outputs
    defects: list[str] = field(default_factory=list)  # of its outputs, in words
    title: str = ""
    is_notebook: bool = False
    shows: set[str] = field(default_factory=set)  # what stands on it: theorem-map, verdict thm-name, …


@dataclass
class Ledger:
    """The whole book's, kept in the environment."""

    fingerprint: str = ""
    built: float = 0.0
    pages: dict[str, Page] = field(default_factory=dict)

    def where(self) -> dict[str, str]:
        """The page of each theorem."""
        return {label: name for name, page in self.pages.items() for label in page.theorems}

    def records(self) -> Iterator[tuple[str, Record]]:
        """Every claim with its page."""
        for name, page in self.pages.items():
            for record in page.records:
                yield name, record

    def of(self, label: str) -> list[Record]:
        """The claims that check one theorem."""
        return [record for _, record in self.records() if record["theorem"] == label]


def share(tolerance: str, deviation: float | None) -> float | None:
    """Which part of its tolerance a claim used; None where it has no tolerance but a limit."""
    kind, _, limit = tolerance.partition(" ")
    if kind not in ("rtol", "atol") or not float(limit) or deviation is None:
        return None
    return deviation / float(limit)


def ledger(env: BuildEnvironment) -> Ledger:
    """The ledger in `env`, made when there is none."""
    if not hasattr(env, "executable_book"):
        env.executable_book = Ledger()
    found: Ledger = env.executable_book
    return found


def is_theorem(node: nodes.Node) -> bool:
    """Whether a node is a statement that sphinx-proof made and that bears a label."""
    return isinstance(node, nodes.Element) and bool(node.get("realtype") and node.get("label"))


def read_page(doctree: nodes.document, notebook: nbformat.NotebookNode | None) -> Page:
    """Theorems from the page's tree, claims from the outputs of its executed notebook (when it is one)."""
    page = Page(is_notebook=notebook is not None)
    for node in doctree.findall(is_theorem):
        title = [child.deepcopy() for child in node[0].children]
        page.theorems[node["label"]] = Theorem(
            node["label"], node["realtype"], node["countertype"], title, node.line
        )
    if notebook is not None:
        page.records = read_records(notebook)
        page.made_on = read_facts(notebook)
        page.defects = read_defects(notebook)
    heading = next(iter(doctree.findall(nodes.title)), None)
    page.title = heading.astext() if heading else ""
    return page


def outputs(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    """What a notebook's cells put out, in order."""
    return (output for cell in notebook.cells for output in cell.get("outputs", []))


def read_records(notebook: nbformat.NotebookNode) -> list[Record]:
    """The claims among a notebook's outputs, in order."""
    return [dict(output["data"][MIME]) for output in outputs(notebook) if MIME in output.get("data", {})]


def read_facts(notebook: nbformat.NotebookNode) -> list[str]:
    """What `nclib.chapter` put out: on what, from which seed and with which versions the notebook ran."""
    for data in (output.get("data", {}) for output in outputs(notebook)):
        if 'class="nc-facts"' in data.get("text/html", ""):
            return str(data["text/plain"]).split(" · ")
    return []


def read_stderr(notebook: nbformat.NotebookNode) -> str:
    """What a notebook's cells wrote to stderr."""
    return "".join(output["text"] for output in outputs(notebook) if output.get("name") == "stderr")


def read_defects(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with the outputs: `DEFECT` on stderr, and figures that a cell was to draw and did not."""
    found = [f"a cell writes to stderr: {match[0]}" for match in DEFECT.finditer(read_stderr(notebook))]
    for cell in notebook.cells:
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure and not any(str(kind).startswith("image/") for o in cell.outputs for kind in o.get("data", {})):
            found.append(f"no figure '{figure.get('name', '')}' came out of its cell")
    return found


def problems(book: Ledger, ran: set[str]) -> Iterator[tuple[str, int | None, str]]:
    """What is wrong between theorems and claims: page, line and message.

    A page that did not run to its end (not in `ran`) is not blamed for what is missing.
    """
    where = book.where()
    for name, page in book.pages.items():
        for defect in page.defects if name in ran else ():
            yield name, None, defect
        for theorem in page.theorems.values():
            if name in ran and theorem.kind in MUST_BE_CHECKED and not book.of(theorem.label):
                yield name, theorem.line, f"no claim checks {theorem.kind} '{theorem.label}'"
        for record in page.records:
            if record["theorem"] not in where:
                yield name, None, f"a claim names '{record['theorem']}', which is no theorem of the book"
            if record["chapter"] != name.rpartition("/")[2]:
                yield (
                    name,
                    None,
                    f"a claim was made in chapter '{record['chapter']}': "
                    f'begin with nc.chapter("{name.rpartition("/")[2]}")',
                )
            if not record["passed"]:
                text = f"a claim on '{record['theorem']}' fails: {record['statement']}"
                yield name, None, f"{text} ({criterion(record)}, measured {number(record['measured'])})"


def write(book: Ledger, folder: Path) -> None:
    """Write each page's records to ``<folder>/<chapter>.json``, and remove those of pages that are gone."""
    kept = set()
    for name, page in book.pages.items():
        if page.records:
            path = folder / f"{name.rpartition('/')[2]}.json"
            files.write(path, json.dumps(page.records, indent=1, ensure_ascii=False))
            kept.add(path)
    for path in set(folder.glob("*.json")) - kept:
        path.unlink()
