"""nclib.training.disk: what is saved is whole, right and found again, whatever happens to process or disk."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib.data import data
from nclib.networks.models import MLP, Net, mlp
from nclib.training import Session, disk, train
from nclib.training.optim import sgd
from nclib.training.runs import Runs

ON_LINUX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runs"
    monkeypatch.setenv("NCLIB_RUNS", str(folder))
    return folder


def tiny(seed: int = 0, epochs: int = 20, **options: Any) -> Runs:
    points = data("gaussians", classes=3, n=20, n_test=10, d=5)
    opt = sgd(lr=0.1, momentum=0.9, epochs=epochs, batch=8)
    grid = dict(seed=[seed, seed + 1], noise=[0, 0.5])
    return train(points, mlp((6,), norm="bn"), opt, grid=grid, **{"measure_every": 5, **options})


def same(a: Runs, b: Runs) -> bool:
    a.history.to_csv()
    equal = all(torch.equal(p, b._state.params[name]) for name, p in a._state.params.items())
    return equal and a.history.equals(b.history)


def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on training is an error."""

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Session, "run", refuse)


# ------------------------------------------------------------------------------------ finished runs


def test_a_finished_run_is_loaded_in_less_than_a_second(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny(snapshots=True)
    untrained(monkeypatch)
    began = time.perf_counter()
    second = tiny(snapshots=True)
    assert time.perf_counter() - began < 1
    assert same(first, second)
    assert torch.equal(first.model(1, epoch=5).layers[0].weight, second.model(1, epoch=5).layers[0].weight)
    assert first.folder == second.folder
    assert second.folder is not None
    assert second.folder.parent == kept


def test_only_safe_and_readable_files_are_written(kept: Path) -> None:
    folder = tiny().folder
    assert folder is not None
    assert {f.name for f in folder.iterdir()} == {"state.safetensors", "config.json", "history.csv", "lock"}
    config = json.loads((folder / "config.json").read_text())
    assert config["opt"]["momentum"] == 0.9
    assert folder.name == f"gaussians-mlp-{config['key'][:16]}"
    text = (folder / "history.csv").read_text().splitlines()
    assert text[0].startswith("member,seed,lr,")
    assert len(text) == 1 + 4 * 5


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCLIB_RUNS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tiny().folder is None
    monkeypatch.setenv("NCLIB_RUNS", "")
    assert tiny().folder is None
    assert not list(tmp_path.iterdir())


def test_whatever_a_result_depends_on_is_in_its_name(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = dict(epochs=2, measure_every=1)
    tiny(**base)
    for change in (dict(seed=1), dict(epochs=3), dict(measure_every=2), dict(measure="loss"), dict(snapshots=True)):
        tiny(**{**base, **change})
    monkeypatch.setattr("nclib.training.runs.code_version", lambda: "another")
    tiny(**base)
    assert len(list(kept.iterdir())) == 7


def test_data_are_known_by_their_contents() -> None:
    x = torch.arange(6.0)
    versions = [disk.digest(t) for t in (x, x.clone(), x + 1e-6, x.view(2, 3), x.double(), x.int())]
    assert versions[0] == versions[1]
    assert len({str(version) for version in versions}) == 5


def test_the_version_covers_every_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "nclib"
    shutil.copytree(ROOT / "nclib", package)
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "nclib")

    def version(folder: Any) -> str:
        monkeypatch.setattr("importlib.resources.files", lambda _: folder)
        return disk.code_version.__wrapped__()

    versions = [version(package), version(zipfile.Path(tmp_path / "packed.zip", "nclib/"))]
    assert versions[0] == versions[1] == disk.code_version()
    (package / "note.txt").write_text("not code")
    assert version(package) == versions[0]
    for file in ("scale.py", "networks/models.py"):
        (package / file).write_text((package / file).read_text() + "\n")
        versions.append(version(package))
    assert len(set(versions)) == 3


# ---------------------------------------------------------------------------- functions that measure

FACTOR = 2.0


def closure(factor: Any) -> Any:
    def scaled(net: Net) -> dict[str, float]:
        return {"scaled": float(factor) * len(net.layers)}

    return scaled


def global_reader(net: Net) -> dict[str, float]:
    return {"scaled": inner(net)}


def inner(net: Net) -> float:
    return FACTOR * sum(FACTOR for _ in net.layers)


def recursive(net: Net, depth: int = 3) -> dict[str, float]:
    return recursive(net, depth - 1) if depth else {"scaled": 0.0}


class Meter:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scaled(self, net: Net) -> dict[str, float]:
        return {"scaled": self.factor * len(net.layers)}


@dataclasses.dataclass(frozen=True)
class Setting:
    factor: float


def unlike(*functions: Any) -> bool:
    return len({json.dumps(disk.meaning(function)) for function in functions}) == len(functions)


def test_old_results_never_come_back_as_those_of_another_function(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(function: Any) -> float:
        return float(tiny(epochs=1, measure=(function,)).final["scaled"][0])

    assert [measured(closure(2)), measured(closure(3)), measured(closure(2))] == [4, 6, 4]
    pair = (lambda net: {"scaled": 1.0}), (lambda net: {"scaled": 2.0})
    assert [measured(function) for function in pair] == [1, 2]
    assert [measured(functools.partial(lambda factor, net: {"scaled": factor}, k)) for k in (2, 3)] == [2, 3]
    assert [measured(lambda net, k=k: {"scaled": k}) for k in (2, 3)] == [2, 3]
    assert measured(global_reader) == 8
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    assert measured(global_reader) == 18
    assert measured(recursive) == 0
    assert len(list(kept.iterdir())) == 11
    untrained(monkeypatch)
    assert measured(closure(2)) == 4


def test_captured_values_are_told_apart() -> None:
    x = torch.arange(4.0)
    points = data("gaussians", n=4, d=2)
    values = [
        2,
        2.0,
        "2",
        True,
        None,
        -0.0,
        0.0,
        x,
        x.double(),
        x + 1,
        x.numpy(),
        [2],
        (2,),
        {2},
        {"a": 2},
        {"a": 3},
    ]
    values += [points, points.to(dtype=torch.float64), mlp((3,)), mlp((4,)), np.sin, np.cos, torch.relu, torch.tanh]
    values += [
        torch.float32,
        np,
        torch,
        range(3),
        [[2]],
        closure(2),
        closure(3),
        x.sum,
        (x + 1).sum,
        Net,
        np.float32(2),
    ]
    assert unlike(*(closure(value) for value in values))
    assert not unlike(closure({"a", "b", "c"}), closure({"c", "b", "a"}))
    assert not unlike(closure(x), closure(x.clone()))
    assert not unlike(closure(closure(2)), closure(closure(2)))


def test_layout_and_comments_of_a_function_do_not_matter() -> None:
    space: dict[str, Any] = {}
    sources = "def f(net):\n    return 1", "\n\ndef f(net):  # why\n\n    return (1)", "def g(net):\n    return 2"
    for number, source in enumerate(sources):
        exec(source.replace("def f", f"def f{number}").replace("def g", f"def f{number}"), space)
    assert not unlike(space["f0"], space["f1"])
    assert unlike(space["f0"], space["f2"])


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Meter(2.0).scaled, "owner of the function (test_runs.Meter)"),
        (closure(Meter(2.0)), "factor (test_runs.Meter)"),
        (closure([Setting(2.0)]), "an entry of factor (test_runs.Setting)"),
        (closure(np.random.default_rng(0)), "factor (numpy.random._generator.Generator)"),
        (closure({"a": np.array([object()])}), "value of factor (numpy.ndarray)"),
        (closure(sys.modules[__name__]), "factor (builtins.module)"),
        (lambda net: Setting(2.0), "Setting (builtins.type)"),
        (lambda net: (__import__("os") and exec("import test_runs")) or kept, "what __import__ finds"),
        (lambda net: {"a": eval("FACTOR")}, "what eval finds"),
        (lambda net: {"a": globals()["FACTOR"]}, "what globals finds"),
        (lambda net: kept, "kept ("),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(kept: Path, function: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"^measure=.*: it reads {re.escape(name)}.*or unset NCLIB_RUNS$"):
        tiny(measure=(function,))
    assert not kept.exists()


def test_a_function_may_import_what_is_installed_and_nothing_else() -> None:
    def installed(net: Net) -> dict[str, float]:

        return {"pi": math.pi}

    def own(net: Net) -> dict[str, float]:
        import conftest

        return {"root": len(str(conftest.ROOT))}

    disk.meaning(installed)
    with pytest.raises(ValueError, match=r"it reads conftest \(module\)"):
        disk.meaning(own)


def later() -> Any:
    def ahead(net: Net) -> dict[str, float]:
        return {"a": value}

    told = ahead
    if not told:
        value = 1.0
    return told


def counted(net: Net) -> dict[str, float]:
    return {"scaled": counted.factor}  # type: ignore[attr-defined]


def test_what_else_a_function_carries_with_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for factor in (2.0, 3.0, 2.0):
        monkeypatch.setattr(counted, "factor", factor, raising=False)
        texts.append(json.dumps(disk.meaning(counted)))
    assert texts[0] == texts[2] != texts[1]
    assert unlike(*(closure(defaultdict(lambda k=k: k)) for k in (2, 3)))
    fields = [np.zeros(2, dtype=[(name, "f8")]) for name in "ab"]
    assert unlike(*map(closure, fields), *map(closure, [torch.zeros(2).bfloat16(), torch.zeros(2)]))
    with pytest.raises(ValueError, match=r"it reads value \(which has no value yet\)"):
        disk.meaning(later())
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, np.ma.masked_array([1.0, 2.0], [True, False])):
        with pytest.raises(ValueError, match=r"^measure=.*whose value cannot be made part of a run's name"):
            disk.meaning(closure(value))


