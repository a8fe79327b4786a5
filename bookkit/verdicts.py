"""Verdicts on the book's pages: claims gathered from the executed chapters, map, and page facts.

- ``{verdict}`` tells a theorem's claims, ``{theorem-map}`` shows every theorem with its verdict; both are filled
  after all pages are read, from the executed notebooks' own outputs.
- A theorem without a claim, a claim without a theorem, a claim that fails and a warning of the book's own code are
  warnings (errors under ``-W``); a chapter that fails makes the build exit non-zero even without ``-W``.
- Every chapter says how to run it and how it was made, and offers its self-contained notebook.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from . import execution, how_often, ledger, page_parts, provenance, teach

LOGGER = logging.getLogger(__name__)


class Placeholder(nodes.General, nodes.Element):
    """Stands for verdicts or the map until every page has been read."""


class Gathered(SphinxDirective):
    """``{theorem-map}`` and the like: what is gathered from all pages, as `MAKERS` makes it."""

    def run(self) -> list[nodes.Node]:
        return [Placeholder(shows=self.name)]


class Verdict(SphinxDirective):
    """``{verdict} thm-name``: a theorem's name, linked, its assumptions (the content), and its claims."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        label = self.arguments[0]
        return [Placeholder(shows=f"verdict {label}", label=label, assumes=" ".join(self.content))]


class FromChapter(SphinxDirective):
    """``{from-chapter} fig-name``: a figure of a chapter, shown here too, with a link to its place."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [Placeholder(shows="from-chapter", label=self.arguments[0])]


#: What each directive shows.
MAKERS = {
    "find-claims": page_parts.find_claims,  # the book's numbers in a line, and a form to search its verdicts
    "theorem-map": page_parts.theorem_map,  # every theorem of the book with its verdict
    "how-often": how_often.how_often,  # from how many base seeds each claim held, when `make seeds` last ran
    "lecture-map": teach.lecture_map,  # which chapter needs which
    "lectures": teach.lectures,  # what each chapter needs and gives
    "exercises": teach.exercises,  # all of them, the easiest first
}


def outdated(app: Sphinx, env: BuildEnvironment, *_: set[str]) -> list[str]:
    """Pages to read again: all of them when the foundations changed, else those that failed last time."""
    book, today = ledger.ledger(env), provenance.fingerprint(Path(app.srcdir))
    if book.fingerprint != today:
        book.fingerprint = today
        return sorted(env.found_docs)
    return [name for name in env.found_docs if not execution.succeeded(env, name)]


# --- gathering ------------------------------------------------------------------------------------


def forget(app: Sphinx, docname: str, _source: list[str]) -> None:
    """Before a page is read: what an earlier build left of its execution must not be taken for this one's."""
    execution.executed(app, docname).unlink(missing_ok=True)


