"""Training against itself one network at a time, against a bare loop, and against a data loader."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import by_hand, cpu_seconds, race, row, wall_seconds
from nclib.data import Data, data
from nclib.networks.models import Architecture, convnet, mlp
from nclib.training import train
from nclib.training.ensemble import Ensemble
from nclib.training.measure import measure
from nclib.training.optim import sgd
from nclib.training.runs import Plan, Runs

REPEATS = 5
MEMBERS = 32
IMAGES = 10_000

# (points, inputs, hidden widths, steps, the least ratio asked for)
SHAPES = [(12, 20, (16,), 500, 20), (100, 64, (32, 32), 200, 8), (200, 64, (64,), 100, 3)]

# Anything a chapter might ask for: (points, inputs, hidden widths, batch, normalisation, epochs)
SETTINGS: list[tuple[int, int, tuple[int, ...], int | None, Any, int]] = [
    (20, 5, (), None, "none", 200),
    (50, 10, (8, 8, 8), None, "wn", 100),
    (100, 64, (64,), 10, "lm", 20),
    (500, 64, (64, 64), 32, "bn", 5),
    (1000, 784, (128,), None, "none", 10),
    (1000, 64, (256, 256), None, "none", 5),
    (2000, 64, (512,), 128, "none", 1),
]


def rows(threads: int = 2) -> list[dict[str, Any]]:
    """One row a comparison: medians, ours and the baseline in turn; CPU time on one thread, wall time on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _variable("NCLIB_RUNS", ""):
            found = [*_ensembles(), _worst_setting(), *_images()]
        return [*found, _reload(), _import()]
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ ensembles


