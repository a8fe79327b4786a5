"""HTML that the extension puts into pages: verdicts, map of the theorems, and the facts of a chapter."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx

from nclib.book import claims

from . import ledger, provenance
from .ledger import Record, Theorem

_MATH = re.compile(r"\$([^$]+)\$")
_CHAPTERS = re.compile(r"Chapters? (\d+(?:(?:,? and |, | to )\d+)*)")
_LABEL = re.compile(r'<span class="nc-label">([^<]*)</span>')
_TYPESET = r'<span class="math notranslate nohighlight">\\(\1\\)</span>'


class Shown:
    """The book as one page sees it: names of theorems, and links relative to that page."""

    def __init__(self, app: Sphinx, docname: str, book: ledger.Ledger) -> None:
        self.app, self.docname, self.book = app, docname, book
        self.where = book.where()
        self.pages = [name for name in _in_order(app) if name in book.pages]

    def link(self, docname: str, anchor: str = "") -> str:
        """Address of a place in the book."""
        page = "" if docname == self.docname else self.app.builder.get_relative_uri(self.docname, docname)
        return escape(f"{page}#{anchor}" if anchor else page or "#")

    def file(self, path: str) -> str:
        """Address of a file of the finished site."""
        return escape("../" * self.docname.count("/") + path)

    def notebook(self, docname: str) -> str:
        """Address of a chapter's self-contained notebook."""
        return self.file(f"colab/{docname.rpartition('/')[2]}.ipynb")

    def numbers(self, docname: str, counter: str, label: str) -> str:
        """``2.1`` for what is numbered so, else nothing."""
        found = self.app.env.toc_fignumbers.get(docname, {}).get(counter, {}).get(label, ())
        return ".".join(map(str, found))

    def name(self, theorem: Theorem) -> str:
        """``Theorem 2.1``."""
        number = self.numbers(self.where[theorem.label], theorem.counter, theorem.label)
        return f"{theorem.kind.capitalize()} {number}".strip()

    def theorem(self, label: str) -> Theorem | None:
        """The theorem with this label."""
        page = self.book.pages.get(self.where.get(label, ""))
        return page.theorems[label] if page else None

    def theorem_link(self, label: str) -> str:
        """A link to a theorem by its number, or its label where there is no such theorem."""
        theorem = self.theorem(label)
        if theorem is None:
            return f"<code>{escape(label)}</code>"
        return f'<a href="{self.link(self.where[label], label)}">{escape(self.name(theorem))}</a>'

    def chapter_title(self, docname: str) -> str:
        """``2. Minimum norm``."""
        number = self.app.env.toc_secnumbers.get(docname, {}).get("", ())
        title = self.book.pages[docname].title
        return f"{'.'.join(map(str, number))}. {title}" if number else title

    def verdict_link(self, label: str) -> str:
        """Address of what was found of a theorem, with all its claims; empty when no page tells it."""
        pages = [name for name, page in self.book.pages.items() if f"verdict {label}" in page.shows]
        return self.link(pages[0], f"verdict-{label}") if pages else ""


def _in_order(app: Sphinx) -> list[str]:
    """Pages in the order of the table of contents, others after them."""
    order = [app.config.root_doc]
    for name in order:
        order += [child for child in app.env.toctree_includes.get(name, ()) if child not in order]
    return order + sorted(app.env.found_docs - set(order))


def chapter_numbers(text: str) -> set[int]:
    """Numbers of the chapters that a text names: ``Chapter 1, and Chapters 3 to 5 and 7`` is {1, 3, 4, 5, 7}."""
    found = set[int]()
    for match in _CHAPTERS.finditer(text):
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", match[1]):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def opening(summary: str) -> str:
    """What is folded begins so, and ends with ``</details>``."""
    return f'<details class="nc-more"><summary>{summary}</summary>'


def raw(markup: str) -> nodes.raw:
    """A node for HTML."""
    return nodes.raw("", markup, format="html")


def with_math(text: str) -> str:
    """Escaped text in which ``$…$`` is set as mathematics."""
    return _MATH.sub(_TYPESET, escape(text, quote=False))


def title_html(theorem: Theorem) -> str:
    """A theorem's own title, without the parentheses around it."""
    parts = []
    for node in theorem.title:
        text = node.astext()
        if isinstance(node, nodes.math):
            parts.append(with_math(f"${text}$"))
        else:
            parts.append(f"<code>{escape(text)}</code>" if isinstance(node, nodes.literal) else escape(text))
    return "".join(parts).strip().removeprefix("(").removesuffix(")")


def verdict(records: Iterable[Record]) -> tuple[str, str]:
    """CSS class and words for the claims on one theorem."""
    passed = [bool(record["passed"]) for record in records]
    if not passed:
        return "unchecked", "no claim"
    noun = "claim" if len(passed) == 1 else "claims"
    held = sum(passed)
    if held == len(passed):
        return "holds", f"✓ {held} of {held} {noun} hold{'s' if held == 1 else ''}"
    lost = len(passed) - held
    return "fails", f"✗ {lost} of {len(passed)} {noun} fail{'s' if lost == 1 else ''}"


