"""Run the code of a lecture on the device to test on: ``python tests/pretend/lecture.py chapters/NN_name.md``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pretend

from bookkit import notebooks


def code(chapter: Path) -> list[str]:
    """The cells of code of a chapter's notebook."""
    cells = notebooks.notebook(chapter.read_text("utf-8")).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


if __name__ == "__main__":
    matplotlib.use("Agg")
    os.environ["NCLIB_DEVICE"] = str(pretend.device())
    lecture, names = Path(sys.argv[1]), {"__name__": "__main__"}
    for number, source in enumerate(code(lecture), start=1):
        exec(compile(source, f"{lecture.stem}, cell {number}", "exec"), names)
        plt.close("all")  # as a notebook does after a cell