def purge(_app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is gone or about to be read again."""
    ledger.ledger(env).pages.pop(docname, None)


def gather(app: Sphinx, doctree: nodes.document) -> None:
    """Once a page is read: its theorems and the claims among its outputs."""
    notebook = execution.read(app, app.env.docname)
    page = ledger.read_page(doctree, notebook)
    if notebook is not None and (notices := ledger.read_stderr(notebook).strip()):
        LOGGER.info("%s: not shown on the page, but written to stderr: %s", app.env.docname, notices)
    page.shows = {place["shows"] for place in doctree.findall(Placeholder)}
    page.commit = execution.commit(app, notebook) if page.is_notebook else ""
    ledger.ledger(app.env).pages[app.env.docname] = page


def merge(_app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    """Take over the pages that another process read."""
    pages = ledger.ledger(other).pages
    ledger.ledger(env).pages.update({name: pages[name] for name in docnames if name in pages})


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """After all pages are read: is every theorem checked, and does every claim hold and have its theorem?"""
    ledger.ledger(env).built = time.time()
    ran = {name for name in env.found_docs if execution.succeeded(env, name)}
    for docname, line, message in ledger.problems(ledger.ledger(env), ran):
        LOGGER.warning(message, location=(docname, line), type="executable_book")
    ledger.write(ledger.ledger(env), Path(app.outdir).parent / "claims")


def touched(_app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Pages to write again whenever any page was read: those that show claims of others, and the chapters."""
    return [name for name in env.found_docs if name in ledger.ledger(env).pages]


# --- filling pages --------------------------------------------------------------------------------


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put tables in their places, link claims to theorems, and say how the page is run and was made."""
    book = ledger.ledger(app.env)
    shown = page_parts.Shown(app, docname, book)
    for place in list(doctree.findall(Placeholder)):
        if place["shows"] == "from-chapter":
            place.replace_self(borrowed(app, shown, place["label"]))
        elif place["shows"].startswith("verdict "):
            if place["label"] not in shown.where:
                LOGGER.warning("{verdict}: '%s' is no theorem of the book", place["label"], location=docname)
            place.replace_self(page_parts.verdict_of(shown, place["label"], place["assumes"]))
        else:
            place.replace_self(MAKERS[place["shows"]](shown))
    page = book.pages.get(docname)
    if page is None or not page.is_notebook:
        return
    for output in list(doctree.findall(nodes.raw)):
        text = output.astext()
        if 'class="nc-facts"' in text:  # the page's foot tells them
            output.parent.remove(output)
        elif 'class="dataframe"' in text:  # a header without text is a puzzle to a screen reader
            output.replace_self(nodes.raw("", text.replace("<th></th>", "<td></td>"), **output.attributes))
    for cell in list(doctree.findall(nodes.container)):
        if "cell_input" in cell["classes"]:
            page_parts.fold_code(cell)
        elif "cell_output" in cell["classes"]:
            page_parts.tell_claims(shown, cell)
    for node in list(doctree.findall(ledger.is_theorem)):
        if mark := page_parts.badge(shown, node["label"]):
            node += mark
    heading = next(iter(doctree.findall(nodes.title)), None)
    if heading is not None:
        done, section = execution.facts(app.env, docname), heading.parent
        section.insert(section.index(heading) + 1, page_parts.run_line(shown))
        section += page_parts.how_made(shown, done)


def borrowed(app: Sphinx, shown: page_parts.Shown, label: str) -> list[nodes.Node]:
    """A copy of a chapter's figure (by its name), or figure to play with (by its anchor)."""

    def named(node: nodes.Node) -> bool:
        if isinstance(node, nodes.figure):
            return label in (*node["names"], *node["ids"])
        return isinstance(node, nodes.raw) and f'id="{label}"' in node.astext()

    for docname in shown.pages:
        for node in app.env.get_doctree(docname).findall(named):
            address = f'<a href="{shown.link(docname, label)}">{shown.chapter_title(docname)}</a>'
            return [node.deepcopy(), page_parts.raw(f'<p class="nc-from">From chapter {address}</p>')]
    LOGGER.warning("{from-chapter}: no chapter has a figure '%s'", label, location=shown.docname)
    return []


def fail_loudly(app: Sphinx, error: Exception | None) -> None:
    """Without ``-W`` too: a chapter or a claim that failed fails the build, and the last lines say which."""
    if error is not None:
        return
    book = ledger.ledger(app.env)
    failed = [name for name in sorted(book.pages) if not execution.succeeded(app.env, name)]
    for name in failed:
        lost = [record for record in book.pages[name].records if not record["passed"]]
        for record in lost:
            LOGGER.error("%s: claim on %s fails: %s", name, record["theorem"], record["statement"])
        if not lost:
            LOGGER.error("%s: a cell failed; the traceback is above", name)
    if failed:
        app.statuscode = 1


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_node(Placeholder)
    for name in MAKERS:
        app.add_directive(name, Gathered)
    app.add_directive("verdict", Verdict)
    app.add_directive("from-chapter", FromChapter)
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", forget)
    app.connect("env-purge-doc", purge)
    app.connect("doctree-read", gather)
    app.connect("env-merge-info", merge)
    app.connect("env-check-consistency", check)
    app.connect("env-updated", touched)
    app.connect("doctree-resolved", fill)
    app.connect("build-finished", fail_loudly)
    return {"version": "1", "env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
