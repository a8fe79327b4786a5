"""Mathematics typeset when the book is built: no page waits for it, nothing moves, a link lands where it points.

When all pages are written, MathJax sets each formula once, run by the JavaScript engine that Playwright's wheel
carries: HTML and its style sheet for the eye, MathML for screen readers, and the LaTeX in ``data-latex``, which is
what a reader copies.  A displayed formula is set in pieces, between which a narrow screen breaks its line.  A
formula that cannot be set stops the build.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

#: Where the style sheet and the fonts stand, in ``_static``.
FOLDER = "mathematics"

_NUMBER = r'\s*(?:<span class="eqno">.*?</span>)?'
_WRITTEN = re.compile(
    rf'(?P<open><(?P<tag>span|div) class="math [^>]*)>(?P<number>{_NUMBER})\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)
_SET = re.compile(r'<(?P<tag>span|div) class="math [^>]* data-latex="(?P<latex>[^"]*)">')

#: A copied formula is its LaTeX, between the marks that notebooks and papers know.
_COPY = """
document.addEventListener('copy', function (event) {
  var chosen = window.getSelection(), box = document.createElement('div');
  function formula(node) { return (node.closest ? node : node.parentElement).closest('[data-latex]'); }
  for (var i = 0; i < chosen.rangeCount; i++) {
    var range = chosen.getRangeAt(i).cloneRange();
    var first = formula(range.startContainer), last = formula(range.endContainer);
    if (first) { range.setStartBefore(first); }
    if (last) { range.setEndAfter(last); }
    box.append(range.cloneContents());
  }
  var formulas = box.querySelectorAll('[data-latex]');
  if (!formulas.length) { return; }
  formulas.forEach(function (one) {
    var mark = one.tagName === 'DIV' ? '$$' : '$';
    one.textContent = mark + one.dataset.latex + mark;
  });
  box.querySelectorAll('.headerlink').forEach(function (link) { link.remove(); });
  document.body.append(box);
  event.clipboardData.setData('text/plain', box.innerText);
  event.clipboardData.setData('text/html', box.innerHTML);
  event.preventDefault();
  box.remove();
});
"""


class Formula(NamedTuple):
    """What is set once, however often it stands in the book."""

    latex: str
    display: bool


# --- where a line may break ---------------------------------------------------------------------------

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[^\s\\]", re.DOTALL)
_OPENS = {"{", "(", "[", r"\{", r"\left", r"\langle", r"\lVert", r"\lvert", r"\lfloor", r"\lceil", r"\begin"}
_CLOSES = {"}", ")", "]", r"\}", r"\right", r"\rangle", r"\rVert", r"\rvert", r"\rfloor", r"\rceil", r"\end"}
_RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ll", r"\gg", r"\to", r"\in", r"\sim", r"\approx", r"\propto"}
_RELATIONS |= {r"\equiv", r"\Rightarrow", r"\Longrightarrow", r"\iff", r"\Leftrightarrow", r"\ne", r"\leq", r"\geq"}
_SIGNS = {"+", "-", r"\cdot", r"\times", r"\pm"}
_SPACES = {r"\ ", r"\,", r"\;", r"\!", r"\quad"}
#: What follows these stays with them.
_STICK = _RELATIONS | {"", "^", "_", r"\displaystyle", r"\textstyle", r"\qquad"}


def pieces(latex: str) -> list[str]:
    """A displayed formula cut before its relations and its plus and minus signs, and after its wide spaces."""
    cuts, depth, bars, before = [0], 0, 0, ""
    for token in _TOKEN.finditer(latex):
        this = token[0]
        if this in _SPACES:
            continue
        if this in _OPENS and before not in (r"\left", r"\right"):
            depth += 1
        elif this in _CLOSES and before not in (r"\left", r"\right"):
            depth -= 1
        elif this == "|":
            bars += 1
        if depth == bars % 2 == 0 and (
            before == r"\qquad" or (this in _RELATIONS | _SIGNS and before not in _STICK)
        ):
            cuts.append(token.start())
        before = this
    if depth or bars % 2:
        return [latex]
    return [latex[start:end].strip("\n") for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def parts(formula: Formula) -> list[Formula]:
    """What MathJax sets for a formula: itself, or its pieces, each in display style and spaced as in the whole."""
    cut = pieces(formula.latex) if formula.display else []
    if len(cut) < 2:
        return [formula]
    return [Formula(rf"\displaystyle {'{}' if i else ''}{piece}", False) for i, piece in enumerate(cut)]


# --- setting them ---------------------------------------------------------------------------------------


def engine() -> str:
    """The JavaScript engine of Playwright's wheel."""
    program = shutil.which("node", path=_home("playwright") / "driver")
    if program is None:
        raise ExtensionError(
            "playwright came without its JavaScript engine: pip install --force-reinstall playwright"
        )
    return program


