"""Collapse metrics against the plain way, as packages do it: a loop over classes, Σ_W and a d×d pseudo-inverse."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import cpu_seconds, race, row
from nclib.collapse import CollapseStatistics, collapse

ROWS, WIDTH, CLASSES, REPEATS = 60_000, 512, 10, 9

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
        return _rows()
    finally:
        torch.set_num_threads(threads)


def _rows() -> list[dict[str, Any]]:
    features, labels, weight, bias = _problem()
    seconds = race(
        cpu_seconds,
        REPEATS,
        baseline=lambda: plain(features, labels, weight, bias),
        everything=lambda: collapse(features, labels, weight, bias),
        features_only=lambda: collapse(features, labels),
        batches=lambda: _in_batches(features, labels, weight, bias),
    )
    found, expected = collapse(features, labels, weight, bias), plain(features, labels, weight, bias)
    apart = max(abs(found[key] / value - 1) for key, value in expected.items())
    note = f"12 keys; peak extra memory {_peak_mebibytes():.0f} MiB; the values differ by {apart:.0e}"
    return [
        _row("collapse, all keys", seconds["everything"], seconds["baseline"], note, goal=5),
        _row("collapse, features only", seconds["features_only"], seconds["baseline"], "6 keys"),
        _row("CollapseStatistics, batches of 1000", seconds["batches"], seconds["baseline"], "12 keys"),
    ]


def plain(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """The baseline: NC1, CDNV, NC2 of the means, NC3 and NC4 as most code computes them, in float32."""
    classes = range(len(weight))
    within = features.new_zeros(features.shape[1], features.shape[1])
    means = torch.stack([features[labels == label].mean(0) for label in classes])
    variances = []
    for label in classes:
        rows = features[labels == label] - means[label]
        within += rows.T @ rows / len(features)
        variances.append(float(rows.square().sum(1).mean()))
    centred = means - means.mean(0)
    between = centred.T @ centred / len(classes)
    apart = [
        (variances[i] + variances[j]) / 2 / float((means[i] - means[j]).square().sum())
        for i in classes
        for j in classes
        if i != j
    ]
    norms = centred.norm(dim=1)
    chosen, nearest = (features @ weight.T + bias).argmax(1), torch.cdist(features, means).argmin(1)
    return {
        "nc1": float(torch.trace(within @ torch.linalg.pinv(between, rtol=1e-5))) / len(classes),
        "nc1_quotient": float(torch.trace(within) / torch.trace(between)),
        "cdnv": sum(apart) / len(apart),
        "nc2_norm_means": float(norms.std() / norms.mean()),
        "nc3": float((weight / weight.norm() - centred / centred.norm()).square().sum()),
        "nc4": float((chosen != nearest).float().mean()),
    }


def _problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=random)
    means = torch.randn(CLASSES, WIDTH, generator=random)
    features = means[labels] + torch.randn(ROWS, WIDTH, generator=random)
    return features, labels, torch.randn(CLASSES, WIDTH, generator=random), torch.randn(CLASSES, generator=random)


def _in_batches(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    statistics = CollapseStatistics(CLASSES, weight, bias)
    for read in (statistics.first_pass, statistics.second_pass):
        for start in range(0, len(labels), 1000):
            read(features[start : start + 1000], labels[start : start + 1000])
    return statistics.result()


def _row(name: str, ours: float, baseline: float, note: str, *, goal: float | None = None) -> dict[str, Any]:
    note = f"N={ROWS}, d={WIDTH}, K={CLASSES}, float32, CPU time; {note}"
    return row(name, ours, baseline, note, repeats=REPEATS, threads=1, goal=goal)


def _peak_mebibytes() -> float:
    """What a call adds to the peak of a fresh process that holds the features; nan where /proc is missing."""
    if not sys.platform.startswith("linux"):
        return math.nan
    script = MEMORY.format(rows=ROWS, width=WIDTH, classes=CLASSES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)
