"""What must not be in the repository: outputs, machines' own paths, strangers' packages, anything big."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from bookkit import notebooks, page_parts

CHAPTERS = notebooks.chapters(ROOT)
TEXT = {
    ".md",
    ".py",
    ".ipynb",
    ".toml",
    ".yml",
    ".yaml",
    ".txt",
    ".cff",
    ".bib",
    ".css",
    ".svg",
    ".json",
    ".csv",
    "",
}
NOTEBOOK_LIMIT = 200_000  # bytes
FILE_LIMIT = 1_000_000


def files() -> list[Path]:
    """Files that git tracks or would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    """Every text file but this one, with its name."""
    return [
        (path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
        for path in files()
        if path.suffix in TEXT and path != Path(__file__)
    ]


def found(pattern: str, *, flags: int = 0) -> list[str]:
    """Where a pattern occurs, as ``file: text``."""
    return [f"{name}: {match[0]}" for name, text in texts() for match in re.finditer(pattern, text, flags)]


def test_no_paths_of_one_machine() -> None:
    assert not found(r"(?<![\w.~*}\])])/(?:work|root|home|Users|private|mnt)/[\w.-]+")
    assert not found(r"[A-Z]:\\\\?Users\\")
    # Elsewhere than in tests, a temporary folder is asked for, not named.
    assert not [hit for hit in found(r"(?<![\w.])/tmp/\w+") if not hit.startswith("tests/")]


def test_no_registry_hosts() -> None:
    assert not found(
        r"files\.pythonhosted\.org|pypi\.org|registry\.npmjs\.org|conda\.anaconda\.org|deb\.debian\.org"
    )


def test_nobody_is_told_to_install_a_stranger() -> None:
    # On PyPI, `nclib` is a netcat library.
    assert not found(r"pip3?\s+install\s+(?:-\S+\s+)*[\"'`]?nclib\b")


def test_no_keys_or_tokens() -> None:
    assert not found(r"BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}")


def test_no_build_products_or_weights() -> None:
    bad = [
        p
        for p in files()
        if {"_build", ".venv", "__pycache__", ".ipynb_checkpoints"} & set(p.relative_to(ROOT).parts)
        or p.suffix in {".pt", ".pth", ".ckpt", ".npz", ".npy", ".pkl", ".pyc", ".safetensors", ".whl", ".gz"}
    ]
    assert not bad


def test_lines_end_alike_on_every_system() -> None:
    command = ["git", "ls-files", "--eol"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for line in listed.stdout.splitlines():
        kept, here, attributes = line.partition("\t")[0].split(None, 2)
        assert kept.removeprefix("i/") in ("lf", "none", "-text"), line
        assert here.removeprefix("w/") in ("lf", "none", "-text", ""), line
        assert attributes.strip() == "attr/text=auto eol=lf", line


def test_nothing_is_big() -> None:
    assert not [f"{p.name}: {p.stat().st_size}" for p in files() if p.stat().st_size > FILE_LIMIT]


@pytest.mark.parametrize("path", sorted((ROOT / "chapters").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_is_small_and_without_outputs(path: Path) -> None:
    assert path.stat().st_size < NOTEBOOK_LIMIT
    notebook = nbformat.read(path, as_version=4)
    assert not [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert set(notebook.metadata) <= set(notebooks.KEPT_METADATA)


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_opens_under_its_own_name(source: Path) -> None:
    code = [c.source for c in notebooks.notebook(source.read_text("utf-8")).cells if c.cell_type == "code"]
    calls = [
        ast.literal_eval(node.args[0])
        for node in ast.walk(ast.parse("\n".join(code)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "nc.chapter"
    ]
    assert calls == [source.stem]


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda p: p.stem)
def test_chapter_reads_well_outside_the_book(source: Path) -> None:
    text = source.read_text("utf-8")
    fences = re.findall(r"^`{3,}\{(?!code-cell)([^}]+)\}", text, re.MULTILINE)
    assert not fences, "directives are colon fences: a backtick fence shows as code in a plain notebook"
    assert not re.search(r"^:::+\{prf:proof\}", text, re.MULTILINE), "a proof is an admonition"


def test_every_code_figure_says_what_it_shows() -> None:
    for source in CHAPTERS:
        for cell in notebooks.notebook(source.read_text("utf-8")).cells:
            options = cell.metadata.get("mystnb", {})
            if "figure" in options:
                assert options["figure"].get("caption"), f"{source.name}: a figure without a caption"
                assert options["figure"].get("name"), f"{source.name}: a figure without a name"
                assert options.get("image", {}).get("alt"), f"{source.name}: a figure without alt text"


def modules() -> dict[str, Path]:
    """Every module of the repository's Python packages."""
    found = [path for name in ("nclib", "bookkit", "benchmarks", "results") for path in (ROOT / name).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in found}


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """What is imported at run time, within functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imports(child)


def test_nothing_imports_in_circles() -> None:
    known = modules()
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in imports(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
                continue
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            graph[name] |= {inner if (inner := f"{source}.{a.name}") in known else source for a in node.names}
    assert {"nclib.scale", "bookkit.notebooks"} <= set().union(*graph.values())
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_code_in_view_is_short_and_fits_on_the_page(chapter: Path) -> None:
    """What sets up, draws or claims is folded; the rest is the experiment, which one reads."""
    if not re.match(r"\d", chapter.stem):
        return
    wide, long = [], []
    for cell in notebooks.notebook(chapter.read_text("utf-8")).cells:
        if cell.cell_type != "code" or "hide-input" in cell.metadata.get("tags", []):
            continue
        found = page_parts.folding(cell.source, "figure" in cell.metadata.get("mystnb", {}))
        lines = "\n".join(cell.source.splitlines()[: found and found[1]]).rstrip().splitlines()
        wide += [line for line in lines if len(line) > 88]
        long += [f"{len(lines)} lines: {lines[0]}"] if len(lines) > 20 else []
    assert (wide, long) == ([], [])
