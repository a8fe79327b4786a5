"""A disconnect in Colab: the kernel dies in the middle of training, all is run again, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from test_colab import Bare

from bookkit import colab

TRAIN = """
import os
import nclib as nc

os.environ["NCLIB_RUNS"] = "drive"  # in Colab, a folder of the mounted drive
points = nc.data("digits", classes=(3, 8), n=200)
steps = nc.sgd(lr=0.05, momentum=0.9, batch=20, epochs=EPOCHS, weight_decay=1e-3)
runs = nc.train(points, nc.mlp((64, 64), norm="bn", eps=0), steps, grid=dict(seed=range(4)), checkpoint_seconds=0.2)
print(runs.history.to_csv(index=False, float_format="%.17g"))
"""

#: Executes a notebook and leaves the kernel's process number, so that it can be killed.
WATCHED = """
import nbformat, nbclient, pathlib, asyncio
notebook = nbformat.read("chapter.ipynb", as_version=4)
client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="bare", resources={"metadata": {"path": "."}})
with client.setup_kernel():
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)
        if index == 0:
            pathlib.Path("pid").write_text(cell.outputs[0]["text"])
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare"))


def drill_notebook(folder: Path, epochs: int) -> NotebookNode:
    """The set-up of a self-contained chapter, then training."""
    colab.write(ROOT, folder)
    chapter = nbformat.read(next(folder.glob("01_*.ipynb")), as_version=4)
    setup = next(cell for cell in chapter.cells if cell.cell_type == "code")
    pid = new_code_cell("import os; print(os.getpid())")
    return new_notebook(
        cells=[pid, new_code_cell(setup.source), new_code_cell(TRAIN.replace("EPOCHS", str(epochs)))]
    )


def saved_epoch(folder: Path) -> int:
    """The epoch that the state on disk has reached; -1 without one."""
    for file in folder.glob("drive/*/state.safetensors"):
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        return int(json.loads(header["notes"])["epoch"])
    return -1


def history(executed: NotebookNode) -> str:
    """The table that the last cell printed."""
    return str(executed.cells[-1].outputs[-1]["text"])


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_kernel_killed_in_training_resumes_and_ends_equal(bare: Bare, tmp_path: Path) -> None:
    epochs = 400
    notebook = drill_notebook(tmp_path / "notebooks", epochs)
    places = {name: tmp_path / name for name in ("whole", "cut")}
    for place in places.values():
        place.mkdir()

    whole, wrong = bare.execute(notebook, places["whole"])
    assert not wrong, wrong[-3000:]

    cut = places["cut"]
    nbformat.write(notebook, cut / "chapter.ipynb")
    running = bare.start(WATCHED, cut)
    deadline = time.monotonic() + 300
    while saved_epoch(cut) < 10 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int((cut / "pid").read_text()), signal.SIGKILL)
    assert running.wait(timeout=60) != 0, "training was over before the kernel was killed"
    reached = saved_epoch(cut)
    assert 10 <= reached < epochs

    again, wrong = bare.execute(notebook, cut)
    assert not wrong, wrong[-3000:]
    assert history(again) == history(whole)