@given(values=st.lists(st.one_of(st.integers(), st.floats(), st.text(), st.binary()), min_size=2, max_size=2))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_two_captured_values_are_one_only_if_they_are_the_same(values: list[Any]) -> None:
    def captors(value: Any) -> list[Any]:
        return [
            closure(value),
            functools.partial(lambda given, net: {"a": given}, value),
            lambda net, given=value: {"a": given},
            lambda net: {"a": [value]},
        ]

    first, second = map(captors, values)
    same_value = repr(values[0]) == repr(values[1])
    assert [not unlike(*pair) for pair in zip(first, second, strict=True)] == [same_value] * 4
    assert unlike(*first)


class Mine(MLP):
    pass


def test_an_architecture_of_ones_own_is_refused_by_name(kept: Path) -> None:
    with pytest.raises(ValueError, match=r"^arch=Mine.*whose value cannot be made part of a run's name"):
        train(data("gaussians", n=8, d=2), Mine((2,)), sgd(epochs=1))


@pytest.mark.parametrize("name", ["../a/b", "x" * 300, "..", "nul\0", "\u00e9 \n"])
def test_a_run_is_kept_inside_the_folder_whatever_the_data_are_called(kept: Path, name: str) -> None:
    points = dataclasses.replace(data("gaussians", n=8, d=2), name=name)
    folder = train(points, mlp((2,)), sgd(epochs=1)).folder
    assert folder is not None
    assert folder.parent == kept
    assert (folder / "state.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_kept_and_go_on(kept: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Runs:
        points = data("gaussians", n=8, d=2, dtype=dtype)
        return train(points, mlp((2,)), sgd(epochs=20), measure_every=10, checkpoint_seconds=0)

    whole = run()
    assert same(run(), whole)
    assert run().model(0).layers[0].weight.dtype == dtype
    assert same(cut_off(run, whole, monkeypatch, after=5), whole)


# --------------------------------------------------------------------------------------- damaged files


def damage_nothing_left(file: Path) -> None:
    file.write_bytes(b"")


def damage_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def damage_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def damage_the_notes(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'\\"epoch\\":20', b'\\"epoch\\":10', 1))


