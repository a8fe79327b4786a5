"""The proofs of chapters 8 and 9, each by another route than the chapter's: automatic differentiation of other
losses, hand-made integrators, closed forms, brute force. And the code of their exercises' solutions.
"""

from __future__ import annotations

import contextlib
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import solution
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm

import nclib as nc


def teacher(seed, n=6, d=20):
    return nc.data("teacher", n=n, d=d, seed=seed, dtype=torch.float64)


def weights(widths, seed, norms=None):
    """Random layers, each of Frobenius norm 1 or as given."""
    generator = torch.Generator().manual_seed(seed)
    W = [torch.randn(b, a, generator=generator, dtype=torch.float64) for a, b in pairwise(widths)]
    norms = norms or [1.0] * len(W)
    return [(r * w / w.norm()).requires_grad_() for w, r in zip(W, norms, strict=True)]


def outputs(W, x, activation=torch.relu):
    h = x
    for w in W[:-1]:
        h = activation(h @ w.T)
    return (h @ W[-1].T)[:, 0]


def delta(W):
    return torch.cat([(a**2).sum(1) - (b**2).sum(0) for a, b in pairwise(W)])


class Chosen(torch.autograd.Function):
    """A ReLU whose subgradient at the kink is chosen."""

    slope = 0.5

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * torch.where(z == 0, torch.full_like(z, Chosen.slope), (z > 0).to(z.dtype))


# --- conserved quantities ----------------------------------------------------------------------------


def square(f, y):
    return ((f - y) ** 2).mean()


def logistic(f, y):
    return torch.log1p((-f * y).exp()).sum()


@pytest.mark.parametrize("loss", [square, logistic])
def test_incoming_and_outgoing_weights_have_the_same_radial_gradient(loss):
    data = teacher(3)
    W = weights((20, 7, 5, 6, 1), seed=1, norms=[1, 2, 3, 4])
    G = torch.autograd.grad(loss(outputs(W, data.x), data.y), W)
    for k in range(3):
        incoming, outgoing = (W[k] * G[k]).sum(1), (W[k + 1] * G[k + 1]).sum(0)
        torch.testing.assert_close(incoming, outgoing, rtol=1e-10, atol=1e-13)
        assert incoming.abs().max() > 1e-6


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_the_symmetry_holds_at_a_kink_for_every_subgradient(slope):
    data = teacher(2)
    W = weights((20, 4, 1), seed=0)
    with torch.no_grad():  # put the kinks of two neurons exactly on training points
        for i in (0, 1):
            x = data.x[i] * 0 + torch.round(data.x[i] * 8)
            data.x[i] = x
            W[0][i] = torch.round(W[0][i] * 64) / 64
            j = int(x.nonzero()[0])
            W[0][i, j] = 0
            W[0][i, j] = -(W[0][i] @ x) / x[j]
    on_kink = (data.x @ W[0].T) == 0
    assert on_kink.any()
    Chosen.slope = slope
    G = torch.autograd.grad(((outputs(W, data.x, Chosen.apply) - data.y) ** 2).mean(), W)
    torch.testing.assert_close((W[0] * G[0]).sum(1), (W[1] * G[1]).sum(0), rtol=1e-10, atol=1e-13)


def test_without_a_relu_whole_matrices_meet():
    data = teacher(1)
    W = weights((20, 5, 4, 1), seed=2)
    G = torch.autograd.grad(((outputs(W, data.x, lambda z: z) - data.y) ** 2).mean(), W)
    for k in range(2):
        torch.testing.assert_close(G[k] @ W[k].T, W[k + 1].T @ G[k + 1], rtol=1e-10, atol=1e-13)
    G = torch.autograd.grad(((outputs(W, data.x) - data.y) ** 2).mean(), W)
    assert (G[0] @ W[0].T - W[1].T @ G[1]).norm() > 1e-3 * G[0].norm()


