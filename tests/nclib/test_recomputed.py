"""Numbers that nothing else recomputes, each once by another route, on cases where a likely mistake would show."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch.nn import functional

import nclib as nc
from nclib.collapse import CollapseStatistics
from nclib.networks.models import convnet, mlp, resnet18
from nclib.networks.normalisation import calibrate, fold
from nclib.theory import closed_forms as cf
from nclib.theory.flow import _Members
from nclib.theory.relu import random_directions
from nclib.training.ensemble import _generator
from nclib.training.measure import _collapse
from nclib.training.optim import sgd
from nclib.training.runs import Plan

F64 = torch.float64


def teacher(seed: int, n: int = 6, d: int = 5) -> nc.Data:
    return nc.data("teacher", n=n, d=d, seed=seed, dtype=F64)


def outputs(weights: list[Any], x: Any) -> Any:
    """A ReLU network written out."""
    h = x.T
    for k, w in enumerate(weights):
        h = w @ h
        h = np.maximum(h, 0) if k < len(weights) - 1 else h
    return h[0]


# ------------------------------------------------------------------------------------------------ the flow


@pytest.mark.parametrize("model", ["normalised", "plain"])
def test_every_column_of_the_flows_history(model: str) -> None:
    options = {"layer_norms": (0.4, 1.1, 0.7)} if model == "plain" else {"rho0": 0.4}
    run = nc.flow(teacher, (5, 4), weight_decay=[0.0, 0.07], seed=[1, 2], time=1.0, model=model, **options)
    for b, row in run.final.iterrows():
        weights = [w[b] for w in run.W]
        norms = [np.linalg.norm(w) for w in weights]
        out, y, rho = outputs(weights, run.x[b]), run.y[b], math.prod(norms)
        margins = y * out / rho
        mse = np.mean((out - y) ** 2)
        spent = rho**2 if model == "normalised" else sum(r**2 for r in norms)
        expected = {
            "rho": rho, "mu": margins.mean(), "M": np.mean((out / rho) ** 2),
            "sigma": np.sqrt(np.mean((margins - margins.mean()) ** 2)), "margin_min": min(margins),
            "rho_eq": margins.mean() / (np.mean(margins**2) + row.weight_decay),
            "mse": mse, "loss": mse + row.weight_decay * spent,
        }  # fmt: skip
        if model == "plain":
            expected |= {f"rho_{k}": r for k, r in enumerate(norms, start=1)}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-10), name


def members(depth: int, *, normalised: bool, decay: float = 0.1) -> _Members:
    one = teacher(3)
    return _Members(None, one.x.numpy()[None], one.y.numpy()[None], np.array([decay]), depth, normalised, 0.0)


def test_a_negative_norm_is_the_same_network_told_with_a_positive_one() -> None:
    these, V = members(3, normalised=True), random_directions((5, 4, 3, 1), [1])
    state = [*V, np.array([-0.7])]
    out = -0.7 * outputs([v[0] for v in V], these.x[0])
    rho, directions, f, _ = these.read(state)
    assert rho == 0.7
    np.testing.assert_allclose(0.7 * outputs([v[0] for v in directions], these.x[0]), out, rtol=1e-13)
    np.testing.assert_allclose(0.7 * f[0], out, rtol=1e-13)
    np.testing.assert_allclose(outputs([w[0] for w in these.weights(state)], these.x[0]), out, rtol=1e-13)
    told = these.measure(state, 0.0)
    assert told["mse"] == pytest.approx(np.mean((out - these.y[0]) ** 2))
    assert told["margin_min"] == pytest.approx(min(these.y[0] * out) / 0.7)
    off = these.measure([1.1 * V[0], *V[1:], np.array([1.0])], 0.0)
    assert off["sphere_error"] == pytest.approx(1.1**2 - 1)


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_step_shrinks_with_the_largest_possible_eigenvalue(depth: int) -> None:
    """At L = 2 wrong rules, 1/ρ² or 2/(2ρ²) or Σρ_k² in the bound, would give the right step."""
    sizes = np.array([0.5, 2.0, 3.0, 0.25])[:depth]
    V = random_directions((5, *[3] * (depth - 1), 1), [1])
    rho = sizes.prod()
    plain = members(depth, normalised=False).stable_step([v * r for v, r in zip(V, sizes, strict=True)])
    assert plain == pytest.approx(2 / sum((rho / r) ** 2 for r in sizes))
    assert members(depth, normalised=True).stable_step([*V, np.array([rho])]) == pytest.approx(2 / (depth * rho**2))


def test_cooling_takes_1500_steps_of_a_quarter_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    step = _Members.step
    monkeypatch.setattr(_Members, "step", lambda self, state, h: taken.append(h.max()) or step(self, state, h))
    run = nc.flow(teacher(1), (), weight_decay=0.1, time=1.0, dt=0.1, cooling=2)
    assert run.final.t[0] == pytest.approx(1 + 1500 * 0.1 * (1 / 4 + 1 / 16))
    assert max(h for h in taken[-3000:]) == pytest.approx(0.1 / 4)
    assert sum(h < 0.1 / 8 for h in taken[-3001:]) == pytest.approx(1500, abs=1)


def test_the_solvers_tolerance_follows_the_smallest_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    solve = scipy.integrate.solve_ivp
    monkeypatch.setattr("scipy.integrate.solve_ivp", lambda *a, **k: asked.append(k["atol"]) or solve(*a, **k))
    for norms in ((0.25, 3.0), (2.0, 3.0)):
        options = {"model": "plain", "layer_norms": norms, "time": 0.01, "rtol": 1e-8}
        nc.exact_flow(teacher(1), (2,), weight_decay=0.1, **options)
    assert asked == pytest.approx([0.25e-10, 1e-10], abs=0)


# ------------------------------------------------------------------------------------------ closed forms


def test_ridge_of_ill_conditioned_inputs() -> None:
    """Singular values 1 and 1e-7, which the normal equations can't tell from 1 and 0."""
    turn, d, y = np.array([[0.6, -0.8], [0.8, 0.6]]), np.array([1.0, 1e-7]), np.array([3.0, -2.0, 5.0])
    x = np.concatenate([d[:, None] * turn, np.zeros((1, 2))])
    for lam in (1e-14, 1e-13):
        np.testing.assert_allclose(cf.ridge(x, y, lam), turn.T @ (d * y[:2] / (d**2 + 3 * lam)), rtol=1e-7)
    np.testing.assert_allclose(cf.minimum_norm(x, y), turn.T @ (y[:2] / d), rtol=1e-7)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_deep_interpolant_has_the_units_of_its_labels(depth: int) -> None:
    rng = np.random.default_rng(depth)
    x, y, w0 = rng.normal(size=(3, 6)), rng.normal(size=3), rng.normal(size=6)
    small = cf.interpolant_from(x, 1e-9 * y, 1e-9 * w0, depth)
    np.testing.assert_allclose(small, 1e-9 * cf.interpolant_from(x, y, w0, depth), rtol=1e-11)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_slope_of_either_sign_is_not_stationary(sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(_: Any, start: Any, **__: Any) -> Any:
        return SimpleNamespace(x=start, jac=sign * np.ones_like(start), fun=0.0, message="tired")

    monkeypatch.setattr("scipy.optimize.minimize", stops)
    with pytest.raises(RuntimeError, match=r"the gradient is still 1 \(tired\)"):
        nc.ufm_descent(3, 2, 0.01, 0.01)


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_the_growth_clock_is_its_integral(depth: int) -> None:
    rho = np.linspace(0.3, 0.5, 20_001)
    middle = (rho[1:] + rho[:-1]) / 2
    expected = (middle ** (2 / depth - 2)).sum() * (rho[1] - rho[0])
    assert cf.growth_clock(0.5, depth) - cf.growth_clock(0.3, depth) == pytest.approx(expected, rel=1e-8)


# ---------------------------------------------------------------------------------------------- collapse


def test_the_classifiers_rows_in_the_simplex_view() -> None:
    """Rows that are no simplex, of another mean and length; the axes are found from the points that are shown."""
    rng = np.random.default_rng(0)
    labels, h, w = np.arange(12) % 3, rng.normal(size=(12, 5)) + 2, rng.normal(size=(3, 5)) + 1
    view = nc.simplex_view(h, labels, w)
    means = np.stack([h[labels == c].mean(0) for c in range(3)])
    size = np.sqrt(((means - means.mean(0)) ** 2).sum(1).mean())
    axes = np.linalg.lstsq(h - means.mean(0), view.points * size, rcond=None)[0]
    turned = (w - w.mean(0)) @ axes
    np.testing.assert_allclose(view.rows, turned / np.sqrt((turned**2).sum(1).mean()), atol=1e-12)
    np.testing.assert_allclose(view.means, (means - means.mean(0)) @ axes / size, atol=1e-12)


def test_what_a_rounded_mean_leaves_is_taken_out_again() -> None:
    """In float32 a mean of 1000 is off by up to 3e-5, here as much as the spread about it."""
    rng = np.random.default_rng(1)
    labels = np.arange(4000) % 2
    h = (np.where(labels, 1, -1)[:, None] * [1000.3, 777.7] + 4e-5 * rng.normal(size=(4000, 2))).astype(np.float32)
    found = nc.collapse(h, labels)
    wide = h.astype(float)
    means = np.stack([wide[labels == c].mean(0) for c in range(2)])
    rest = wide - means[labels]
    within, between = rest.T @ rest / 4000, (means - means.mean(0)).T @ (means - means.mean(0)) / 2
    assert found["nc1_quotient"] == pytest.approx(np.trace(within) / np.trace(between), rel=1e-6, abs=0)
    assert found["nc1"] == pytest.approx(
        np.trace(within @ np.linalg.pinv(between, rcond=1e-9)) / 2, rel=1e-6, abs=0
    )
    v = [(rest[labels == c] ** 2).sum(1).mean() for c in range(2)]
    assert found["cdnv"] == pytest.approx(sum(v) / 2 / ((means[0] - means[1]) ** 2).sum(), rel=1e-6, abs=0)


def test_means_on_a_line_through_the_origin_have_one_axis() -> None:
    """The second singular value is rounding, though there is no mean of the means to compare it with."""
    rng = np.random.default_rng(2)
    labels, axis = np.arange(30) % 3, rng.normal(size=5)
    noise = rng.normal(size=(10, 1, 5)).repeat(3, 1)
    h = ((labels - 1.0)[:, None] * axis) + (noise - noise.mean(0)).reshape(30, 5)
    along = (h - (labels - 1.0)[:, None] * axis) @ axis / np.linalg.norm(axis)
    expected = (along**2).mean() / (2 * (axis @ axis) / 3) / 3
    assert nc.collapse(h, labels)["nc1"] == pytest.approx(expected, rel=1e-9)


def test_rows_of_one_class_may_come_in_any_number_of_batches() -> None:
    h, labels = torch.arange(12.0).view(6, 2) ** 2, torch.tensor([0, 1, 1, 0, 1, 1])
    statistics = CollapseStatistics(2)
    for part in range(6):
        statistics.first_pass(h[part : part + 1], labels[part : part + 1])
    np.testing.assert_allclose(statistics.means, [h[labels == c].mean(0).tolist() for c in range(2)])


# ---------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("centre", [-3.0, 0.02])
def test_batch_norms_statistics_of_any_sign(centre: float, dtype: torch.dtype) -> None:
    x = torch.randn(300, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype) * 0.5 + centre
    net = convnet((3,), "bn", eps=0.3).build((2, 8, 8), 2, dtype=dtype)
    with torch.no_grad():
        net.layers[0].weight[1] *= -2  # channels of both signs
        a = functional.conv2d(x, net.layers[0].weight, stride=2, padding=1).double()
        calibrate(net, x, chunk=37)
        mean, var = a.mean((0, 2, 3)), a.var((0, 2, 3), correction=0)
        torch.testing.assert_close(net.norms[0].mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(net.norms[0].var.double(), var, rtol=1e-5, atol=1e-6)
        h = ((a - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 0.3).sqrt()).relu()
        expected = torch.einsum("nchw,kchw->nk", h, net.layers[1].weight.double())
        for f in (net.eval()(x), fold(net)(x)):
            torch.testing.assert_close(f.double(), expected, rtol=1e-4, atol=1e-5)


def test_float64_statistics_keep_their_digits_far_from_zero() -> None:
    x = 0.1 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=F64) - 1e7
    net = mlp((1,), "bn").build((1,), dtype=F64)
    net.layers[0].set_weight(torch.ones(1, 1))
    calibrate(net, x)
    assert net.norms[0].var.item() == pytest.approx(((x + 1e7) - (x + 1e7).mean()).square().mean().item(), rel=1e-9)


def test_a_channel_with_less_spread_than_its_rounding_is_constant_on_either_side_of_zero() -> None:
    for sign in (1, -1):
        x = sign * torch.tensor([[1.0], [1.0 + 2**-23]])
        net = mlp((1,), "bn").build((1,))
        net.layers[0].set_weight(torch.ones(1, 1))
        calibrate(net, x)
        assert net.norms[0].var.item() == 0
        calibrate(net, sign * torch.tensor([[1.0], [1.0 + 2**-20]]))
        assert net.norms[0].var.item() == pytest.approx(2**-42, rel=1e-3, abs=0)


# ---------------------------------------------------------------------------------------------- training


def test_the_cosine_and_other_schedules_in_numbers() -> None:
    assert [sgd(epochs=4, schedule="cosine").rate(e) for e in range(4)] == pytest.approx(
        [1, 0.8535534, 0.5, 0.1464466]
    )
    steps = sgd(epochs=9, schedule=((2, 0.5), (5, 0.1)))
    assert [steps.rate(e) for e in range(7)] == [1, 1, 0.5, 0.5, 0.5, 0.1, 0.1]
    assert sgd(epochs=4).rate(3) == 1


@pytest.mark.parametrize("engine", ["stacked", "loop"])
@pytest.mark.parametrize("recipe", [{"reduction": "sum"}, {}, {"loss": "cross_entropy"}])
def test_losses_and_errors_of_a_history(engine: Any, recipe: dict[str, Any]) -> None:
    points = nc.data("gaussians", classes=3, n=30, n_test=50, d=4, seed=2, separation=1.0)
    runs = nc.train(points, mlp((6,)), sgd(lr=0.1, epochs=5, **recipe), grid={"seed": [0, 1]}, engine=engine)
    for seed, row in runs.final.iterrows():
        net = runs.model(seed=seed)
        sets = (("", points.x, points.labels), ("test_", points.x_test, points.labels_test))
        for prefix, x, labels in [(name, x, numbers.tolist()) for name, x, numbers in sets]:
            f, rows = net(x).detach().double().numpy(), range(len(x))
            squares = sum((f[n, k] - (k == labels[n])) ** 2 for n in rows for k in range(3)) / len(x)
            right = sum(math.log(sum(math.exp(v - f[n, labels[n]]) for v in f[n])) for n in rows) / len(x)
            kind = "cross_entropy" if recipe.get("loss") else "mse"
            value = right if recipe.get("loss") else squares / (1 if recipe else 3)
            assert row[prefix + kind] == pytest.approx(float(value), rel=1e-5)
            wrong = sum(any(f[n, k] >= f[n, labels[n]] for k in range(3) if k != labels[n]) for n in rows)
            assert row[prefix + "error"] == pytest.approx(wrong / len(x))
            assert 0 < wrong < len(x)


def test_every_margin_column_and_norm_of_a_history() -> None:
    points = nc.data("gaussians", classes=2, n=30, d=4, seed=2, separation=1.0, dtype=F64)
    runs = nc.train(points, mlp((6, 5)), sgd(lr=0.1, epochs=5), grid={"init_norm": [(0.5, 1.0, 2.0)]})
    row, net = runs.final.iloc[0], runs.model(0)
    norms = [layer.weight.detach().norm().item() for layer in net.layers]
    assert row[["rho_1", "rho_2", "rho_3"]].tolist() == pytest.approx(norms)
    assert row.rho == pytest.approx(math.prod(norms))
    m = np.sort((net(points.x) * points.y).detach().numpy()) / math.prod(norms)
    names = ["min", "mean", "std", *(f"q{q:02d}" for q in (5, 25, 50, 75, 95))]
    expected = [
        m[0],
        m.sum() / 30,
        math.sqrt(((m - m.mean()) ** 2).sum() / 30),
        *np.quantile(m, [0.05, 0.25, 0.5, 0.75, 0.95]),
    ]
    assert row[[f"margin_{name}" for name in names]].tolist() == pytest.approx(expected)


def test_the_head_of_a_network_with_a_negative_scale() -> None:
    """Under LM the classifier is ρ V_L: with ρ < 0 it points the other way, and NC3 and NC4 see that."""
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = functional.one_hot(torch.arange(20) % 3, 3).double()
    net = mlp((6,), "lm").build((4,), 3, init_norm=1.5, dtype=F64)
    assert net.scale is not None
    with torch.no_grad():
        net.scale.fill_(-2.0)
        found = _collapse(net, x, y, True)
        h, w = torch.relu(x @ net.layers[0].weight.T), -2.0 * net.layers[1].weight
        expected = nc.collapse(h, torch.arange(20) % 3, w)
        torch.testing.assert_close(h @ w.T, net(x))
        features, weight, _ = nc.last_layer(net, x)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(weight, w, rtol=1e-14)
    assert not torch.equal(torch.tensor(features) @ torch.tensor(weight).T, h @ net.layers[1].weight.T)


def test_the_generator_of_an_epoch_is_splitmix64() -> None:
    def splitmix64(state: int) -> int:
        z = state
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> shift)) * factor % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    assert splitmix64(golden) == 0xE220A8397B1DCDAF  # the first number of the published generator from 0
    for seed, epoch in ((0, 0), (1, 0), (7, 12), (2**40 + 3, 2)):
        mixed = splitmix64((seed * golden + (epoch + 1) * 0xD1B54A32D192ED03) % 2**64)
        assert _generator(seed, epoch).initial_seed() == mixed % 2**32