def damage_the_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def damage_by_a_stranger(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 this was written by somebody else, in another format, and is long enough")


@pytest.mark.parametrize(
    "damage",
    [damage_nothing_left, damage_cut, damage_one_bit, damage_the_notes, damage_the_header, damage_by_a_stranger],
)
def test_a_damaged_file_is_named_and_set_aside(kept: Path, damage: Any) -> None:
    first = tiny()
    assert first.folder is not None
    file = first.folder / "state.safetensors"
    before = file.read_bytes()
    damage(file)
    damaged = file.read_bytes()
    assert damaged != before
    with pytest.warns(
        UserWarning, match=f"{re.escape(str(file))}: damaged.*set aside as state.safetensors.corrupt"
    ):
        second = tiny()
    assert same(first, second)
    assert file.with_name("state.safetensors.corrupt").read_bytes() == damaged
    damage(file)
    with pytest.warns(UserWarning, match=r"state\.safetensors\.1\.corrupt"):
        tiny()


def test_the_file_of_another_run_is_set_aside(kept: Path) -> None:
    mine, other = tiny(), tiny(seed=5)
    assert mine.folder is not None
    assert other.folder is not None
    shutil.copy(other.folder / "state.safetensors", mine.folder)
    with pytest.warns(UserWarning, match="it belongs to another run; set aside as"):
        again = tiny()
    assert same(again, mine)


def test_a_folder_in_the_place_of_the_file_is_set_aside(kept: Path) -> None:
    first = tiny()
    assert first.folder is not None
    (first.folder / "state.safetensors").unlink()
    (first.folder / "state.safetensors").mkdir()
    with pytest.warns(UserWarning, match=r"set aside as state\.safetensors\.corrupt"):
        assert same(tiny(), first)
    assert (first.folder / "state.safetensors").is_file()


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_folder_that_vanishes_in_training_costs_nothing(
    kept: Path, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tiny(seed=9)
    shutil.rmtree(kept)
    advance = Session._advance

    def vanish(self: Session, *arguments: Any) -> None:
        advance(self, *arguments)
        if kept.is_dir():
            shutil.rmtree(kept)
            if instead == "a file":
                kept.write_text("somebody's")

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(Session, "_advance", vanish)
        again = tiny(seed=9, checkpoint_seconds=0)
    assert same(again, good)
    said = [str(one.message) for one in caught if "could not be saved" in str(one.message)]
    assert len(said) == (instead == "a file")


# -------------------------------------------------------------------------------------- disks that refuse


def test_a_full_disk_costs_the_file_and_not_the_run(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tiny(epochs=40)
    assert good.folder is not None
    file = good.folder / "state.safetensors"
    interrupt(monkeypatch, after=10)
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        tiny(epochs=40, checkpoint_seconds=0)
    monkeypatch.undo()
    monkeypatch.setenv("NCLIB_RUNS", str(kept))
    saved = file.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(saved) // 2, limit[1]))  # writing fails half-way, for real
    try:
        with pytest.warns(UserWarning, match=r"state\.safetensors: could not be saved") as caught:
            again = tiny(epochs=40, checkpoint_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(caught) == 1
    assert same(again, good)
    assert file.read_bytes() == saved
    assert not list(good.folder.glob(".*"))


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Stop the next training as Ctrl-C would, once it has passed epoch `after`."""
    advance = Session._advance

    def stop(self: Session, *arguments: Any) -> None:
        if self.state.epoch > after:
            raise KeyboardInterrupt
        advance(self, *arguments)

    monkeypatch.setattr(Session, "_advance", stop)


def cut_off(run: Callable[[], Runs], whole: Runs, monkeypatch: pytest.MonkeyPatch, after: int) -> Runs:
    """What `run` gives once `whole`, its result, is gone and it was interrupted after epoch `after`."""
    assert whole.folder is not None
    shutil.rmtree(whole.folder)
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            run()
    return run()


def test_an_interrupted_run_goes_on_where_it_was(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny(seed=3)
    assert whole.folder is not None
    shutil.rmtree(whole.folder)
    with monkeypatch.context() as patch:
        interrupt(patch, after=10)
        with pytest.raises(KeyboardInterrupt):
            tiny(seed=3, checkpoint_seconds=0)
    epochs = []
    advance = Session._advance
    monkeypatch.setattr(Session, "_advance", lambda self, *a: (epochs.append(self.state.epoch), advance(self, *a)))
    assert same(tiny(seed=3), whole)
    assert epochs[0] > 10


def test_a_member_that_diverged_stays_so_after_an_interruption(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Runs:
        points = data("teacher", n=12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return train(
                points,
                mlp((6,)),
                sgd(epochs=60),
                grid=dict(lr=[0.1, 1e4, 0.2]),
                measure_every=30,
                checkpoint_seconds=0,
            )

    whole = run()
    again = cut_off(run, whole, monkeypatch, after=15)
    assert again.history.equals(whole.history)
    assert again.members.equals(whole.members)
    assert again.members["status"].tolist() == ["ok", "diverged", "ok"]


@pytest.mark.parametrize("where", ["/dev/null/runs", "read-only"])
def test_a_folder_that_cannot_be_written_is_said_before_training(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(where) if where.startswith("/") else tmp_path / where
    monkeypatch.setenv("NCLIB_RUNS", str(folder))
    untrained(monkeypatch)
    if where == "read-only":  # by patching: for root no folder is

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"NCLIB_RUNS='.*': no run can be written there \(.*\); name another folder"):
        tiny()


def test_a_finished_run_can_be_read_where_nothing_can_be_written(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert same(tiny(), first)


def test_a_file_system_without_locks_will_do(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert same(tiny(), tiny())


# --------------------------------------------------------------------------------- processes that are killed

# A process of its own that has imported everything once; each run is a fork of it, so that it starts at once.
SERVER = """
import json, os, random, signal, sys, time
import pandas, safetensors.numpy, torch
torch.set_num_threads(1)
from nclib.data import Data, data
from nclib.networks.models import convnet, mlp
from nclib.training.optim import sgd
from nclib.training.disk import code_version
from nclib.training import train

code_version()  # once, so that nobody's edit of the package in the meantime makes it another run

def job(kind):
    if kind == "convnet":
        x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        points = Data("noise", ("a", "b"), x, torch.arange(24) % 2, x[:0], torch.arange(0))
        opt = sgd(lr=0.02, momentum=0.9, epochs=20, batch=10, weight_decay=1e-3)
        return points, convnet((2, 3), norm="bn"), opt, dict(seed=[0, 1])
    points = data("gaussians", classes=3, n=60, n_test=20, d=8)
    opt = sgd(lr=0.1, momentum=0.9, epochs=60, batch=16, weight_decay=1e-3, schedule="cosine")
    return points, mlp((12, 8), norm=kind), opt, dict(seed=[0, 1, 2], noise=[0, 0.3])

jobs = {kind: job(kind) for kind in ("none", "bn", "lm", "convnet")}

def fork(folder, kind):
    child = os.fork()
    if child:
        return child
    try:
        os.environ["NCLIB_RUNS"] = folder
        points, arch, opt, grid = jobs[kind]
        train(points, arch, opt, grid=grid, measure_every=opt.epochs // 10, checkpoint_seconds=0, progress=False)
        sys.stdout.flush()
        os._exit(0)
    except BaseException as error:
        print("FAILED", repr(error), flush=True)
        os._exit(1)

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def serve(script: str, *arguments: str) -> list[Any]:
    """Run the server with a script; returns the JSON lines that it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    environment.pop("NCLIB_RUNS", None)
    command = [sys.executable, "-c", SERVER + script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout, done.stdout
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", "{"))]


def state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (run,) = folder.iterdir()
    assert not list(run.glob("*.corrupt"))
    key = json.loads((run / "config.json").read_text())["key"]
    return disk.read(run / "state.safetensors", key)


KILLS = """
base, kinds, kills = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
pick = random.Random(0)
for number in range(kills):
    kind = kinds[number % len(kinds)]
    if number < len(kinds):
        began = time.monotonic()
        assert wait(fork(f"{base}/whole-{kind}", kind)) == 0
        lasts = globals().setdefault("lasts", {})
        lasts[kind] = time.monotonic() - began
    folder = f"{base}/{number}-{kind}"
    child = fork(folder, kind)
    time.sleep(lasts[kind] * pick.random())
    os.kill(child, signal.SIGKILL)
    code = wait(child)
    # What the kill left behind, for the test to look at.
    kept = [f for _, _, names in os.walk(folder) for f in names]
    assert wait(fork(folder, kind)) == 0
    print(json.dumps({"folder": folder, "kind": kind, "killed": code == -9, "kept": kept}), flush=True)
"""


@ON_LINUX
def test_twenty_kills_at_random_moments_leave_no_trace(tmp_path: Path) -> None:
    trials = serve(KILLS, str(tmp_path), "none,bn,lm,convnet", "20")
    assert len(trials) == 20
    for trial in trials:
        arrays, notes = state(Path(trial["folder"]))
        expected, expected_notes = state(tmp_path / f"whole-{trial['kind']}")
        assert notes == expected_notes
        assert notes["finished"]
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=f"{trial['folder']} {name}")
        assert not list(Path(trial["folder"]).rglob("*.tmp"))
    # Else the test would have tested little.
    assert sum(trial["killed"] for trial in trials) >= 10
    assert sum("state.safetensors" in trial["kept"] for trial in trials) >= 8


TOGETHER = """
folder = sys.argv[1]
children = [fork(folder, "bn") for _ in range(2)]
print(json.dumps([wait(child) for child in children]))
first = fork(folder + "-2", "bn")
time.sleep(0.15)
second = fork(folder + "-2", "bn")
os.kill(first, signal.SIGKILL)
print(json.dumps([wait(first), wait(second)]))
"""


@ON_LINUX
def test_two_processes_on_one_run_agree_and_survive_each_other(tmp_path: Path) -> None:
    both, survivor = serve(TOGETHER, str(tmp_path / "runs"))
    assert both == [0, 0]
    assert survivor[1] == 0
    one, two = state(tmp_path / "runs"), state(tmp_path / "runs-2")
    assert one[1] == two[1]
    assert all(np.array_equal(one[0][name], two[0][name], equal_nan=True) for name in one[0])


def test_whoever_waits_for_another_process_is_told_so(
    kept: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    first = tiny()
    assert first.folder is not None
    (first.folder / "state.safetensors").unlink()
    holder = os.open(first.folder / "lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    threading.Timer(0.5, os.close, [holder]).start()
    assert same(tiny(), first)
    assert capsys.readouterr().out.count("another process is training this run; waiting for it") == 1