def test_weight_decay_makes_the_imbalance_decay():
    """A fourth-order Runge–Kutta flow of a linear network, which knows nothing of nclib."""
    data, decay, h = teacher(4), 0.1, 0.01
    W = [w.detach() for w in weights((20, 4, 1), seed=3, norms=[0.7, 1.3])]

    def velocity(W):
        W = [w.detach().requires_grad_() for w in W]
        loss = ((outputs(W, data.x, lambda z: z) - data.y) ** 2).mean() + decay * sum((w**2).sum() for w in W)
        return [-g for g in torch.autograd.grad(loss, W)]

    before = delta(W)
    for _ in range(200):
        k1 = velocity(W)
        k2 = velocity([w + h / 2 * k for w, k in zip(W, k1, strict=True)])
        k3 = velocity([w + h / 2 * k for w, k in zip(W, k2, strict=True)])
        k4 = velocity([w + h * k for w, k in zip(W, k3, strict=True)])
        W = [w + h / 6 * (a + 2 * b + 2 * c + d) for w, a, b, c, d in zip(W, k1, k2, k3, k4, strict=True)]
    torch.testing.assert_close(delta(W), before * math.exp(-4 * decay * 2.0), rtol=1e-7, atol=1e-10)


def test_the_drift_of_any_gradient_steps_is_exact():
    """Mini-batches, another loss, growing steps: the drift is Σ η² δ(G) all the same."""
    data = teacher(5, n=12)
    W = weights((20, 6, 5, 1), seed=4, norms=[1.5, 1.5, 1.5])
    before, told = delta(W).detach(), 0.0
    for step in range(30):
        batch = slice(step % 4 * 3, step % 4 * 3 + 3)
        loss = torch.log1p((-outputs(W, data.x[batch]) * data.y[batch]).exp()).mean()
        G, lr = torch.autograd.grad(loss, W), 0.02 * (step + 1)
        told = told + lr**2 * delta(G)
        with torch.no_grad():
            for w, g in zip(W, G, strict=True):
                w -= lr * g
    torch.testing.assert_close(delta(W).detach() - before, told, rtol=1e-9, atol=1e-13)


