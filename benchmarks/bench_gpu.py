"""What the engine does on a GPU, piece by piece, each beside eager PyTorch in the same run; no rows without CUDA.

Times are CUDA events, medians of several in turn.  The data are noise of CIFAR-10's shape: the time is the same.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import by_hand, cpu_seconds, cuda_seconds, race, row
from nclib.data import Data
from nclib.networks.models import Architecture, convnet, resnet18
from nclib.training import Session
from nclib.training.ensemble import Ensemble
from nclib.training.optim import SGD, sgd
from nclib.training.runs import Plan

REPEATS = 5
LAMBDA = 0.005


class Size(NamedTuple):
    """How much of everything."""

    images: int
    batch: int
    widths: tuple[int, ...]
    starts: tuple[float, ...]  # initial norms of the binary grid
    resnet_images: int
    resnet_widths: tuple[int, ...]


FULL = Size(10_000, 128, (32, 64, 128), (0.01, 0.1, 0.5, 1, 3, 5, 10), 50_000, (64, 128, 256, 512))


def rows() -> list[dict[str, Any]]:
    """One row a comparison, with the card's name and the peaks of memory in the note."""
    if not torch.cuda.is_available():
        print("benchmarks.bench_gpu: there is no CUDA device here, so nothing is measured", file=sys.stderr)
        return []
    return list(compare(torch.device("cuda"), FULL))


def compare(device: torch.device, size: Size, repeats: int = REPEATS) -> Iterator[dict[str, Any]]:
    """All comparisons on a device; on a CPU they only show that they run."""
    yield from _grid(device, size, repeats)
    yield from _pieces(device, size, repeats)
    yield from _resnet(device, size, repeats)


def _grid(device: torch.device, size: Size, repeats: int) -> Iterator[dict[str, Any]]:
    """An epoch of the whole published grid, and of one network by a data loader as many times over."""
    points, opt = _noise(size.images, 2, device), sgd(lr=0.01, momentum=0.9, batch=size.batch, epochs=10**6)
    settings = list(itertools.product(("bn", "none"), (LAMBDA, 0.0)))
    groups = [
        _ensemble(_session(points, convnet(size.widths, norm=norm), opt, size.starts, decay, "vmap"))  # type: ignore[arg-type]
        for norm, decay in settings
    ]
    eager = _eager_epoch(points, convnet(size.widths, norm="bn"), opt, device)
    seconds = _race(device, repeats, ours=lambda: [group.advance(0, 1) for group in groups], eager=eager)
    count = len(settings) * len(size.starts)
    note = f"{count} networks, {size.images} images; baseline: a DataLoader loop of one network, times {count}"
    # 1000 epochs in ten minutes
    yield _row("grid, an epoch", seconds["ours"], count * seconds["eager"], device, note, repeats) | {
        "met": seconds["ours"] <= 0.6 if device.type == "cuda" else None
    }


def _pieces(device: torch.device, size: Size, repeats: int) -> Iterator[dict[str, Any]]:
    """CUDA graphs, ensembles and the step of SGD, one at a time."""
    points, opt = _noise(size.images, 2, device), sgd(lr=0.01, momentum=0.9, batch=size.batch, epochs=10**6)
    arch, count = convnet(size.widths, norm="bn"), len(size.starts)

    def group(starts: Sequence[float]) -> Ensemble:
        return _ensemble(_session(points, arch, opt, starts, LAMBDA, "vmap"))

    graphed, plain, alone = group(size.starts), group(size.starts), [group([start]) for start in size.starts]
    plain._graphed = False
    nets = [arch.build(points.input_shape, 2).to(device) for _ in size.starts]
    steps = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=2 * LAMBDA) for net in nets]
    for net in nets:
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
    seconds = _race(
        device,
        repeats,
        graphed=lambda: graphed.advance(0, 1),
        plain=lambda: plain.advance(0, 1),
        alone=lambda: [one.advance(0, 1) for one in alone],
        update=lambda: plain.update(1.0),
        optimisers=lambda: [step.step() for step in steps],  # type: ignore[func-returns-value]
    )
    note = f"{count} networks, {size.images} images, an epoch"
    yield _row("CUDA graphs / none", seconds["graphed"], seconds["plain"], device, note, repeats)
    yield _row("ensemble / one by one", seconds["graphed"], seconds["alone"], device, note, repeats)
    yield _row("flat step / torch.optim.SGD", seconds["update"], seconds["optimisers"], device, note, repeats)


