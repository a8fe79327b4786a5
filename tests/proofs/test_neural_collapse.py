"""Neural collapse, free features and real ones: each proof by another route than the chapters', and the exercises'
solutions, executed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from conftest import solution

import nclib as nc


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def one_hot(sizes: list[int]) -> np.ndarray[Any, Any]:
    """Targets as columns, (K, N)."""
    return np.repeat(np.eye(len(sizes)), sizes, axis=1)


def quotient(h, labels):
    return nc.collapse(h, labels)["nc1_quotient"]


# --- thm-binary-collapse


def kantorovich(theta, decay):
    """The bound on NC1 of the outputs, from the kernel's eigenvalues, and its simpler form."""
    a, b = (t / (t + decay) for t in (theta.min(), theta.max()))
    return (b - a) ** 2 / (4 * a * b), (decay / theta.min()) ** 2 / 4


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-2, 1e-4])
def test_outputs_of_the_exact_linear_equilibrium_collapse_within_the_bound(weight_decay):
    """L = 1: the outputs are those of ridge regression, solved without any flow."""
    for seed in range(20):
        x = rng(seed).normal(size=(8, 12))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        y = np.repeat([1.0, -1.0], 4)
        z = x @ nc.ridge(x, y, weight_decay)
        sharp, simple = kantorovich(np.linalg.eigvalsh(x @ x.T / 8), weight_decay)
        assert quotient(z[:, None], (y < 0).astype(int)) <= sharp <= simple


@pytest.mark.parametrize("weight_decay", [1.0, 1e-2])
def test_two_directions_in_the_right_proportion_attain_the_bound(weight_decay):
    """The share b/(a + b) of y in the flattest direction of Θ, the rest in the steepest."""
    theta, y, other = np.array([0.05, 2.0]), np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])
    a, b = theta / (theta + weight_decay)
    cosine, sine = np.sqrt(b / (a + b)), np.sqrt(a / (a + b))
    flat, steep = (cosine * y + sine * other) / 2, (sine * y - cosine * other) / 2
    rest = np.eye(4) - np.outer(flat, flat) - np.outer(steep, steep)
    Theta = theta[0] * np.outer(flat, flat) + theta[1] * np.outer(steep, steep) + rest
    z = Theta @ np.linalg.solve(Theta + weight_decay * np.eye(4), y)
    sharp, _ = kantorovich(theta, weight_decay)
    assert quotient(z[:, None], (y < 0).astype(int)) == pytest.approx(sharp, rel=1e-10)


def test_slope_two_with_its_prefactor():
    """NC1/λ² tends to the variance of Θ⁻¹y within the classes."""
    x = rng(1).normal(size=(8, 12))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y, label = np.repeat([1.0, -1.0], 4), np.repeat([0, 1], 4)
    limit = np.linalg.solve(x @ x.T / 8, y)
    within = np.mean([limit[label == c].var() for c in (0, 1)])
    for weight_decay in (1e-5, 1e-6):
        found = quotient((x @ nc.ridge(x, y, weight_decay))[:, None], label) / weight_decay**2
        assert found == pytest.approx(within, rel=2e3 * weight_decay)


@pytest.mark.parametrize("weight_decay", [0.1, 0.01, 0.001])
def test_xor_by_the_convex_program(weight_decay):
    """A conic solver, which knows nothing of the proof's inequality, finds its minimum and its norm."""
    xor = nc.from_arrays([[1, 0], [-1, 0], [0, 1], [0, -1]], [1, 1, -1, -1], dtype=torch.float64)
    best = nc.convex_optimum(xor, weight_decay)
    assert best.loss == pytest.approx(weight_decay / (weight_decay + 1 / 16), rel=1e-5)
    assert best.rho == pytest.approx(4 / (1 + 16 * weight_decay), rel=1e-3)


def test_xor_features_of_the_explicit_minimiser():
    hidden, out = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) / 2, np.array([1, 1, -1, -1]) / 2
    x = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    h = np.maximum(x @ hidden.T, 0)
    np.testing.assert_allclose(h @ out, [0.25, 0.25, -0.25, -0.25])
    assert np.linalg.norm(hidden) == np.linalg.norm(out) == 1
    read = nc.collapse(h, np.array([0, 0, 1, 1]))
    assert read["nc1_quotient"] == pytest.approx(2, rel=1e-14)
    assert read["nc1"] == pytest.approx(0, abs=1e-14)


