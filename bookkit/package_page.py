"""The package's docstrings as a page of the book, and the names in the chapters' code as links to it.

Docstrings are NumPy style with types in the signature, ``$…$`` for mathematics and backticks for names: Sphinx's
autodoc and napoleon read the first two, and the rest is put into reStructuredText here.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

import nclib

PAGE = "reference/package"

#: What a docstring writes otherwise than reStructuredText; a bar of its own would begin a substitution there.
_MARKUP = re.compile(
    r"\$\$(?P<display>.+?)\$\$|(?<!\\)\$(?P<inline>.+?)\$|(?P<role>:[\w:]+:`[^`]+`)|`(?P<name>[^`]+)`|\|", re.DOTALL
)
_CALL = re.compile(r'<span class="n">nc</span><span class="o">\.</span><span class="n">(\w+)</span>')


def write_markup(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """autodoc-process-docstring: after napoleon, mathematics and names."""
    lines[:] = restructured("\n".join(lines)).split("\n")


def restructured(text: str) -> str:
    """``$…$``, backticks and bars in reStructuredText."""
    parts = re.split(r"(``.+?``|^\s*>>> .*?(?=\n\s*\n|\Z))", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_MARKUP.sub(_written, part) for part in parts[::2]]  # the odd ones are code
    return "".join(parts)


def _written(match: re.Match[str]) -> str:
    if match["display"]:
        return "\n\n.. math:: " + " ".join(match["display"].split()) + "\n\n"
    if match["inline"]:
        return ":math:`" + " ".join(match["inline"].split()) + "`"
    if match["name"]:
        name = match["name"].removeprefix("nclib.")
        return f":py:obj:`~nclib.{name}`" if name in nclib.__all__ else f"``{match['name']}``"
    return match["role"] or r"\|"


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
        return f'<a class="nc-code" tabindex="-1" href="{target}">{match[0]}</a>'

    context["body"] = _CALL.sub(link, context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    for extension in ("autodoc", "autosummary", "napoleon"):
        app.setup_extension(f"sphinx.ext.{extension}")
    app.connect("autodoc-process-docstring", write_markup, priority=600)
    app.connect("html-page-context", link_calls, priority=950)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