def _resnet(device: torch.device, size: Size, repeats: int) -> Iterator[dict[str, Any]]:
    """ResNet-18: layout, precision and graphs on the engine, beside an eager loop with a data loader."""
    points, arch = _noise(size.resnet_images, 10, device), resnet18(widths=size.resnet_widths)

    def opt(precision: Any) -> SGD:
        return sgd(lr=0.05, momentum=0.9, batch=size.batch, epochs=10**6, precision=precision)

    ways: dict[str, Callable[[], object]] = {"eager": _eager_epoch(points, arch, opt("float32"), device)}
    for precision, last, graphs in (
        ("float32", False, False), ("float32", True, False), ("float32", True, True), ("tf32", True, True),
    ):  # fmt: skip
        session = _session(points, arch, opt(precision), [1.0], LAMBDA / 20, "loop")
        ways[f"{precision}{', channels-last' * last}{', graphs' * graphs}"] = _epoch(session, graphs, last)
    ways["tf32, vmap, graphs"] = _epoch(_session(points, arch, opt("tf32"), [1.0], LAMBDA / 20, "vmap"))
    seconds = _race(device, repeats, **ways)
    peaks = {name: _peak_mebibytes(device, run) for name, run in ways.items()}
    for name, spent in seconds.items():
        if name != "eager":
            note = (
                f"{size.resnet_images} images, an epoch; peak {peaks[name]:.0f} MiB, eager {peaks['eager']:.0f} MiB"
            )
            goal = 2.0 if name.startswith("tf32, channels-last") and device.type == "cuda" else None
            yield _row(f"ResNet-18, {name} / eager", spent, seconds["eager"], device, note, repeats, goal)


# -------------------------------------------------------------------------------------------------- helpers


def _noise(count: int, classes: int, device: torch.device) -> Data:
    """Images of noise, of CIFAR-10's shape."""
    x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = tuple(map(str, range(classes)))
    return Data("noise", names, x, torch.arange(count) % classes, x[:2], torch.arange(2)).to(device)


def _session(
    points: Data, arch: Architecture, opt: SGD, starts: Sequence[float], decay: float, engine: Any
) -> Session:
    """What `nclib.train` would make of one network for each initial norm, before the first step."""
    grid = [{"seed": seed, "init_norm": start, "weight_decay": decay} for seed, start in enumerate(starts)]
    plan = Plan.of(points, arch, opt, grid=grid, measure=(), engine=engine)
    return Session(plan, plan.start())


def _ensemble(session: Session) -> Ensemble:
    """All of a session's networks as one ensemble."""
    return Ensemble(session.plan, session.state, range(len(session.plan.members)))


def _epoch(session: Session, graphs: bool = True, channels_last: bool = True) -> Callable[[], object]:
    """An epoch under the session's own settings of precision."""
    ensemble = _ensemble(session)
    ensemble._graphed = ensemble._graphed and graphs
    if not channels_last:
        ensemble.x = ensemble.x.contiguous()

    def epoch() -> None:
        with session.settings():
            ensemble.advance(0, 1)

    return epoch


def _eager_epoch(points: Data, arch: Architecture, opt: SGD, device: torch.device) -> Callable[[], None]:
    """A loop written by hand over a data loader, in float32 as PyTorch sets it up."""
    net = arch.build(points.input_shape, len(points.classes)).to(device)
    targets = torch.nn.functional.one_hot(points.labels, len(points.classes)).float()
    resident = TensorDataset(points.x.cpu(), targets.cpu())
    loader = DataLoader(resident, batch_size=opt.batch, shuffle=True, pin_memory=device.type == "cuda")
    return by_hand(net, replace(opt, weight_decay=LAMBDA), lambda: loader)


def _race(device: torch.device, repeats: int, **entrants: Callable[[], object]) -> dict[str, float]:
    return race(cuda_seconds if device.type == "cuda" else cpu_seconds, repeats, **entrants)


def _peak_mebibytes(device: torch.device, run: Callable[[], object]) -> float:
    """The most that a run holds on the device, what was there before included; nan on a CPU."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _row(
    name: str,
    ours: float,
    baseline: float,
    device: torch.device,
    note: str,
    repeats: int,
    goal: float | None = None,
) -> dict[str, Any]:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    return row(name, ours, baseline, f"{card}; {note}", repeats=repeats, threads=threads, goal=goal)
