"""Many classes: minimisers by semidefinite programming and exact fractions, bounds by enumeration of all coins."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from conftest import ROOT, solution
from scipy.optimize import minimize

import nclib as nc


def coins(*shape: int) -> np.ndarray:
    """All arrays of signs of a shape."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=math.prod(shape)))).reshape(-1, *shape)


def targets(classes: int, per_class: int, centred: bool) -> np.ndarray:
    """Targets as columns, (K, N)."""
    return np.repeat(np.eye(classes) - centred / classes, per_class, axis=1)


# --- the price of a class


@pytest.mark.parametrize("centred", [False, True])
def test_two_linear_layers_by_the_nuclear_norm(centred):
    """L = 2: the convex program (1/N)‖Z − Y‖² + 2λ‖Z‖_*, by a conic solver."""
    K, n, decay = 3, 2, 0.03
    Y, r = targets(K, n, centred), K - centred
    Z = cp.Variable(Y.shape)
    cp.Problem(cp.Minimize(cp.sum_squares(Z - Y) / (K * n) + 2 * decay * cp.normNuc(Z))).solve(solver=cp.CLARABEL)
    alpha = 1 - decay * K * math.sqrt(n)
    np.testing.assert_allclose(Z.value, alpha * Y, atol=1e-5)
    assert np.linalg.svd(Z.value, compute_uv=False).sum() == pytest.approx(r * math.sqrt(n) * alpha, rel=1e-5)


@pytest.mark.parametrize("centred", [False, True])
def test_two_layers_of_relus_by_their_dual(centred):
    """No unit activity r ≥ 0 earns more than √n‖y‖, by many draws and at the corners; and the value there."""
    K, n = 4, 3
    Y, size = targets(K, n, centred), math.sqrt(1 - centred / K)
    r = np.abs(np.random.default_rng(0).normal(size=(20_000, K * n))) ** 3  # near the corners too
    r /= np.linalg.norm(r, axis=1, keepdims=True)
    assert np.linalg.norm(r @ Y.T, axis=1).max() <= math.sqrt(n) * size + 1e-12
    one_class = np.repeat(np.eye(K), n, axis=1) / math.sqrt(n)
    np.testing.assert_allclose(np.linalg.norm(one_class @ Y.T, axis=1), math.sqrt(n) * size)
    # The bound on the loss at Z = αY is what one neuron per class pays.
    decay = 0.01
    alpha = 1 - decay * K * n / (math.sqrt(n) * size)
    paid = (1 - alpha) ** 2 * size**2 + 2 * decay * K * alpha * size * math.sqrt(n)
    bound = (1 - alpha) ** 2 * (Y**2).sum() / (K * n) + 2 * decay / (math.sqrt(n) * size) * alpha * (Y**2).sum()
    assert paid == pytest.approx(bound, rel=1e-12)


def test_pairs_fit_exactly_and_their_norm_in_fractions():
    half, B = Fraction(1, 2), [[int(i in pair) for pair in itertools.combinations(range(5), 2)] for i in range(5)]
    for c in range(10):
        h = [B[i][c] for i in range(5)]
        last = [max(0, sum((B[i][d] - half) * h[i] for i in range(5))) for d in range(10)]
        assert last == [int(d == c) for d in range(10)]
    norms = 20, 5, sum((B[i][d] - half) ** 2 for i in range(5) for d in range(10)), 10
    assert [norms[0] * norms[1] ** (L - 3) * norms[2] * norms[3] for L in (3, 4, 5)] == [2500, 12_500, 62_500]
    assert 62_500 < 10**5
    assert 12_500 > 10**4


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_balanced_factors_have_the_norm_and_margin_of_the_theorem(depth):
    for K, n, centred in ((3, 4, False), (4, 2, True)):
        Y, r = targets(K, n, centred), K - centred
        u, s, vt = np.linalg.svd(0.9 * Y)
        root = s[:r] ** (1 / depth)
        inside = [np.diag(root)] * (depth - 2)
        W = [root[:, None] * vt[:r], *inside, u[:, :r] * root]
        f = np.linalg.multi_dot(W[::-1]) if depth > 2 else W[1] @ W[0]
        rho = math.prod(np.linalg.norm(w) for w in W)
        assert rho == pytest.approx(0.9 * r ** (depth / 2) * math.sqrt(n), rel=1e-12)
        np.testing.assert_allclose(f, 0.9 * Y, atol=1e-12)


# --- the bound


