"""Everything of nclib that takes networks, data or tensors, on another device than the CPU: the same results.

The device is a GPU where there is one (or what NCLIB_TEST_DEVICE names), else the pretend device, host memory that
refuses what a GPU refuses.  What only a GPU can show: CUDA graphs and their streams, TF32 and a GPU's rounding, the
sizes of chunks chosen for it, that CUDA has every operation.  (Autocast and pinned memory nclib does not use.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pretend
import pytest
import torch
from conftest import missing
from torch import Tensor

import nclib as nc
from nclib.networks.models import Architecture, Net
from nclib.networks.readings import layer_norms

F64 = torch.float64


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The device that is not the CPU."""
    if reason := pretend.why_not():
        missing(reason)
    return pretend.device()


@pytest.fixture(autouse=True)
def _trained_there(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCLIB_DEVICE", str(device))
    monkeypatch.delenv("NCLIB_RUNS", raising=False)


def assert_same(found: Any, expected: Any, place: torch.device) -> None:
    """Equal to rounding, whatever they are made of; a tensor of `found` is on the device where one is expected."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.device.type == place.type
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-12)
    elif isinstance(expected, np.ndarray | float):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    elif isinstance(expected, dict):
        assert_same(list(found.items()), list(expected.items()), place)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, place)
    else:
        assert found == expected


def points(classes: int = 2, *, images: bool = False, n: int = 20) -> nc.Data:
    """A small data set on the CPU, in float64: vectors of length 16 or images of one channel, 4×4."""
    known = nc.data("gaussians", classes=classes, n=n, n_test=10, d=16, seed=1, dtype=F64)
    if not images:
        return known
    x, x_test = (part.view(-1, 1, 4, 4).numpy() for part in (known.x, known.x_test))
    return nc.from_arrays(
        x, known.labels.numpy(), x_test, known.labels_test.numpy(), classes=range(classes), dtype=F64
    )


def network(arch: Architecture, data: nc.Data) -> Net:
    """A network on the CPU, calibrated and in evaluation mode."""
    net = arch.build(data.input_shape, data.outputs, 1.5, seed=3, dtype=F64)
    nc.calibrate(net, data.x)
    return net.eval()


# ---------------------------------------------------------------------- the device refuses, as it should


@pytest.mark.parametrize(
    "mistake",
    [
        lambda here: here + torch.ones(3),
        lambda here: here @ torch.ones(3),
        lambda here: torch.cat([here, torch.ones(3)]),
        lambda here: here.index_select(0, torch.tensor([0])),
        lambda here: torch.ones(3)[here.argsort()],
        lambda here: torch.randn(3, device=here.device, generator=torch.Generator()),
        lambda here: torch.mul(here, 2, out=torch.empty(3)),
        lambda here: torch.nn.functional.conv1d(here[None, None], torch.ones(1, 1, 2)),
        lambda here: here.numpy(),
        lambda here: np.asarray(here),
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(device: torch.device, mistake: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"device|CPU"):
        mistake(torch.ones(3, device=device))


def test_nclib_takes_the_device_that_is_there(device: torch.device) -> None:
    assert nc.device() == device


# ---------------------------------------------------------------------- read off a network, or data

READ: dict[str, Callable[[Net, nc.Data], Any]] = {
    "outputs": lambda net, data: net(data.x),
    "calibrate": lambda net, data: nc.calibrate(net, data.x, chunk=7),
    "calibrate, layer by layer": lambda net, data: nc.calibrate(net, data.x, max_bytes=0),
    "fold": lambda net, data: list(nc.fold(net).state_dict().values()),
    "last_layer": lambda net, data: nc.last_layer(net, data.x, chunk=7),
    "layer_norms": lambda net, data: layer_norms(net),
}
READ_OF_CHAINS: dict[str, Callable[[Net, nc.Data], Any]] = {
    "rho": lambda net, data: nc.rho(net),
    "margins": lambda net, data: nc.margins(net, data.x, data.y, chunk=7),
    "margins, class numbers": lambda net, data: nc.margins(
        net, data.x, data.labels if data.outputs > 1 else data.y
    ),
    "balance": lambda net, data: nc.balance(net),
    "gradients": lambda net, data: nc.per_sample_gradients(nc.fold(net), data.x, data.y, weight_decay=0.1),
}


@pytest.mark.parametrize(
    "arch",
    [
        nc.mlp((8,)),
        nc.mlp((8, 6), norm="bn"),
        nc.mlp((8,), norm="wn"),
        nc.mlp((8,), norm="lm"),
        nc.convnet((4, 6), norm="bn"),
        nc.resnet18(widths=(4, 4, 4, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_read_off_a_network(device: torch.device, arch: Architecture, classes: int) -> None:
    data = points(classes, images=not isinstance(arch, type(nc.mlp())))
    net, there = network(arch, data), data.to(device)
    moved = copy.deepcopy(net).to(device)
    for read in (READ | READ_OF_CHAINS if arch.homogeneous else READ).values():
        assert_same(read(moved, there), read(net, data), device)


def features(data: nc.Data) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, labels, weight and bias of a classifier, where the data are."""
    weight, bias = torch.arange(48, dtype=F64).sin().view(3, 16), torch.arange(3, dtype=F64)
    return data.x, data.labels, weight.to(data.x.device), bias.to(data.x.device)


def batched(data: nc.Data) -> dict[str, float]:
    x, labels, weight, bias = features(data)
    statistics = nc.CollapseStatistics(3, weight, bias)
    for look in (statistics.first_pass, statistics.second_pass):
        for part, numbers in zip(x.split(7), labels.split(7), strict=True):
            look(part, numbers)
    return statistics.result()


SIGNS = np.where(np.random.default_rng(0).random((3, 20)) < 0.5, -1, 1)
READ_OFF_DATA: dict[str, Callable[[nc.Data], Any]] = {
    "y": lambda data: (data.y, data.y_test),
    "truth": lambda data: data.truth,
    "collapse": lambda data: nc.collapse(*features(data)),
    "collapse, the rest on the CPU": lambda data: nc.collapse(data.x, *(t.cpu() for t in features(data)[1:])),
    "CollapseStatistics": batched,
    "mse_split": lambda data: nc.mse_split(*features(data)),
    "simplex_view": lambda data: nc.simplex_view(*features(data)[:3]),
    "low_rank_distance": lambda data: nc.low_rank_distance(data.x),
    "patch_radius": lambda data: nc.patch_radius(data.x.view(-1, 1, 4, 4), kernel=3, padding=1),
    "rademacher_ascent": lambda data: nc.rademacher_ascent(data.x, SIGNS, nc.mlp((4,)), restarts=2, steps=3),
    "rademacher_exact": lambda data: nc.rademacher_exact(data.x[:, :2], SIGNS, depth=2),
    "margin_bound": lambda data: nc.margin_bound(data.x[:, 0], gamma=0.1, depth=2),
    "margin_bound_over_grid": lambda data: nc.margin_bound_over_grid(data.x[:, 0], depth=2),
    "minimum_norm": lambda data: nc.minimum_norm(data.x[:10], data.y[:10, 0]),
    "ridge": lambda data: nc.ridge(data.x, data.y, 0.1),
    "interpolant_from": lambda data: nc.interpolant_from(data.x[:10], data.y[:10, 0], data.x.mean(0)),
    "equilibrium_norm": lambda data: nc.equilibrium_norm(data.x[:, 0], 2 * data.y[:, 0] - 1, 0.01),
    "equilibrium_loss": lambda data: nc.equilibrium_loss(data.x[:, 0], 2 * data.y[:, 0] - 1, 0.01),
    "growth_clock": lambda data: nc.growth_clock(data.x[:, 0].abs(), depth=3),
    "claim": lambda data: nc.claim("thm-x", "a sum", measured=data.x.sum(), predicted=data.x.sum(), rtol=1e-9),
}


@pytest.mark.parametrize("read", READ_OFF_DATA.values(), ids=READ_OFF_DATA)
def test_what_is_read_off_data(device: torch.device, read: Callable[[nc.Data], Any]) -> None:
    data = points(3)
    assert_same(read(data.to(device)), read(data), device)


PROBLEMS: dict[str, Callable[[nc.Data], Any]] = {
    "flow": lambda data: nc.flow(data, widths=(4,), weight_decay=0.1, seed=[0, 1], time=2).final,
    "exact_flow": lambda data: nc.exact_flow(plane(data), widths=(2,), weight_decay=0.1, time=1).final,
    "convex_optimum": lambda data: nc.convex_optimum(plane(data), 0.1).loss,
}


def plane(data: nc.Data) -> nc.Data:
    """Six points in the plane."""
    return nc.from_arrays(data.x[:6, :2], data.labels[:6], classes=(0, 1), dtype=F64, device=data.x.device)


@pytest.mark.parametrize("solve", PROBLEMS.values(), ids=PROBLEMS)
def test_theory_takes_a_problem_that_lies_on_the_device(
    device: torch.device, solve: Callable[[nc.Data], Any]
) -> None:
    data = points()
    assert_same(solve(data.to(device)), solve(data), device)


# ---------------------------------------------------------------------- data

SETS: dict[str, Callable[[Any], nc.Data]] = {
    "digits": lambda device: nc.data("digits", classes=(3, 8), n=40, standardise=True, noise=0.2, device=device),
    "images": lambda device: nc.data("digits", n=40, flat=False, dtype=F64, device=device),
    "teacher": lambda device: nc.data("teacher", device=device),
    "gaussians": lambda device: nc.data("gaussians", classes=3, noise=0.5, device=device),
    "arrays": lambda device: nc.from_arrays(np.eye(4), [1, -1, 1, -1], device=device),
    "tensors": lambda device: nc.from_arrays(
        torch.eye(4, device=device), torch.tensor([0, 1, 2, 0], device=device), standardise=True, device=device
    ),
}


@pytest.mark.parametrize("make", SETS.values(), ids=SETS)
def test_data_is_made_on_the_device(device: torch.device, make: Callable[[Any], nc.Data]) -> None:
    found, expected = make(device), make(None)
    assert_same(list(vars(found).values()), list(vars(expected).values()), device)
    assert_same(list(vars(found.to("cpu")).values()), list(vars(expected).values()), torch.device("cpu"))


# ---------------------------------------------------------------------- training


def largest(net: Net) -> dict[str, float]:
    """What a reader may measure: a number of the network, which is where it was trained."""
    return {"largest": float(max(p.abs().max() for p in net.parameters()))}


EVERYTHING = ("loss", "test", "norms", "margins", "stable_rank", "collapse", largest)
GRID = dict(lr=[0.05, 0.1], seed=[0, 1])
NOISE = dict(noise=[0.0, 0.5], momentum=[0.0, 0.9], weight_decay=[0.0, 0.01])
TRAININGS: dict[str, dict[str, Any]] = {
    "all points": dict(arch=nc.mlp((8,)), grid=GRID | NOISE),
    "one by one": dict(arch=nc.mlp((8,), norm="bn"), grid=GRID, measure=EVERYTHING),
    "batches": dict(arch=nc.mlp((8, 6), norm="bn"), grid=GRID | NOISE, opt=dict(batch=8)),
    "wn": dict(arch=nc.mlp((8,), norm="wn"), grid=GRID, opt=dict(batch=8, sampling="independent")),
    "lm": dict(arch=nc.mlp((8,), norm="lm"), grid=GRID, opt=dict(schedule="cosine")),
    "decay on ρ": dict(arch=nc.mlp((8,)), grid=GRID, opt=dict(weight_decay=0.01, weight_decay_on="rho")),
    "vmap": dict(arch=nc.mlp((8,), norm="bn"), grid=GRID | NOISE, opt=dict(batch=8), engine="vmap"),
    "convnet, loop": dict(arch=nc.convnet((4,), norm="bn"), grid=GRID, opt=dict(batch=8), engine="loop"),
    "convnet, vmap": dict(arch=nc.convnet((4,), norm="bn"), grid=GRID, opt=dict(batch=8), engine="vmap"),
    "resnet": dict(arch=nc.resnet18(widths=(4, 4, 4, 4)), grid=dict(seed=[0]), opt=dict(batch=8), engine="loop"),
    "cross-entropy": dict(arch=nc.mlp((8,)), grid=GRID, opt=dict(loss="cross_entropy"), classes=3),
    "divergence": dict(arch=nc.mlp((8,)), grid=dict(lr=[0.1, 1e9], seed=[0, 1]), measure=EVERYTHING),
}


def trained(case: dict[str, Any]) -> Any:
    """Its runs, on the device that NCLIB_DEVICE names."""
    case = dict(case)
    arch, opt = case.pop("arch"), nc.sgd(**dict(lr=0.1, epochs=4) | case.pop("opt", {}))
    data = points(case.pop("classes", 2), images=not isinstance(arch, type(nc.mlp())))
    return nc.train(data, arch, opt, measure_every=2, snapshots=True, progress=False, **case)


@pytest.mark.filterwarnings("ignore:.*diverged:RuntimeWarning")
@pytest.mark.parametrize("case", TRAININGS.values(), ids=TRAININGS)
def test_training(device: torch.device, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    there = trained(case)
    monkeypatch.setenv("NCLIB_DEVICE", "cpu")
    here = trained(case)
    assert_same(there.history, here.history, device)
    for epoch in (2, 4):
        found, expected = (list(runs.model(0, epoch=epoch).state_dict().values()) for runs in (there, here))
        assert_same(found, expected, device)
    assert there.data(0).x.device.type == device.type


def test_a_run_on_disk_comes_back_on_the_device(
    device: torch.device, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCLIB_RUNS", str(tmp_path))
    first, again = (trained(TRAININGS["one by one"]) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1
    assert_same(again.history, first.history, device)
    for epoch in (2, None):
        weights = [[p.cpu() for p in runs.model(1, epoch=epoch).parameters()] for runs in (again, first)]
        assert_same(*weights, torch.device("cpu"))
        assert next(again.model(1, epoch=epoch).parameters()).device.type == device.type


@pytest.mark.parametrize("arch", [nc.mlp((8,), norm="bn"), nc.convnet((4,))], ids=str)
def test_step_by_step(device: torch.device, arch: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    data, opt = points(images=not isinstance(arch, type(nc.mlp()))), nc.sgd(lr=0.1, batch=8, epochs=2)

    def steps() -> tuple[Any, ...]:
        first = nc.step_by_step(data, arch, opt, grid=GRID)
        second = nc.step_by_step(data, arch, opt, grid=GRID, start=first.weights, train_last=False)
        return second.table(), second.angle, second.weights

    there = steps()
    monkeypatch.setenv("NCLIB_DEVICE", "cpu")
    assert_same(there, steps(), torch.device("cpu"))