# --- growth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_velocities_of_norm_and_direction(depth):
    data = teacher(depth)
    norms = [0.5 + k for k in range(depth)]
    W = weights((20, *[6] * (depth - 1), 1), seed=depth, norms=norms)
    f = outputs(W, data.x)
    dW = [-g for g in torch.autograd.grad(((f - data.y) ** 2).mean(), W)]
    rho = math.prod(norms)
    V = [(w / r).detach().requires_grad_() for w, r in zip(W, norms, strict=True)]
    fV = outputs(V, data.x)
    mu, M = (data.y * fV).mean(), (fV**2).mean()
    rates = [(w * d).sum() / r for w, d, r in zip(W, dW, norms, strict=True)]
    found = rho * sum(rate / r for rate, r in zip(rates, norms, strict=True))
    told = 2 * rho**2 * (mu - rho * M) * sum(r**-2 for r in norms)
    torch.testing.assert_close(found, told, rtol=1e-10, atol=0)
    residual = (data.y - rho * fV).detach()
    slopes = torch.autograd.grad((residual * fV).mean(), V)
    for v, slope, w, d, r, rate in zip(V, slopes, W, dW, norms, rates, strict=True):
        moved = d / r - w * rate / r**2  # the derivative of W/‖W‖
        formula = 2 * rho / r**2 * (slope - (residual * fV).mean() * v)
        torch.testing.assert_close(moved, formula, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
def test_the_clock_is_the_integral_of_the_slowness(depth):
    for low, high in ((0.01, 0.5), (0.3, 20.0)):
        integral, _ = quad(lambda rho: rho ** (2 / depth - 2), low, high, epsrel=1e-12)
        assert nc.growth_clock(high, depth) - nc.growth_clock(low, depth) == pytest.approx(integral, rel=1e-9)


# --- alignment ---------------------------------------------------------------------------------------


def test_every_ascent_of_a_linear_network_ends_at_the_length_of_beta():
    """Alternating maximisation, a different ascent: each layer in turn takes its best direction."""
    rng = np.random.default_rng(0)
    for depth in (2, 3, 4):
        beta = rng.normal(size=9)
        V = [rng.normal(size=shape) for shape in pairwise((9, *[5] * (depth - 1), 1))]
        V = [v.T / np.linalg.norm(v) for v in V]
        for _ in range(200):
            for k in range(depth):
                after = np.eye(1)
                for v in V[:k:-1]:
                    after = after @ v
                before = beta
                for v in V[:k]:
                    before = v @ before
                gradient = np.outer(after[0], before)
                V[k] = gradient / np.linalg.norm(gradient)
        mu = beta
        for v in V:
            mu = v @ mu
        assert mu[0] == pytest.approx(np.linalg.norm(beta), rel=1e-10)
        assert all(np.linalg.svd(v)[1][1:].sum() < 1e-8 for v in V)


def test_no_two_layer_network_beats_its_best_neuron():
    x, y = (part.numpy() for part in (teacher(7, n=8, d=2).x, teacher(7, n=8, d=2).y))
    angle = np.linspace(0, 2 * np.pi, 20_001)
    g = (np.maximum(np.stack([np.cos(angle), np.sin(angle)], 1) @ x.T, 0) * y).mean(1)
    best, rng, seen = abs(g).max(), np.random.default_rng(1), []
    w, a = rng.normal(size=(20, 2)), rng.normal(size=20)
    for _ in range(6000):  # projected gradient ascent of μ on the product of spheres
        w, a = w / np.linalg.norm(w), a / np.linalg.norm(a)
        active = x @ w.T > 0
        mu = (y[:, None] * np.maximum(x @ w.T, 0)).mean(0) @ a
        seen.append(mu)
        dw, da = a[:, None] * ((y[:, None] * active).T @ x) / len(y), (y[:, None] * np.maximum(x @ w.T, 0)).mean(0)
        w, a = w + 0.05 * dw, a + 0.05 * da
    assert max(seen) <= best * (1 + 1e-6)  # the grid of angles misses the best one by a little
    assert seen[-1] == pytest.approx(best, rel=1e-2)
    assert min(np.diff(seen)) > -1e-3 * best
    alive = np.abs(a) > 0.05
    np.testing.assert_allclose(np.abs(a[alive]), np.linalg.norm(w[alive], axis=1), rtol=0.05)


# --- waiting -----------------------------------------------------------------------------------------


def test_no_direction_has_a_mean_margin_above_the_speed_limit():
    for seed in range(20):
        data = teacher(seed, n=10, d=4)
        chi = torch.linalg.matrix_norm(data.x, 2) / math.sqrt(10)
        for activation in (torch.relu, lambda z: z):
            f = outputs(weights((4, 5, 3, 1), seed=seed), data.x, activation)
            M = (f**2).mean().sqrt()
            assert abs((data.y * f).mean()) <= M + 1e-15
            assert chi + 1e-15 >= M
    # and the limit is reached: L = 1, w along the first right singular vector, labels the signs of X w
    x = teacher(0, n=10, d=4).x
    chi = float(torch.linalg.matrix_norm(x, 2)) / math.sqrt(10)
    assert float(((x @ torch.linalg.svd(x).Vh[0]) ** 2).mean().sqrt()) == pytest.approx(chi)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("degrees", [20, 95, 160])
def test_escape_time_of_the_ascent(depth, degrees):
    """The pair (ln ρ, φ) of the ascent in time itself, by a solver, until ρ is at the level."""
    size, rho0, level, angle = 0.4, 1e-4, 1e-2, math.radians(degrees)

    def velocity(_, state):
        speed = 2 * size * math.exp(state[0] * (1 - 2 / depth))
        return [depth * speed * math.cos(state[1]), -speed * math.sin(state[1])]

    def there(_, state):
        return state[0] - math.log(level)

    there.terminal = True
    told = nc.linear_escape_time(rho0, level, depth, size, angle)
    start = [math.log(rho0), angle]
    solved = solve_ivp(velocity, (0, 10 * told), start, "LSODA", events=there, rtol=1e-11, atol=1e-13)
    assert solved.t_events[0][0] == pytest.approx(told, rel=1e-6)


def test_what_a_wrong_start_costs_in_the_limit():
    size, angle = 0.5, math.radians(130)
    aligned = {L: nc.linear_escape_time(1e-14, 1e-2, L, size, 1e-7) for L in (2, 3, 4)}
    wrong = {L: nc.linear_escape_time(1e-14, 1e-2, L, size, angle) for L in (2, 3, 4)}
    assert wrong[2] - aligned[2] == pytest.approx(-math.log(math.cos(angle / 2)) / size, rel=1e-4)
    assert wrong[3] / aligned[3] == pytest.approx(angle / math.sin(angle), rel=1e-3)
    assert wrong[4] / aligned[4] == pytest.approx(2 / (1 + math.cos(angle)), rel=1e-4)


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_the_limit_of_the_escape_time_for_a_linear_start(depth):
    """∫ exp(−2(L−2) ∫μ°) dτ with μ° = ‖β‖ cos φ and tan(φ/2) = tan(φ₀/2) exp(−2‖β‖τ)."""
    size, angle = 0.7, 1.9

    def phi(tau):
        return 2 * math.atan(math.tan(angle / 2) * math.exp(-2 * size * tau))

    def integrand(tau):
        inner, _ = quad(lambda u: size * math.cos(phi(u)), 0, tau)
        return math.exp(-2 * (depth - 2) * inner)

    limit, _ = quad(integrand, 0, 30)
    rho0 = 1e-24
    found = nc.linear_escape_time(rho0, 1e-2, depth, size, angle) * rho0 ** (1 - 2 / depth)
    assert found == pytest.approx(limit, rel=1e-4)


def test_a_lopsided_start_by_the_exercise():
    """ρ̇ = 2 √(δ² + 4ρ²) (μ − ρM), from the layers themselves."""
    for seed in range(5):
        rho_1, rho_2, drive = np.random.default_rng(seed).uniform(0.1, 3, size=3)
        change = 2 * rho_1 * rho_2 * drive  # of ρ_k², halved, for drive = μ − ρM
        rate = rho_2 * change / rho_1 + rho_1 * change / rho_2
        gap = rho_1**2 - rho_2**2
        assert rate == pytest.approx(2 * math.sqrt(gap**2 + 4 * (rho_1 * rho_2) ** 2) * drive)


# --- lazy --------------------------------------------------------------------------------------------


def test_the_energy_by_integration_of_the_linearised_flow():
    rng = np.random.default_rng(2)
    A, y = rng.normal(size=(4, 9)), rng.normal(size=4)
    Theta = A @ A.T / 4

    def power(tau):
        e = expm(-2 * Theta * tau) @ y
        return 4 * e @ (y - e) / 4

    energy = y @ np.linalg.solve(Theta, y) / 4
    assert quad(power, 0, 400, limit=400)[0] == pytest.approx(energy, rel=1e-6)


def test_one_layer_is_lazy_at_every_size():
    """L = 1 from w₀ orthogonal to the data: ρ∞² = ρ₀² + ‖X⁺y‖², and E is ‖X⁺y‖²."""
    data = teacher(8)
    x, y = data.x.numpy(), data.y.numpy()
    w0 = (np.eye(20) - np.linalg.pinv(x) @ x) @ np.random.default_rng(0).normal(size=20)
    Theta = nc.tangent_kernel([w0[None, None]], x[None])[0]
    energy = y @ np.linalg.solve(Theta, y) / 6
    best = nc.minimum_norm(x, y)
    assert energy == pytest.approx(best @ best)
    end = nc.interpolant_from(x, y, w0)
    assert end @ end == pytest.approx(w0 @ w0 + energy)
    assert np.linalg.norm(end - w0) == pytest.approx(math.sqrt(energy))


def test_a_paired_start_has_no_output():
    run = nc.exact_flow(
        teacher, (8, 6), weight_decay=0.0, time=1e-9, seed=[1, 2], paired=True, model="plain", records=1
    )
    W = [torch.tensor(w[1]) for w in run.W0]
    assert outputs(W, torch.tensor(run.x[1])).abs().max() < 1e-15
    assert all(abs(w.norm() - 1) < 1e-14 for w in W)
    with pytest.raises(ValueError, match="paired=True needs an even last hidden width"):
        nc.flow(teacher, (7,), weight_decay=0.0, time=1.0, paired=True)


# --- deep linear networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_end_of_a_deep_linear_network(depth):
    """The closed equation of the end-to-end vector, by a stiff solver, from a start that the data see in part."""
    data = teacher(depth, n=4)
    x, y = data.x.numpy(), data.y.numpy()
    w0 = 0.2 * np.random.default_rng(depth).normal(size=20)
    unseen = np.eye(20) - np.linalg.pinv(x) @ x

    def velocity(_, w):
        G = 2 * x.T @ (y - x @ w) / len(y)
        size = np.linalg.norm(w)
        return size ** (2 - 2 / depth) * (G + (depth - 1) * (w @ G) * w / size**2)

    solved = solve_ivp(velocity, (0, 600), w0, "LSODA", rtol=1e-11, atol=1e-13)
    for w in solved.y.T[:: max(1, len(solved.t) // 20)]:
        told = unseen @ w0 * (np.linalg.norm(w) / np.linalg.norm(w0)) ** (1 - 1 / depth)
        np.testing.assert_allclose(unseen @ w, told, atol=1e-8)
    np.testing.assert_allclose(solved.y[:, -1], nc.interpolant_from(x, y, w0, depth), atol=1e-6)


def test_the_closed_equation_is_that_of_the_layers():
    rng = np.random.default_rng(5)
    a, G = [v / np.linalg.norm(v) for v in (rng.normal(size=n) for n in (6, 4, 3))], rng.normal(size=6)
    rho, depth = 0.3, 3
    W = [rho ** (1 / 3) * np.outer(a[1], a[0]), rho ** (1 / 3) * np.outer(a[2], a[1]), rho ** (1 / 3) * a[2][None]]
    dW = [np.outer((W[2] @ W[1])[0], G), np.outer(W[2][0], W[0] @ G), (W[1] @ W[0] @ G)[None]]
    dw = dW[2] @ W[1] @ W[0] + W[2] @ dW[1] @ W[0] + W[2] @ W[1] @ dW[0]
    w = (W[2] @ W[1] @ W[0])[0]
    size = np.linalg.norm(w)
    told = size ** (2 - 2 / depth) * (G + (depth - 1) * (w @ G) * w / size**2)
    np.testing.assert_allclose(dw[0], told, atol=1e-14)
    assert size == pytest.approx(rho)


def test_no_gradient_reaches_what_the_data_do_not_show():
    data = teacher(9)
    W = weights((20, 6, 5, 1), seed=9)
    off = torch.eye(20, dtype=torch.float64) - torch.linalg.pinv(data.x) @ data.x
    G = torch.autograd.grad(torch.log1p((-outputs(W, data.x) * data.y).exp()).mean(), W)
    assert (G[0] @ off).norm() < 1e-13 * G[0].norm() + 1e-16


# --- exercises ---------------------------------------------------------------------------------------


def numbers(label, chapter="08_implicit_regularisation"):
    """What one solution prints."""
    seeds = nc.seeds(5)

    def digits(seed, n=40):
        return nc.data("digits", classes=(3, 8), n=n, seed=seed, dtype=torch.float64)

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        solution(chapter, label, teacher=teacher, digits=digits, seeds=seeds)
    return [float(word) for word in printed.getvalue().split()]


def test_a_power_in_the_place_of_the_relu():
    data = teacher(6)
    for p in (0.5, 2.0, 3.0):
        W = weights((20, 5, 1), seed=6)
        G = torch.autograd.grad(((outputs(W, data.x, lambda z, p=p: torch.relu(z) ** p) - data.y) ** 2).mean(), W)
        torch.testing.assert_close((W[0] * G[0]).sum(1), p * (W[1] * G[1])[0], rtol=1e-9, atol=1e-13)


def test_a_bias_counts_as_a_weight():
    without, counted = numbers("ex-bias-balance")
    assert without > 0.01
    assert counted < without / 100


def test_two_layers_out_of_balance():
    integral, formula = numbers("ex-lopsided")
    assert integral == pytest.approx(formula, rel=1e-6)


def test_the_price_of_pointing_the_wrong_way():
    depths, extra, factor = np.reshape(numbers("ex-wrong-way", "09_lazy_and_linear"), (3, 3)).T
    assert depths.tolist() == [2, 3, 4]
    assert extra[0] == pytest.approx(-2 * math.log(math.cos(math.radians(85))), rel=0.02)
    assert -2 * math.log(math.cos(math.radians(85))) == pytest.approx(4.9, abs=0.05)
    angle = math.radians(170)
    assert factor[1] == pytest.approx(17.1, rel=0.15)
    assert angle / math.sin(angle) == pytest.approx(17, abs=0.5)
    assert factor[2] == pytest.approx(132, rel=0.05)
    assert 2 / (1 + math.cos(angle)) == pytest.approx(132, abs=0.5)
    assert [100 * math.sin(angle) ** L for L in (2, 3, 4)] == pytest.approx([3, 0.5, 0.09], rel=0.05)


def test_adam_keeps_nothing():
    coarse, fine = numbers("ex-adam")
    assert abs(fine) > 0.1
    assert coarse == pytest.approx(fine, rel=0.2)


def test_one_layer_moves_as_told_at_every_size_by_the_exercise():
    distance, told, grown, formula = numbers("ex-lazy-one-layer", "09_lazy_and_linear")
    assert distance == pytest.approx(told)
    assert grown == pytest.approx(formula)
    assert grown > 1.001


def test_how_small_a_layer_must_be_does_not_depend_on_the_depth():
    depths, away, told = np.reshape(numbers("ex-small-enough", "09_lazy_and_linear"), (4, 3)).T
    assert depths.tolist() == [1, 2, 3, 4]
    assert away == pytest.approx(told, rel=1e-3)
    assert max(away) < 0.03
