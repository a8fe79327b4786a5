"""The command that computes the stored results, at its smallest size: cut off, given again, on Dask."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from test_download import cifar_files

import nclib as nc

sys.path.insert(0, str(ROOT / "results"))
import remake

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


def finished(runs: Path) -> dict[Path, int]:
    """The finished jobs' states, and when each was written."""
    exported = [file.with_name("state.safetensors") for file in runs.glob("*/history.csv")]
    return {file: file.stat().st_mtime_ns for file in exported if file.exists()}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait while the process is at work, though not for ever."""
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, f"it was over too early: {process.communicate()}"
        assert time.monotonic() < deadline, "nothing happened for minutes"
        time.sleep(0.01)


@pytest.mark.timeout(600)
def test_it_can_be_cut_off_and_given_again(images: str, tmp_path: Path) -> None:
    cut, whole, runs = tmp_path / "cut", tmp_path / "whole", tmp_path / "runs"
    surroundings = {"NCLIB_DATA": images, "NCLIB_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*COMMAND, cut], env={**os.environ, **surroundings}, text=True)
    wait_for(lambda: finished(runs), first)
    first.kill()
    first.wait()
    before = finished(runs)
    assert 1 <= len(before) < 11

    again = run([*COMMAND, cut], ROOT, **surroundings)
    assert again.returncode == 0, again.stdout[-3000:]
    after = finished(runs)
    assert len(after) == len(list(runs.iterdir())) == 11
    assert before.items() <= after.items(), "a finished job was made again"
    assert not list((cut / ".runs").iterdir()), "the clock of a part that is kept still runs"

    parallel = run([*COMMAND, whole, "--jobs", "2"], ROOT, NCLIB_DATA=images, NCLIB_RUNS="")
    assert parallel.returncode == 0, parallel.stdout[-3000:]
    assert len(finished(whole / ".runs")) == 11
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


@pytest.fixture
def labels(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nc.book.results.Result]:
    """Make one job of the part with random labels, in this process; returns what is kept then."""
    monkeypatch.setattr(remake, "NOISE", [1.0])
    monkeypatch.setenv("NCLIB_DATA", images)
    monkeypatch.setenv("NCLIB_RUNS", str(tmp_path / "runs"))

    def make() -> nc.book.results.Result:
        remake.make("labels", "check", map, tmp_path)
        return nc.result("labels_check", folder=tmp_path)

    return make


def test_a_job_that_was_changed_is_not_taken_for_the_old_one(
    labels: Callable[[], nc.book.results.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = labels(), finished(tmp_path / "runs")
    assert labels().manifest == first.manifest
    assert finished(tmp_path / "runs") == before
    monkeypatch.setitem(remake.SIZES["check"], "labels", {**remake.SIZES["check"]["labels"], "lr": 0.002})
    second = labels()
    assert second.manifest["config_sha256"] != first.manifest["config_sha256"]
    assert not second.frame.mse.equals(first.frame.mse)
    monkeypatch.setattr(remake, "published", other)
    assert (labels().frame.rho_published == 3).all()
    assert len(finished(tmp_path / "runs")) == 3


def other(net: object) -> dict[str, float]:
    return {"rho_published": 3.0}


def test_the_time_of_an_attempt_that_failed_is_counted(
    labels: Callable[[], nc.book.results.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**call: object) -> None:
        time.sleep(1)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(remake, "binary_job", fail)
        with pytest.raises(MemoryError):
            labels()
    clock = tmp_path / ".runs" / "labels_check.seconds"
    assert float(clock.read_text()) >= 1
    clock.write_text("7200")
    assert 7200 < labels().manifest["seconds"] < 7500
    assert not clock.exists()


# --- the norm as it was published


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_the_published_norm_agrees_without_bn_and_is_off_by_the_predicted_factor_with_it(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, 32, 32, generator=generator)
    net = nc.convnet(norm=norm).build((3, 32, 32), init_norm=2.0, seed=3, outputs=2)  # type: ignore[arg-type]
    nc.calibrate(net, x) if norm == "bn" else None
    found = remake.published(net)["rho_published"]
    expected = torch.linalg.vector_norm(net.layers[3].weight).double()
    for index, layer in enumerate(net.layers[:3]):
        expected = expected * torch.linalg.vector_norm(layer.weight).double()
        if norm == "bn":
            bn = net.norms[index]
            expected = expected / torch.linalg.vector_norm(torch.sqrt(bn.var.double() + bn.eps))
    assert found == pytest.approx(expected.item(), rel=1e-6)
    if norm == "none":
        assert found == pytest.approx(nc.rho(net), rel=1e-6)
    else:
        assert nc.rho(net) / found >= 0.9 * np.sqrt(32 * 64 * 128)  # thm-folding, for rows of nearly equal norm


def test_the_chapter_has_the_same_formula() -> None:
    body = inspect.getsource(remake.published).split('"""')[2]
    assert body in (ROOT / "chapters" / "15_at_scale.md").read_text("utf-8")


