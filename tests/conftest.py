"""What the tests share: where things lie, and helpers to run the book's own tools."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, sync_playwright

import nclib as nc
from bookkit import kernels, pdf

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "_build" / "html"


def pytest_configure(config: pytest.Config) -> None:
    """Kernels are this Python; examples in docstrings, which no fixture reaches, keep out of the book's ledger."""
    kernels.prepare()
    folder = tempfile.mkdtemp(prefix="claims-")
    os.environ["NCLIB_CLAIMS"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def root() -> Path:
    """The book's folder."""
    return ROOT


@pytest.fixture(autouse=True)
def _claims_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's claims do not get into the ledger of the built book."""
    monkeypatch.setenv("NCLIB_CLAIMS", str(tmp_path / "claims"))


def missing(what: str) -> None:
    """Skip a test for want of `what`; fail where BOOK_TESTS=required says that it must be there."""
    if os.environ.get("BOOK_TESTS") == "required":
        pytest.fail(f"BOOK_TESTS=required, but {what}")
    pytest.skip(what)


@pytest.fixture(scope="session")
def built_book() -> None:
    """The book's HTML is there."""
    if not (BOOK / "index.html").exists():
        missing("the book is not built: run `make book` first")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, which asks nothing of the network of its own accord."""
    program = pdf.chromium()
    if program is None:
        missing("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=pdf.QUIET)
        yield opened
        opened.close()


def run(
    command: Sequence[str | Path], cwd: Path, *, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command quietly, with some environment variables changed (an empty value removes one)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    environment = {name: value for name, value in environment.items() if value or name not in variables}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )


def python(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with `arguments`."""
    return run([sys.executable, *arguments], cwd, **variables)


def solution(chapter: str, exercise: str, **names: Any) -> Any:
    """Execute the code of an exercise's folded solution; the value of its last line, where it has one."""
    names = {"nc": nc, "np": np, "torch": torch} | names
    text = (ROOT / "chapters" / f"{chapter}.md").read_text("utf-8")
    block = re.search(rf"^:::\{{solution\}} {exercise}$(.*?)^:::$", text, re.MULTILINE | re.DOTALL)
    assert block, f"no solution of {exercise}"
    (code,) = re.findall(r"^```python\n(.*?)^```$", block[1], re.MULTILINE | re.DOTALL)
    *body, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], ast.Expr(ast.Constant(None))
    exec(compile(ast.Module(body, []), exercise, "exec"), names)
    return eval(compile(ast.fix_missing_locations(ast.Expression(last.value)), exercise, "eval"), names)