@pytest.mark.parametrize("v", [[1.0], [1.0, 1.0], [1.0, 1.0, 0.0], [3.0, -1.0, 0.5, 0.2], [1.0] * 6])
def test_coins_see_at_least_a_root_of_one_half_of_a_vector(v):
    seen = np.abs(coins(len(v)) @ v).mean() / np.linalg.norm(v)
    assert seen >= math.sqrt(0.5) - 1e-12
    if v == [1.0, 1.0]:
        assert seen == pytest.approx(math.sqrt(0.5), rel=1e-12)  # attained


def test_contraction_of_vectors_over_all_coins_and_where_it_is_attained():
    rng, ramp = np.random.default_rng(0), lambda m: np.clip(1 - m, 0, 1)
    left, right = coins(3), coins(3, 2)
    for _ in range(50):
        T = rng.normal(size=(6, 3, 2))
        phi = ramp(T[:, :, 0] - T[:, :, 1])  # √2-Lipschitz
        small = (left @ phi.T).max(1).mean()
        assert small <= 2 * np.einsum("bnk,tnk->bt", right, T).max(1).mean() + 1e-12
    T = np.array([[[s / 2, -s / 2] for s in chosen] for chosen in itertools.product([0, 1], repeat=3)])
    phi = ramp(T[:, :, 0] - T[:, :, 1])
    small, large = (left @ phi.T).max(1).mean(), np.einsum("bnk,tnk->bt", right, T).max(1).mean()
    assert small == pytest.approx(2 * large, rel=1e-12)


def test_margin_is_root_two_lipschitz_and_no_better():
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(2, 1000, 4))

    def margin(f):
        return f[:, 0] - f[:, 1:].max(1)

    assert (np.abs(margin(f) - margin(g)) <= math.sqrt(2) * np.linalg.norm(f - g, axis=1) + 1e-12).all()
    a, b = np.array([[1.0, 0, -9, -9]]), np.array([[0.0, 1, -9, -9]])
    assert margin(a) - margin(b) == pytest.approx(math.sqrt(2) * np.linalg.norm(a - b))


def test_two_layers_on_orthonormal_inputs_by_scanning_outputs():
    """Two outputs: max ‖Ew‖ over w ≥ 0 is max over directions a of ‖relu(Eᵀa)‖, scanned; it obeys the bound."""
    E = coins(2, 4)
    angle = np.linspace(0, 2 * np.pi, 3601)
    a = np.stack([np.cos(angle), np.sin(angle)])
    best = np.linalg.norm(np.maximum(np.einsum("bkn,ka->ban", E, a), 0), axis=2).max(1)
    complexity = best.mean() / 4
    assert complexity < math.sqrt(2) * math.sqrt(2) / math.sqrt(4)
    assert complexity < nc.rademacher_bound(4, 2, classes=3)
    powers = np.abs(np.random.default_rng(0).normal(size=(len(E), 30, 4)))
    for _ in range(60):  # ascent on w finds the same
        powers = np.maximum(np.einsum("bkm,bkn,bsn->bsm", E, E, powers), 0)
        powers /= np.linalg.norm(powers, axis=2, keepdims=True).clip(1e-300)
    climbed = np.linalg.norm(np.einsum("bkn,bsn->bsk", E, powers), axis=2).max(1)
    np.testing.assert_allclose(climbed, best, rtol=1e-3)


@pytest.mark.parametrize(("K", "N"), [(2, 5), (3, 4)])
def test_one_layer_attains_the_bound_on_orthonormal_inputs_and_nearly_on_equal_ones(K, N):
    E = coins(K, N)
    assert np.linalg.norm(E, axis=(1, 2)).mean() / N == pytest.approx(math.sqrt(K / N), rel=1e-12)
    alike = np.linalg.norm(E.sum(2), axis=1).mean() / N
    assert 0.8 * math.sqrt(K / N) < alike < math.sqrt(K / N)
    assert alike > 1.1 * np.abs(coins(N).sum(1)).mean() / N  # more than one output has


def test_sums_of_two_coins_per_point():
    found = [np.abs(coins(2 * k).sum(1)).mean() if k else 0 for k in range(5)]
    assert found == [0, 1, 1.5, 1.875, 2.1875]


# --- symmetric residuals


def test_outputs_of_a_bias_free_classifier_never_sum_to_one():
    rng = np.random.default_rng(0)
    for decay in (0.1, 1e-3):
        h, Y = rng.normal(size=(12, 5)), np.repeat(np.eye(3), 4, axis=0)
        W = nc.ridge(h, Y, decay).T
        t = (h @ W.T).sum(1)
        assert (t * (1 - t)).mean() == pytest.approx(decay * (W.sum(0) ** 2).sum(), rel=1e-9)