def test_xor_gain_of_a_neuron_never_exceeds_its_norm():
    x, y = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]), np.array([1, 1, -1, -1])
    angle = np.linspace(0, 2 * np.pi, 10_001)
    w = np.stack([np.cos(angle), np.sin(angle)])
    gain = y @ np.maximum(x @ w, 0)
    assert np.abs(gain).max() <= 1 + 1e-15
    np.testing.assert_allclose(gain, np.abs(w[0]) - np.abs(w[1]), atol=1e-15)


# --- thm-ufm and its corollaries


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("sizes", "decay_w", "decay_h"), [([3, 3, 3], 0.02, 0.05), ([5, 2, 2, 1], 0.1, 0.02)])
def test_ufm_by_semidefinite_programming(sizes, decay_w, decay_h, bias):
    """The convex form, in the nuclear norm, handed to a conic solver."""
    Y, N, tau = one_hot(sizes), sum(sizes), np.sqrt(decay_w * decay_h)
    Z, b = cp.Variable(Y.shape), cp.Variable((len(sizes), 1))
    shift = b @ np.ones((1, N)) if bias else 0
    problem = cp.Problem(cp.Minimize(cp.sum_squares(Z + shift - Y) / (2 * N) + tau * cp.normNuc(Z)))
    problem.solve(solver="CLARABEL")
    best = nc.ufm_minimiser(len(sizes), sizes, decay_w, decay_h, bias=bias)
    assert best.loss == pytest.approx(problem.value, rel=1e-6)
    np.testing.assert_allclose(best.weight @ best.features.T, Z.value, atol=1e-3)
    if bias:
        np.testing.assert_allclose(best.bias, b.value[:, 0], atol=1e-3)


def ufm(parts, Y, decay_w, decay_h):
    """The objective {eq}`eq-ufm` in PyTorch, features as columns."""
    W, H, b = parts
    fit = (W @ H + b[:, None] - Y).square().sum() / (2 * Y.shape[1])
    return fit + decay_w / 2 * W.square().sum() + decay_h / 2 * H.square().sum()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_other_critical_points_have_negative_curvature(kept):
    """Leaving out a singular direction that pays gives a critical point; its Hessian has a negative eigenvalue."""
    sizes, decay_w, decay_h, d = [4, 4, 4], 0.02, 0.05, 3
    best = nc.ufm_minimiser(3, sizes, decay_w, decay_h, dim=d)
    left, _, _ = np.linalg.svd(best.weight)
    keep = left[:, :kept] @ left[:, :kept].T  # projects on the first directions
    Y = torch.tensor(one_hot(sizes))
    H = best.features.T @ np.kron(np.eye(3), np.ones((4, 4)) / 4)
    along = np.linalg.pinv(best.weight) @ keep @ best.weight
    parts = [torch.tensor(p) for p in (keep @ best.weight, along @ H, best.bias)]
    shapes, ends = [p.shape for p in parts], np.cumsum([p.numel() for p in parts])[:-1].tolist()

    def flat(vector):
        pieces = torch.tensor_split(vector, ends)
        return ufm([p.view(s) for p, s in zip(pieces, shapes, strict=True)], Y, decay_w, decay_h)

    point = torch.cat([p.reshape(-1) for p in parts])
    assert torch.autograd.functional.jacobian(flat, point).abs().max() < 1e-12
    lowest = torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat, point))[0].item()
    if kept == 2:  # both directions: the minimum
        assert lowest > -1e-12
        assert flat(point).item() == pytest.approx(best.loss, rel=1e-12)
    else:
        assert lowest < -1e-3


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_balanced_minimiser_is_a_collapse(classes):
    best = nc.ufm_minimiser(classes, 5, 0.01, 0.02)
    s, n, N = np.sqrt(5) - 5 * classes * np.sqrt(2e-4), 5, 5 * classes
    assert best.singular_value == pytest.approx(s, rel=1e-12)
    centring = np.eye(classes) - 1 / classes
    np.testing.assert_allclose(best.weight @ best.weight.T, s * np.sqrt(2) * centring, atol=1e-12)
    np.testing.assert_allclose(best.features, np.sqrt(0.5 / n) * best.weight[best.labels], atol=1e-12)
    assert best.mean_norm**2 == pytest.approx(s * np.sqrt(0.5) * (classes - 1) / N, rel=1e-12)
    read = nc.collapse(best.features, best.labels, best.weight, best.bias)
    assert max(v for k, v in read.items() if k.startswith("nc")) < 1e-7


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
def test_reading_of_an_orthogonal_frame(classes):
    frame = np.linalg.qr(rng(classes).normal(size=(60, classes)))[0].T
    read = nc.collapse(np.repeat(frame, 2, axis=0), np.repeat(np.arange(classes), 2), 3 * frame)
    assert read["nc3"] == pytest.approx(2 - 2 * np.sqrt(1 - 1 / classes), rel=1e-10)
    assert read["nc2_angle_weights"] == pytest.approx(1 / (classes - 1), rel=1e-10)
    for key in ("nc1", "nc2_norm_means", "nc2_angle_means", "nc2_etf_means", "nc2_etf_weights", "nc3_etf", "nc4"):
        assert read[key] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("m", [1, 3, 5, 6])
