"""Kernels that execute chapters: this Python, and folders as the user named them, whatever else lies about."""

from __future__ import annotations

import os
from pathlib import Path

#: Jupyter searches the folders of ``JUPYTER_PATH`` first.  Here lies a kernel ``python3`` that begins with the word
#: ``python``, for which Jupyter's client puts the Python that executes (`sys.executable`).
_OURS = Path(__file__).resolve().with_name("jupyter")

#: Variables that name a folder.  A kernel runs in the folder of its chapter, where a relative name means another.
FOLDERS = ("NCLIB_DATA", "NCLIB_RUNS")


def prepare() -> None:
    """Set this process's environment for the kernels that it is going to start; twice is as good as once."""
    others = os.environ.get("JUPYTER_PATH", "").split(os.pathsep)
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(_OURS), *(p for p in others if p and p != str(_OURS))])
    for name in FOLDERS:
        if given := os.environ.get(name):
            os.environ[name] = str(Path(given).expanduser().absolute())