# --- a real Dask cluster

CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        print(cluster.scheduler_address, *(nanny.pid for nanny in cluster.workers.values()), flush=True)
        sys.stdin.read()
"""


#: On a machine with other things to do, a worker that imports PyTorch does not answer at once.
PATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "120s"}


class Cluster:
    """A scheduler and two workers in processes of their own."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        options = {"stdin": pipe, "stdout": pipe, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", CLUSTER], env={**os.environ, **PATIENT}, **options)
        assert self.process.stdout is not None
        self.address, *pids = self.process.stdout.readline().split()
        self.workers = [int(pid) for pid in pids]

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture
def clusters() -> Iterator[Callable[[], Cluster]]:
    pytest.importorskip("distributed", reason="the extra `sweeps`, Dask, is not installed")
    started: list[Cluster] = []

    def start() -> Cluster:
        started.append(Cluster())
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_workers_and_a_killed_scheduler_lose_nothing_and_repeat_nothing(
    clusters: Callable[[], Cluster], images: str, tmp_path: Path
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    environment = {**os.environ, **PATIENT, "NCLIB_DATA": images, "NCLIB_RUNS": str(runs), "OMP_NUM_THREADS": "1"}

    def start(cluster: Cluster) -> subprocess.Popen[str]:
        command = [*COMMAND, out, "--dask", cluster.address, "labels"]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    first = clusters()
    process = start(first)
    wait_for(lambda: finished(runs), process)
    first.process.kill()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said
    assert said.endswith(
        f"--dask {first.address}: the scheduler is gone; what is finished is kept: start another one and give the "
        f"command again\n"
    )
    before = finished(runs)
    assert 1 <= len(before) < 5

    second = clusters()
    process = start(second)
    wait_for(lambda: len(finished(runs)) > len(before), process)
    for worker in second.workers:
        os.kill(worker, signal.SIGKILL)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    after = finished(runs)
    assert len(after) == len(list(runs.iterdir())) == 5
    assert before.items() <= after.items(), "a finished job was made again"

    alone = run([*COMMAND, tmp_path / "alone", "labels"], ROOT, NCLIB_DATA=images, NCLIB_RUNS="")
    assert alone.returncode == 0, alone.stdout[-3000:]
    one, other = (nc.result("labels_check", folder=folder).manifest for folder in (out, tmp_path / "alone"))
    assert one["csv_sha256"] == other["csv_sha256"]


def test_no_scheduler_at_all(images: str, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the extra `sweeps`, Dask, is not installed")
    short = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    done = run([*COMMAND, tmp_path, "--dask", "127.0.0.1:9"], ROOT, NCLIB_DATA=images, **short)
    assert done.returncode == 1
    assert "--dask 127.0.0.1:9: no scheduler answers there" in done.stdout.splitlines()[-1]
