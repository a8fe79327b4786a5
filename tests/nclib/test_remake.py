"""The command that computes the stored results, whole, at its smallest size: cut off, given again, in parallel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run
from test_download import cifar_files

import nclib as nc

PARTS = ("binary", "labels", "collapse")
COMMAND = [sys.executable, ROOT / "results" / "remake.py", "--size", "check", "--folder"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for NCLIB_DATA with images like CIFAR-10's."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar-10-batches-bin").mkdir()
    for name, content in cifar_files(60).items():
        (folder / "cifar-10-batches-bin" / name).write_bytes(content)
    return str(folder)


def jobs_done(folder: Path) -> dict[Path, int]:
    """The finished jobs' files, and when each was written."""
    return {file: file.stat().st_mtime_ns for file in (folder / ".jobs").glob("*/*.json")}


@pytest.mark.timeout(400)
def test_it_can_be_cut_off_and_given_again(images: str, tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    surroundings = {"NCLIB_DATA": images, "NCLIB_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*COMMAND, cut], env={**os.environ, **surroundings})
    deadline = time.monotonic() + 120
    while not jobs_done(cut) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    assert first.wait() != 0, "it was over before it was cut off"
    before = jobs_done(cut)
    assert 1 <= len(before) < 11

    again = run([*COMMAND, cut], ROOT, **surroundings)
    assert again.returncode == 0, again.stdout[-3000:]
    after = jobs_done(cut)
    assert len(after) == 11
    assert before.items() <= after.items(), "a finished job was made again"

    parallel = run([*COMMAND, whole, "--jobs", "2"], ROOT, NCLIB_DATA=images, NCLIB_RUNS="")
    assert parallel.returncode == 0, parallel.stdout[-3000:]
    for part in PARTS:
        name = f"{part}_check"
        one, other = (nc.result(name, folder=folder) for folder in (cut, whole))
        assert one.frame.equals(other.frame)
        assert one.manifest["csv_sha256"] == other.manifest["csv_sha256"]
        assert (one.scale, one.manifest["config"]["size"]) == ("check part", "check")
        assert (one.frame.status == "ok").all()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run([*COMMAND, tmp_path / "out"], ROOT, NCLIB_DATA=str(tmp_path))
    assert done.returncode != 0
    assert "data_batch_1.bin: no such file, but 'cifar10' needs it" in done.stdout
    assert not list((tmp_path / "out").glob("*.csv"))
