"""The book's own Sphinx extension, on a small book: nothing stale, nothing unchecked, failure is loud."""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, python, run
from docutils import nodes
from jupyter_cache.executors.utils import ExecutionResult
from nbformat.v4 import new_code_cell, new_notebook, new_output

from bookkit import execution, ledger, notebooks, page_parts, provenance
from nclib.book import claims

CHAPTER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  name: python3
---

# A norm

```{code-cell} ipython3
import nclib as nc

nc.chapter("01_norm")
```

:::{prf:theorem} Equilibrium
:label: thm-equilibrium

The norm is $\\rho=\\mu/(M+\\lambda)$.

:::

```{code-cell} ipython3
predicted = 0.5 / (0.25 + 0.01)
nc.claim("thm-equilibrium", "the norm is $\\\\rho$", predicted=predicted, measured=MEASURED, rtol=1e-3)
```
"""
HOLDS = CHAPTER.replace("MEASURED", "predicted * (1 + 1e-4)")
# What a machine may write to stderr, and a figure.
NOTICE_AND_FIGURE = """
```{code-cell} ipython3
---
mystnb:
  figure:
    caption: A line.
    name: fig-line
  image:
    alt: A line.
---
import sys

print("old", "driver", file=sys.stderr)
figure, ax = nc.panels()
ax.plot([1, 2]);
```
"""
BROKEN = CHAPTER.replace("MEASURED", "predicted * 1.02")


def make_book(folder: Path, chapter: str) -> Path:
    """A book of one chapter and an index, with this project's configuration, extension and package."""
    for name in ("bookkit", "assets", "nclib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # half-written ones
    for name in ("_config.yml", "constraints.txt", "references.bib"):
        shutil.copy(ROOT / name, folder / name)
    config = yaml.safe_load((folder / "_config.yml").read_text("utf-8"))
    config["repository"]["url"] = "https://github.com/owner/book"
    (folder / "_config.yml").write_text(yaml.safe_dump(config), "utf-8")
    entry = {"file": "chapters/01_norm"}
    parts = [
        {"caption": "Theory", "numbered": 2, "chapters": [entry]},
        {"chapters": [{"file": "verdicts"}]},
    ]
    (folder / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "index", "parts": parts}))
    (folder / "index.md").write_text("# A book\n\n```{theorem-map}\n```\n", "utf-8")
    told = "```{verdict} thm-equilibrium\nlimit | any $\\sigma$ | 0 | none | any | any\n```\n"
    (folder / "verdicts.md").write_text(f"# Verdicts\n\n```{{find-claims}}\n```\n\n## Norms\n\n{told}", "utf-8")
    (folder / "chapters").mkdir()
    (folder / "chapters" / "01_norm.md").write_text(chapter, "utf-8")
    return folder


def build(book: Path, *options: str, **variables: str) -> tuple[int, str]:
    """Build the book; return the exit code and what was printed (without colours)."""
    # The package of the small book, not the one that is installed.
    named = {"PYTHONPATH": str(book), "NCLIB_CLAIMS": "", **variables}
    done = run([Path(sys.executable).with_name("jupyter-book"), "build", ".", *options], book, **named)
    return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def strict(book: Path, **variables: str) -> tuple[int, str]:
    """Build as `make book` does."""
    return build(book, "-W", "-n", "--keep-going", **variables)


def html(book: Path, page: str) -> str:
    """A finished page."""
    return (book / "_build" / "html" / f"{page}.html").read_text("utf-8")


