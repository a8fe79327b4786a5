"""On what a build stands: the fingerprint that outdates the execution cache, and the facts a page states."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nclib.scale import device_name

from . import notebooks

#: Variables that change what a chapter computes, with the values that they have for a build when they are not set.
VARIABLES = dict.fromkeys(("NCLIB_SCALE", "NCLIB_SEED", "NCLIB_DATA"), "") | notebooks.ONE_THREAD

#: Libraries that compute or draw.  The pins may name other versions than those that are there.
LIBRARIES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "cvxpy", "matplotlib", "seaborn")

#: Files, relative to the book's folder, that change what a chapter computes without changing its cells.
FILES = ("nclib/**/*", "constraints.txt", "results/**/*")

#: A table about the chapters, which none of them reads.
NO_INPUT = "base_seeds."


def fingerprint(root: Path) -> str:
    """Hash of everything outside a chapter on which its outputs depend.

    The execution cache knows a notebook by its code cells alone: without this, an edit of ``nclib`` would go
    on showing the outputs of yesterday's code.
    """
    digest = hashlib.sha256(f"Python {platform.python_version()}".encode())
    for pattern in FILES:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(NO_INPUT):
                digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    for name, default in VARIABLES.items():
        digest.update(f"\0{name}={os.environ.get(name) or default}".encode())
    for name in LIBRARIES:
        digest.update(f"\0{name}=={_version(name)}".encode())
    digest.update(f"\0{device_name()}".encode())
    return digest.hexdigest()


def commit(root: Path, *places: str) -> str:
    """Short hash of the commit that is checked out, marked when files (in `places`) differ; empty without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *places)
        return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def assembler() -> str:
    """What makes pages of outputs."""
    return f"Jupyter Book {_version('jupyter-book')}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def day(timestamp: float) -> str:
    """Date of a time stamp, in UTC, as 2026-01-31."""
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).date().isoformat()


def seconds(runtime: float) -> str:
    """A running time as a reader says it."""
    return f"{runtime:.0f} s" if runtime < 100 else f"{runtime / 60:.1f} min"
