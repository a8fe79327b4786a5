"""Kernels that execute chapters: this Python, this package, and folders as the user named them."""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent

#: Variables that name a folder.  A kernel runs in the folder of its chapter, where a relative name means another.
FOLDERS = ("NCLIB_DATA", "NCLIB_RUNS")


def prepare() -> None:
    """Set this process's environment for the kernels that it is going to start; twice is as good as once.

    Jupyter searches the folders of ``JUPYTER_PATH`` first.  In the one put there lies a kernel ``python3`` that
    begins with the word ``python``, for which Jupyter's client puts the Python that executes (`sys.executable`).
    What is in ``PYTHONPATH`` goes before what was installed, perhaps for another folder.
    """
    os.environ["JUPYTER_PATH"] = os.pathsep.join(dict.fromkeys([str(_HERE / "jupyter"), *_folders("JUPYTER_PATH")]))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*_folders("PYTHONPATH"), str(_HERE.parent)]))
    for name in FOLDERS:
        if given := os.environ.get(name):
            os.environ[name] = str(Path(given).expanduser().absolute())


def _folders(name: str) -> list[str]:
    return [folder for folder in os.environ.get(name, "").split(os.pathsep) if folder]
