"""Help for those who read: words with their meaning on hover, the symbols of a page, figures to take away.

- The first use of each word of the glossary in a chapter becomes a link that shows its meaning.
- Under a chapter's title stand, folded, the symbols that it uses, each with its row of the notation page.
- Under each figure of a chapter stand links to it as SVG and PDF, for slides and papers.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from . import execution
from .page_parts import chapter_numbers, raw

GLOSSARY, NOTATION = "reference/glossary", "reference/notation"

#: Where a word is left as it is: it is a link or a name already, or code, or stands where links don't belong.
_NOT_HERE = (
    nodes.reference,
    nodes.title,
    nodes.literal,
    nodes.math,
    nodes.raw,
    addnodes.pending_xref,
    nodes.caption,
)


def is_chapter(docname: str) -> bool:
    """Whether a page is a chapter."""
    return docname.startswith("chapters/")


# --- words ----------------------------------------------------------------------------------------


def meanings(app: Sphinx) -> dict[str, tuple[str, str]]:
    """For each word of the glossary: the anchor of its entry, and the entry's text."""
    if GLOSSARY not in app.env.found_docs:
        return {}
    found = {}
    for item in app.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        definition = next(iter(item.findall(nodes.definition)))
        text = re.sub(r"\s*\([^()]*\)\.$", ".", plain(definition)).strip()
        for term in item.findall(nodes.term):
            found[term.astext().split("\n")[0]] = (term["ids"][0], text)
    return found


def words(node: nodes.Element) -> str:
    """A node's text without its formulas, and without the gaps that they leave."""
    parts = [text.astext() for text in node.findall(nodes.Text) if not isinstance(text.parent, nodes.math)]
    return re.sub(r"\s+([,.;:])", r"\1", " ".join("".join(parts).split()))


def plain(node: nodes.Element) -> str:
    """Text for a place that cannot hold mathematics: of the marks around a formula one is left."""
    return re.sub(r"[,:;]+([,.;:])", r"\1", words(node))