def test_minority_distances(m, bias):
    """The corollary's formula against the singular value decomposition of the full targets, K×N."""
    sizes, decay_w, decay_h = [9, 7, m, m], 0.06, 0.09
    Y, N = one_hot(sizes), sum(sizes)
    if bias:
        Y = Y - Y.mean(1, keepdims=True)
    U, sigma, V = np.linalg.svd(Y, full_matrices=False)
    s = np.maximum(0, sigma - N * np.sqrt(decay_w * decay_h))
    W = (decay_h / decay_w) ** 0.25 * U * np.sqrt(s)
    H = (decay_w / decay_h) ** 0.25 * np.sqrt(s)[:, None] * V
    apart = max(0.0, np.sqrt(m) - N * np.sqrt(decay_w * decay_h))
    assert ((W[2] - W[3]) ** 2).sum() == pytest.approx(2 * apart * np.sqrt(decay_h / decay_w), abs=1e-12)
    means = [H[:, np.repeat(np.arange(4), sizes) == c].mean(1) for c in (2, 3)]
    expected = 2 * apart / m * np.sqrt(decay_w / decay_h)
    assert ((means[0] - means[1]) ** 2).sum() == pytest.approx(expected, abs=1e-12)


# --- thm-last-layer


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
def test_classifier_from_the_means_and_the_spread(weight_decay):
    """Part 3 for ridge classifiers of arbitrary features, by plain linear algebra."""
    K, n, d = 4, 6, 9
    labels = np.repeat(np.arange(K), n)
    h = rng(0).normal(size=(K, d))[labels] + 0.3 * rng(1).normal(size=(K * n, d))
    W = nc.ridge(h, np.eye(K)[labels], weight_decay).T
    means = np.stack([h[labels == c].mean(0) for c in range(K)])
    A, spread = means.T, (h - means[labels]).T @ (h - means[labels]) / len(h)
    from_means = np.linalg.solve(A.T @ A + weight_decay * K * np.eye(K), A.T)
    np.testing.assert_allclose(from_means, nc.ridge(means, np.eye(K), weight_decay).T, atol=1e-12)
    other = from_means - W @ spread @ np.linalg.inv(A @ A.T / K + weight_decay * np.eye(d))
    np.testing.assert_allclose(W, other, atol=1e-11)
    pull = ((np.eye(K)[labels] - h @ W.T) * (h @ W.T)).sum(1).mean()
    assert weight_decay * (W**2).sum() == pytest.approx(pull, rel=1e-10)


def test_an_isotropic_frame_orthogonal_to_its_mean_is_self_dual():
    frame = nc.simplex_etf(5, 8, seed=1) @ np.eye(8, 9)
    means = 2 * frame + 3 * np.eye(9)[8]
    W = nc.ridge(means, np.eye(5), 0.05).T
    rows = W - W.mean(0)
    cosine = (rows * frame).sum() / np.linalg.norm(rows) / np.linalg.norm(frame)
    assert cosine == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("norm", ["wn", "lm"])
def test_a_scale_and_a_direction_have_the_critical_points_of_the_matrix(norm):
    """At W = ridge the gradient in (g, v), and in (ρ, V) on the sphere, vanishes."""
    h, labels = rng(2).normal(size=(12, 5)), np.repeat(np.arange(3), 4)
    x, y = torch.tensor(h), torch.eye(3, dtype=torch.float64)[labels]
    W = torch.tensor(nc.ridge(h, y.numpy(), 0.05).T)
    scale = W.norm().requires_grad_()
    direction = (W / W.norm() * (2.0 if norm == "wn" else 1.0)).requires_grad_()
    unit = direction / direction.norm() if norm == "wn" else direction
    loss = (x @ (scale * unit).T - y).square().sum(1).mean() + 0.05 * scale**2
    by_scale, by_direction = torch.autograd.grad(loss, [scale, direction])
    tangent = by_direction - (by_direction * direction).sum() / direction.square().sum() * direction
    assert by_scale.abs() < 1e-12
    assert tangent.abs().max() < 1e-12


