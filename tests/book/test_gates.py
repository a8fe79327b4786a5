"""What reading does not show: a version told twice, a dependency there by luck, a number changed without a word."""

from __future__ import annotations

import ast
import json
import os
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bookkit import notebooks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def git(*arguments: str) -> str:
    """What git says; without a history there is nothing to compare with."""
    done = run(["git", *arguments], ROOT)
    if done.returncode:
        pytest.skip(f"git {arguments[0]}: {done.stdout.strip()}")
    return done.stdout


def code(text: str) -> str:
    """The code of a chapter."""
    return "\n".join(cell.source for cell in notebooks.notebook(text).cells if cell.cell_type == "code")


def test_the_version_is_the_same_wherever_it_is_told() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["title"] == PROJECT["description"]


# ----------------------------------------------------------------------------------------- dependencies

# Where a notebook runs, these are there; nclib asks for them only then.
OF_NOTEBOOKS = {"IPython", "matplotlib_inline"}
MATCHING = {
    "nclib": ["convex"],
    "chapters": ["convex"],
    "results": ["sweeps"],
    "benchmarks": [],
    "bookkit": ["book", "test"],  # the PDF is printed by the browser of the tests
    "tests": ["book", "test", "convex", "sweeps"],
}


def sources(folder: str) -> Iterator[tuple[str, str]]:
    """Every Python text of a folder, with its name: modules, and the code of chapters."""
    for path in (ROOT / folder).rglob("*.py"):
        yield path.name, path.read_text("utf-8")
    for path in notebooks.chapters(ROOT) if folder == "chapters" else []:
        yield path.name, code(path.read_text("utf-8"))


