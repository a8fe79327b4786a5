"""What executes chapters: the Python that builds, with folders where the user's command began."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, python
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from sphinx.errors import ExtensionError

from bookkit import base_seeds, execution, kernels, notebooks


@pytest.fixture
def strangers(tmp_path: Path) -> str:
    """The folder of somebody's kernel python3, which dies at once."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = ["false", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "", "language": "python"}))
    return str(tmp_path / "jupyter")


@pytest.fixture
def asked(strangers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user in this folder, with a stranger's kernel and folders named as one types them."""
    monkeypatch.setenv("JUPYTER_PATH", strangers)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", "first")
    monkeypatch.setenv("NCLIB_DATA", "a bö/data")
    monkeypatch.setenv("NCLIB_RUNS", "~/runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started() -> str:
    """The program that a kernel python3 would be."""
    program: str = (
        NotebookClient(new_notebook(), kernel_name="python3").create_kernel_manager().format_kernel_cmd()[0]
    )
    return program


def test_the_kernel_is_this_python_and_folders_are_the_users(asked: Path) -> None:
    assert started() == "false"
    for _ in range(2):
        kernels.prepare()
        assert started() == sys.executable
        assert os.environ["NCLIB_DATA"] == str(asked / "a bö" / "data")
        assert os.environ["NCLIB_RUNS"] == str(asked / "home" / "runs")
    assert os.environ["JUPYTER_PATH"].count(os.pathsep) == 1
    assert os.environ["PYTHONPATH"] == os.pathsep.join(["first", str(ROOT)])


def test_what_names_no_folder_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCLIB_DATA", raising=False)
    monkeypatch.setenv("NCLIB_RUNS", "")
    kernels.prepare()
    assert "NCLIB_DATA" not in os.environ
    assert os.environ["NCLIB_RUNS"] == ""


def test_a_build_prepares_kernels(asked: Path) -> None:
    execution.setup(SimpleNamespace(connect=lambda *_: None))  # type: ignore[arg-type]
    assert started() == sys.executable


def test_a_build_with_another_folders_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExtensionError, match=r"would run nclib of .*: install it here, `pip install -e \.`, or remove"
    ):
        execution.refuse_strangers(SimpleNamespace(srcdir=str(tmp_path)))  # type: ignore[arg-type]
    execution.refuse_strangers(SimpleNamespace(srcdir=str(ROOT)))  # type: ignore[arg-type]


def test_so_do_runs_from_other_base_seeds(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(source: Path, seed: int, *_: object) -> base_seeds.Outcome:
        seen.append((started(), os.environ["NCLIB_DATA"]))
        return base_seeds.Outcome(source.stem, seed, [], [])

    monkeypatch.setattr(base_seeds, "run", run)
    monkeypatch.setattr(base_seeds.notebooks, "ROOT", asked)
    monkeypatch.setattr(base_seeds.notebooks, "chapters", lambda: [asked / "01_a.md"])
    monkeypatch.setattr(sys, "argv", ["base_seeds", "--seeds", "1"])
    assert base_seeds.main() == 0
    assert seen == [(sys.executable, str(asked / "a bö" / "data"))]


def test_chapters_as_tests_run_in_this_python(strangers: str, tmp_path: Path) -> None:
    chapters = tmp_path / "chapters"
    chapters.mkdir()
    shutil.copy(ROOT / "chapters" / "conftest.py", chapters)
    code = "import os, sys; assert (sys.executable, os.environ['NCLIB_DATA']) == ({!r}, {!r})"
    cell = new_code_cell(code.format(sys.executable, str(tmp_path / "data")))
    (chapters / "a.ipynb").write_text(notebooks.as_text(new_notebook(cells=[cell])), "utf-8")
    options = ("-p", "no:cacheprovider", "--nbmake", "--nbmake-kernel", "python3", "chapters")
    named = {"PYTHONPATH": str(ROOT), "JUPYTER_PATH": strangers, "NCLIB_DATA": "data"}
    done = python("-m", "pytest", *options, cwd=tmp_path, **named)
    assert done.returncode == 0, done.stdout
