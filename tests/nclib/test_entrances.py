"""Every entrance to networks and to training says by name what does not fit, and takes what does."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nclib as nc
from nclib.data import Data
from nclib.networks.models import MLP, Net, ResNet18
from nclib.training.optim import SGD

X = torch.tensor([[1.0, 0.5], [-0.5, 1.25], [0.25, -1.0], [-1.125, -0.25]])
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0])
POINTS = nc.from_arrays(X, SIGNS, unit_norm=False)
WANTS_DATA: dict[str, Any] = {
    "calibrate": lambda net, x: nc.calibrate(net, x),
    "margins": lambda net, x: nc.margins(net, x, SIGNS),
    "last_layer": lambda net, x: torch.from_numpy(nc.last_layer(net, x).features),
    "per_sample_gradients": lambda net, x: nc.per_sample_gradients(net, x, SIGNS)[0],
}
WANTS_NET: dict[str, Any] = {
    **{name: functools.partial(lambda call, net: call(net, X), call) for name, call in WANTS_DATA.items()},
    "rho": nc.rho,
    "fold": nc.fold,
    "balance": nc.balance,
}


def net(norm: Any = "none", **options: Any) -> Net:
    return nc.mlp((3,), norm).build((2,), **options)


FORMS = [
    lambda x: x.tolist(),
    lambda x: x.double(),
    lambda x: x.double().numpy()[:, ::-1].copy()[:, ::-1],
    lambda x: x.numpy().astype(">f4"),
    lambda x: x.bfloat16(),
    lambda x: x.clone().requires_grad_(),
    lambda x: pd.DataFrame(x.numpy(), index=[3, 9, 1, 2]),
    lambda x: x.unsqueeze(2),
]


@pytest.mark.parametrize("name", WANTS_DATA)
@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_every_form_are_taken_to_the_network(name: str, form: Any) -> None:
    found = WANTS_DATA[name](net(), form(X))
    assert torch.equal(found, WANTS_DATA[name](net(), X))


@pytest.mark.parametrize("name", WANTS_DATA)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "^x=None: expected one input a row"),
        ("abc", "^x='abc': expected"),
        (X[:, :1], r"^x: shape \(4, 1\); this network takes \('N', 2\)"),
        (X[0], r"^x: shape \(2,\); this network takes"),
        (torch.ones(4, 1, 8, 8), "^x: shape .*; this network takes"),
        (X * math.nan, r"^x: holds NaN or infinity in torch\.float32, first at \(0, 0\)"),
        (X.double() * 1e200, r"^x: holds NaN or infinity in torch\.float32"),
        (X.numpy() + 0j, "^x: got shape"),
        (POINTS, "^x: got shape|^x=.*expected"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(name: str, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WANTS_DATA[name](net(), x)


@pytest.mark.parametrize("name", WANTS_NET)
def test_what_is_no_network_or_not_finite_is_refused_by_name(name: str) -> None:
    for wrong in (None, torch.nn.Linear(2, 1), nc.mlp(), "net", X):
        with pytest.raises(ValueError, match=r"^net=.*: expected what nclib makes; write e\.g\. net=nclib\.mlp"):
            WANTS_NET[name](wrong)
    lost = net()
    lost.layers[1].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"^net: layers\.1\.weight .*holds NaN or infinity"):
        WANTS_NET[name](lost)


def test_batch_norm_is_calibrated_and_evaluated_or_it_is_said() -> None:
    bn = net("bn")
    with pytest.raises(ValueError, match=r"^net: batch norm is in training mode; call net\.eval\(\) first"):
        nc.last_layer(bn, X)
    with pytest.raises(ValueError, match=r"^net: batch norm 1 has no statistics; set them with calibrate"):
        nc.last_layer(bn.eval(), X)
    nc.calibrate(bn, X)
    assert np.isfinite(nc.last_layer(bn, X).features).all()


def test_what_overflows_or_vanishes_is_said() -> None:
    large, zero = nc.mlp((3, 3)).build((2,), init_norm=1e120, dtype=torch.float64), net()
    zero.layers[0].set_weight(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"^net: its rho overflows"):
        nc.rho(large)
    assert nc.rho(zero) == 0
    with pytest.raises(ValueError, match=r"^net: its rho is 0"):
        nc.margins(zero, X, SIGNS)
    with pytest.raises(ValueError, match=r"^x: the network's outputs overflow"):
        nc.calibrate(net(init_norm=60.0, dtype=torch.float16), X * 1000)
    with pytest.raises(ValueError, match=r"^net: its gradient overflows"):
        nc.per_sample_gradients(net(), X * 1e30, SIGNS)
    for weight in (torch.tensor([[math.inf, 1.0], [0.0, 1.0]]), [[math.nan] * 2] * 2):
        with pytest.raises(ValueError, match=r"^weight: holds NaN or infinity"):
            nc.low_rank_distance(weight)
    assert nc.margins(net(), X[:0], SIGNS[:0]).shape == (0,)
    assert nc.low_rank_distance([[4, 0], [0, 3]]).tolist() == [5, 3, 0]


@pytest.mark.parametrize("chunk", [0, -1, 2.5, None, "all", True])
def test_chunks_are_whole_numbers(chunk: Any) -> None:
    for call in (
        lambda: nc.margins(net(), X, SIGNS, chunk=chunk),
        lambda: nc.last_layer(net(), X, chunk=chunk),
        lambda: nc.calibrate(net(), X, chunk=0 if chunk is None else chunk),
    ):
        with pytest.raises(ValueError, match=r"^chunk=.*: expected a whole number >= 1; write"):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nc.mlp(widths=64), "^widths=64: expected whole numbers >= 1"),
        (lambda: nc.mlp(widths="64"), "^widths='64': expected"),
        (lambda: nc.mlp(widths=None), "^widths=None: expected"),
        (lambda: nc.mlp((True,)), r"^widths=\(True,\): expected"),
        (lambda: nc.mlp(norm=["bn"]), r"^norm=\['bn'\]: unknown; write one of"),
        (lambda: nc.mlp(norm="BN"), "^norm='BN': unknown; did you mean 'bn'"),
        (lambda: nc.mlp(eps=None), "^eps=None: expected a finite number"),
        (lambda: ResNet18(()), r"^widths=\(\): resnet18 needs"),
        (lambda: net(seed=2**64), "^seed=18446744073709551616: expected a whole number"),
        (lambda: net(seed=0.5), "^seed=0.5: expected"),
        (lambda: net(dtype=torch.int64), r"^dtype=torch\.int64: expected a floating-point type"),
        (lambda: net(init_norm=[1.0, math.nan]), "^init_norm=nan: expected a positive number"),
        (lambda: net(init_norm="1"), "^init_norm='1': expected"),
        (lambda: net(init_norm=1e60), r"^init_norm=1e\+60: a norm of 1e\+60 is beyond the network's type"),
        (lambda: net(init_norm=1e-60), "^init_norm=1e-60: a norm of 1e-60 is beyond"),
        (lambda: net("lm", init_norm=1e30), r"^init_norm=1e\+30: a norm of 1e\+60 is beyond"),
        (lambda: nc.mlp().build(64), "^input_shape=64: expected whole numbers"),
        (lambda: nc.mlp().build((2.0,)), r"^input_shape=\(2\.0,\): expected"),
        (lambda: nc.mlp().build((2,), outputs=1.5), "^outputs=1.5: expected"),
        (lambda: net().layers[0].set_weight(torch.ones(2)), r"^weight: shape \(2,\); this layer's is \(3, 2\)"),
        (lambda: net("wn").layers[0].set_weight(torch.zeros(3, 2)), "^weight: all zeros"),
        (lambda: nc.seeds(2.5), "^n=2.5: expected a whole number >= 1"),
        (lambda: nc.seeds(2, stream=-1), "^stream=-1: expected"),
    ],
)
def test_architectures_and_seeds_say_what_to_write(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_of_any_type_make_the_same_network() -> None:
    own = nc.mlp(np.array([3])).build(torch.Size([2]), np.uint8(1), np.float32(2.0), np.int64(3))
    assert own.arch == nc.mlp((3,))
    assert torch.equal(own(X), nc.mlp((3,)).build((2,), init_norm=2.0, seed=3)(X))
    several = nc.mlp((3,)).build((2,), init_norm=np.array([1.0, 2.0]))
    assert torch.equal(several(X), nc.mlp((3,)).build((2,), init_norm=(1, 2))(X))


# ------------------------------------------------------------------------------------------------- training

BAD_RECIPES = [
    (dict(lr=math.nan), "^lr=nan: expected a learning rate"),
    (dict(lr=True), "^lr=True: expected"),
    (dict(weight_decay=math.inf), "^weight_decay=inf: expected"),
    (dict(epochs=2.0), r"^epochs=2\.0: expected a whole number >= 1"),
    (dict(epochs=True), "^epochs=True: expected"),
    (dict(batch=0), "^batch=0: expected a whole number >= 1"),
    (dict(schedule=((1, math.inf),)), "^schedule=.*expected pairs"),
    (dict(schedule=((1, math.nan),)), "^schedule=.*expected pairs"),
    (dict(schedule=((1.5, 0.1),)), "^schedule=.*expected pairs"),
    (dict(schedule=None), "^schedule=None: expected pairs"),
    (dict(loss=None), "^loss=None: unknown; write one of 'square'"),
]


@pytest.mark.parametrize(("recipe", "message"), BAD_RECIPES)
def test_recipes_are_checked_at_every_entrance(recipe: dict[str, Any], message: str) -> None:
    good = nc.sgd(epochs=1)
    for make in (lambda: nc.sgd(**{"epochs": 1, **recipe}), lambda: dataclasses.replace(good, **recipe)):
        with pytest.raises(ValueError, match=message):
            make()
    assert nc.sgd(np.float32(0.5), epochs=np.int64(3)) == SGD(0.5, *dataclasses.astuple(nc.sgd(epochs=3))[1:])


def train(**call: Any) -> Any:
    options: dict[str, Any] = dict(data=POINTS, arch=nc.mlp((2,)), opt=nc.sgd(epochs=2), progress=False)
    return nc.train(**(options | call))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(data=X), "^data=.*: expected what nclib makes; write e.g. data=nclib.data"),
        (dict(arch=nc.mlp), "^arch=.*: expected what nclib makes"),
        (dict(arch=nc.convnet((2,))), r"^arch: input_shape=\(2,\): convnet needs .*flat=False"),
        (dict(opt=None), "^opt=None: expected what nclib makes"),
        (dict(grid=[]), "^grid: holds no member"),
        (dict(grid="seed"), "^grid='seed': expected values by name"),
        (dict(grid=[3]), r"^grid=\[3\]: expected values by name"),
        (dict(grid=dict(lr="a")), "^grid: lr='a': expected a learning rate"),
        (dict(grid=dict(lr=[0.1, math.nan])), "^grid: lr=nan: expected"),
        (dict(grid=dict(noise=math.nan)), "^grid: noise=nan: expected"),
        (dict(grid=dict(seed=[2**64])), "^grid: seed=.*: expected a whole number >= 0"),
        (dict(grid=dict(seed=[1, 1.5])), "^grid: seed=1.5: expected"),
        (dict(grid=dict(init_norm=[(1.0, 0.0)])), "^grid: init_norm=0.0: expected"),
        (dict(measure_every=True), "^measure_every=True: expected a number of epochs"),
        (dict(measure_every=[0.5]), r"^measure_every=\[0.5\]: expected"),
        (dict(measure_every="all"), "^measure_every='all': expected"),
        (dict(measure=3), "^measure=3: unknown; write one of .*, or a function of a network"),
        (dict(measure=lambda net: 3.0), "^measure=.*: returned 3.0; expected numbers by name"),
        (dict(measure=lambda net: {"a": "b"}), "^measure=.*: returned .*; expected numbers by name"),
        (dict(snapshots="no"), "^snapshots='no': expected True or False"),
        (dict(progress=None), "^progress=None: expected True or False"),
        (dict(checkpoint_seconds="a"), "^checkpoint_seconds='a': expected a number of seconds"),
    ],
)
def test_calls_of_train_say_what_to_write(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(**call)
    if call.keys() <= {"data", "arch", "opt", "grid"}:
        call = dict(data=POINTS, arch=nc.mlp((2,)), opt=nc.sgd(epochs=2)) | call
        with pytest.raises(ValueError, match=message):
            nc.step_by_step(**call)


@pytest.mark.parametrize("name", ["epoch", "member", "status", "seed", "lr", "loss", "error", "_fit"])
def test_a_measure_takes_no_name_that_the_history_has(name: str) -> None:
    own: Any = functools.partial(lambda value, net: {name: value}, 1.0)
    with pytest.raises(ValueError, match=f"^measure=.*: returned '{name}', a column that the history has already"):
        train(measure=["loss", own])
    assert (train(measure=["loss", lambda net: {f"my_{name}": 1.0}]).final[f"my_{name}"] == 1).all()


class Count:
    def __call__(self, net: Net) -> dict[str, float]:
        return {"layers": len(net.layers)}

    def counted(self, net: Net) -> dict[str, Any]:
        return {"layers": torch.tensor(len(net.layers))}


@pytest.mark.parametrize("measure", [Count(), Count().counted, functools.partial(Count.counted, Count())])
def test_whatever_can_be_called_can_measure(measure: Any) -> None:
    assert train(measure=measure).final["layers"].tolist() == [2]


@pytest.mark.parametrize(
    "grid",
    [
        dict(seed=np.arange(2), lr=np.float32(0.25), init_norm=np.array([[1.0, 2.0]])),
        dict(seed=torch.arange(2), lr=torch.tensor(0.25), init_norm=[(1, 2)]),
        dict(seed=pd.Series([0, 1]), lr=[0.25], init_norm=[[1.0, 2.0]]),
        ({"seed": np.uint8(s), "lr": 0.25, "init_norm": (1.0, 2.0)} for s in (0, 1)),
    ],
)
def test_grids_of_every_form(grid: Any) -> None:
    own = train(grid=grid)
    assert own.history.equals(train(grid=dict(seed=[0, 1], lr=0.25, init_norm=[(1.0, 2.0)])).history)
    assert torch.equal(own.model(seed=np.int64(1), init_norm=[1, 2])(X), own.model(np.int8(1))(X))


@given(n=st.integers(1, 24), batch=st.integers(1, 30), sampling=st.sampled_from(["shuffle", "independent"]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_advice_about_batches_works(n: int, batch: int, sampling: Any) -> None:
    x = np.arange(2.0 * n).reshape(n, 2) + 1
    points = Data("own", ("a", "b"), torch.tensor(x), torch.arange(n) % 2, torch.ones(0, 2), torch.arange(0))

    def run(norm: Any, batch: int) -> Any:
        opt = nc.sgd(1e-3, epochs=1, batch=batch, sampling=sampling)
        return train(data=points, arch=nc.mlp((2,), norm), opt=opt, measure="loss")

    try:
        run("bn", batch)
    except ValueError as error:
        advice = str(error).split("write ")[1]
        run("bn", int(advice.removeprefix("batch="))) if n > 1 else run(advice.split("'")[1], batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(name=None), "^name=None: expected a text"),
        (dict(classes=("a",)), r"^classes=\('a',\): expected names of two or more"),
        (dict(classes="ab"), "^classes='ab': expected names"),
        (dict(x=X * math.nan), "^x: holds NaN or infinity"),
        (dict(x=X[0]), r"^x: .*|^labels: "),
        (dict(labels=torch.full((4,), 10**9)), r"^labels: expected 0\.\.1; nclib\.from_arrays takes any"),
        (dict(labels=torch.zeros(3).long()), "^labels: 3 labels for 4 inputs"),
        (dict(x_test=torch.ones(0, 3)), r"^x_test: shape \(0, 3\); expected \('N', 2\)"),
        (dict(bayes_error=math.nan), "^bayes_error=nan: expected"),
    ],
)
def test_data_made_by_hand_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(POINTS, **change)


def test_results_of_training_say_what_to_ask_for() -> None:
    runs = train(grid=dict(seed=[0, 1]), snapshots=True)
    for wrong in ("a", 0.5, 2, -1, True):
        for call in (runs.model, runs.data):
            with pytest.raises(ValueError, match=r"^member=.*: expected a whole number >= 0 and <= 1"):
                call(wrong)
    with pytest.raises(ValueError, match=r"^seed=1: fits 0 of 2 members"):
        runs.model(0, seed=1)
    with pytest.raises(ValueError, match=r"^epoch=1.5: expected a whole number"):
        runs.model(0, epoch=1.5)
    with pytest.raises(ValueError, match=r"^lr='a': expected"):
        runs.model(lr="a")
    steps = nc.step_by_step(POINTS, nc.mlp((2,)), nc.sgd(epochs=3))
    assert len(steps.table(at=np.array([0, 2]))) == 4
    for at in ([3], [-1], 5, "a", [0.5]):
        with pytest.raises(ValueError, match=r"^at=.*: expected whole numbers >= 0 and <= 2"):
            steps.table(at=at)  # type: ignore[arg-type]
    for start, message in (("a", "^start"), (X, "^start"), ([X, None], r"^start\[1\]=None"), ([X], "^start has")):
        with pytest.raises(ValueError, match=message):
            nc.step_by_step(POINTS, nc.mlp((2,)), nc.sgd(epochs=3), start=start)  # type: ignore[arg-type]
    zeros = [w * 0 for w in steps.weights]
    with pytest.raises(FloatingPointError, match="or a layer has no norm"):
        nc.step_by_step(POINTS, nc.mlp((2,)), nc.sgd(epochs=3), start=zeros)
    opt = nc.sgd(epochs=3, schedule="cosine")
    for epoch in (4, -1, 0.5, None, 10**400):
        with pytest.raises(ValueError, match=r"^epoch=.*: expected a whole number"):
            opt.rate(epoch)  # type: ignore[arg-type]
    assert MLP((3,)).shapes((2,), 1) == nc.mlp(iter([3])).shapes(np.array([2]), np.int8(1))


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_hyper_parameter_beyond_the_datas_type_is_named(name):
    points = nc.data("teacher", n=6, d=4, dtype=torch.float16)
    options = {"lr": 0.1, "epochs": 1} | {name: 1e300}
    for run in (nc.train, nc.step_by_step):
        with pytest.raises(ValueError, match=f"{name}: beyond torch.float16"):
            run(points, nc.mlp((4,)), nc.sgd(**options))
