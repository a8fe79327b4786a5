"""Every lecture that trains networks, run whole on another device than the CPU: its claims hold there too."""

from __future__ import annotations

import re
from pathlib import Path

import pretend
import pytest
from conftest import ROOT, missing, python
from lecture import code

from bookkit import notebooks

#: What runs where NCLIB_DEVICE says; all else in a lecture is NumPy, or networks made on the CPU.
ON_THE_DEVICE = re.compile(r"nc\.(?:train|step_by_step|device)\(")
TRAINING = [chapter for chapter in notebooks.chapters() if any(map(ON_THE_DEVICE.search, code(chapter)))]


@pytest.mark.drill
@pytest.mark.device
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chapter", TRAINING, ids=lambda chapter: chapter.stem)
def test_a_lecture_runs_whole(chapter: Path, tmp_path: Path) -> None:
    if reason := pretend.why_not():
        missing(reason)
    script = ROOT / "tests" / "pretend" / "lecture.py"
    places = dict(PYTHONPATH=str(ROOT), NCLIB_CLAIMS=str(tmp_path), NCLIB_SCALE="quick", NCLIB_RUNS="")
    done = python(script, chapter, cwd=tmp_path, timeout=1100, **places)
    assert done.returncode == 0, done.stdout[-3000:]