def theorem_map(shown: Shown) -> list[nodes.Node]:
    """Every theorem that must be checked, or is, by chapter, with its verdict."""
    parts = ['<div class="nc-map">']
    for docname in shown.pages:
        items = []
        for theorem in shown.book.pages[docname].theorems.values():
            records = shown.book.of(theorem.label)
            if theorem.kind not in ledger.MUST_BE_CHECKED and not records:
                continue
            kind, words = verdict(records)
            items.append(
                f'<li class="{kind}"><a href="{shown.link(docname, theorem.label)}">'
                f'<span class="nc-name">{escape(shown.name(theorem))}</span> {title_html(theorem)}</a>'
                f'<span class="nc-verdict">{words}</span></li>'
            )
        if items:
            title = f'<a href="{shown.link(docname)}">{escape(shown.chapter_title(docname))}</a>'
            parts.append(f'<p class="nc-map-chapter">{title}</p><ul>{"".join(items)}</ul>')
    return [raw("".join([*parts, "</div>", summary(shown)]))]


def summary(shown: Shown) -> str:
    """One line for the whole book: how many hold, at which scale, on what, when."""
    records = [record for _, record in shown.book.records()]
    kind, words = verdict(records)
    checked = {record["theorem"] for record in records}
    facts = [
        words,
        f"{len(checked)} statement{'' if len(checked) == 1 else 's'} checked",
        *_values("scale", records),
        *_values("device", records),
        *_values("base_seed", records),
        f"built on {provenance.day(shown.book.built)}",
    ]
    return f'<p class="nc-summary {kind}">{" · ".join(escape(fact) for fact in facts)}</p>'


def _values(name: str, records: list[Record]) -> list[str]:
    found = sorted({str(record[name]) for record in records})
    return [f"{name.replace('_', ' ')} {', '.join(found)}"] if found else []


def verdict_of(shown: Shown, label: str, assumes: str) -> list[nodes.Node]:
    """A theorem by name, its verdict, what it assumes, and the claims that checked it, folded."""
    theorem, records = shown.theorem(label), shown.book.of(label)
    kind, words = verdict(records)
    title = title_html(theorem) if theorem else ""
    heading = (
        f'<p class="nc-verdict-head" id="verdict-{escape(label)}">{shown.theorem_link(label)} <span>{title}</span> '
        f'<span class="nc-badge {kind}">{words}</span></p>'
    )
    if assumes:
        heading += f'<p class="nc-assumes">{with_math(assumptions(assumes))}</p>'
    told = "".join(with_share(record, with_links(shown, claims.sentence(record))) for record in records)
    checks = f"{len(records)} check{'' if len(records) == 1 else 's'}, with the numbers"
    return [raw(f"{heading}{opening(checks)}{told}</details>")]


#: What a line of assumptions says, in this order.
ASSUMED = ("kind", "network", "λ", "normalisation", "training", "data")


def assumptions(line: str) -> str:
    """``identity | ReLU | any | none | …`` with names; what a theorem does not depend on is left out."""
    named = zip(ASSUMED, (part.strip() for part in line.split("|")), strict=True)
    return " · ".join(f"{name}: {what}" for name, what in named if what not in ("any", "none"))


def with_share(record: Record, markup: str) -> str:
    """A claim's sentence with the share of its tolerance that it used, by which the page sorts."""
    share = ledger.share(record["tolerance"], record["deviation"])
    return markup if share is None else markup.replace("<p ", f'<p data-share="{share:.3g}" ', 1)


def find_claims(shown: Shown) -> list[nodes.Node]:
    """A line of numbers for the whole book, and the form by which a page of verdicts is searched and sorted."""
    form = (
        '<form class="nc-find" hidden><label>Find <input type="search" placeholder="a word"></label>'
        '<label>chapter <select name="chapter"><option value="">all</option></select></label>'
        '<label>verdict <select name="verdict"><option value="">all</option><option>holds</option>'
        "<option>fails</option></select></label>"
        '<label><input type="checkbox" name="sort"> nearest to their tolerance first</label>'
        f'<output role="status"></output></form><script defer src="{shown.file("_static/verdicts.js")}"></script>'
    )
    return [raw(summary(shown) + form)]


