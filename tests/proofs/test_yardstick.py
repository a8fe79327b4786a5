"""Second routes to the theorems of Chapter 18: networks written down by hand, random networks, brute force."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import nclib as nc


def output(W, x):
    h = x.T
    for layer in W[:-1]:
        h = np.maximum(layer @ h, 0)
    return (W[-1] @ h)[0]


def size(W):
    return np.prod([np.linalg.norm(layer) for layer in W])


def random_network(rng, widths):
    return [rng.standard_normal((out, into)) for into, out in itertools.pairwise(widths)]


def two_points(alpha, L):
    half, power = min(alpha, np.pi / 2) / 2, -2 / (L - 1)
    return (np.cos(half) ** power + np.sin(half) ** power) ** ((L - 1) / 2)


def plane(alpha):
    return np.array([[np.cos(alpha / 2), np.sin(alpha / 2)], [np.cos(alpha / 2), -np.sin(alpha / 2)]])


@pytest.mark.parametrize("L", [2, 3, 5])
@pytest.mark.parametrize(("positive", "negative"), [(1, 1), (3, 1), (2, 4)])
def test_a_network_attains_the_yardstick_for_orthogonal_inputs(L, positive, negative):
    rng, N = np.random.default_rng(L), positive + negative
    x = np.linalg.qr(rng.standard_normal((N + 2, N)))[0].T * rng.uniform(0.5, 2, (N, 1))
    y = np.array([1] * positive + [-1] * negative)
    u = 1 / (x**2).sum(1)
    a, b = u[y > 0].sum(), u[y < 0].sum()
    sides = [(u[y == s, None] * x[y == s]).sum(0) for s in (1, -1)]
    rows = np.array([side / np.linalg.norm(side) for side in sides])
    strength = np.diag([a ** (1 / (2 * L)), b ** (1 / (2 * L))])
    W = [strength @ rows, *[strength] * (L - 2), np.array([[1, -1]]) @ strength]
    np.testing.assert_allclose(output(W, x), y, atol=1e-12)
    np.testing.assert_allclose(size(W), (a ** (1 / L) + b ** (1 / L)) ** (L / 2), rtol=1e-12)


@pytest.mark.parametrize("L", [2, 3, 4])
def test_no_random_network_is_below_the_yardstick(L):
    """Whatever a network answers, it needs the norm that its own labels ask for."""
    rng, closest = np.random.default_rng(L), np.inf
    for _ in range(600):
        n, d = rng.integers(2, 5), rng.integers(2, 4)
        W, x = random_network(rng, [d, *rng.integers(1, 4, L - 1), 1]), rng.standard_normal((n, d))
        f = output(W, x)
        if abs(f).min() < 1e-9:
            continue
        u = rng.exponential(size=n) / (x**2).sum(1)
        a, b = u[f > 0].sum(), u[f < 0].sum()
        bound = np.sqrt((a ** (1 / L) + b ** (1 / L)) ** L / np.linalg.eigvalsh((x.T * u) @ x)[-1])
        closest = min(closest, size(W) / abs(f).min() / bound)
    assert 1 <= closest < 4


@pytest.mark.parametrize("L", [2, 3, 4])
def test_no_random_network_is_below_the_norm_for_two_points(L):
    rng = np.random.default_rng(10 + L)
    for _ in range(600):
        alpha = rng.uniform(0.3, np.pi)
        W, x = random_network(rng, [2, *rng.integers(2, 5, L - 1), 1]), plane(alpha)
        f = output(W, x)
        if f[0] * f[1] < 0:
            assert size(W) / abs(f).min() >= two_points(alpha, L) * (1 - 1e-9)


@pytest.mark.parametrize("L", [2, 3, 4, 6])
@pytest.mark.parametrize("degrees", [25, 60, 90])
def test_a_network_attains_the_norm_for_two_points(L, degrees):
    alpha = np.deg2rad(degrees)
    tau = np.diag(np.array([np.cos(alpha / 2), np.sin(alpha / 2)]) ** (-1 / (L - 1)))
    turn = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    stretch = [turn @ tau, *[turn @ tau @ turn] * (L - 3)][: L - 2]
    h = plane(alpha).T
    for layer in stretch:
        h = np.maximum(layer @ h, 0)
    dual = np.linalg.inv(h)
    root = np.sqrt(np.linalg.norm(dual, axis=1))
    W = [*stretch, dual / root[:, None], np.array([[1, -1]]) * root]
    np.testing.assert_allclose(output(W, plane(alpha)), [1, -1], atol=1e-12)
    np.testing.assert_allclose(size(W), two_points(alpha, L), rtol=1e-12)


@pytest.mark.parametrize("degrees", [30, 60, 85])
def test_brute_force_finds_nothing_smaller_for_three_layers(degrees):
    """Any first layer of three neurons, and the two layers on top of it by their own closed form."""
    alpha, rng = np.deg2rad(degrees), np.random.default_rng(degrees)

    def cost(flat):
        h = np.maximum(flat.reshape(3, 2) @ plane(alpha).T, 0)
        p, q = np.linalg.norm(h, axis=0)
        area = np.linalg.norm(np.cross(h[:, 0], h[:, 1]))
        return np.linalg.norm(flat) * (p + q) / area if area > 1e-9 else 1e9

    options = dict(maxiter=2500, maxfev=2500, xatol=1e-10, fatol=1e-12)
    found = [minimize(cost, rng.standard_normal(6), method="Nelder-Mead", options=options).fun for _ in range(5)]
    assert min(found) >= two_points(alpha, 3) * (1 - 1e-9)
    np.testing.assert_allclose(min(found), two_points(alpha, 3), rtol=1e-3)


@pytest.mark.parametrize("degrees", [35, 120])
def test_two_layers_agree_with_the_convex_program(degrees):
    data = nc.from_arrays(plane(np.deg2rad(degrees)), [1, -1], dtype=torch.float64)
    found = nc.convex_optimum(data, 0.0).rho
    np.testing.assert_allclose(found, two_points(np.deg2rad(degrees), 2), rtol=1e-5)


def test_two_layers_agree_with_the_convex_program_for_orthonormal_inputs():
    data = nc.from_arrays(np.eye(5), [1, 1, 1, -1, -1], dtype=torch.float64)
    np.testing.assert_allclose(nc.convex_optimum(data, 0.0).rho, 3**0.5 + 2**0.5, rtol=1e-5)


def test_no_random_network_with_batch_normalisation_is_below_its_bound():
    rng, closest = np.random.default_rng(0), np.inf
    for _ in range(600):
        n, d, width = rng.integers(2, 5), rng.integers(1, 4), rng.integers(1, 6)
        x, W, a = rng.standard_normal((n, d)), rng.standard_normal((width, d)), rng.standard_normal(width)
        z = x @ W.T
        folded = W / z.std(0)[:, None]
        f = np.maximum((z - z.mean(0)) / z.std(0), 0) @ a
        if abs(f).min() > 1e-9:
            covariance = np.atleast_2d(np.cov(x.T, bias=True))
            bound = 2 / np.sqrt(np.linalg.eigvalsh(covariance)[-1])
            closest = min(closest, np.linalg.norm(folded) * np.linalg.norm(a) / abs(f).min() / bound)
    assert 1 <= closest < 1.2


def test_no_random_network_with_equal_rows_is_below_its_bound():
    rng = np.random.default_rng(1)
    for _ in range(600):
        width, N = rng.integers(2, 8), 3
        W, a = rng.standard_normal((width, N)), rng.standard_normal(width)
        W /= np.linalg.norm(W, axis=1, keepdims=True)
        h = np.maximum(W.T, 0)  # orthonormal inputs
        f = h @ a
        if abs(f).min() > 1e-9:
            least = np.sqrt((f > 0).sum()) + np.sqrt((f < 0).sum())
            dead = (h == 0).all(0).mean()
            needed = np.sqrt(width) * np.linalg.norm(a) / abs(f).min()
            assert needed * np.sqrt(1 - dead) >= least * (1 - 1e-9)
