"""The proofs of chapter 16 by another route: other solvers, automatic differentiation, integrators, mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from scipy.special import expit, lambertw
from sklearn.svm import SVC

import nclib as nc


def points(seed, n=6, d=20):
    data = nc.data("teacher", n=n, d=d, seed=seed, dtype=torch.float64)
    return data.x.numpy(), data.y.numpy()


def objective(loss, w, X, y, lam):
    z = y * (X @ w)
    value = (1 - z) ** 2 if loss == "square" else np.logaddexp(0, -z)
    slope = -2 * (1 - z) if loss == "square" else -expit(-z)
    return value.mean() + lam * w @ w, X.T @ (y * slope) / len(y) + 2 * lam * w


def minimiser(loss, X, y, lam):
    options = {"ftol": 0, "gtol": 1e-14, "maxiter": 100_000, "maxfun": 200_000}
    return minimize(
        lambda w: objective(loss, w, X, y, lam), np.zeros(X.shape[1]), jac=True, method="L-BFGS-B", options=options
    ).x


def pulls(X, y):
    return np.linalg.solve((X @ X.T) * np.outer(y, y), np.ones(len(y)))


# --- thm-two-rests: at a point made stationary by hand, in a deep network


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
def test_at_rest_every_layer_has_the_norm_that_the_outputs_say(loss):
    """Descent in float64 by another optimiser than the chapter's, three layers; then the identity."""
    torch.manual_seed(1)
    x, y = (torch.from_numpy(part) for part in points(3))
    lam = 0.004
    W = [torch.randn(a, b, dtype=torch.float64) * 0.6 for a, b in ((12, 20), (12, 12), (1, 12))]
    W = [w.requires_grad_() for w in W]
    descent = torch.optim.LBFGS(
        W, max_iter=4000, history_size=50, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def outputs():
        h = x
        for w in W[:-1]:
            h = torch.relu(h @ w.T)
        return y * (h @ W[-1].T)[:, 0]

    def closure():
        descent.zero_grad()
        z = outputs()
        data = (1 - z).square() if loss == "square" else torch.nn.functional.softplus(-z)
        value = data.mean() + lam * sum(w.square().sum() for w in W)
        value.backward()
        return value

    descent.step(closure)
    z = outputs().detach()
    half = (z * (1 - z)).mean() if loss == "square" else (z * torch.sigmoid(-z)).mean() / 2
    assert half > 1e-3  # not at zero
    assert [lam * w.detach().square().sum().item() for w in W] == pytest.approx([half.item()] * 3, rel=5e-3)


def test_the_largest_norms_of_the_exercise():
    z = 1 + lambertw(np.exp(-1)).real
    assert z / (1 + np.exp(z)) == pytest.approx(z - 1)
    assert 0.373 < ((z - 1) / 2) ** 0.5 < 0.3732
    grid = np.linspace(0, 10, 10_001)
    assert (grid / (1 + np.exp(grid))).max() <= z - 1
    assert (grid * (1 - grid)).max() == pytest.approx(0.25)


# --- thm-two-ends


@pytest.mark.parametrize("seed", range(6))
def test_the_square_loss_reaches_the_largest_margin_where_all_points_pull(seed):
    X, y = points(seed, n=8, d=9)
    inner = X @ X.T
    machine = SVC(kernel="precomputed", C=1e9, tol=1e-9).fit(
        np.block([[inner, -inner], [-inner, inner]]), [*y, *-y]
    )
    a = np.zeros(16)  # mirrored points leave the machine's intercept no work
    a[machine.support_] = machine.dual_coef_[0]
    w = X.T @ (a[:8] - a[8:])
    best = (y * (X @ w)).min() / np.linalg.norm(w)
    ends = 1 / np.linalg.norm(np.linalg.pinv(X) @ y)
    assert ends <= best * (1 + 1e-6)
    assert (ends > best * (1 - 1e-6)) == bool((pulls(X, y) >= 0).all())


# --- thm-two-memories


def test_the_clock_of_cross_entropy():
    N, start = 4, np.array([0.0, 0.5, -1.0, 2.0])
    run = solve_ivp(lambda t, z: expit(-z) / N, (0, 500), start, rtol=1e-11, atol=1e-12)
    end = run.y[:, -1]
    assert end + np.exp(end) == pytest.approx(500 / N + start + np.exp(start), rel=1e-8)


def test_what_is_missing_falls_as_the_logarithm_squared():
    """To leading order r²/(2N ln²t): with fifty, five hundred, … digits of t the ratio tends to 1."""
    N, r, ratios = 6, 3, []
    with mpmath.workdps(30):
        for digits in (50, 500, 5000):
            t = mpmath.mpf(10) ** digits
            a = mpmath.mpf(0)
            for _ in range(20):  # a + eᵃ = t/N + 1
                a = mpmath.log(t / N + 1 - a)
            missing = 1 - a / mpmath.sqrt(a**2 + mpmath.mpf(r) ** 2 / N)
            ratios.append(float(missing / (mpmath.mpf(r) ** 2 / (2 * N * mpmath.log(t) ** 2))))
    assert abs(ratios[0] - 1) > abs(ratios[1] - 1) > abs(ratios[2] - 1)
    assert ratios[2] == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
def test_no_loss_touches_what_the_data_do_not_see(loss):
    X, y = points(2)
    _, gradient = objective(loss, np.linspace(-1, 1, 20), X, y, 0.0)
    unseen = np.eye(20) - np.linalg.pinv(X) @ X
    assert np.abs(unseen @ gradient).max() < 1e-13


def test_the_times_of_the_exercise():
    N, r, lam = 6, 10, 1e-3
    a = r / np.sqrt(0.02 * N)
    assert a == pytest.approx(29, abs=0.2)
    assert np.log10(N * (a + np.exp(a))) == pytest.approx(13, abs=0.5)
    run = solve_ivp(lambda t, a: expit(-a) / N - 2 * lam * a, (0, 1100), [0.0], rtol=1e-9)
    a = run.y[0, -1]
    assert a == pytest.approx(3.2, abs=0.05)
    missing = [1 - a / np.hypot(a, r * np.exp(-2 * lam * t) / N**0.5) for t in (1050, 1100, 1150)]
    assert missing[0] > 0.01 > missing[2]


# --- thm-price: by general-purpose minimisation of the losses themselves


@pytest.mark.parametrize("seed", range(4))
def test_the_price_under_the_square_loss(seed):
    X, y = points(seed, d=60)
    alpha, lam = pulls(X, y), 1e-5
    w = minimiser("square", X, y, lam)
    assert y * (X @ w) == pytest.approx(1 - 6 * lam * alpha, abs=1e-7)
    missing = 1 - (y * (X @ w)).min() / np.linalg.norm(w) * alpha.sum() ** 0.5
    assert missing == pytest.approx(6 * lam * (alpha.max() - (alpha**2).sum() / alpha.sum()), rel=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_price_under_cross_entropy_is_off_by_its_next_term(seed):
    """s times the price tends to its constant, with an error that falls as 1/s: seen by the minimiser itself."""
    X, y = points(seed, d=60)
    alpha = pulls(X, y)
    constant = np.log(alpha.max()) - (alpha * np.log(alpha)).sum() / alpha.sum()
    errors = []
    for lam in (1e-3, 1e-5, 1e-7):
        w = minimiser("cross_entropy", X, y, lam)
        z = y * (X @ w)
        s = lambertw(1 / (2 * 6 * lam)).real
        errors.append(s * (s * (1 - z.min() / np.linalg.norm(w) * alpha.sum() ** 0.5) / constant - 1))
        assert z == pytest.approx(s - np.log(alpha), abs=3 / s)
    assert np.abs(errors).max() < 2.5


def test_points_that_pull_alike_pay_nothing():
    X, y = np.eye(4), np.array([1, -1, 1, 1])
    for loss in ("square", "cross_entropy"):
        for lam in (0.1, 1e-3):
            w = minimiser(loss, X, y, lam)
            assert (y * w).min() / np.linalg.norm(w) == pytest.approx(0.5, rel=1e-6)
