"""The Makefile in a folder whose name has a blank and a letter beyond ASCII; its programs only say their names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import ROOT, run

SAYS = """#!/bin/sh
# {python}
echo "ran ${{0##*/}} in $PWD with $COLAB_PYTHON:" "$@"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an environment that was made for it, and is up to date."""
    folder = tmp_path / "a bö" / "book"
    for environment in (".venv", ".venv-colab"):
        programs = folder / environment / "bin"
        programs.mkdir(parents=True)
        for name in ("python", "python3", "jupyter-book", "ruff", "mypy"):
            (programs / name).write_text(SAYS.format(python=programs / "python"), "utf-8")
            (programs / name).chmod(0o755)
    (folder / "tests" / "book").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tests/book/colab-versions.txt"):
        shutil.copy(ROOT / name, folder / name)
    for name in (".venv/.python", ".venv/.installed", ".venv/.dev", ".venv-colab/.installed"):
        (folder / name).touch()
    return folder


def make(folder: Path, target: str) -> CompletedProcess[str]:
    """Make a target there."""
    return run(["make", "--no-print-directory", target, "PYTHON=.venv/bin/python3"], folder)


TARGETS = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "pins"])
def test_a_target_runs_in_any_folder(folder: Path, target: str) -> None:
    done = make(folder, target)
    assert done.returncode == 0, done.stdout
    for line in done.stdout.splitlines():
        if line.startswith("ran "):
            assert f" in {folder} with " in line
    if target == "drill":
        assert f" with {folder}/.venv-colab/bin/python: -m pytest" in done.stdout
    if target == "book":
        assert f"The book is at {folder}/_build/html/index.html" in done.stdout


@pytest.mark.parametrize("target", ["install", "book", "test", "lint"])
def test_an_environment_of_another_folder_is_not_used(folder: Path, target: str) -> None:
    moved = folder.with_name("moved")
    folder.rename(moved)
    done = make(moved, target)
    assert done.returncode
    assert ".venv was made for another folder, and would run its code: rm -rf .venv, then make again" in done.stdout
    assert "ran " not in done.stdout
