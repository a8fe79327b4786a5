"""nclib.train: gradients against PyTorch, one member against many, measurements, divergence, errors."""

from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import python
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nclib import screen
from nclib.data import Data, data
from nclib.networks.models import Architecture, Net, convnet, mlp, resnet18
from nclib.networks.normalisation import calibrate
from nclib.networks.readings import layer_norms, margins, rho, stable_ranks
from nclib.training import train
from nclib.training.ensemble import permutation, subsets
from nclib.training.optim import SGD, sgd
from nclib.training.runs import Runs


@pytest.fixture(autouse=True)
def _no_runs_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCLIB_RUNS", raising=False)


def small(classes: int = 2, n: int = 24, **options: Any) -> Data:
    return data("gaussians", classes=classes, n=n, n_test=40, d=6, seed=1, **options)


def images(n: int = 12) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + 5, 3, 8, 8, generator=generator)
    labels = torch.arange(n + 5) % 2
    return Data("noise", ("a", "b"), x[:n], labels[:n], x[n:], labels[n:])


def oracle(points: Data, arch: Architecture, opt: SGD, member: dict[str, Any]) -> Net:
    """The same training by torch.optim.SGD and autograd, one network, in plain sight."""
    outputs = opt.outputs(len(points.classes))
    net = arch.build(points.input_shape, outputs, member["init_norm"], member["seed"], points.x.dtype)
    weights = [p for name, p in net.named_parameters() if name.endswith(("weight", "gain")) and "norms" not in name]
    decaying = [net.scale] if net.scale is not None else weights[-1:] if opt.weight_decay_on == "last" else weights
    rest = [p for p in net.parameters() if not any(p is q for q in decaying)]
    groups = [{"params": decaying, "weight_decay": 2 * member["weight_decay"]}, {"params": rest}]
    steps = torch.optim.SGD(groups, lr=member["lr"], momentum=member["momentum"])
    sizes = opt.batch or len(points.x)
    y = points.y if outputs == 1 else nn.functional.one_hot(points.labels, outputs).to(points.x.dtype)
    for epoch in range(opt.epochs):
        for group in steps.param_groups:
            group["lr"] = member["lr"] * opt.rate(epoch)
        order = permutation(len(y), member["seed"], epoch) if sizes < len(y) else torch.arange(len(y))
        for index in order.split(sizes):
            steps.zero_grad()
            loss(net(points.x[index]), y[index], opt).backward()
            if net.scale is not None:
                for layer in net.layers:
                    layer.weight.grad -= (layer.weight.grad * layer.weight).sum() * layer.weight.detach()
            steps.step()
            if net.scale is not None:
                with torch.no_grad():
                    for layer in net.layers:
                        layer.weight /= torch.linalg.vector_norm(layer.weight)
    calibrate(net, points.x)
    return net.eval()


def loss(f: Tensor, y: Tensor, opt: SGD) -> Tensor:
    if opt.loss == "square":
        square = nn.functional.mse_loss(f, y, reduction="sum") / len(f)
        return square / (f.shape[1] if f.ndim == 2 and opt.reduction == "mean" else 1)
    return (
        nn.functional.cross_entropy(f, y)
        if f.ndim == 2
        else nn.functional.binary_cross_entropy_with_logits(f, (y + 1) / 2)
    )


def weights(net: Net) -> list[Tensor]:
    return [p.detach() for p in net.parameters()]


def assert_close(found: Net, expected: Net, rtol: float) -> None:
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        error = (a.detach() - b.detach()).norm() / b.detach().norm().clamp_min(1e-12)
        assert error < rtol, f"{name}: {error:.2e}"


# ------------------------------------------------------------------------------------------- gradients

RECIPES: list[tuple[int, dict[str, Any]]] = [
    (2, {}),
    (2, {"batch": 7, "momentum": 0.0}),
    (2, {"loss": "cross_entropy"}),
    (2, {"coding": "one-hot", "schedule": "cosine"}),
    (3, {"batch": 7, "weight_decay_on": "last"}),
    (3, {"reduction": "sum", "schedule": ((2, 0.1), (3, 0.0))}),
    (3, {"loss": "cross_entropy"}),
]