# --- thm-depth


def test_two_linear_layers_on_white_inputs_in_closed_form():
    """⟨xxᵀ⟩ = I: P is the soft-thresholded correlation of y and x, and the factors are its square roots."""
    C, weight_decay = rng(3).normal(size=(3, 5)), 0.2
    U, sigma, V = np.linalg.svd(C, full_matrices=False)
    root = np.sqrt(np.maximum(0, sigma - weight_decay))
    W2, W1 = U * root, root[:, None] * V
    P = W2 @ W1
    # Stationarity of ⟨‖Px − y‖²⟩ + λ(‖W₁‖² + ‖W₂‖²) with ⟨yxᵀ⟩ = C.
    np.testing.assert_allclose((C - P) @ W1.T, weight_decay * W2, atol=1e-12)
    np.testing.assert_allclose(W2.T @ (C - P), weight_decay * W1, atol=1e-12)
    np.testing.assert_allclose((W2 @ W2.T) @ (W2 @ W2.T), P @ P.T, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_balanced_factors_share_the_condition_number(depth):
    """Any map split evenly, with random rotations between the layers, obeys the theorem's two identities."""
    U, sigma, V = np.linalg.svd(rng(4).normal(size=(4, 4)))
    turns = [np.linalg.qr(rng(5 + k).normal(size=(4, 4)))[0] for k in range(depth - 1)]
    frames = [V.T, *turns, U]
    W = [frames[k + 1] @ np.diag(sigma ** (1 / depth)) @ frames[k].T for k in range(depth)]
    for lower, upper in pairwise(W):
        np.testing.assert_allclose(upper.T @ upper, lower @ lower.T, atol=1e-12)
    P = np.linalg.multi_dot(W[::-1])
    np.testing.assert_allclose(np.linalg.matrix_power(W[-1] @ W[-1].T, depth), P @ P.T, atol=1e-10)
    assert np.log(np.linalg.cond(W[-1])) == pytest.approx(np.log(np.linalg.cond(P)) / depth, rel=1e-10)


# --- thm-mse-split


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
def test_split_by_explicit_projection(weight_decay):
    """Ridge as least squares with √(λN) I appended to the features; Pythagoras does the rest."""
    K, n, d = 3, 7, 5
    labels = np.repeat(np.arange(K), n)
    h, W, N = rng(6).normal(size=(K * n, d)), rng(7).normal(size=(K, d)), K * n
    rows = np.vstack([h, np.sqrt(weight_decay * N) * np.eye(d)])
    targets = np.vstack([np.eye(K)[labels], np.zeros((d, K))])
    hat = rows @ np.linalg.pinv(rows)
    whole = ((rows @ W.T - targets) ** 2).sum() / (2 * N)
    least = ((targets - hat @ targets) ** 2).sum() / (2 * N)
    best = nc.ridge(h, np.eye(K)[labels], weight_decay).T
    gap = W - best
    beyond = ((h @ gap.T) ** 2).sum() / (2 * N) + weight_decay / 2 * (gap**2).sum()
    assert whole == pytest.approx(least + beyond, rel=1e-12)
    means = np.stack([h[labels == c].mean(0) for c in range(K)])
    spread = (h - means[labels]).T @ (h - means[labels]) / N
    parts = np.trace(W @ spread @ W.T) / 2 + ((means @ W.T - np.eye(K)) ** 2).sum() / (2 * K)
    assert ((h @ W.T - np.eye(K)[labels]) ** 2).sum() / (2 * N) == pytest.approx(parts, rel=1e-12)


# --- the exercises


def test_solution_two_codings():
    assert solution("10_free_features", "ex-two-codings") == dict.fromkeys(
        ("nc1", "nc2_norm_weights", "nc2_angle_weights", "nc3", "nc4"), 0
    )


def test_solution_saddle():
    found, formula = solution("10_free_features", "ex-saddle")
    assert formula < 0
    assert found == pytest.approx(formula, rel=1e-10)


def test_solution_linear_binary():
    features, outputs = solution("11_neural_collapse", "ex-linear-binary")
    assert outputs > 1e-3
    assert features == pytest.approx(outputs, rel=1e-6)


def test_solution_extra_layer():
    predicted, found = solution("11_neural_collapse", "ex-extra-layer")
    np.testing.assert_allclose(found.numpy()[:3], predicted, rtol=1e-5)