def test_constants_of_the_collapse_from_the_closed_form():
    for K, n, decay, other in ((3, 5, 0.01, 0.002), (7, 2, 0.003, 0.01)):
        best = nc.ufm_minimiser(K, n, decay, other)
        alpha = best.singular_values[0] / math.sqrt(n)
        means = best.features[::n]
        M = means - means.mean(0)
        np.testing.assert_allclose(best.weight, (1 - alpha) / (K * decay) * M, atol=1e-12)
        gram = K * decay * alpha / (1 - alpha) * (np.eye(K) - 1 / K)
        np.testing.assert_allclose(M @ M.T, gram, atol=1e-12)


@pytest.mark.parametrize("K", [2, 3, 6])
def test_two_signs_by_the_explicit_minimiser(K):
    x, labels = np.concatenate([np.eye(K), -np.eye(K)]), np.tile(np.arange(K), 2)
    y = np.eye(K)[labels] - 1 / K
    h = np.maximum(x @ x.T, 0)  # a neuron for each point, equal lengths in and out
    W = y.T / np.linalg.norm(y[0])
    read = nc.collapse(h, labels, W)
    assert read["nc1_quotient"] == pytest.approx(K / (K - 1), rel=1e-12)
    assert max(read["nc1"], read["nc3"], read["nc2_etf_means"], read["nc4"]) < 1e-12
    np.testing.assert_allclose(h @ W.T, y / np.linalg.norm(y[0]), atol=1e-12)


# --- the shape of the residuals


def test_shape_of_the_residuals_of_one_layer_from_ridge():
    rng = np.random.default_rng(0)
    x, Y = rng.normal(size=(6, 9)), np.repeat(np.eye(2), 3, axis=0)
    limit = 6 * np.linalg.solve(x @ x.T, Y)
    for decay in (1e-6, 1e-7):
        residual = (Y - x @ nc.ridge(x, Y, decay)) / decay
        np.testing.assert_allclose(residual, limit, rtol=1e4 * decay, atol=1e4 * decay)


def test_shape_of_the_residuals_of_two_layers_from_the_nuclear_norm():
    """The minimum of ‖PXᵀ − Y‖²/N + 2λ‖P‖_*, by a conic solver, for d = N."""
    rng, decay = np.random.default_rng(1), 1e-3
    x, Y = rng.normal(size=(4, 4)) + 2 * np.eye(4), np.repeat(np.eye(2), 2, axis=1)
    P = cp.Variable((2, 4))
    goal = cp.sum_squares(P @ x.T - Y) / 4 + 2 * decay * cp.normNuc(P)
    cp.Problem(cp.Minimize(goal)).solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10)
    inverse = np.linalg.inv(x @ x.T)
    values, vectors = np.linalg.eigh(Y @ inverse @ Y.T)
    limit = 4 * (vectors / np.sqrt(values)) @ vectors.T @ Y @ inverse
    found = (Y - P.value @ x.T) / decay
    assert np.linalg.norm(found - limit) < 0.03 * np.linalg.norm(limit)


# --- one point alone


def test_mean_square_cosine_of_targets():
    """What part 2 uses: the mean of (ŷ_n·ŷ_m)² is 1/r, in fractions."""
    for K in (2, 3, 5):
        one_hot = Fraction(K, K * K)
        assert one_hot == Fraction(1, K)
        centred = (Fraction(1) + (K - 1) * Fraction(1, K - 1) ** 2) / K
        assert centred == Fraction(1, K - 1)


# --- solutions of the exercises


def test_two_outputs_for_two_classes_cost_twice_what_one_does():
    half = 2 * math.sqrt(2) / math.sqrt(100)
    assert 4 * math.sqrt(2) / math.sqrt(100) == pytest.approx(2 * half)


@pytest.fixture(scope="module")
def helpers() -> dict[str, Any]:
    """What the chapter's folded code defines."""
    text = (ROOT / "chapters" / "17_many_classes.md").read_text("utf-8")
    names = {"np": np, "minimize": minimize}
    for start in ("def signals", "labels = ", "def share"):
        code = re.search(rf"^{start}.*?(?=^```)", text, re.MULTILINE | re.DOTALL)
        exec(code[0], names)
    return names


def test_solution_one_or_two(helpers):
    found, predicted = np.transpose(solution("17_many_classes", "ex-one-or-two", x=np.eye(12), **helpers))
    np.testing.assert_allclose(found, predicted, rtol=1e-6)
    np.testing.assert_allclose(predicted, [1 / 4 * 12**-0.5 * 2, math.sqrt(2 / 12)], rtol=1e-12)


def test_solution_symmetric_data(helpers):
    shares, first = zip(*solution("17_many_classes", "ex-symmetric-data", **helpers), strict=True)
    assert max(shares) < 1e-20
    assert abs(first[0][1]) > 1e-3
    assert abs(first[1][1]) < 1e-12
