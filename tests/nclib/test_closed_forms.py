"""The closed forms against what they claim to solve."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nclib.theory import closed_forms as cf

PROPERTY = settings(deadline=None, max_examples=30, derandomize=True)


def outputs(seed, members=3, points=20):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(members, points)), rng.choice([-1.0, 1.0], size=points)


# --- margins and the equilibrium norm


@PROPERTY
@given(seed=st.integers(0, 10**6), decay=st.floats(1e-6, 10))
def test_equilibrium_norm_is_the_least_loss_over_rho(seed, decay):
    f, y = outputs(seed)

    def loss(rho):
        return ((rho[:, None] * f - y) ** 2).mean(-1) + decay * rho**2

    rho = cf.equilibrium_norm(f, y, decay)
    np.testing.assert_allclose(loss(rho), cf.equilibrium_loss(f, y, decay), rtol=1e-12)
    for step in (-1e-3, 1e-3):
        assert np.all(loss(rho + step) > loss(rho))


@PROPERTY
@given(seed=st.integers(0, 10**6), decay=st.floats(1e-6, 10))
def test_equilibrium_loss_is_what_the_moments_say(seed, decay):
    f, y = outputs(seed)
    mu, M = (y * f).mean(-1), (f**2).mean(-1)
    np.testing.assert_allclose(cf.equilibrium_loss(f, y, decay), 1 - mu**2 / (M + decay), rtol=1e-12)


def test_equal_margins_without_decay_give_one_over_the_margin():
    y = np.array([1.0, -1, -1, 1])
    assert cf.equilibrium_norm(0.25 * y, y, 0) == pytest.approx(4, rel=1e-14)


def test_loss_survives_collapse():
    y = np.ones(1000)
    f = 1 + 1e-10 * np.resize([1.0, -1.0], 1000)
    assert cf.equilibrium_loss(f, y, 0) == pytest.approx(1e-20, rel=1e-5, abs=0)  # σ²/(σ² + μ²)


def test_leading_axes_are_a_batch_and_decay_may_differ_by_member():
    f, y = outputs(0)
    decays = np.array([0.0, 0.1, 1.0])
    together = cf.equilibrium_norm(f, y, decays)
    alone = [cf.equilibrium_norm(row, y, decay) for row, decay in zip(f, decays, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-14)


def test_tensors_give_what_arrays_give():
    f, y = outputs(1)
    tensor = torch.tensor(f, requires_grad=True)
    np.testing.assert_array_equal(
        cf.equilibrium_norm(tensor, torch.tensor(y), torch.tensor(0.1, dtype=torch.float64)),
        cf.equilibrium_norm(f, y, 0.1),
    )
    assert cf.ridge(torch.ones(2, 3), torch.ones(2), 0.1).dtype == np.float64


# --- linear models


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_ridge_is_stationary(shape, columns):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.normal(size=shape[:1] + columns)
    w = cf.ridge(x, y, 0.3)
    gradient = x.T @ (x @ w - y) / len(x) + 0.3 * w
    assert np.abs(gradient).max() < 1e-14


def test_ridge_tends_to_minimum_norm():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 10)), rng.normal(size=6)
    target = cf.minimum_norm(x, y)
    np.testing.assert_allclose(target, np.linalg.pinv(x) @ y, atol=1e-13)
    far, near = (np.linalg.norm(cf.ridge(x, y, decay) - target) for decay in (1e-6, 1e-8))
    assert near == pytest.approx(far / 100, rel=1e-3)


def test_ridge_with_a_rank_that_is_not_full():
    x = np.outer(np.arange(1.0, 6), [1.0, 2, 3])
    np.testing.assert_allclose(cf.ridge(x, x[:, 0], 1e-25), cf.minimum_norm(x, x[:, 0]), atol=1e-13)
    assert not cf.minimum_norm(np.zeros((2, 3)), np.ones(2)).any()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_interpolant_is_where_gradient_descent_ends(shape):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.normal(size=shape[0])
    start = rng.normal(size=shape[1])
    w = start.copy()
    rate = 1 / np.linalg.norm(x, 2) ** 2
    for _ in range(5000):
        w -= rate * x.T @ (x @ w - y)
    np.testing.assert_allclose(cf.interpolant_from(x, y, start), w, atol=1e-10)
    projector = np.eye(shape[1]) - np.linalg.pinv(x) @ x
    np.testing.assert_allclose(
        cf.interpolant_from(x, y, start), np.linalg.pinv(x) @ y + projector @ start, atol=1e-12
    )


# --- simplex frame


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (2, None), (4, 3), (10, 64), (200, 199)])
def test_simplex_is_a_simplex(classes, dim):
    frame = cf.simplex_etf(classes, dim, seed=3)
    assert frame.shape == (classes, dim or classes)
    gram = (classes * np.eye(classes) - 1) / (classes - 1)
    assert np.abs(frame @ frame.T - gram).max() < 1e-13
    assert np.abs(frame.sum(0)).max() < 1e-12


def test_simplex_seed_chooses_the_orientation():
    np.testing.assert_array_equal(cf.simplex_etf(3, seed=1), cf.simplex_etf(3, seed=1))
    assert np.abs(cf.simplex_etf(3, seed=1) - cf.simplex_etf(3, seed=2)).max() > 0.1


def test_simplex_has_no_favourite_orientation():
    first = np.array([cf.simplex_etf(3, 2, seed=seed)[0] for seed in range(2000)])
    assert np.abs(first.mean(0)).max() < 4 / np.sqrt(2 * 2000)


# --- unconstrained features


def ufm_loss(flat, classes, dim, labels, decay_w, decay_h):
    """The objective and its gradient, written out independently of the closed form."""
    points = len(labels)
    weight, features, bias = np.split(flat, [classes * dim, classes * dim + points * dim])
    weight, features = weight.reshape(classes, dim), features.reshape(points, dim)
    residual = features @ weight.T + bias - np.eye(classes)[labels]
    loss = (residual**2).sum() / (2 * points)
    loss += decay_w / 2 * (weight**2).sum() + decay_h / 2 * (features**2).sum()
    gradient = (
        residual.T @ features / points + decay_w * weight,
        residual @ weight / points + decay_h * features,
        residual.sum(0) / points,
    )
    return loss, np.concatenate([part.ravel() for part in gradient])


@pytest.mark.parametrize(
    ("classes", "per_class", "decay_w", "decay_h", "dim"),
    [(4, 10, 5e-3, 5e-3, 6), (3, 5, 2e-2, 1e-3, 3), (2, 4, 1e-2, 4e-2, 1), (3, 1, 0.05, 0.01, 2)],
)
def test_ufm_minimiser_is_what_an_optimiser_finds(classes, per_class, decay_w, decay_h, dim):
    best = cf.ufm_minimiser(classes, per_class, decay_w, decay_h, dim=dim, seed=1)
    arguments = (classes, dim, best.labels, decay_w, decay_h)
    loss, gradient = ufm_loss(np.concatenate([best.weight.ravel(), best.features.ravel(), best.bias]), *arguments)
    assert best.loss == pytest.approx(loss, rel=1e-13)
    assert np.abs(gradient).max() < 1e-14

    start = np.random.default_rng(0).normal(size=gradient.size)
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-12}
    found = minimize(ufm_loss, start, arguments, "L-BFGS-B", jac=True, options=options)
    assert found.fun == pytest.approx(best.loss, rel=1e-10)
    weight, features, bias = np.split(found.x, [classes * dim, -classes])
    weight, features = weight.reshape(classes, dim), features.reshape(-1, dim)
    np.testing.assert_allclose(bias, best.bias, atol=1e-6)
    np.testing.assert_allclose(np.linalg.svd(features @ weight.T)[1][: classes - 1], best.singular_value, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), best.mean_norm, rtol=1e-6)
    # The same products in another orientation: what does not depend on the seed agrees.
    np.testing.assert_allclose(features @ weight.T, best.features @ best.weight.T, atol=1e-6)
    np.testing.assert_allclose(weight @ weight.T, best.weight @ best.weight.T, atol=1e-6)


def test_ufm_with_too_much_decay_is_zero():
    best = cf.ufm_minimiser(3, 4, 0.5, 0.5)
    assert best.singular_value == best.mean_norm == 0
    assert not best.weight.any()
    assert not best.features.any()
    assert best.loss == pytest.approx((1 - 1 / 3) / 2)  # half the variance of a one-hot label
    start = np.random.default_rng(0).normal(size=3 * 3 + 12 * 3 + 3)
    found = minimize(ufm_loss, start, (3, 3, best.labels, 0.5, 0.5), "L-BFGS-B", jac=True)
    assert found.fun == pytest.approx(best.loss, rel=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [6, 3, 3, 1], [9, 1]])
def test_ufm_minimiser_for_any_class_sizes(sizes, bias):
    best = cf.ufm_minimiser(len(sizes), sizes, 0.03, 0.01, bias=bias, dim=6, seed=2)
    arguments = (len(sizes), 6, best.labels, 0.03, 0.01)
    flat = np.concatenate([best.weight.ravel(), best.features.ravel(), best.bias])
    loss, gradient = ufm_loss(flat, *arguments)
    assert best.loss == pytest.approx(loss, rel=1e-13)
    moving = gradient if bias else gradient[: -len(sizes)]
    assert np.abs(moving).max() < 1e-14
    assert np.bincount(best.labels).tolist() == sizes
    rank = len(sizes) - bias
    assert best.singular_values.shape == (rank,)
    values = np.linalg.svd(best.features @ best.weight.T, compute_uv=False)
    np.testing.assert_allclose(values[:rank], best.singular_values, atol=1e-12)
    means = np.stack([best.features[best.labels == c].mean(0) for c in range(len(sizes))])
    np.testing.assert_allclose(best.features, means[best.labels], atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), best.mean_norms, atol=1e-13)
    assert best.singular_value == best.singular_values[0]
    assert best.mean_norm == best.mean_norms.max()


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cf.equilibrium_norm([1.0], [1], -0.1), "weight_decay is negative; write numbers >= 0"),
        (lambda: cf.equilibrium_norm([1.0], [1], float("nan")), "weight_decay: holds NaN"),
        (lambda: cf.equilibrium_norm([0.0], [1], 0), "write weight_decay > 0"),
        (lambda: cf.equilibrium_norm([1.0, 2.0], [0, 1], 1), "y holds .*write labels of two classes as ±1"),
        (lambda: cf.equilibrium_norm([1.0, 2.0], [1], 1), r"f has shape \(2,\), y \(1,\).*write f of shape"),
        (lambda: cf.equilibrium_norm(np.ones((2, 0)), [], 1), "write f of shape"),
        (lambda: cf.equilibrium_loss([0.0], [1], 0), "write weight_decay > 0"),
        (lambda: cf.ridge(np.ones((2, 3)), np.ones(2), -1), "weight_decay=-1: expected a weight decay"),
        (lambda: cf.ridge(np.ones((2, 3, 1)), np.ones(2), 1), r"x has shape \(2, 3, 1\).*write x of shape"),
        (lambda: cf.minimum_norm(np.ones((2, 3)), np.ones(3)), r"and y \(3,\).*write x of shape"),
        (
            lambda: cf.interpolant_from(np.ones((2, 3)), np.ones(2), np.ones(2)),
            r"w0 has shape.*\(3,\); write",
        ),
        (lambda: cf.simplex_etf(1), "classes=1: expected a whole number >= 2"),
        (lambda: cf.simplex_etf(4, 2), "dim=2: expected a whole number >= 3"),
        (lambda: cf.ufm_minimiser(1, 5, 0.1, 0.1), "classes=1: expected a whole number >= 2"),
        (lambda: cf.ufm_minimiser(3, 0, 0.1, 0.1), "per_class=0: expected a whole number >= 1"),
        (lambda: cf.ufm_minimiser(3, [5, 5], 0.1, 0.1), r"per_class=\[5, 5\]: write"),
        (lambda: cf.ufm_minimiser(3, 5, 0.1, 0.1, dim=1), "dim=1: expected a whole number >= 2"),
        (lambda: cf.ufm_minimiser(3, 5, 0.1, 0.1, dim=2, bias=False), "dim=2: expected a whole number >= 3"),
        (lambda: cf.ufm_minimiser(3, 5, 0.0, 0.1), "weight_decay_w=0.0: expected a positive number"),
        (lambda: cf.ufm_minimiser(3, 5, 0.1, -1.0), "weight_decay_h=-1.0: expected a positive number"),
    ],
)
def test_errors_say_what_to_write(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_deep_interpolant_satisfies_its_equation(depth):
    rng = np.random.default_rng(depth)
    x, y, w0 = rng.normal(size=(4, 9)), rng.normal(size=4), rng.normal(size=9)
    end = cf.interpolant_from(x, y, w0, depth)
    np.testing.assert_allclose(x @ end, y, atol=1e-12)
    unseen = np.eye(9) - np.linalg.pinv(x) @ x
    growth = (np.linalg.norm(end) / np.linalg.norm(w0)) ** (1 - 1 / depth)
    np.testing.assert_allclose(unseen @ end, unseen @ w0 * growth, atol=1e-12)
    small = cf.interpolant_from(x, y, 1e-9 * w0, depth) - cf.minimum_norm(x, y)
    smaller = cf.interpolant_from(x, y, 1e-12 * w0, depth) - cf.minimum_norm(x, y)
    ratio = np.linalg.norm(small) / np.linalg.norm(smaller)
    np.testing.assert_allclose(np.log(ratio) / np.log(1e3), 1 / depth, rtol=2e-3)


def test_deep_interpolant_of_a_start_in_the_span_is_the_minimum_norm():
    x, y = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.array([2.0, -1.0])
    np.testing.assert_allclose(cf.interpolant_from(x, y, [0.1, 0.2, 0.0], 3), [2, -1, 0], atol=1e-12)
    # labels that ask for nothing: the seen part goes, and the unseen one shrinks with the norm, s = ‖z‖²/‖w₀‖
    lost = cf.interpolant_from(np.array([[1.0, 0.0]]), np.array([0.0]), [0.3, 0.4], 2)
    np.testing.assert_allclose(lost, [0.0, 0.4**2 / 0.5], atol=1e-12)


def test_bad_deep_starts_say_what_to_write():
    x, y = np.eye(2), np.ones(2)
    with pytest.raises(ValueError, match="w0 is zero, where a network of depth=2 stays for ever"):
        cf.interpolant_from(x, y, [0.0, 0.0], 2)
    with pytest.raises(ValueError, match="write one output where depth > 1"):
        cf.interpolant_from(x, np.ones((2, 3)), np.ones((2, 3)), 2)
    with pytest.raises(ValueError, match="write norms > 0, which a balanced flow never leaves"):
        cf.growth_clock([0.1, 0.0], 2)
    with pytest.raises(ValueError, match="depth=0: expected a whole number >= 1"):
        cf.growth_clock(0.1, 0)


def test_escape_time_of_an_aligned_start_is_that_of_the_clock():
    for depth in (1, 2, 3, 5):
        found = cf.linear_escape_time(1e-5, 1e-2, depth, 0.3, 1e-6)
        clock = cf.growth_clock(1e-2, depth) - cf.growth_clock(1e-5, depth)
        assert found == pytest.approx(clock / (2 * depth * 0.3), rel=1e-6)
    with pytest.raises(ValueError, match="expected a norm > 0 and < level"):
        cf.linear_escape_time(1e-2, 1e-3, 2, 0.3, 1.0)
    with pytest.raises(ValueError, match="expected an angle in radians, 0 < angle < π"):
        cf.linear_escape_time(1e-3, 1e-2, 2, 0.3, 4.0)