def test_epochs_and_steps_of_a_plan() -> None:
    points = nc.data("teacher", n=10)
    for batch, steps in ((None, 1), (3, 4), (5, 2), (10, 1), (50, 1)):
        plan = Plan.of(points, mlp((3,)), sgd(epochs=2, batch=batch))
        assert (plan.steps_per_epoch, plan.batch) == (steps, min(batch or 10, 10))


def test_a_network_is_alive_until_the_step_at_which_it_diverged() -> None:
    points = nc.data("gaussians", classes=2, n=24, d=6, seed=1)
    with pytest.warns(RuntimeWarning, match="1 of 1 networks diverged"):
        runs = nc.train(points, mlp((8,)), sgd(lr=10, epochs=60, batch=8), measure_every=1)
    at, last = runs.members.diverged_at[0], len(runs.history) - 1
    assert last >= 2
    assert 3 * (last - 1) < at <= 3 * last
    assert runs.history.status.tolist() == ["ok"] * last + ["diverged"]


def test_thin_strided_projections_are_not_laid_out_channels_last() -> None:
    images = nc.data("digits", n=20, flat=False)
    for arch, bears in ((resnet18(widths=(4, 4)), False), (resnet18(widths=(16, 16)), True), (convnet((4,)), True)):
        assert Plan.of(images, arch, sgd(epochs=1))._bears_channels_last() == bears
