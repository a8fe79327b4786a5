"""Sweeps that are killed, broken and resumed: every result recorded, and recorded once.

Worker processes import this module, so heavy packages are imported where they are used.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from multiprocessing import get_context
from pathlib import Path

import pytest

from nclib.sweeps import SweepFailed, sweep

GRID = {"a": [1, 2, 3], "b": [0.5, 0.25]}


@dataclasses.dataclass(frozen=True)
class Net:
    widths: tuple[int, ...] = (4, 4)


def product(a, b):
    return {"product": a * b}


def logged(index, log, pause=0.0, deadly=(), shy=()):
    """Notes that it was called; kills its own worker if told to, `shy` calls only the first time."""
    with Path(log).open("a") as file:
        file.write(f"{index} {os.getpid()}\n")
    first = calls(log)[index] == 1
    if index in deadly or (index in shy and first):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(pause)
    return {"square": index**2}


def calls(log):
    return Counter(int(line.split()[0]) for line in Path(log).read_text().splitlines())


def records(folder):
    """How often each index is recorded in the folder."""
    return Counter(json.loads(path.read_text())["config"]["index"] for path in Path(folder).glob("*.json"))


def processes():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


# --- what comes back


@pytest.mark.parametrize(
    "make", [None, lambda: ThreadPoolExecutor(2), processes], ids=["serial", "threads", "processes"]
)
def test_all_executors_give_the_same_table(make):
    with contextlib.nullcontext() if make is None else make() as executor:
        table = sweep(product, GRID, executor=executor)
    assert list(table.columns) == ["a", "b", "product"]
    assert table.to_numpy().tolist() == [[a, b, a * b] for a in GRID["a"] for b in GRID["b"]]
    assert table["a"].dtype == "int64"


def test_histories_become_rows_and_come_back_alike(tmp_path):
    import numpy as np
    import pandas as pd
    import torch

    def history(lr, net):
        loss = [torch.tensor(lr), np.float32(0.1), float("nan")]
        return pd.DataFrame({"lr": lr, "epoch": range(3), "loss": loss})

    grid = {"lr": np.array([0.1, 1 / 3]), "net": [Net(), Net((8,))]}
    fresh = sweep(history, grid, folder=tmp_path)
    assert fresh.shape == (12, 4)
    assert fresh["net"].unique().tolist() == ["Net(widths=(4, 4))", "Net(widths=(8,))"]
    pd.testing.assert_frame_equal(sweep(history, grid, folder=tmp_path), fresh, check_exact=True)


def test_configurations_may_be_listed_and_equal_ones_count_once():
    made = []

    def note(widths):
        made.append(widths)
        return [{"layer": 0}, {"layer": 1}]

    table = sweep(note, [{"widths": (4, 4)}, {"widths": (8,)}, {"widths": (4, 4)}])
    assert made == [(4, 4), (8,)]
    assert table.groupby("widths")["layer"].count().to_dict() == {(4, 4): 2, (8,): 2}


def test_bar_is_for_terminals(capsys):
    sweep(product, GRID)
    assert capsys.readouterr() == ("", "")


# --- what is kept


def test_nothing_is_computed_twice(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "runs"
    sweep(logged, {"index": range(3), "log": [str(log)]}, folder=folder)
    table = sweep(logged, {"index": range(5), "log": [str(log)]}, folder=folder)
    assert table["square"].tolist() == [0, 1, 4, 9, 16]
    assert calls(log) == records(folder) == dict.fromkeys(range(5), 1)


def test_another_function_or_another_source_is_another_result(tmp_path):
    def load(number, source):
        path = tmp_path / f"{number}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("edited", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.product

    times = "def product(a, b):\n    return {'z': a * b}\n"
    sources = [times, times.replace("*", "+"), times.replace("):", "):  # a comment")]
    tables = [sweep(load(n, text), GRID, folder=tmp_path / "runs") for n, text in enumerate(sources)]
    assert [table["z"].iloc[0] for table in tables] == [0.5, 1.5, 0.5]
    sweep(product, GRID, folder=tmp_path / "runs")
    assert len(list((tmp_path / "runs").iterdir())) == 3 * 6  # the comment made no new one


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"rows": []}', "\xff"])
def test_damaged_records_are_named_and_set_aside(tmp_path, damage):
    from pandas.testing import assert_frame_equal

    fresh = sweep(product, GRID, folder=tmp_path)
    victim = sorted(tmp_path.iterdir())[2]
    victim.write_bytes(damage.encode("latin-1"))
    with pytest.warns(UserWarning, match=f"{victim.name} is damaged; kept as {victim.stem}.set-aside"):
        again = sweep(product, GRID, folder=tmp_path)
    assert_frame_equal(again, fresh)
    assert victim.with_suffix(".set-aside").read_bytes() == damage.encode("latin-1")


def test_a_killed_sweep_resumes(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "runs"
    grid = {"index": range(12), "log": [str(log)], "pause": [0.1]}
    script = f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
        from nclib.sweeps import sweep
        from test_sweeps import logged
        sweep(logged, dict(index=range(12), log=[{str(log)!r}], pause=[0.1]), folder={str(folder)!r})
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.json"))) < 4:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.wait()
    kept = set(records(folder))
    assert 4 <= len(kept) < 12
    table = sweep(logged, grid, folder=folder)
    assert table["square"].tolist() == [index**2 for index in range(12)]
    assert records(folder) == dict.fromkeys(range(12), 1)
    assert all(calls(log)[index] == 1 for index in kept)


# --- what goes wrong


@pytest.mark.parametrize("make", [None, processes], ids=["serial", "processes"])
def test_an_exception_names_its_configuration_and_loses_nothing_else(make, tmp_path):
    message = r"1 of 3 calls failed, the first at {'n': 0} with ZeroDivisionError: .*mend"
    with (
        contextlib.nullcontext() if make is None else make() as executor,
        pytest.raises(SweepFailed, match=message) as caught,
    ):
        sweep(inverse, {"n": [0, 1, 2]}, executor=executor, folder=tmp_path)
    assert caught.value.results["inverse"].tolist() == [1, 0.5]
    ((config, error),) = caught.value.failures
    assert config == {"n": 0}
    assert isinstance(error, ZeroDivisionError)
    assert caught.value.__cause__ is error
    assert len(list(tmp_path.iterdir())) == 2


def inverse(n):
    return {"inverse": 1 / n}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, "returned a int; return a dict"),
        ([3], "returned a list; return a dict"),
        ({"x": object()}, "a object cannot be recorded; write numbers"),
        ({"n": 2}, "another n than it was given; give that column another name"),
    ],
)
def test_unusable_results_are_failures(answer, message):
    with pytest.raises(SweepFailed, match=message):
        sweep(lambda n: answer, {"n": [1]})


def test_worker_death_is_survived_by_processes(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "runs"
    grid = {"index": range(8), "log": [str(log)], "shy": [[3]]}
    with processes() as executor:
        table = sweep(logged, grid, executor=executor, folder=folder)
    assert table["square"].tolist() == [index**2 for index in range(8)]
    assert records(folder) == dict.fromkeys(range(8), 1)
    assert calls(log)[3] == 2


def test_a_call_that_always_kills_is_given_up_alone(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "runs"
    grid = {"index": range(6), "log": [str(log)], "deadly": [[2]]}
    with (
        processes() as executor,
        pytest.raises(SweepFailed, match=r"1 of 6 calls failed.*BrokenProcessPool") as caught,
    ):
        sweep(logged, grid, executor=executor, folder=folder, retries=1)
    assert caught.value.failures[0][0]["index"] == 2
    assert calls(log)[2] == 2
    assert records(folder) == dict.fromkeys([0, 1, 3, 4, 5], 1)


class Broken(Executor):
    def submit(self, function, /, *args, **kwargs):
        raise BrokenThreadPool("no more")


def test_an_executor_broken_for_good_is_reported():
    with pytest.raises(SweepFailed, match=r"6 of 6 calls failed.*BrokenThreadPool: no more"):
        sweep(product, GRID, executor=Broken())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sweep(product, {"a": 1, "b": [2]}), ValueError, r"grid\['a'\]=1: .*write a=\[1\]"),
        (lambda: sweep(product, {"a": "x", "b": [2]}), ValueError, r"write a=\['x'\]"),
        (lambda: sweep(product, {"a": [object], "b": [2]}), TypeError, "a type cannot be recorded; write"),
        (
            lambda: sweep(product, GRID, executor=4),
            TypeError,
            r"executor=4: .*write e.g. ProcessPoolExecutor\(4\)",
        ),
    ],
)
def test_errors_say_what_to_write(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- a real Dask cluster


def test_dask_with_a_worker_killed_in_the_middle(tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra `sweeps`, Dask, is not installed")
    log, folder, victims = tmp_path / "log", tmp_path / "runs", []
    grid = {"index": range(24), "log": [str(log)], "pause": [0.1]}

    def kill():
        while len(list(folder.glob("*.json"))) < 6:
            time.sleep(0.01)
        victims.append(int(log.read_text().split()[-1]))
        os.kill(victims[0], signal.SIGKILL)

    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    )
    with cluster, distributed.Client(cluster) as client:
        workers = set(client.run(os.getpid).values())
        threading.Thread(target=kill, daemon=True).start()
        table = sweep(logged, grid, executor=client, folder=folder)
        assert len(victims) == 1
        assert victims[0] in workers
        assert table["square"].tolist() == [index**2 for index in range(24)]
        assert records(folder) == dict.fromkeys(range(24), 1)
        pids = [int(line.split()[1]) for line in log.read_text().splitlines()]
        assert pids[-1] != victims[0]

        again = sweep(inverse, {"n": [1, 2, 4]}, executor=client.get_executor())
        assert again["inverse"].tolist() == [1, 0.5, 0.25]
        with pytest.raises(SweepFailed, match=r"1 of 3 calls failed, the first at {'n': 0} with ZeroDivision"):
            sweep(inverse, {"n": [0, 1, 2]}, executor=client)