def test_claims_are_shown_kept_and_never_stale(tmp_path: Path) -> None:
    book = make_book(tmp_path / "book", HOLDS + NOTICE_AND_FIGURE)
    # Another backend than a notebook's, and a home folder that can't be written to.
    code, log = strict(book, MPLBACKEND="agg", HOME="/dev/null/nobody", XDG_CACHE_HOME="", XDG_CONFIG_HOME="")
    assert code == 0, log
    assert "old driver" in log
    assert "01_norm: executed in" in log

    # The verdicts and the map link the theorem by its number and give its verdict.
    for page in ("verdicts", "index"):
        assert 'href="chapters/01_norm.html#thm-equilibrium"' in html(book, page)
        assert "Theorem 1.1" in html(book, page)
    assert html(book, "verdicts").count('class="nc-claim holds"') == 1
    assert 'data-share="0.1" class="nc-claim' in html(book, "verdicts")
    assert "kind: limit · network: any <span" in html(book, "verdicts")
    assert "✓ 1 of 1 claim holds" in html(book, "index")
    chapter = html(book, "chapters/01_norm")
    assert 'href="#thm-equilibrium">Theorem 1.1</a>: the norm is <span class="math' in chapter
    assert "<summary>Code of the claims</summary>" in chapter
    assert '<a href="../verdicts.html#verdict-thm-equilibrium">✓ 1 of 1 claim holds in this build</a>' in chapter
    assert 'href="../colab/01_norm.ipynb" download' in chapter
    assert re.search(r"executed in \d+ s on \d{4}-\d\d-\d\d, ", chapter)
    made = r"Scale quick, device \S.*, base seed 0, threads 1; Python 3.*, PyTorch .*, NumPy .*, SciPy [\d.]+\."
    assert re.search(made, chapter)
    assert "<summary>Set-up</summary>" in chapter
    assert "nc-facts" not in chapter
    assert 'id="fig-line"' in chapter
    assert "old driver" not in chapter
    assert "writable" not in chapter
    # The Colab button opens the notebook that Colab can show, from the branch on which the book is published.
    (button,) = re.findall(r'href="https://colab\.research\.google\.com/github/owner/book/blob/([^"]*)"', chapter)
    assert button == "gh-pages/colab/01_norm.ipynb"
    opened = (book / "_build" / "html" / button.partition("/")[2]).read_text("utf-8")
    assert "> **Theorem 1.1 (Equilibrium).**" in opened
    assert "{prf:" not in opened
    (record,) = json.loads((book / "_build" / "claims" / "01_norm.json").read_text("utf-8"))
    assert record["passed"]
    assert record["base_seed"] == 0

    # A second build executes nothing; what lies about in the ledger's folder is not believed, but mended.
    ledger_file = book / "_build" / "claims" / "01_norm.json"
    ledger_file.write_text(json.dumps([{**record, "statement": "forged"}]), "utf-8")
    (book / "_build" / "claims" / "99_gone.json").write_text("[]", "utf-8")
    (book / "index.md").write_text("# The book\n\n```{theorem-map}\n```\n", "utf-8")
    code, log = strict(book)
    assert code == 0, log
    assert "executed in" not in log
    assert "forged" not in html(book, "verdicts")
    assert json.loads(ledger_file.read_text("utf-8")) == [record]
    assert not (book / "_build" / "claims" / "99_gone.json").exists()

    # Another text around the same code: read again, from the execution cache.
    path = book / "chapters" / "01_norm.md"
    path.write_text(path.read_text("utf-8").replace("The norm is", "The final norm is"), "utf-8")
    code, log = strict(book)
    assert code == 0, log
    assert "Using cached notebook" in log
    assert html(book, "verdicts").count('class="nc-claim holds"') == 1

    # Another package (and another base seed): everything is executed again.
    claims = book / "nclib" / "book" / "claims.py"
    claims.write_text(claims.read_text("utf-8").replace("def claim(", "WORD = 1\n\n\ndef claim("), "utf-8")
    code, log = strict(book, NCLIB_SEED="7")
    assert code == 0, log
    assert "01_norm: executed in" in log
    assert "base seed 7" in html(book, "verdicts")

    # What no longer claims anything leaves no verdict behind, and is an error.
    path.write_text(re.sub(r"nc\.claim\(.*\)\n", "", path.read_text("utf-8")), "utf-8")
    code, log = strict(book, NCLIB_SEED="7")
    assert code != 0
    assert "no claim checks theorem 'thm-equilibrium'" in log
    assert "✓" not in html(book, "verdicts").partition("<article")[2].partition("</article")[0]
    assert not ledger_file.exists()


def test_broken_claim_fails_the_build_and_says_where(tmp_path: Path) -> None:
    book = make_book(tmp_path / "book", BROKEN)
    code, log = build(book)  # even without -W
    assert code != 0
    assert "01_norm: claim on thm-equilibrium fails: the norm is" in log
    assert "ClaimFailed" in log
    assert "no claim checks" not in log
    # The page that a reader might open all the same does not hide it.
    assert "✗ 1 of 1 claim fails" in html(book, "index")