@pytest.mark.parametrize(
    "arch", [mlp((8, 5), norm=norm) for norm in ("none", "bn", "wn", "lm")], ids=lambda a: a.norm
)
@pytest.mark.parametrize(("classes", "recipe"), RECIPES)
def test_steps_are_those_of_torch(arch: Architecture, classes: int, recipe: dict[str, Any]) -> None:
    if arch.norm == "lm" and "weight_decay_on" in recipe:
        recipe = {**recipe, "weight_decay_on": "rho"}
    points = small(classes, dtype=torch.float64)
    opt = sgd(**{"lr": 0.05, "momentum": 0.8, "epochs": 4, "weight_decay": 0.02, **recipe})
    grid = dict(seed=[3, 4], init_norm=[0.8, 1.5])
    runs = train(points, arch, opt, grid=grid, measure_every=4, engine="stacked")
    for i in (0, 3):
        assert_close(runs.model(i), oracle(points, arch, opt, runs._plan.members[i]), 1e-9)


@pytest.mark.parametrize(
    ("arch", "points"),
    [
        (mlp((6,)), small(3, dtype=torch.float64)),
        (mlp((6,), norm="bn"), small(dtype=torch.float64)),
        (mlp(()), small(dtype=torch.float64)),
        (convnet((4, 5)), images().to(dtype=torch.float64)),
        (convnet((4, 5), norm="bn"), images().to(dtype=torch.float64)),
        (convnet((4,), norm="wn"), images().to(dtype=torch.float64)),
        (resnet18(norm="lm", widths=(3,)), images().to(dtype=torch.float64)),
    ],
    ids=lambda a: f"{type(a).__name__}" + ("" if isinstance(a, Data) else f"-{a.norm}"),
)
def test_every_architecture_in_every_engine_that_takes_it(arch: Architecture, points: Data) -> None:
    opt = sgd(lr=0.05, momentum=0.5, epochs=2, batch=5, weight_decay=0.01)
    for engine in ("auto", "vmap", "loop"):
        runs = train(points, arch, opt, grid=dict(seed=[0, 1]), engine=engine)
        assert_close(runs.model(1), oracle(points, arch, opt, runs._plan.members[1]), 1e-8)