def _ensembles() -> Iterator[dict[str, Any]]:
    for n, d, widths, steps, goal in SHAPES:
        points = data("teacher", n=n, d=d, n_test=0)
        seconds = _race(
            together=lambda: _train(points, mlp(widths), steps, range(MEMBERS)),  # noqa: B023
            alone=lambda: [_train(points, mlp(widths), steps, [seed]) for seed in range(MEMBERS)],  # noqa: B023
            # Plain modules and autograd; a quarter of the members stands for all.
            autograd=lambda: [
                _train(points, mlp(widths), steps, [seed], "loop")  # noqa: B023
                for seed in range(MEMBERS // 4)
            ],
        )
        size = f"{MEMBERS} MLPs, N={n}, d={d}, widths {widths}, {steps} steps measured 50 times"
        error = _difference(points, mlp(widths))
        note = f"{size}; same weights to {error:.0e} after 100 steps"
        yield _row("ensemble / one after another", seconds["together"], seconds["alone"], note, goal)
        yield _row("ensemble / modules one after another", seconds["together"], 4 * seconds["autograd"], size)


def _train(points: Data, arch: Architecture, epochs: int, seeds: Any, engine: Any = "auto", **more: Any) -> Runs:
    opt = sgd(lr=0.05, momentum=0.9, weight_decay=1e-3, epochs=epochs, **more)
    return train(points, arch, opt, grid=dict(seed=seeds), engine=engine, progress=False)


def _difference(points: Data, arch: Architecture) -> float:
    """Largest relative difference between a member's weights in the ensemble and alone, after 100 steps."""
    together = _train(points, arch, 100, range(MEMBERS))
    errors = []
    for seed in range(0, MEMBERS, 4):
        alone = _train(points, arch, 100, [seed])
        pairs = zip(together.model(seed).parameters(), alone.model(0).parameters(), strict=True)
        errors += [((a - b).norm() / b.norm()).item() for a, b in pairs]
    return max(errors)


def _worst_setting() -> dict[str, Any]:
    """No setting may be slower as an ensemble: the least ratio over several, with eight members.

    The goal leaves five per cent to the noise of the clock.
    """
    found = []
    for n, d, widths, batch, norm, epochs in SETTINGS:
        points, arch, seeds = data("teacher", n=n, d=d, n_test=0), mlp(widths, norm=norm), range(8)
        seconds = _race(
            together=lambda: _train(points, arch, epochs, seeds, batch=batch),  # noqa: B023
            alone=lambda: [_train(points, arch, epochs, [seed], batch=batch) for seed in seeds],  # noqa: B023
        )
        size = f"N={n}, d={d}, widths {widths}, batch {batch}, {norm}"
        found.append((seconds["alone"] / seconds["together"], seconds, size))
    _, seconds, size = min(found, key=lambda entry: entry[0])
    note = f"8 MLPs, {size}: the least of {len(SETTINGS)} settings"
    return _row("ensemble / one after another, worst", seconds["together"], seconds["alone"], note, 0.95)


# --------------------------------------------------------------------------------------------------- images


def _images() -> Iterator[dict[str, Any]]:
    points, source = _pictures()
    for norm in ("bn", "none"):
        arch = convnet(norm=norm)  # type: ignore[arg-type]
        opt = sgd(lr=0.003, momentum=0.9, batch=128, epochs=10**6, weight_decay=0.01)
        plan = Plan.of(points, arch, opt, grid=dict(seed=[0]), measure=("loss", "norms", "margins"))
        ensemble = Ensemble(plan, plan.start(), [0])
        loader = DataLoader(TensorDataset(points.x, points.y), batch_size=128, shuffle=True)
        seconds = _race(
            ours=lambda: ensemble.advance(0, 1),  # noqa: B023
            bare=by_hand(arch.build(points.input_shape), opt, lambda: _slices(points)),
            loader=by_hand(arch.build(points.input_shape), opt, lambda: loader),  # noqa: B023
            exact=lambda: measure(ensemble),  # noqa: B023
        )
        note = f"four convolutions, {norm}, {len(points.x)} {source} images, batch 128"
        yield _row("epoch / bare loop on resident tensors", seconds["ours"], seconds["bare"], note, 1 / 1.05)
        yield _row("epoch / DataLoader loop", seconds["ours"], seconds["loader"], note)
        share = f"{note}; {seconds['exact'] / seconds['bare']:.2f} of an epoch of the bare loop"
        yield _row("exact evaluation / epoch", seconds["exact"], seconds["ours"], share, 1 / 0.45)


def _pictures() -> tuple[Data, str]:
    """CIFAR-10's classes 1 and 2 where they lie ready, else noise of that shape: the time is the same."""
    if os.environ.get("NCLIB_DATA"):
        found = data("cifar10", classes=(1, 2), n=IMAGES, n_test=0, standardise=True, verify=False)
        return found, "CIFAR-10"
    x = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x /= x.flatten(1).norm(dim=1)[:, None, None, None]
    return Data("noise", ("a", "b"), x, torch.arange(IMAGES) % 2, x[:0], torch.arange(0)), "noise"


def _slices(points: Data) -> Iterator[tuple[Tensor, Tensor]]:
    y = points.y
    return ((points.x[index], y[index]) for index in torch.randperm(len(y)).split(128))


# ----------------------------------------------------------------------------------------------------- disk


def _reload() -> dict[str, Any]:
    """Running a finished cell again against running it the first time."""
    points, arch, opt = data("digits", classes=(3, 8)), mlp((64, 64)), sgd(lr=0.1, epochs=1000)

    def cell() -> Runs:
        return train(points, arch, opt, grid=dict(seed=range(8)), progress=False)

    with tempfile.TemporaryDirectory() as folder, _variable("NCLIB_RUNS", folder):
        start = time.perf_counter()
        cell()
        first = time.perf_counter() - start
        seconds = _race(wall=True, again=cell)
    return _row("finished run, loaded / trained", seconds["again"], first, "8 MLPs, digits, 1000 steps", wall=True)


def _import() -> dict[str, Any]:
    """What `import nclib` adds to `import torch`, in fresh processes."""

    def cost(statement: str) -> float:
        code = f"import time, torch; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        return float(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        )

    def torch_alone() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        return time.perf_counter() - start

    ours = statistics.median(cost("import nclib") for _ in range(REPEATS))
    base = statistics.median(torch_alone() for _ in range(REPEATS))
    return {**_row("import nclib / import torch", ours, base, "goal: 0.3 s at most", wall=True), "met": ours <= 0.3}


# -------------------------------------------------------------------------------------------------- measuring


def _race(*, wall: bool = False, **entrants: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each: wall time on several threads, CPU time on one."""
    return race(wall_seconds if wall or torch.get_num_threads() > 1 else cpu_seconds, REPEATS, **entrants)


def _row(
    name: str, ours: float, baseline: float, note: str, goal: float | None = None, *, wall: bool = False
) -> dict[str, Any]:
    threads = torch.get_num_threads()
    note = f"{note}; {'wall' if wall or threads > 1 else 'CPU'} time"
    return row(name, ours, baseline, note, repeats=REPEATS, threads=threads, goal=goal)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
