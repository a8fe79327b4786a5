"""Minimum norm, and the absolute minimum: each proof by a second route.

Symbols, exact arithmetic, or a critical point solved for exactly.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize

import nclib as nc

Array = NDArray[np.float64]

mu, M, lam, sigma = sp.symbols("mu M lambda sigma", positive=True)


# --- thm-equilibrium ------------------------------------------------------------------------------


def test_the_norm_relaxes_exponentially_to_its_resting_value() -> None:
    t, rho0 = sp.symbols("t rho0", positive=True)
    rho = sp.Function("rho")
    solved = sp.dsolve(rho(t).diff(t) - 2 * (mu - rho(t) * (M + lam)), rho(t), ics={rho(0): rho0}).rhs
    rest = mu / (M + lam)
    assert sp.simplify(solved - (rest + (rho0 - rest) * sp.exp(-2 * (M + lam) * t))) == 0


def test_the_resting_value_is_where_the_loss_is_least() -> None:
    rho = sp.Symbol("rho", real=True)
    loss = 1 - 2 * rho * mu + rho**2 * (M + lam)
    assert sp.solve(sp.diff(loss, rho), rho) == [mu / (M + lam)]
    assert sp.diff(loss, rho, 2).is_positive


# --- thm-signal-to-noise --------------------------------------------------------------------------


def test_the_loss_at_rest_is_a_signal_to_noise_ratio() -> None:
    loss = 1 - 2 * (mu / (M + lam)) * mu + (mu / (M + lam)) ** 2 * (M + lam)
    with_sigma = loss.subs(M, mu**2 + sigma**2)
    assert sp.simplify(with_sigma - (lam + sigma**2) / (lam + sigma**2 + mu**2)) == 0
    s = mu**2 / (lam + sigma**2)
    assert sp.simplify(with_sigma - 1 / (1 + s)) == 0


def test_minimisers_for_small_decay_have_equal_and_largest_margins() -> None:
    # A family of directions with margins (m₁, m₂)(θ) in which equal margins and the largest mean compete: of the
    # directions with equal margins θ = 0 has the larger mean; θ near 1 has the largest mean of all.
    theta = np.linspace(-2, 2, 400_001)
    spread = theta * (theta + 1.5)  # equal margins at θ = 0 and θ = −1.5
    mean = 0.5 + 0.2 * theta
    found = []
    for decay in (1e-1, 1e-3, 1e-5):
        best = np.argmax(mean**2 / (decay + spread**2))
        assert spread[best] ** 2 <= decay / 0.5**2 * (1 + 1e-9)  # the proof's bound σ² ≤ λ/μ*²
        assert mean[best] >= 0.5 - 1e-9  # and μ ≥ μ*
        found.append(theta[best])
    assert abs(found[-1]) < 1e-3


# --- thm-interpolation: at an equilibrium of a deep linear network, which has no kinks ------------


def equilibrium(seed: int, decay: float) -> tuple[list[Array], float, Array, Array]:
    """Directions and norm of a two-layer linear network at rest, by solving the critical equations."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.array([1.0, -1.0, 1.0])
    shapes = [(2, 4), (1, 2)]

    def split(z: Array) -> tuple[list[Array], float]:
        layers = [part.reshape(s) for part, s in zip(np.split(z[:-1], [8]), shapes, strict=True)]
        return [w / np.linalg.norm(w) for w in layers], float(z[-1])

    def loss(z: Array) -> float:
        V, rho = split(z)
        return float(np.mean((rho * (x @ V[0].T @ V[1].T)[:, 0] - y) ** 2) + decay * rho**2)

    z = minimize(loss, rng.normal(size=11), method="BFGS", options={"gtol": 1e-10, "maxiter": 5000}).x

    def gradient(z: Array) -> Array:
        V, rho = split(z)
        f = (x @ V[0].T @ V[1].T)[:, 0]
        e = y - rho * f
        moves = [V[1].T @ (e @ x)[None, :] / 3, (e @ (x @ V[0].T))[None, :] / 3]
        pull = np.mean(e * f)
        radial = [z[:8].reshape(2, 4), z[8:10].reshape(1, 2)]
        # The tangential condition, and for the solver's sake ‖layer‖ = 1.
        parts = [(g - pull * v) + (np.linalg.norm(w) - 1) * v for g, v, w in zip(moves, V, radial, strict=True)]
        return np.concatenate([p.ravel() for p in parts] + [[pull - decay * rho]])

    V, rho = split(z)
    start = np.concatenate([v.ravel() for v in V] + [[rho]])
    # Rotations between the layers make the solution a whole family: least squares takes the nearest.
    solved = least_squares(gradient, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert np.abs(solved.fun).max() < 1e-10
    V, rho = split(solved.x)
    return V, rho, x, y


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decay", [0.05, 0.002])
def test_the_residual_is_that_of_kernel_ridge_regression(seed: int, decay: float) -> None:
    V, rho, x, y = equilibrium(seed, decay)
    if rho < 0:
        V, rho = [V[0], -V[1]], -rho
    f = (x @ V[0].T @ V[1].T)[:, 0]
    J = [np.einsum("h,nd->nhd", V[1][0], x).reshape(3, -1), x @ V[0].T]
    theta = sum(j @ j.T for j in J) / 3
    e = y - rho * f
    assert abs(rho) > 0.1
    np.testing.assert_allclose(
        e, 2 * decay * np.linalg.solve(theta + 2 * decay * np.eye(3), y), rtol=1e-7, atol=1e-9
    )
    least = np.linalg.eigvalsh(theta)[0]
    assert np.mean(e**2) <= (2 * decay / (least + 2 * decay)) ** 2 * (1 + 1e-9)
    margins = y * f
    assert margins.std() / margins.mean() <= 2 * decay / max(least, 1e-300) * (1 + 1e-9)


# --- thm-no-memory --------------------------------------------------------------------------------


def test_equal_loss_and_mean_margin_mean_equal_norm() -> None:
    rho1, rho2 = sp.symbols("rho1 rho2", positive=True)
    # At rest the loss is 1 − μρ.
    at_rest = (1 - 2 * rho1 * mu + rho1**2 * (M + lam)).subs(M, mu / rho1 - lam)
    assert sp.simplify(at_rest - (1 - mu * rho1)) == 0
    assert sp.solve(sp.Eq(1 - mu * rho1, 1 - mu * rho2), rho1) == [rho2]


def test_the_figure_to_play_with_shows_what_is_said_of_it_at_every_position_of_its_sliders() -> None:
    text = (Path(__file__).parents[2] / "chapters" / "02_minimum_norm.md").read_text("utf-8")
    cells = re.findall(r"```\{code-cell\} ipython3\n(?:---\n.*?^---\n)?(.*?)```", text, re.DOTALL | re.MULTILINE)
    (call,) = [cell for cell in cells if "nc.explore_flow(" in cell]
    (points,) = re.findall(r"^def teacher\(.*?\n\n\n", "".join(cells), re.DOTALL | re.MULTILINE)
    made: dict[str, Any] = {}
    stand_in = SimpleNamespace(data=nc.data, explore_flow=lambda *where, **how: made.update(how, where=where))
    exec(points + call, {"nc": stand_in, "torch": torch})  # the figure's own arguments
    grid = {key: made[key] for key in ("rho0", "time", "seed")} | {"weight_decay": [0, *made["weight_decay"]]}
    run = nc.flow(*made["where"], **grid, records=[grid["time"] / 2, grid["time"]])
    end = run.final
    without, decayed = end[end.weight_decay == 0], end[end.weight_decay > 0]
    large = without[without.rho0 > 1]
    assert (large.rho > 0.99 * large.rho0).all()  # without decay a large start stays large
    norms = decayed.groupby("weight_decay").rho
    assert len(norms) == len(made["weight_decay"])
    assert (norms.max() / norms.min() - 1).max() < 1e-3  # with it every start ends at the same norm,
    assert decayed.rho.max() < 0.98 * without.rho.min()  # smaller than any without
    assert abs(decayed.rho / decayed.rho_eq - 1).max() < 1e-3  # where it is at rest
    least = decayed.groupby("weight_decay").margin_min.min()
    assert least.iloc[0] > 1.002 * without.margin_min.max()  # a small decay: the margins end larger than without,
    fit = decayed.groupby("weight_decay").mse.min()
    assert (fit.diff().dropna() > 0).all()  # and a large decay pays with the fit
    assert fit.iloc[-1] > 0.1
    at = np.isclose(without.rho.to_numpy()[:, None], without.rho.to_numpy(), rtol=0.01)
    assert len({tuple(row) for row in at}) == 3  # "three heights", says the text for those who can't see it


# --- thm-linear: rational numbers, and the limit itself -------------------------------------------

X = sp.Matrix([[1, 2, 0], [0, 1, 1], [1, 3, 1]])  # rank 2
Y = sp.Matrix([1, -1, 2])


def test_ridge_tends_to_the_pseudo_inverse_at_first_order() -> None:
    pseudo = X.pinv()
    for axiom in (X * pseudo * X - X, pseudo * X * pseudo - pseudo, (X * pseudo).T - X * pseudo,
                  (pseudo * X).T - pseudo * X):  # fmt: skip
        assert axiom.applyfunc(sp.simplify) == sp.zeros(*axiom.shape)
    ridge = (X.T * X + 3 * lam * sp.eye(3)).inv() * X.T * Y
    difference = (ridge - pseudo * Y).applyfunc(sp.simplify)
    assert difference.applyfunc(lambda v: sp.limit(v, lam, 0)) == sp.zeros(3, 1)
    assert all(sp.limit(v / lam, lam, 0).is_finite for v in difference)


def test_gradient_descent_remembers_exactly_what_the_data_do_not_see() -> None:
    # The fixed point of w ← w − (2η/N)Xᵀ(Xw − y), on the affine space that descent cannot leave.
    pseudo, start = X.pinv(), sp.Matrix([1, 1, 5])
    end = pseudo * Y + (sp.eye(3) - pseudo * X) * start
    assert (X.T * (X * end - Y)).applyfunc(sp.simplify) == sp.zeros(3, 1)
    null = X.nullspace()[0]
    assert sp.simplify((null.T * (end - start))[0]) == 0
    eta = sp.Rational(1, 20)
    w = start
    for _ in range(3):
        w = w - 2 * eta / 3 * X.T * (X * w - Y)
        assert sp.simplify((null.T * (w - start))[0]) == 0


# --- thm-balance ----------------------------------------------------------------------------------


def test_balance_is_cheapest_by_multipliers() -> None:
    a, b, c, nu, rho = sp.symbols("a b c nu rho", positive=True)
    lagrangian = a**2 + b**2 + c**2 - nu * (a * b * c - rho)
    solutions = sp.solve([sp.diff(lagrangian, v) for v in (a, b, c, nu)], [a, b, c, nu], dict=True)
    assert len(solutions) == 1
    best = solutions[0]
    assert sp.simplify((a**2 + b**2 + c**2).subs(best) - 3 * rho ** sp.Rational(2, 3)) == 0


def test_differences_of_squared_norms_decay_at_four_lambda() -> None:
    w = sp.symbols("w1:4")  # three scalar layers
    x, y = sp.symbols("x y")
    loss = (w[0] * w[1] * w[2] * x - y) ** 2 + lam * sum(v**2 for v in w)
    velocity = [-sp.diff(loss, v) for v in w]
    for i, j in ((0, 1), (1, 2)):
        change = 2 * w[i] * velocity[i] - 2 * w[j] * velocity[j]
        assert sp.expand(change + 4 * lam * (w[i] ** 2 - w[j] ** 2)) == 0


# --- thm-convex: the two maps of the proof --------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_network_becomes_a_feasible_point_that_costs_no_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, a = rng.normal(size=(6, 2)), rng.normal(size=(9, 2)), rng.normal(size=9)
    parts: dict[tuple[Any, ...], Array] = {}
    for neuron, weight in zip(w, a, strict=True):
        key = (*(x @ neuron > 0), weight > 0)
        parts[key] = parts.get(key, np.zeros(2)) + abs(weight) * neuron
    outputs = sum((1 if key[-1] else -1) * np.array(key[:-1]) * (x @ v) for key, v in parts.items())
    np.testing.assert_allclose(outputs, np.maximum(x @ w.T, 0) @ a, atol=1e-12)
    for key, v in parts.items():
        assert ((2.0 * np.array(key[:-1]) - 1) * (x @ v) >= -1e-12).all()
    cost = sum(np.linalg.norm(v) for v in parts.values())
    assert cost <= np.linalg.norm(a) * np.linalg.norm(w) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_a_feasible_point_becomes_a_network_of_the_same_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, v = rng.normal(size=(6, 2)), rng.normal(size=(4, 2))
    signs = np.array([1, 1, -1, -1])
    size = np.linalg.norm(v, axis=1)
    w, a = v / np.sqrt(size)[:, None], signs * np.sqrt(size)
    outputs = sum(s * (x @ one > 0) * (x @ one) for s, one in zip(signs, v, strict=True))
    np.testing.assert_allclose(np.maximum(x @ w.T, 0) @ a, outputs, atol=1e-12)
    assert np.linalg.norm(w) * np.linalg.norm(a) == pytest.approx(size.sum())


@pytest.mark.parametrize("decay", [0.01, 0.1])
def test_two_opposite_points_cost_two_neurons(decay: float) -> None:
    # The exercise's solution: each pattern holds one of the points.
    x = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=torch.float64)
    found = nc.convex_optimum(replace(nc.data("teacher", n=2, d=2), x=x, labels=torch.tensor([0, 1])), decay)
    assert found.rho == pytest.approx(2 / (1 + 4 * decay), rel=1e-6)
    assert found.loss == pytest.approx(4 * decay / (1 + 4 * decay), rel=1e-6)
