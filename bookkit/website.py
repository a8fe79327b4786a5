"""The finished web pages: options of the theme, what search engines and messengers read, what can be left out, the
notebooks to take away, and the page for an address that is not there.
"""

from __future__ import annotations

import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from . import colab, reader_aids

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


def set_options(_app: Sphinx, config: Config) -> None:
    """The title beside the logo; the repository's buttons appear with its address and not before."""
    options = config.html_theme_options
    options["logo"] = {"text": config.html_title}
    published = bool(options.get("repository_url"))
    for button in ("use_repository_button", "use_issues_button"):
        options[button] = published
    if not published:
        for key in ("repository_url", "repository_branch", "path_to_docs", "launch_buttons"):
            options.pop(key, None)


def tidy_page(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: nodes.document | None
) -> None:
    """Leave out scripts that would load others from elsewhere (live cells, which this book does not use;
    mathematics, which it sets itself), and a role that promises what is not there."""
    context["script_files"] = [script for script in context["script_files"] if not _is_foreign(script)]
    if "body" in context:  # a list's children must be items, says ARIA; these are not
        body = context["body"].replace('<div role="list" class="citation', '<div class="citation')
        context["body"] = re.sub(r' id="(?:proof|exercise|solution)-content"', "", body)  # one name for many
    context["css_files"] = [style for style in context.get("css_files", []) if "thebe" not in str(style)]


def _is_foreign(script: Any) -> bool:
    body = getattr(script, "attributes", {}).get("body")
    told = f"{getattr(script, 'filename', script)} {body}".lower()
    return "thebe" in told or "mathjax" in told


def open_in_colab(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: nodes.document | None
) -> None:
    """Let the Colab button open what Colab can show: the self-contained notebook, where the book is published."""
    branch = app.config.html_theme_options.get("launch_buttons", {}).get("colab_branch")
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("text") == "Colab":
                name = page.rpartition("/")[2]
                button["url"] = f"{button['url'].partition('/blob/')[0]}/blob/{branch}/colab/{name}.ipynb"


#: Search summaries are fetched, which browsers refuse to a page opened from disk: titles alone, then.
SEARCH_FROM_DISK = (
    "if (location.protocol === 'file:' && typeof DOCUMENTATION_OPTIONS !== 'undefined')"
    " { DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false; }"
)


#: What scrolls sideways (that depends on the window) must be within reach of the keyboard.  Sections out of view
#: are not laid out: they are looked at when they come.
SCROLL_BY_KEY = """
function reachByKey() {
  var boxes = 'div.math > mjx-container, .nc-pieces, .cell_output, .pst-scrollable-table-container, .highlight pre';
  document.querySelectorAll(boxes).forEach(function (box) {
    if (box.checkVisibility && !box.checkVisibility({ contentVisibilityAuto: true })) { return; }
    if (box.scrollWidth > box.clientWidth) { box.tabIndex = 0; }
    else if (box.getAttribute('tabindex') === '0') { box.removeAttribute('tabindex'); }
  });
}
['load', 'resize'].forEach(function (event) { window.addEventListener(event, reachByKey); });
['toggle', 'contentvisibilityautostatechange'].forEach(function (event) {
  document.addEventListener(event, reachByKey, true);
});
document.addEventListener('click', function () { setTimeout(reachByKey, 50); });
"""


def remove_old_pages(app: Sphinx, error: Exception | None) -> None:
    """Pages of chapters that are gone would show verdicts of another build."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir)
        kept = {folder / app.builder.get_target_uri(name) for name in app.env.found_docs} | {folder / "search.html"}
        for path in set(folder.rglob("*.html")) - kept:
            if "_static" not in path.relative_to(folder).parts:
                path.unlink()


def offer_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Put the self-contained notebooks into the HTML."""
    if error is None and app.builder.format == "html":
        made = Path(app.outdir).parent / "colab"
        colab.write(Path(app.srcdir), made)
        shutil.rmtree(Path(app.outdir) / "colab", ignore_errors=True)
        shutil.copytree(made, Path(app.outdir) / "colab")


#: Draws icons that the theme's font draws too, at half the weight of a page.
_ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*scripts/fontawesome\.js[^"]*"></script>')


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Leave out what a page can do without."""
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text("utf-8")
            if (lighter := _ICON_SCRIPT.sub("", text)) != text:
                path.write_text(lighter, "utf-8")
        (Path(app.outdir) / "_static" / "scripts" / "fontawesome.js").unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_js_file(None, body=SEARCH_FROM_DISK, priority=250)
    app.add_js_file(None, body=SCROLL_BY_KEY, priority=900)
    app.connect("config-inited", set_options)
    app.connect("html-page-context", add_metadata)
    app.connect("html-page-context", tidy_page, priority=900)
    app.connect("html-page-context", open_in_colab, priority=900)
    for step in (remove_old_pages, offer_notebooks, lighten):
        app.connect("build-finished", step)
    app.connect("build-finished", write_not_found, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