def test_broken_claim_fails_nbmake_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "broken.ipynb").write_text(notebooks.as_text(notebooks.notebook(BROKEN)), "utf-8")
    done = python("-m", "pytest", "--nbmake", "-p", "no:cacheprovider", ".", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "thm-equilibrium" in done.stdout
    assert "broken.ipynb" in done.stdout


# --- the parts ------------------------------------------------------------------------------------


def test_fingerprint_follows_package_pins_results_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nclib").mkdir()
    (tmp_path / "results").mkdir()
    seen = {provenance.fingerprint(tmp_path)}
    for name in ("nclib/a.py", "constraints.txt", "results/run.csv"):
        (tmp_path / name).write_text("1", "utf-8")
        seen.add(provenance.fingerprint(tmp_path))
    for name in ("NCLIB_SCALE", "NCLIB_SEED", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "9")
        seen.add(provenance.fingerprint(tmp_path))
    monkeypatch.setattr(provenance, "version", lambda name: "9" if name == "scipy" else version(name))
    seen.add(provenance.fingerprint(tmp_path))
    monkeypatch.setattr(provenance, "device_name", lambda: "another")
    seen.add(provenance.fingerprint(tmp_path))
    assert len(seen) == 9
    (tmp_path / "index.md").write_text("prose", "utf-8")
    (tmp_path / "results" / "base_seeds.csv").write_text("1", "utf-8")  # which no chapter reads
    assert provenance.fingerprint(tmp_path) in seen


def test_a_page_says_what_made_its_outputs_and_not_what_assembles_it() -> None:
    line = "scale full · device H · base seed 7 · threads 3 · Python 3.0 · SciPy 1.2"
    shown = new_output("display_data", {"text/html": f'<p class="nc-facts">{line}</p>', "text/plain": line})
    made = new_notebook(cells=[new_code_cell(outputs=[shown])])
    page = ledger.Page(made_on=ledger.read_facts(made), commit="abc")
    book = SimpleNamespace(docname="a", book=ledger.Ledger(pages={"a": page}))
    text = page_parts.how_made(book, {"runtime": 5.0, "mtime": 1.0}).astext()  # type: ignore[arg-type]
    assert "executed in 5 s on 1970-01-01, " in text
    assert "Scale full, device H, base seed 7, threads 3; Python 3.0, SciPy 1.2; commit abc. " in text


def test_outputs_are_kept_with_the_commit_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.md"
    source.write_text(CHAPTER.partition("# A norm")[0] + "```{code-cell} ipython3\n1\n```\n", "utf-8")
    done = ExecutionResult(None, "", 2.0)
    monkeypatch.setattr(execution, "single_nb_execution", lambda *_, **__: done)
    folder = tmp_path / "cache"
    execution.execute([source], folder, 9, "abc")
    app = SimpleNamespace(config=SimpleNamespace(nb_execution_cache_path=str(folder)))
    notebook = execution.source_notebook(source)
    assert execution.commit(app, notebook) == "abc"  # type: ignore[arg-type]
    notebook.cells[0].source = "2"
    assert execution.commit(app, notebook) == ""  # type: ignore[arg-type]


def test_commit_is_empty_outside_a_repository(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == ""


RECORD = {
    "theorem": "thm-a",
    "chapter": "01_a",
    "statement": "s",
    "predicted": 2.0,
    "measured": [2.0, 2.1],
    "deviation": 0.05,
    "tolerance": "rtol 0.1",
    "seeds": 2,
    "confidence_interval": [1.99, 2.11],
    "passed": True,
}


class FewTheorems:
    """A book that knows no theorem."""

    def theorem_link(self, label: str) -> str:
        return f"<code>{label}</code>"


def test_the_first_claim_of_a_cell_is_told_and_the_others_are_folded() -> None:
    def output(*records: dict[str, object]) -> str:
        told = [nodes.raw("", claims.sentence(record), format="html") for record in records]
        cell = nodes.container("", *told, classes=["cell_output"])
        page_parts.tell_claims(FewTheorems(), cell)  # type: ignore[arg-type]
        return "".join(node.astext() for node in cell.findall(nodes.raw))

    whole = {**RECORD, "scale": "quick", "device": "cpu"}
    assert "<details" not in output(whole)
    shown, _, folded = output({**whole, "statement": "$x$"}, whole, whole).partition("<details")
    assert r"\(x\)" in shown
    assert "<summary>✓ 2 more checks</summary>" in folded
    shown, _, folded = output({**whole, "statement": "check of the code: s"}).partition("<details")
    assert shown == ""
    assert "<summary>✓ 1 check</summary>" in folded
    shown, _, folded = output(whole, {**whole, "passed": False}).partition("<details")
    assert "✗ fails" in shown
    assert not folded


@pytest.mark.parametrize(
    ("code", "shown", "figure", "parts"),
    [
        ("x = 1\n\nnc.claim(x)\ny = 2", "x = 1", False, ["nc.claim(x)\ny = 2"]),
        ("x = 1\nfor y in x:\n    nc.claim(x)", "x = 1", False, ["for y in x:\n    nc.claim(x)"]),
        ("nc.claim(x)", None, False, ["nc.claim(x)"]),
        ("x = 1\ny = 'nc.claims'", "x = 1\ny = 'nc.claims'", False, []),
        ("nc.lines(x)", None, True, ["nc.lines(x)"]),
    ],
)
def test_code_that_claims_or_draws_is_folded(code: str, shown: str | None, figure: bool, parts: list[str]) -> None:
    source = nodes.container("", nodes.literal_block(code, code, language="ipython3"), classes=["cell_input"])
    output = nodes.container("", *[nodes.figure()] * figure, classes=["cell_output"])
    nodes.container("", source, output)
    page_parts.fold_code(source)
    blocks = [block.astext() for block in source.findall(nodes.literal_block)]
    assert blocks == ([shown] if shown else []) + parts
    assert len(list(source.findall(nodes.raw))) == 2 * len(parts)
    assert all(block["language"] == "ipython3" for block in source.findall(nodes.literal_block))


@pytest.mark.parametrize(
    ("line", "defect"),
    [
        ("cells/ipykernel_12/34.py:5: RuntimeWarning: overflow in x", True),
        ("C:\\T\\ipykernel_12\\34.py:5: UserWarning: a word", True),
        ("/home of me/nclib/theory/flow.py:7: UserWarning: a word", True),
        ("/opt/lib/scipy/linalg/_basic.py:3: LinAlgWarning: ill-conditioned matrix", True),
        ("Traceback (most recent call last):", True),
        (
            "/nclib/.venv/lib/python3.12/site-packages/torch/cuda/__init__.py:1: UserWarning: the driver is old",
            False,
        ),
        ("/opt/lib/torch/cuda/__init__.py:129: UserWarning: the driver is too old", False),
        ("[W1130 16:00:00 NNPACK.cpp:61] Could not initialize NNPACK!", False),
        ("mkdir -p failed for path /nclib/x: not a writable folder", False),
    ],
)
def test_on_stderr_what_the_book_wrote_is_a_defect_and_what_the_machine_wrote_is_not(
    line: str, defect: bool
) -> None:
    output = new_output("stream", name="stderr", text=f"some words\n{line}\n  more\n")
    made = new_notebook(cells=[new_code_cell(outputs=[output])])
    assert ledger.read_defects(made) == ([f"a cell writes to stderr: {line}"] if defect else [])


def test_a_figure_that_did_not_come_out_is_a_defect() -> None:
    meant = {"mystnb": {"figure": {"name": "fig-a"}}}
    made = new_notebook(
        cells=[new_code_cell(metadata=meant, outputs=[new_output("execute_result", {"text/plain": "x"})])]
    )
    assert ledger.read_defects(made) == ["no figure 'fig-a' came out of its cell"]
    made.cells[0].outputs.append(new_output("display_data", {"image/svg+xml": "<svg/>"}))
    assert ledger.read_defects(made) == []


def test_problems_name_the_page() -> None:
    theorem = ledger.Theorem("thm-a", "theorem", "theorem", [], 7)
    book = ledger.Ledger(pages={"chapters/01_a": ledger.Page(theorems={"thm-a": theorem})})
    assert list(ledger.problems(book, {"chapters/01_a"})) == [
        ("chapters/01_a", 7, "no claim checks theorem 'thm-a'")
    ]
    book.pages["chapters/01_a"].defects.append("d")
    assert list(ledger.problems(book, set())) == []  # the chapter did not run to its end
    assert next(ledger.problems(book, {"chapters/01_a"})) == ("chapters/01_a", None, "d")
    book.pages["chapters/01_a"].defects.clear()
    book.pages["chapters/01_a"].records.append(dict(RECORD))
    assert list(ledger.problems(book, {"chapters/01_a"})) == []
    book.pages["chapters/01_a"].records.append({**RECORD, "passed": False})
    ((page, _, message),) = ledger.problems(book, {"chapters/01_a"})
    assert page == "chapters/01_a"
    assert "a claim on 'thm-a' fails: s" in message
    strange = {**RECORD, "theorem": "thm-b", "chapter": "02_a"}
    book.pages["chapters/01_a"].records[1:] = [strange]
    assert list(ledger.problems(book, set())) == [
        ("chapters/01_a", None, "a claim names 'thm-b', which is no theorem of the book"),
        ("chapters/01_a", None, "a claim was made in chapter '02_a': begin with nc.chapter(\"01_a\")"),
    ]
