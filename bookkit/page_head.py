"""What search engines, reference managers and messengers read of a page, and the page for what is not there."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx

from . import reader_aids

_SHORT = 200  # characters of a description

#: A page of its own, without a stylesheet: it is served at any depth, where no relative address is right.
_NOT_FOUND = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>Not found · {title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ max-width: 34rem; margin: 12vh auto; padding: 0 1.2rem; font: 1.15rem/1.6 Georgia, serif;
    background: light-dark(#fdfcf9, #16191d); color: light-dark(#22252b, #e6e3dc); }}
  svg {{ width: 6rem; }}
  a {{ color: light-dark(#0f5e63, #7fd0d4); }}
</style>
</head>
<body>
<main>
{logo}
<h1>This page is a counterexample</h1>
<p>The book claims no page at this address.
The address may have a slip in it, or the page has moved to another chapter.</p>
<p><a id="home" href="/">To the front page of <em>{title}</em></a></p>
</main>
<script>
  // The book may be served from a folder: its front page lies above the first folder that we know.
  var path = location.pathname, known = path.search(/\\/(chapters|reference|figures|colab|_static)\\//);
  var base = known < 0 ? path.replace(/[^/]*$/, "") : path.slice(0, known + 1);
  document.getElementById("home").href = base + "index.html";
</script>
</body>
</html>
"""


def citation(root: Path) -> dict[str, Any]:
    """The project's ``CITATION.cff``; empty without one."""
    path = root / "CITATION.cff"
    return dict(yaml.safe_load(path.read_text("utf-8"))) if path.exists() else {}


def description(tree: nodes.document) -> str:
    """The beginning of a page's first paragraph, without its formulas."""
    for paragraph in tree.findall(nodes.paragraph):
        text = re.sub(r"<[^>]+>", "", reader_aids.words(paragraph))
        if len(text.split()) >= 8:
            return text if len(text) <= _SHORT else text[:_SHORT].rsplit(" ", 1)[0] + " …"
    return ""


def add_metadata(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """html-page-context: description, Open Graph and citation tags."""
    if tree is None:
        return
    book, about = app.config.html_title, citation(Path(app.srcdir))
    title = re.sub(r"<[^>]+>", "", context.get("title", ""))
    told = description(tree) or str(about.get("abstract", "")).strip()[:_SHORT]
    tags = [
        ("name", "description", told),
        ("property", "og:title", title),
        ("property", "og:description", told),
        ("property", "og:type", "book" if page == app.config.root_doc else "article"),
        ("property", "og:site_name", book),
        ("name", "twitter:card", "summary"),
        ("name", "citation_title", title if page.startswith("chapters/") else str(about.get("title", book))),
        ("name", "citation_inbook_title", book if page.startswith("chapters/") else ""),
        *(("name", "citation_author", author["name"]) for author in about.get("authors", []) if "name" in author),
        ("name", "citation_publication_date", str(about.get("date-released", "")).replace("-", "/")),
    ]
    if app.config.html_baseurl:
        base = app.config.html_baseurl.rstrip("/")
        tags.append(("property", "og:url", f"{base}/{app.builder.get_target_uri(page)}"))
        tags.append(("property", "og:image", f"{base}/_static/{Path(app.config.html_logo).name}"))
    lines = [f'<meta {kind}="{name}" content="{escape(value)}">' for kind, name, value in tags if value]
    context["metatags"] = context.get("metatags", "") + "\n" + "\n".join(lines) + "\n"


def write_not_found(app: Sphinx, error: Exception | None) -> None:
    """``404.html``, which servers send for an address that is not there."""
    if error is None and app.builder.format == "html":
        logo = (Path(app.srcdir) / app.config.html_logo).read_text("utf-8")
        text = _NOT_FOUND.format(title=escape(app.config.html_title), logo=logo)
        (Path(app.outdir) / "404.html").write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.connect("html-page-context", add_metadata)
    app.connect("build-finished", write_not_found, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