@pytest.mark.parametrize("norm", ["none", "wn"])
def test_decay_on_rho_is_the_gradient_of_lambda_rho_squared(norm: Any) -> None:
    points, arch = small(dtype=torch.float64), mlp((5,), norm=norm)
    opt = sgd(lr=0.1, epochs=1, weight_decay_on="rho")
    runs = train(points, arch, opt, grid=dict(weight_decay=[0.3, 0.5], init_norm=[2.0]))
    for i, decay in enumerate((0.3, 0.5)):
        net = arch.build((6,), 1, 2.0, 0, torch.float64)
        product = torch.stack([layer.weight.norm() for layer in net.layers]).prod()
        ((net(points.x) - points.y).square().mean() + decay * product**2).backward()
        for p, found in zip(net.parameters(), runs.model(i).parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(found.detach(), p.detach() - 0.1 * p.grad)
        assert runs.history["loss"][2 * i] == pytest.approx(runs.history["mse"][2 * i] + decay * 16)


def test_lm_stays_on_the_sphere_and_decays_rho() -> None:
    opt = sgd(lr=0.1, momentum=0.9, epochs=50, weight_decay=0.1)
    runs = train(small(), mlp((7, 7), norm="lm"), opt, measure_every=25)
    net = runs.model(0)
    assert net.scale is not None
    for layer in net.layers:
        assert layer.weight.norm().item() == pytest.approx(1, abs=1e-6)
    last = runs.final.iloc[0]
    assert last["rho"] == pytest.approx(abs(net.scale.item()), rel=1e-6)
    assert last["loss"] - last["mse"] == pytest.approx(0.1 * net.scale.item() ** 2, rel=1e-5)


# -------------------------------------------------------------------------------------------- ensembles

SHAPES = [(12, 20, (16,)), (100, 64, (32, 32)), (200, 64, (64,))]


@pytest.mark.parametrize(("n", "d", "widths"), SHAPES)
def test_a_member_does_not_depend_on_its_ensemble(n: int, d: int, widths: tuple[int, ...]) -> None:
    points = data("teacher", n=n, d=d)
    opt, seeds = sgd(lr=0.05, momentum=0.9, epochs=100, weight_decay=1e-3), range(32)
    together = train(points, mlp(widths), opt, grid=dict(seed=seeds), measure_every=100)
    for seed in (0, 13, 31):
        alone = train(points, mlp(widths), opt, grid=dict(seed=seed), measure_every=100)
        assert_close(together.model(seed), alone.model(0), 1e-5)


def test_batches_come_from_the_members_own_seed() -> None:
    opt = sgd(lr=0.1, momentum=0.5, epochs=5, batch=5)
    together = train(small(), mlp((4,)), opt, grid=dict(seed=[7, 8, 7], noise=0.5))
    alone = train(small(), mlp((4,)), opt, grid=dict(seed=7, noise=0.5))
    assert_close(together.model(0), alone.model(0), 1e-5)
    assert_close(together.model(2), together.model(0), 1e-6)
    assert not torch.equal(weights(together.model(1))[0], weights(together.model(0))[0])


def test_independent_batches_are_uniform_sets_that_depend_on_seed_and_epoch_alone() -> None:
    drawn = torch.cat([subsets(6, 2, 3, seed=7, epoch=epoch) for epoch in range(4000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    pairs = drawn.sort(1).values
    counts = torch.unique(pairs, dim=0, return_counts=True)[1].double()
    assert len(counts) == 15
    expected = len(drawn) / 15
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    assert torch.equal(subsets(6, 2, 3, seed=7, epoch=5), drawn[15:18])


def test_steps_with_independent_batches_are_those_of_their_points() -> None:
    points = small(n=10, dtype=torch.float64)
    grid = dict(seed=[3, 4], weight_decay=[0.0, 0.1])
    runs = train(points, mlp((5,)), sgd(lr=0.1, batch=3, epochs=2, sampling="independent"), grid=grid)
    for member in range(4):
        row = runs.members.iloc[member]
        net = mlp((5,)).build((6,), seed=int(row.seed), dtype=torch.float64)
        descent = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=2 * row.weight_decay)
        for epoch in range(2):
            for index in subsets(10, 3, 4, int(row.seed), epoch):
                descent.zero_grad()
                (net(points.x[index]) - points.y[index]).square().mean().backward()
                descent.step()
        for ours, theirs in zip(runs.model(member).layers, net.layers, strict=True):
            torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-13)


def test_an_epoch_visits_every_point_once_and_orders_differ() -> None:
    orders = [tuple(permutation(30, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len(set(orders)) == 25


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 6), max_size=3),
    norm=st.sampled_from(["none", "bn", "wn", "lm"]),
    classes=st.integers(2, 4),
    batch=st.sampled_from([None, 5, 7]),
    loss=st.sampled_from(["square", "cross_entropy"]),
    hyper=st.lists(
        st.fixed_dictionaries(
            {
                "seed": st.integers(0, 9),
                "lr": st.floats(0.01, 0.2),
                "weight_decay": st.floats(0, 0.1),
                "momentum": st.floats(0, 0.9),
                "init_norm": st.floats(0.5, 2),
                "noise": st.sampled_from([0.0, 0.4]),
            }
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_any_ensemble_is_its_members_one_at_a_time(
    widths: list[int], norm: Any, classes: int, batch: int | None, loss: Any, hyper: list[dict[str, Any]]
) -> None:
    points = small(classes, dtype=torch.float64)
    opt = sgd(epochs=3, batch=batch, loss=loss)
    stacked = train(points, mlp(widths, norm=norm), opt, grid=hyper, measure_every=[3])
    for i, own in enumerate(hyper):
        alone = train(points, mlp(widths, norm=norm), opt, grid=[own], engine="loop", measure_every=[3])
        assert_close(stacked.model(i), alone.model(0), 1e-8)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    train(small(), mlp((4,)), sgd(epochs=2))
    assert torch.get_num_threads() == before


# --------------------------------------------------------------------------------------------- the grid


def test_grid_is_a_product_or_a_list_of_points() -> None:
    opt = sgd(lr=0.1, epochs=1, weight_decay=0.5)
    runs = train(small(), mlp((3,)), opt, grid=dict(weight_decay=[0, 0.1], seed=range(3)))
    assert list(zip(runs.members["weight_decay"], runs.members["seed"], strict=True)) == list(
        itertools.product([0, 0.1], range(3))
    )
    points = [dict(seed=1, lr=0.2), dict(init_norm=(1.0, 2.0), noise=0.25)]
    runs = train(small(), mlp((3,)), opt, grid=points)
    assert runs.members["lr"].tolist() == [0.2, 0.1]
    assert runs.members["weight_decay"].tolist() == [0.5, 0.5]
    assert runs.members["init_norm"].tolist() == [1.0, "1.0, 2.0"]
    assert len(train(small(), mlp((3,)), opt)) == 1


def test_init_norm_per_layer_and_default_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCLIB_SEED", "5")
    runs = train(small(), mlp((3,)), sgd(epochs=1), grid=dict(init_norm=[(2.0, 3.0), 0.5]))
    first = runs.history[runs.history["epoch"] == 0]
    np.testing.assert_allclose(first[["rho_1", "rho_2"]], [[2, 3], [0.5, 0.5]], rtol=1e-6)
    assert runs.members["seed"].tolist() == [5, 5]


def test_label_noise_is_nested_and_comes_from_the_seed() -> None:
    points = small(4, n=200)
    runs = train(points, mlp((3,)), sgd(epochs=1), grid=dict(seed=[0, 1], noise=[0.0, 0.3, 0.6]))
    changed = [set((runs.data(i).labels != points.labels).nonzero().flatten().tolist()) for i in range(6)]
    assert not changed[0]
    assert changed[1] < changed[2]
    assert changed[1] != changed[4]
    assert abs(len(changed[1]) - 0.3 * 0.75 * 200) < 20
    assert torch.equal(runs.data(2).labels_test, points.labels_test)
    noisy = train(runs.data(2), mlp((3,)), sgd(epochs=1))
    assert_close(noisy.model(0), runs.model(2), 1e-5)


# ----------------------------------------------------------------------------------------- measurements


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "arch",
    [mlp((9, 7), norm=norm) for norm in ("none", "bn", "wn", "lm")],
    ids=str,
)
def test_history_holds_what_the_measuring_functions_give(arch: Architecture, classes: int) -> None:
    points, names = small(classes), ("loss", "test", "norms", "margins", "stable_rank")
    opt = sgd(lr=0.1, momentum=0.5, epochs=6, weight_decay=0.01)
    runs = train(points, arch, opt, grid=dict(seed=[0, 1], noise=[0, 0.5]), measure_every=3, measure=names)
    for i in range(4):
        net, row, own = runs.model(i), runs.final.iloc[i], runs.data(i)
        f = net(own.x).detach().double()
        mse = (f - own.y).square().mean().item()
        wrong = f * own.y <= 0 if classes == 2 else f.argmax(1) != own.labels
        raw = sum(p.detach().square().sum().item() for n, p in net.named_parameters() if n.endswith("weight"))
        decay = {"wn": 0.01 * layer_norms(net).square().sum().item(), "lm": 0.01 * rho(net) ** 2}
        m = margins(net, own.x, own.y)
        assert row["mse"] == pytest.approx(mse, rel=1e-5)
        assert row["loss"] == pytest.approx(mse + decay.get(arch.norm, 0.01 * raw), rel=1e-5)
        assert row["error"] == pytest.approx(wrong.double().mean().item())
        assert row["rho"] == pytest.approx(rho(net), rel=1e-5)
        assert row[["rho_1", "rho_2"]].tolist() == pytest.approx(layer_norms(net)[:2].tolist(), rel=1e-5)
        assert row["margin_min"] == pytest.approx(m.min().item(), rel=1e-4, abs=1e-6)
        assert row["margin_std"] == pytest.approx(m.std(correction=0).item(), rel=1e-4)
        assert row["margin_q25"] == pytest.approx(m.quantile(0.25).item(), rel=1e-4, abs=1e-6)
        assert row["margin_q95"] == pytest.approx(m.quantile(0.95).item(), rel=1e-4, abs=1e-6)
        f = net(points.x_test).detach()
        assert row["test_mse"] == pytest.approx((f - points.y_test).square().mean().item(), rel=1e-5)
        if arch.norm == "none":
            assert "weight_norm_1" not in row
            assert row["stable_rank_1"] == pytest.approx(stable_ranks(net.layers[0].weight[None]).item(), rel=1e-5)
        if arch.norm == "bn":
            assert row["weight_norm_1"] == pytest.approx(net.layers[0].weight.norm().item(), rel=1e-6)


@pytest.mark.parametrize("norm", ["none", "bn", "lm"])
def test_stacked_measurements_are_those_of_one_network_at_a_time(norm: Any) -> None:
    opt = sgd(lr=0.1, epochs=4, loss="cross_entropy", coding="one-hot")
    histories = [
        train(small(), mlp((9, 7), norm=norm), opt, grid=dict(seed=[0, 1]), engine=engine).history
        for engine in ("stacked", "loop")
    ]
    assert list(histories[0].columns) == list(histories[1].columns)
    numbers = [h.drop(columns="status").to_numpy(float) for h in histories]
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-4, atol=1e-6)


def test_measuring_changes_nothing() -> None:
    opt = sgd(lr=0.1, momentum=0.9, epochs=12, batch=6)
    for engine in ("stacked", "vmap", "loop"):
        often = train(small(), mlp((5,), norm="bn"), opt, measure_every=1, engine=engine)
        once = train(small(), mlp((5,), norm="bn"), opt, measure_every={12}, engine=engine)
        assert often.history["epoch"].tolist() == list(range(13))
        assert once.history["epoch"].tolist() == [12]
        assert all(torch.equal(a, b) for a, b in zip(weights(often.model(0)), weights(once.model(0)), strict=True))


def test_step_counts_batches() -> None:
    history = train(small(n=24), mlp((3,)), sgd(epochs=4, batch=10), measure_every=2).history
    assert history["step"].tolist() == [0, 6, 12]


def test_collapse_and_functions_of_a_network() -> None:
    def first_row(net: Net) -> dict[str, float]:
        return {"first_row": float(net.layers[0].weight[0].norm())}

    runs = train(small(3), mlp((8,)), sgd(epochs=2), measure=("collapse", first_row), measure_every=1)
    assert {"nc1", "nc3", "first_row"} <= set(runs.history.columns)
    assert "rho" not in runs.history
    assert runs.history["nc1"].gt(0).all()
    binary = train(small(2), mlp((8,)), sgd(epochs=2), measure="collapse")
    assert "nc1" in binary.history


def test_resnet_has_norms_but_no_rho() -> None:
    runs = train(images(), resnet18(widths=(4,)), sgd(lr=0.01, epochs=1), progress=False)
    assert {"rho_1", "rho_6", "test_error"} <= set(runs.history.columns)
    assert "rho" not in runs.history
    with pytest.raises(ValueError, match="measure='margins': ResNet18 has no rho"):
        train(images(), resnet18(widths=(4,)), sgd(epochs=1), measure="margins")


def test_thin_projections_do_not_corrupt_memory(tmp_path: Path) -> None:
    code = """
import torch, nclib as nc
x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
points = nc.Data("noise", tuple("abc"), x, torch.arange(20) % 3, x[:2], torch.arange(2))
runs = nc.train(points, nc.resnet18(widths=(4,) * 4), nc.sgd(batch=10, epochs=20), progress=False)
print(runs.final.loss[0])
"""
    done = python("-c", code, cwd=tmp_path, NCLIB_RUNS="")
    assert done.returncode == 0, done.stdout[-2000:]
    assert float(done.stdout.split()[-1]) < 2


def test_snapshots_give_the_networks_of_every_measurement() -> None:
    opt = sgd(lr=0.2, epochs=6)
    runs = train(small(), mlp((4,), norm="bn"), opt, grid=dict(seed=[0, 1]), measure_every=3, snapshots=True)
    for _, row in runs.history.iterrows():
        net = runs.model(int(row["member"]), epoch=int(row["epoch"]))
        assert rho(net) == pytest.approx(row["rho"], rel=1e-6)
    with pytest.raises(ValueError, match="epoch=2: no snapshot; there are 0, 3, 6"):
        runs.model(0, epoch=2)


def test_model_is_found_by_number_or_by_values() -> None:
    runs = train(small(), mlp((4,)), sgd(epochs=1), grid=dict(weight_decay=[0, 0.1], seed=range(2)))
    assert torch.equal(weights(runs.model(3))[0], weights(runs.model(weight_decay=0.1, seed=1))[0])
    assert repr(runs) == "Runs(4 members, 1 epochs)"
    with pytest.raises(ValueError, match="seed=1: fits 2 of 4 members"):
        runs.model(seed=1)
    with pytest.raises(ValueError, match="member=None: fits 4 of 4"):
        runs.model()
    with pytest.raises(ValueError, match="member=4: expected a whole number >= 0 and <= 3"):
        runs.model(4)
    with pytest.raises(ValueError, match="depth=2: no hyper-parameter; write one of seed, lr"):
        runs.model(depth=2)


# ------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("engine", ["stacked", "vmap", "loop"])
def test_a_member_that_diverges_is_named_and_the_others_go_on(engine: Any) -> None:
    opt = sgd(epochs=60)
    grid = dict(lr=[0.1, 1e4, 0.2])
    with pytest.warns(
        RuntimeWarning, match=r"1 of 3 networks diverged .* member 1 at step \d+ \(seed=0, lr=10000"
    ) as w:
        runs = train(small(), mlp((8,)), opt, grid=grid, measure_every=20, engine=engine)
    assert len(w) == 1
    at = runs.members["diverged_at"].tolist()
    assert at[0] == at[2] == -1
    assert 0 < at[1] < 20
    bad = runs.history[runs.history["member"] == 1]
    assert bad["status"].tolist() == ["ok", "diverged"]
    assert bad["epoch"].tolist() == [0, 20]
    assert np.isnan(bad["loss"].iloc[1])
    assert (runs.history[runs.history["member"] != 1]["status"] == "ok").all()
    calm = train(small(), mlp((8,)), opt, grid=dict(lr=[0.1, 0.2]), measure_every=20, engine=engine)
    assert_close(runs.model(2), calm.model(1), 1e-5)
    with pytest.raises(ValueError, match=r"member=1: its training diverged at step"):
        runs.model(1)


@pytest.mark.parametrize("engine", ["stacked", "loop"])
@pytest.mark.parametrize("probe", [(), (lambda net: {"first": float(net.layers[0].weight.norm())},)])
def test_under_bn_too(engine: Any, probe: Any) -> None:
    """What has overflowed cannot be calibrated or folded, and must not be."""
    grid = dict(lr=[0.01, 1e4], init_norm=[0.5])
    measure = ("loss", "test", "norms", "margins", *probe)
    with pytest.warns(RuntimeWarning, match=r"1 of 2 networks diverged .* member 1 at step \d+"):
        runs = train(
            small(),
            mlp((8,), norm="bn"),
            sgd(epochs=60),
            grid=grid,
            measure=measure,
            measure_every=20,
            engine=engine,
        )
    assert runs.history.groupby("member")["status"].last().tolist() == ["ok", "diverged"]
    assert runs.history["rho"].notna().tolist() == (runs.history["status"] == "ok").tolist()


def test_the_step_of_divergence_is_that_of_the_loss() -> None:
    with pytest.warns(RuntimeWarning, match="diverged"):
        runs = train(small(), mlp((8,)), sgd(lr=1e4, epochs=60), measure_every=1)
    at = runs.members["diverged_at"][0]
    assert runs.history["step"].tolist() == list(range(at + 1))
    assert runs.history["loss"].isna().tolist() == [False] * at + [True]


def test_all_diverged_ends_early() -> None:
    with pytest.warns(RuntimeWarning, match="6 of 6 networks diverged .* and 2 more"):
        runs = train(small(), mlp((8,)), sgd(lr=1e5, epochs=10**7), grid=dict(seed=range(6)), measure_every=10**6)
    assert runs.final["status"].eq("diverged").all()


# --------------------------------------------------------------------------------------------- progress


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(screen, "audience", lambda: "log")
    monkeypatch.setattr(screen, "_LINE_EVERY", 0.0)
    train(small(), mlp((4,)), sgd(epochs=4), grid=dict(seed=range(2)), measure_every=2)
    out, err = capsys.readouterr()
    assert not err
    assert "train 2 networks: 8/8 (100%)" in out
    assert "left" in out


def test_progress_bar_goes_to_stdout_and_names_the_diverged(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(screen, "audience", lambda: "person")
    monkeypatch.setattr(screen, "_DELAY", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        train(small(), mlp((4,)), sgd(epochs=200), grid=dict(lr=[0.1, 1e6]), measure_every=20)
    out, err = capsys.readouterr()
    assert not err
    assert "train 2 networks" in out
    train(small(), mlp((4,)), sgd(epochs=2), progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("stdin", "mode"), [(True, "person"), (False, "program")])
def test_progress_tells_a_person_from_a_program(monkeypatch: pytest.MonkeyPatch, stdin: bool, mode: str) -> None:
    class Shell:
        kernel = type("Kernel", (), {"_allow_stdin": stdin})()

    ipython = type("IPython", (), {"get_ipython": staticmethod(Shell)})
    monkeypatch.setitem(__import__("sys").modules, "IPython", ipython)
    assert screen.audience() == mode


def test_progress_without_a_notebook_asks_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "IPython", raising=False)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    assert screen.audience() == "log"
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert screen.audience() == "person"


# ----------------------------------------------------------------------------------------------- errors

BAD_RECIPES = [
    (dict(lr=0), "lr=0: expected a learning rate > 0"),
    (dict(lr="fast"), "lr='fast': expected a learning rate"),
    (dict(momentum=1.0), r"momentum=1.0: expected a number in \[0, 1\)"),
    (dict(weight_decay=-1), "weight_decay=-1: expected a number >= 0"),
    (dict(epochs=0), "epochs=0: expected a whole number >= 1"),
    (dict(batch=2.5), "batch=2.5: expected a whole number >= 1"),
    (dict(loss="hinge"), "loss='hinge': unknown; write one of 'square', 'cross_entropy'"),
    (dict(precision="bf16"), "precision='bf16': unknown; write one of 'float32', 'tf32'"),
    (dict(sampling="random"), "sampling='random': unknown; write one of 'shuffle', 'independent'"),
    (dict(schedule="step"), "schedule='step': unknown; write one of 'constant', 'cosine', or"),
    (dict(schedule=[(5, 0.1), (2, 1)]), "schedule=.*expected pairs"),
]


@pytest.mark.parametrize(("recipe", "message"), BAD_RECIPES)
def test_recipes_that_make_no_sense(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgd(**{"epochs": 1, **recipe})


BAD_CALLS = [
    (dict(grid=dict(depth=[1])), "grid: 'depth' is no hyper-parameter; write one of seed, lr"),
    (dict(grid=dict(seed=[])), "grid: holds no member"),
    (dict(grid=dict(seed=[0.5])), "seed=0.5: expected a whole number"),
    (dict(grid=dict(noise=[2])), "noise=2: expected a share"),
    (dict(grid=dict(init_norm=[-1])), "init_norm=-1"),
    (dict(measure_every=0), "measure_every=0: expected a number of epochs"),
    (dict(measure_every=[3]), r"measure_every=\[3\]: expected .* between 0 and 1"),
    (dict(measure=("loss", "accuracy")), "measure='accuracy': unknown; write one of 'loss'"),
    (dict(engine="fast"), "engine='fast': unknown; write one of 'auto'"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_calls_that_make_no_sense(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(small(), mlp((3,)), sgd(epochs=1), **call)


BAD_PAIRS = [
    (mlp((3,), norm="lm"), dict(weight_decay_on="layers"), "weight_decay_on='layers': under norm='lm'"),
    (mlp((3,), norm="bn"), dict(weight_decay_on="rho"), "weight_decay_on='rho': under norm='bn'"),
    (mlp((3,), norm="bn"), dict(batch=23), "batch=23: leaves a batch of one of the 24 points"),
    (mlp((3,), norm="bn"), dict(batch=1), "batch=1: leaves a batch of one"),
]


@pytest.mark.parametrize(("arch", "recipe", "message"), BAD_PAIRS)
def test_recipes_that_do_not_fit_the_architecture(arch: Architecture, recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(small(), arch, sgd(epochs=1, **recipe))


def test_more_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="coding='sign': the data have 3 classes"):
        train(small(3), mlp((3,)), sgd(epochs=1, coding="sign"))
    with pytest.raises(ValueError, match="engine='stacked': only for perceptrons"):
        train(images(), convnet((2,)), sgd(epochs=1), engine="stacked")
    with pytest.raises(ValueError, match="weight_decay_on='rho': a ResNet has no rho"):
        train(images(), resnet18("none", widths=(2,)), sgd(epochs=1, weight_decay_on="rho"))


# ---------------------------------------------------------------------------------------------- on request


def test_tf32_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(_: Net) -> dict[str, float]:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return {}

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for precision in ("float32", "tf32"):
        train(small(), mlp((3,)), sgd(epochs=1, precision=precision), measure=(look,), measure_every=[1])
    assert seen == [(False, False), (True, True)]
    assert torch.backends.cudnn.allow_tf32


def test_runs_are_of_the_type_promised() -> None:
    runs = train(small(), mlp((3,)), sgd(epochs=1))
    assert isinstance(runs, Runs)
    assert runs.folder is None
    assert not runs.model(0).training


def test_a_thousand_quick_measurements_do_not_overflow_the_pace():
    options = dict(measure_every=1, measure="loss", progress=False)
    runs = train(data("teacher", n=4, d=2), mlp(()), sgd(lr=0.01, epochs=1200), **options)
    assert len(runs.history) == 1201