def library() -> Path:
    """MathJax's folder."""
    return _home("sphinx-mathjax-offline") / "static" / "mathjax"


def _home(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ExtensionError(f"mathematics needs {package}: pip install {package}")
    return Path(found.origin).parent


def formulas(page: str) -> set[Formula]:
    """Those of a page, set already or not."""
    return {_formula(found) for pattern in (_WRITTEN, _SET) for found in pattern.finditer(page)}


def _formula(found: re.Match[str]) -> Formula:
    return Formula(unescape(found["latex"]).strip("\n"), found["tag"] == "div")


def typeset(wanted: Iterable[Formula]) -> tuple[dict[Formula, str], str]:
    """HTML for each formula, and the style sheet for all of them."""
    cut = {formula: parts(formula) for formula in wanted}
    pieces_of_all = sorted({piece for pieces in cut.values() for piece in pieces})
    command = [engine(), str(Path(__file__).with_suffix(".js")), str(library())]
    done = subprocess.run(
        command, input=json.dumps(pieces_of_all), capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise ExtensionError(f"mathematics could not be typeset: {done.stderr.strip()}")
    answer = json.loads(done.stdout)
    made = dict(zip(pieces_of_all, answer["made"], strict=True))
    wrong = [
        f"\n  {made[piece]['error']}: {formula.latex}"
        for formula, pieces in sorted(cut.items())
        for piece in pieces
        if "error" in made[piece]
    ]
    if wrong:
        raise ExtensionError("formulas that cannot be typeset (the pages' sources hold them):" + "".join(wrong))
    joined = {formula: [made[piece]["html"] for piece in pieces] for formula, pieces in cut.items()}
    return {formula: _together(markup) for formula, markup in joined.items()}, answer["css"]


def _together(pieces: list[str]) -> str:
    return pieces[0] if len(pieces) == 1 else f'<div class="nc-pieces">{"<wbr>".join(pieces)}</div>'


def set_page(page: str, made: dict[Formula, str]) -> str:
    """A page with its formulas in the place of their LaTeX."""

    def one(found: re.Match[str]) -> str:
        formula = _formula(found)
        opened = f'{found["open"]} data-latex="{escape(formula.latex)}">'
        return f"{opened}{found['number']}{made[formula]}</{found['tag']}>"

    return _WRITTEN.sub(one, page)


def set_pages(app: Sphinx, error: Exception | None) -> None:
    """build-finished: every page's formulas, the style sheet that they share, and its fonts."""
    if error is not None or app.builder.format != "html":
        return
    files = [path for path in Path(app.outdir).rglob("*.html") if "_static" not in path.parts]
    pages = {path: path.read_text("utf-8") for path in files}
    made, css = typeset(set[Formula]().union(*map(formulas, pages.values())))
    for path, text in pages.items():
        if (changed := set_page(text, made)) != text:
            path.write_text(changed, "utf-8")
    folder = Path(app.outdir) / "_static" / FOLDER
    shutil.copytree(library() / "output" / "chtml" / "fonts" / "woff-v2", folder, dirs_exist_ok=True)
    (folder / "style.css").write_text(css, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_css_file(f"{FOLDER}/style.css")
    app.add_js_file(None, body=_COPY, priority=900)
    app.connect("build-finished", set_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