def imported(text: str) -> set[str]:
    """The packages that a text imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(text)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in plain | named}


@pytest.mark.parametrize("folder", MATCHING)
def test_whatever_is_imported_is_declared(folder: str) -> None:
    lists = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in MATCHING[folder])]
    declared = {canonicalize_name(Requirement(text).name) for texts in lists for text in texts}
    own = {path.stem for path in ROOT.rglob("*.py") if ".venv" not in path.parts} | {p.name for p in ROOT.iterdir()}
    makers = packages_distributions()
    for file, text in sources(folder):
        for name in imported(text) - sys.stdlib_module_names - own - OF_NOTEBOOKS:
            made_by = {canonicalize_name(maker) for maker in makers.get(name, [name])}
            assert made_by & declared, f"{folder}/{file} imports {name}: declare it in pyproject.toml"


# --------------------------------------------------------------------------------------- stored results

TABLES = sorted((ROOT / "results").glob("*.csv"))


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_table_that_changed_was_made_anew(table: Path) -> None:
    """A CSV and its hash can be rewritten together; but a table that differs was made at another time."""
    manifest = table.with_suffix(".json")
    places = [path.relative_to(ROOT).as_posix() for path in (table, manifest)]
    versions: dict[str, set[str]] = {}  # when a table was made, and the tables that say so
    for commit in git("log", "--format=%H", "--", *places).split():
        csv, facts = (git("show", f"{commit}:{place}") if _is_there(commit, place) else "" for place in places)
        if csv and facts:
            versions.setdefault(json.loads(facts)["created"], set()).add(csv)
    versions.setdefault(json.loads(manifest.read_text("utf-8"))["created"], set()).add(table.read_text("utf-8"))
    assert not [made for made, different in versions.items() if len(different) > 1]


def _is_there(commit: str, place: str) -> bool:
    return bool(git("ls-tree", "--name-only", commit, place).strip())


@pytest.mark.parametrize("part", ["binary", "labels"])
def test_a_row_of_a_stored_result_can_be_computed_again(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("NCLIB_DATA")
    if not folder or not (Path(folder).expanduser() / "cifar-10-batches-bin").is_dir():
        pytest.skip("NCLIB_DATA has no CIFAR-10")
    sys.path.insert(0, str(ROOT / "results"))
    import remake

    monkeypatch.delenv("NCLIB_RUNS", raising=False)
    stored = pd.read_csv(ROOT / "results" / f"{part}_cpu.csv")
    call = json.loads((ROOT / "results" / f"{part}_cpu.json").read_text("utf-8"))["config"]["calls"][-1]
    again = remake.binary_job(**{**call, "epochs": 1, "seeds": call["seeds"][-1:], "init_norms": [1]})
    key = ["norm", "weight_decay", "noise", "seed", "init_norm", "epoch"]
    found = again.assign(norm=call["norm"]).merge(stored, on=key, suffixes=("", "_stored"))
    assert found["epoch"].tolist() == [0, 1]
    for column in ("loss", "error", "test_mse", "rho", "margin_q50", "rho_published"):
        np.testing.assert_allclose(found[column], found[f"{column}_stored"], rtol=1e-3, atol=1e-9, err_msg=column)


# ---------------------------------------------------------------------------------------------- claims


class Claims(NamedTuple):
    """What a state of the chapters claims."""

    count: Counter[str]  # of each theorem
    limits: dict[tuple[str, str], list[float]]  # by theorem and statement: what it tolerates, where it is a number


def claims(texts: list[str]) -> Claims:
    """The claims in the code of chapters, read and not run."""
    found = Claims(Counter(), {})
    for text in texts:
        for node in ast.walk(ast.parse(code(text))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "nc.claim" and len(node.args) >= 2:
                theorem, statement = (ast.unparse(part).strip("'\"") for part in node.args[:2])
                found.count[theorem] += 1
                limits = [tolerance(word) for word in node.keywords]
                found.limits.setdefault((theorem, statement), []).extend(v for v in limits if v is not None)
    return found


def tolerance(word: ast.keyword) -> float | None:
    """How much one criterion of a claim lets pass, in a number that is larger where it is wider."""
    try:
        value = eval(compile(ast.Expression(word.value), "", "eval"), {"__builtins__": {}})
        return {
            "rtol": lambda: float(value), "atol": lambda: float(value), "at_most": lambda: float(value),
            "at_least": lambda: -float(value), "between": lambda: float(value[1] - value[0]),
        }[str(word.arg)]()  # fmt: skip
    except (NameError, KeyError, TypeError, AttributeError, SyntaxError):
        return None  # no criterion, or not a plain number


def lost(before: Claims, now: Claims) -> set[str]:
    """Theorems of which there are fewer claims than before, or a claim of the same words that lets more pass."""
    fewer = {theorem for theorem, count in before.count.items() if now.count[theorem] < count}
    wider = {
        key[0]
        for key, limits in now.limits.items()
        if key in before.limits and len(limits) == len(before.limits[key])
        for old, new in zip(before.limits[key], limits, strict=True)
        if new > old
    }
    return fewer | wider


def chapters_at(commit: str) -> Claims:
    names = git("ls-tree", "--name-only", commit, "chapters/").split()
    return claims([git("show", f"{commit}:{name}") for name in names if name.endswith(".md")])


def test_a_claim_does_not_vanish_or_widen_without_a_word() -> None:
    """What the last commit (for a merge: all that it brought) took from a theorem, its messages name by label."""
    before = git("rev-parse", "--verify", "HEAD^1").strip()
    words = git("log", "--format=%B", f"{before}..HEAD")
    missing = lost(chapters_at(before), chapters_at("HEAD"))
    unsaid = sorted(theorem for theorem in missing if theorem not in words)
    assert not unsaid, f"name them in the commit's message, with the reason: {', '.join(unsaid)}"


def test_the_gate_of_claims_sees_what_it_should() -> None:
    def chapter(*calls: str) -> Claims:
        return claims(["\n".join(["```{code-cell} ipython3", ":tags: [x]", *calls, "```"])])

    one, other = (
        'nc.claim("thm-a", "s", measured=m, predicted=p, {})',
        'nc.claim("thm-b", "s", measured=m, at_least=3)',
    )
    start = chapter(one.format("rtol=1e-2"), other)
    assert start.count == {"thm-a": 1, "thm-b": 1}
    assert lost(start, start) == set()
    assert lost(start, chapter(one.format("rtol=0.02"), other)) == {"thm-a"}
    assert lost(start, chapter(one.format("rtol=0.005"), other.replace("3", "2"))) == {"thm-b"}
    assert lost(start, chapter(one.format("rtol=0.01"))) == {"thm-b"}