def tell_claims(shown: Shown, cell: nodes.container) -> None:
    """In a cell's output: its first claim as a sentence, the others folded behind their number.

    A claim that fails is never folded, a check of the code always. A report on a network names theorems: its labels
    become links too.
    """
    for node in [node for node in cell.findall(nodes.raw) if 'class="nc-audit"' in node.astext()]:
        node.replace_self(nodes.raw("", with_links(shown, node.astext()), **node.attributes))
    told = [node for node in cell.findall(nodes.raw) if 'class="nc-claim ' in node.astext()]
    folded = list[str]()
    for place, node in enumerate(told):
        text = with_links(shown, node.astext())
        if "nc-claim fails" in text or (place == 0 and "check of the code" not in text):
            node.replace_self(nodes.raw("", text, **node.attributes))
        else:
            folded.append(text)
            node.parent.remove(node)
    if folded:
        more = "more " if len(folded) < len(told) else ""
        count = f"{len(folded)} {more}check{'s' if len(folded) > 1 else ''}"
        cell += raw(f"{opening(f'✓ {count}')}{''.join(folded)}</details>")


def fold_code(cell: nodes.container) -> None:
    """In a cell's code: what computes stays in view; a cell tagged ``hide-input`` is folded under its own words."""
    hidden = cell.parent if isinstance(cell.parent, HideCodeCellNode) else None
    output = cell.next_node(nodes.container, descend=False, siblings=True)
    draws = output is not None and next(iter(output.findall(nodes.figure)), None) is not None
    for block in list(cell.findall(nodes.literal_block)):
        code = block.astext()
        found = (escape(hidden["prompt_show"]), 0) if hidden else folding(code, draws)
        if found is None:
            continue
        name, start = found
        lines = code.splitlines()
        shown, folded = "\n".join(lines[:start]).rstrip(), "\n".join(lines[start:])
        parts = [raw(opening(name)), _code(block, folded), raw("</details>")]
        block.parent.replace(block, [_code(block, shown), *parts] if shown else parts)
    if hidden:
        hidden.parent.replace(hidden, hidden.children)


def folding(code: str, draws: bool) -> tuple[str, int] | None:
    """Under which name a cell's code is folded, and from which line on; None where all of it stays in view.

    Set-up and what draws a figure is folded whole; a cell claims from the first of its statements that holds a
    claim on.
    """
    if "nc.chapter(" in code:
        return "Set-up", 0
    if draws:
        return "Code of the figure", 0
    start = first_claim(code)
    return None if start is None else ("Code of the claims", start)


def first_claim(code: str) -> int | None:
    """The line, from 0, of the first statement of a cell that claims something."""
    for statement in ast.parse(code).body:
        if "nc.claim(" in ast.unparse(statement):
            return statement.lineno - 1
    return None


def _code(block: nodes.literal_block, text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, **block.attributes)


def with_links(shown: Shown, markup: str) -> str:
    """Claims, their labels turned into links and their ``$…$`` set."""
    return _LABEL.sub(lambda match: shown.theorem_link(match[1]), _MATH.sub(_TYPESET, markup))


def table(rows: str, label: str, columns: Sequence[str]) -> str:
    """Rows in a box that scrolls by keyboard, with a label for screen readers."""
    head = "".join(f'<th scope="col">{title}</th>' for title in columns)
    return (
        f'<div class="nc-claims-box" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="nc-claims"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def badge(shown: Shown, label: str) -> nodes.raw | None:
    """Under a theorem: what this build found of it."""
    records = shown.book.of(label)
    if not records:
        return None
    kind, words = verdict(records)
    target = shown.verdict_link(label)
    text = f'<a href="{target}">{words} in this build</a>' if target else f"{words} in this build"
    return raw(f'<p class="nc-badge {kind}">{text}</p>')


def run_line(shown: Shown) -> nodes.raw:
    """Under a chapter's title: how to run it."""
    link = f'<a href="{shown.notebook(shown.docname)}" download>download the self-contained notebook</a>'
    return raw(f'<p class="nc-run">To run this chapter, {link}: it needs nothing else in Colab or Jupyter.</p>')


def how_made(shown: Shown, done: dict[str, Any]) -> nodes.raw:
    """At a chapter's foot: how its outputs came to be, which may be older than it (`done`: myst-nb's facts)."""
    page = shown.book.pages[shown.docname]
    _, words = verdict(page.records)
    took = f" in {provenance.seconds(done['runtime'])}" if done.get("runtime") else ""
    on = f" on {provenance.day(done['mtime'])}" if done.get("mtime") else ""
    told = ", ".join(page.made_on).replace(", Python", "; Python", 1)
    sentences = [
        f"This page was made from <code>{escape(shown.docname)}.md</code>: its code was executed{took}{on}, "
        "and every number, figure and table on it is an output of that run.",
        f"{escape(told[:1].upper() + told[1:])}{f'; commit {escape(page.commit)}' if page.commit else ''}.",
        f"Claims: {words}. Assembled by {provenance.assembler()}.",
    ]
    told = f"<summary>How this page was made</summary><p>{' '.join(sentences)}</p>"
    return raw(f'<details class="nc-made">{told}</details>')