def link_words(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the first use of each word of the glossary."""
    known = meanings(app)
    if not known:
        return
    page = app.builder.get_relative_uri(docname, GLOSSARY)
    by_length = sorted(known, key=len, reverse=True)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, by_length)) + r")(s?)\b", re.IGNORECASE)
    used: set[str] = set()
    for text in list(doctree.findall(nodes.Text)):
        if not _may_link(text):
            continue
        pieces, place = list[nodes.Node](), 0
        for match in pattern.finditer(text.astext()):
            word = match[1] if match[1] in known else match[1].lower()
            anchor, meaning = known.get(word, ("", ""))
            if not anchor or anchor in used:
                continue
            used.add(anchor)
            pieces.append(nodes.Text(text.astext()[place : match.start()]))
            place = match.end()
            pieces.append(raw(
                f'<a class="nc-term" href="{escape(page)}#{escape(anchor)}" data-meaning="{escape(meaning)}"'
                f' aria-description="{escape(meaning)}">{escape(match[0])}</a>'
            ))  # fmt: skip
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(text.astext()[place:])])


def _may_link(text: nodes.Text) -> bool:
    node: nodes.Node | None = text.parent
    inside = False
    while node is not None:
        if isinstance(node, _NOT_HERE):
            return False
        inside = inside or isinstance(node, nodes.paragraph)
        node = node.parent
    return inside


# --- symbols --------------------------------------------------------------------------------------


def table_rows(doctree: nodes.document) -> Iterator[tuple[str, set[int], nodes.row]]:
    """The rows of the notation page: anchor, the chapters whose table it is (none: all), and the row."""
    rows = (row for body in doctree.findall(nodes.tbody) for row in body.findall(nodes.row))
    for number, row in enumerate(rows):
        section = row.parent
        while not isinstance(section, nodes.section):
            section = section.parent
        yield f"symbol-{number}", chapter_numbers(section[0].astext()), row


def symbol_rows(app: Sphinx, chapter: int) -> list[tuple[str, list[str], nodes.entry]]:
    """The rows that hold in a chapter, its own first: anchor, symbols as LaTeX, and the cell with their meaning."""
    if NOTATION not in app.env.found_docs:
        return []
    own, common = list[tuple[str, list[str], nodes.entry]](), list[tuple[str, list[str], nodes.entry]]()
    for anchor, owner, row in table_rows(app.env.get_doctree(NOTATION)):
        if not owner or chapter in owner:
            cells = [cell for cell in row.children if isinstance(cell, nodes.entry)]
            latex = [math.astext() for math in cells[0].findall(nodes.math)]
            (own if owner else common).append((anchor, latex, cells[-1]))
    return own + common


def name_rows(doctree: nodes.document) -> None:
    """Give the rows of the notation page the anchors that chapters link to."""
    for anchor, _, row in table_rows(doctree):
        row["ids"].append(anchor)


def letter(latex: str) -> str:
    """The symbol that a row of the notation page defines: the part before = or ∈."""
    return re.split(r"=|\\in\b", latex)[0].strip()


def uses(latex: str, formulas: str) -> bool:
    """Whether the symbol that a row of the notation page defines occurs in these formulas."""
    symbol = letter(latex)
    before = r"(?<![A-Za-z\\])" if symbol[0].isalpha() else r""
    after = r"(?![A-Za-z])" if symbol[-1].isalpha() else ""
    return re.search(before + re.escape(symbol) + after, formulas) is not None


def symbols_box(app: Sphinx, doctree: nodes.document, docname: str) -> nodes.raw | None:
    """The symbols of a page, folded."""
    formulas = "\n".join(node.astext() for node in doctree.findall(_is_formula))
    page, items = app.builder.get_relative_uri(docname, NOTATION), []
    defined: set[str] = set()
    number = re.search(r"\d+", docname)  # a page of the appendix has none
    for anchor, latex, meaning in symbol_rows(app, int(number[0]) if number else 0):
        new = {letter(one) for one in latex} - defined
        if new and any(uses(one, formulas) for one in latex):
            defined |= new
            shown = ", ".join(_typeset(one) for one in latex)
            items.append(f'<li>{shown} <a href="{escape(page)}#{anchor}">{_inline(meaning)}</a></li>')
    if not items:
        return None
    return raw(
        f'<details class="nc-symbols"><summary>Symbols on this page</summary><ul>{"".join(items)}</ul></details>'
    )


def _is_formula(node: nodes.Node) -> bool:
    return isinstance(node, nodes.math | nodes.math_block)


def _typeset(latex: str) -> str:
    return rf'<span class="math notranslate nohighlight">\({escape(latex, quote=False)}\)</span>'


def _inline(node: nodes.Element) -> str:
    """A table cell's words and formulas."""
    parts = []
    for child in node.findall():
        if isinstance(child, nodes.math):
            parts.append(_typeset(child.astext()))
        elif isinstance(child, nodes.Text) and not _inside_other(child):
            parts.append(escape(child.astext(), quote=False))
    # The number of an equation or theorem is not known yet where a page is read; the row itself has the link.
    return re.sub(r"\s*,\s*(?=,|$)", "", "".join(parts)).strip()


def _inside_other(text: nodes.Text) -> bool:
    """Whether a text is a formula, or a reference that is still to be resolved."""
    node: nodes.Node | None = text.parent
    while node is not None and not isinstance(node, nodes.entry):
        if isinstance(node, nodes.math | addnodes.pending_xref):
            return True
        node = node.parent
    return False


# --- figures --------------------------------------------------------------------------------------


def figure_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Under each figure with a name: links to it as files."""
    up = "../" * docname.count("/")
    for figure in doctree.findall(nodes.figure):
        image = next(iter(figure.findall(nodes.image)), None)
        name = next((n for n in figure.get("names", []) or figure.get("ids", []) if n), "")
        if image is None or not name or not is_code_figure(image):
            continue
        links = " ".join(
            f'<a href="{up}figures/{escape(name)}.{kind}" download>{kind.upper()}</a>' for kind in ("svg", "pdf")
        )
        caption = next(iter(figure.findall(nodes.caption)), None)
        if caption is not None:
            caption += raw(f' <span class="nc-take">Download: {links}</span>')


def is_code_figure(image: nodes.image) -> bool:
    """Whether an image is a code cell's output."""
    return "jupyter_execute" in image["uri"] and image["uri"].endswith(".svg")


def export_figures(app: Sphinx, error: Exception | None) -> None:
    """Copy every named figure into the HTML, as SVG and as PDF."""
    if error is not None or app.builder.format != "html":
        return
    target = Path(app.outdir) / "figures"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for docname in sorted(app.env.found_docs):
        if is_chapter(docname):
            for name, svg, pdf in named_figures(app, docname):
                (target / f"{name}.svg").write_text(svg, "utf-8")
                (target / f"{name}.pdf").write_bytes(pdf)


def named_figures(app: Sphinx, docname: str) -> Iterator[tuple[str, str, bytes]]:
    """Name, SVG and PDF of each figure that a chapter's cells drew."""
    notebook = execution.read(app, docname)
    if notebook is None:
        return
    for cell in notebook.cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if name and "image/svg+xml" in data and "application/pdf" in data:
                yield name, data["image/svg+xml"], base64.b64decode(data["application/pdf"])


# --- all together ---------------------------------------------------------------------------------


def aid(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """doctree-resolved: words, symbols and figures of a chapter; anchors of the notation page."""
    if docname == NOTATION:
        name_rows(doctree)
    if not is_chapter(docname) or app.builder.format != "html":
        return
    heading = next(iter(doctree.findall(nodes.title)), None)
    box = symbols_box(app, doctree, docname)
    if heading is not None and box is not None:
        section = heading.parent
        section.insert(section.index(heading) + 1, box)
    link_words(app, doctree, docname)
    figure_links(app, doctree, docname)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.connect("doctree-resolved", aid, priority=400)
    app.connect("build-finished", export_figures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
