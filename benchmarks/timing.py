"""Stopwatches, races between ways to do the same thing, and the training loop that one writes by hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nclib.training.optim import SGD

Run = Callable[[], object]


def by_clock(clock: Callable[[], float]) -> Callable[[Run], float]:
    """A stopwatch that reads this clock before and after: `time.process_time`, `time.perf_counter`."""

    def seconds(run: Run) -> float:
        start = clock()
        run()
        return clock() - start

    return seconds


cpu_seconds, wall_seconds = by_clock(time.process_time), by_clock(time.perf_counter)


def cuda_seconds(run: Run) -> float:
    """A stopwatch of CUDA events: time on the device, waiting for the host included."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def race(stopwatch: Callable[[Run], float], repeats: int, **entrants: Run) -> dict[str, float]:
    """Median seconds of each, taken in turn so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    for repeat in range(repeats + 1):
        for name, run in entrants.items():
            spent = stopwatch(run)
            if repeat:  # the first is for warming up
                seconds[name].append(spent)
    return {name: statistics.median(values) for name, values in seconds.items()}


def row(
    name: str, ours: float, baseline: float, note: str, *, repeats: int, threads: int, goal: float | None = None
) -> dict[str, Any]:
    """A row of the table; `goal` is the least ratio that is promised."""
    ratio = baseline / ours
    return {
        "name": name,
        "ours_s": ours,
        "baseline_s": baseline,
        "ratio": ratio,
        "goal": goal,
        "met": None if goal is None else ratio >= goal,
        "repeats": repeats,
        "threads": threads,
        "note": note,
    }


def by_hand(net: nn.Module, opt: SGD, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Callable[[], None]:
    """An epoch as one writes it by hand, on the device of the network: nothing measured, nothing checked."""
    device = next(net.parameters()).device
    steps = torch.optim.SGD(net.parameters(), lr=opt.lr, momentum=opt.momentum, weight_decay=2 * opt.weight_decay)

    def epoch() -> None:
        for x, y in batches():
            f = net(x.to(device, non_blocking=True))
            steps.zero_grad()
            (f - y.to(device, non_blocking=True)).square().mean().backward()
            steps.step()

    return epoch
