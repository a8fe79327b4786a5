"""Collapse metrics against the plain way: a class loop, Σ_W in float64 and a d×d pseudo-inverse, NC1 only."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import cpu_seconds, race, row
from nclib.collapse import CollapseStatistics, collapse

ROWS, WIDTH, CLASSES, REPEATS = 60_000, 512, 10, 7

MEMORY = """
import torch
from nclib.collapse import collapse

def status(field):  # not ru_maxrss, which a process inherits from the one that started it
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
torch.manual_seed(0)
features = torch.empty({rows}, {width}).uniform_(-1, 1)
labels = torch.arange({rows}) % {classes}
features[:, 0] += labels
weight = torch.randn({classes}, {width})
before = status("VmHWM")
collapse(features, labels, weight, torch.zeros({classes}))
print(status("VmHWM") - before)
"""


def rows() -> list[dict[str, Any]]:
    """One row a comparison; times are median CPU-seconds on one thread, ours and the baseline's in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _even_noise() + _rectified() + _decaying_noise()
    finally:
        torch.set_num_threads(threads)


def _even_noise() -> list[dict[str, Any]]:
    features, labels, weight, bias = _problem()
    seconds = race(
        cpu_seconds,
        REPEATS,
        baseline=lambda: plain_nc1(features, labels, CLASSES),
        everything=lambda: collapse(features, labels, weight, bias),
        features_only=lambda: collapse(features, labels),
    )
    check = abs(collapse(features, labels)["nc1"] / plain_nc1(features, labels, CLASSES) - 1)
    memory = f"Gaussian classes; peak extra memory {_peak_mebibytes():.0f} MiB; NC1 differs by {check:.0e}"
    return [
        _row("collapse, all keys", seconds["everything"], seconds["baseline"], memory, goal=5),
        _row("collapse, features only", seconds["features_only"], seconds["baseline"], "six keys"),
    ]


def _rectified() -> list[dict[str, Any]]:
    features, labels, weight, bias = _problem()
    features.relu_()
    seconds = race(
        cpu_seconds,
        REPEATS,
        baseline=lambda: plain_nc1(features, labels, CLASSES),
        everything=lambda: collapse(features, labels, weight, bias),
    )
    return [_row("collapse, all keys, after a ReLU", seconds["everything"], seconds["baseline"], "", goal=5)]


def _decaying_noise() -> list[dict[str, Any]]:
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))).Q
    features, labels, weight, bias = _problem(turn / torch.arange(1, WIDTH + 1)[:, None])
    seconds = race(
        cpu_seconds,
        REPEATS,
        baseline=lambda: plain_nc1(features, labels, CLASSES),
        everything=lambda: collapse(features, labels, weight, bias),
        stream=lambda: _stream(features, labels).result(weight, bias),
    )
    note = "within-class variances 1 to 1/d² along rotated axes"
    return [
        _row("collapse, all keys, decaying spectrum", seconds["everything"], seconds["baseline"], note),
        _row("CollapseStatistics, batches of 1000", seconds["stream"], seconds["baseline"], "all but nc4"),
    ]


def plain_nc1(features: Tensor, labels: Tensor, classes: int) -> float:
    """The baseline: NC1 as most code computes it, in float64."""
    width = features.shape[1]
    within = torch.zeros(width, width, dtype=torch.float64)
    means = []
    for label in range(classes):
        rows = features[labels == label].double()
        means.append(rows.mean(0))
        centred = rows - means[-1]
        within += centred.T @ centred
    within /= len(features)
    centred = torch.stack(means) - torch.stack(means).mean(0)
    between = centred.T @ centred / classes
    return float(torch.trace(within @ torch.linalg.pinv(between))) / classes


def _problem(mixing: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=random)
    means = torch.randn(CLASSES, WIDTH, generator=random)
    noise = torch.randn(ROWS, WIDTH, generator=random)
    features = means[labels] + (noise if mixing is None else noise @ mixing)
    weight = torch.randn(CLASSES, WIDTH, generator=random)
    return features, labels, weight, torch.randn(CLASSES, generator=random)


def _stream(features: Tensor, labels: Tensor) -> CollapseStatistics:
    found = CollapseStatistics(CLASSES)
    for start in range(0, len(labels), 1000):
        found.update(features[start : start + 1000], labels[start : start + 1000])
    return found


def _row(name: str, ours: float, baseline: float, note: str, *, goal: float | None = None) -> dict[str, Any]:
    size = f"N={ROWS}, d={WIDTH}, K={CLASSES}, float32, CPU time"
    note = f"{size}; {note}" if note else size
    return row(name, ours, baseline, note, repeats=REPEATS, threads=1, goal=goal)


def _peak_mebibytes() -> float:
    """What a call adds to the peak of a fresh process that holds the features; nan where /proc is missing."""
    if not sys.platform.startswith("linux"):
        return math.nan
    script = MEMORY.format(rows=ROWS, width=WIDTH, classes=CLASSES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)
