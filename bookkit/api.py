"""The package's docstrings as a page of the book, and the names in the chapters' code as links to it.

Docstrings are NumPy style, with ``$…$`` for mathematics, backticks for names, and two ways to write a parameter,
``name : type`` with an indented text below, or ``name : text`` on the line itself.  Here they become what Sphinx's
autodoc and napoleon understand.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

import nclib

PAGE = "reference/package"

#: Words of which types are made; a parameter described with other words is described by a sentence.
_TYPE_WORDS = (
    "any architecture array array_like axes bool callable data dataframe device dict dtype executor explorable "
    "figure float floats flow function in int integer integers list mapping module net nn none number numbers of "
    "optional or path range runs sequence sgd shape str string strings tensor tensors torch tuple type"
)
_ENTRY = re.compile(r"^(?P<name>\*{0,2}\w[\w, *()./…]*?) : (?P<rest>.+)$")
_SECTION = re.compile(r"^(Parameters|Returns|Raises|Attributes|Yields)$")
_DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<!\\)\$(.+?)\$", re.DOTALL)
_NAME = re.compile(r"(?P<role>:[\w:]+:`[^`]+`)|`(?P<name>[^`]+)`")
_CALL = re.compile(r'<span class="n">nc</span><span class="o">\.</span><span class="n">(\w+)</span>')


def process(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """autodoc-process-docstring: before napoleon sees it."""
    lines[:] = sentences_below("\n".join(lines)).split("\n")


def finish(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """autodoc-process-docstring: after napoleon, mathematics and names."""
    lines[:] = restructured("\n".join(lines)).split("\n")


def sentences_below(text: str) -> str:
    """``name : sentence`` as ``name`` with the sentence below it, in the sections that list things."""
    lines, done, listing = text.split("\n"), list[str](), False
    for number, line in enumerate(lines):
        if number + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[number + 1].strip() or " "):
            listing = bool(_SECTION.match(line))
        entry = _ENTRY.match(line) if listing else None
        if entry and not is_type(entry["rest"]):
            done += [entry["name"], f"    {entry['rest']}"]
        else:
            done.append(line)
    return "\n".join(done)


def is_type(text: str) -> bool:
    """Whether the words after a parameter's colon name a type (or a shape)."""
    words = re.findall(r"[a-z_]+", re.sub(r"\([^)]*\)|\[[^]]*\]|``[^`]*``|\"[^\"]*\"", " ", text.lower()))
    return set(words) <= set(_TYPE_WORDS.split())


def restructured(text: str) -> str:
    """``$…$``, backticks and chapters in reStructuredText."""
    parts = re.split(r"(``.+?``|^\s*>>> .*?(?=\n\s*\n|\Z))", text, flags=re.MULTILINE | re.DOTALL)
    for place in range(0, len(parts), 2):  # the odd ones are code
        part = _DISPLAY.sub(lambda m: "\n\n.. math:: " + " ".join(m[1].split()) + "\n\n", parts[place])
        part = _INLINE.sub(lambda m: ":math:`" + " ".join(m[1].split()) + "`", part)
        parts[place] = _NAME.sub(_reference, part).replace("|", r"\|")
    return "".join(parts)


def _reference(match: re.Match[str]) -> str:
    if match["role"]:
        return match["role"]
    name = match["name"].removeprefix("nclib.")
    return f":py:obj:`~nclib.{name}`" if name in nclib.__all__ else f"``{match['name']}``"


def link_calls(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """html-page-context: ``nc.name`` in a chapter's code becomes a link to its documentation."""
    if tree is None or "body" not in context or not page.startswith("chapters/") or PAGE not in app.env.found_docs:
        return
    address = app.builder.get_relative_uri(page, PAGE)

    def link(match: re.Match[str]) -> str:
        if match[1] not in nclib.__all__:
            return match[0]
        target = f"{address}#nclib.{escape(match[1])}"
        return f'<a class="nc-code" href="{target}">{match[0]}</a>'

    context["body"] = _CALL.sub(link, context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything; an extension of its own, so that autodoc is there before it."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.autosummary")
    app.connect("autodoc-process-docstring", process, priority=400)
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", finish, priority=600)
    app.connect("html-page-context", link_calls, priority=950)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
