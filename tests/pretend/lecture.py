"""Run the code of a lecture on the device to test on: ``python tests/pretend/lecture.py chapters/NN_name.md``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib
import pretend

from bookkit import notebooks


def code(chapter: Path) -> str:
    """All code of a chapter, as its notebook runs it."""
    cells = notebooks.notebook(chapter.read_text("utf-8")).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


if __name__ == "__main__":
    matplotlib.use("Agg")
    os.environ["NCLIB_DEVICE"] = str(pretend.device())
    lecture = Path(sys.argv[1])
    exec(compile(code(lecture), lecture.name, "exec"), {"__name__": "__main__"})
