"""The steps people take, by other routes than the chapter's own: exact fractions, all orders, Hessians, roots."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

F64 = torch.float64


# --- what the steps leave: in exact fractions, with any batches


def fractions(rng, *shape):
    sevenths = [Fraction(int(v), 7) for v in rng.integers(-9, 10, np.prod(shape))]
    return np.array(sevenths, dtype=object).reshape(shape)


def exact_gradients(W, x, y, batch):
    """Gradients of a ReLU network of any depth on a batch; exact where the weights are fractions."""
    h, on = [x[batch].T], []
    for w in W[:-1]:
        z = w @ h[-1]
        on.append(z > 0)
        h.append(np.where(on[-1], z, Fraction(0)))
    delta = 2 * (W[-1] @ h[-1] - y[batch]) / Fraction(len(batch))
    found = []
    for k in reversed(range(len(W))):
        found.insert(0, delta @ h[k].T)
        if k:
            delta = (W[k].T @ delta) * on[k - 1]
    return found


def between(A, B, k, j):
    return (A[k] * B[k]).sum() - (A[j] * B[j]).sum()


@pytest.mark.parametrize(("seed", "k", "j"), [(0, 0, 1), (1, 0, 2), (2, 1, 2)])
def test_the_imbalance_grows_by_what_the_theorem_says_at_every_step(seed, k, j):
    rng, eta, beta = np.random.default_rng(seed), Fraction(1, 50), Fraction(2, 3)
    W = [fractions(rng, 3, 2), fractions(rng, 2, 3), fractions(rng, 1, 2)]
    x, y = fractions(rng, 4, 2), fractions(rng, 4)
    before, b, total = between(W, W, k, j), [Fraction(0)] * 3, Fraction(0)
    for _ in range(4):
        batch = rng.permutation(4)[: rng.integers(1, 4)]
        b = [beta * v + g for v, g in zip(b, exact_gradients(W, x, y, batch), strict=True)]
        W = [w - eta * v for w, v in zip(W, b, strict=True)]
        total += between(b, b, k, j)
    # What the finite sum still lacks is the momentum that goes on after the last step.
    rest = 2 * eta * beta / (1 - beta) * between(W, b, k, j)
    assert between(W, W, k, j) - before == eta**2 * (1 + beta) / (1 - beta) * total + rest
    assert total != 0


def test_momentum_multiplies_the_correction_of_the_flow():
    """A heavy ball in a parabola of curvature s: its slow root decays at the rate s(1 + εs/2) + O(h²)."""
    for beta, s in itertools.product((0.0, 0.5, 0.9), (0.7, 1.3)):
        errors = []
        for h in (1e-3, 5e-4):
            eta, epsilon = h * (1 - beta), h * (1 + beta) / (1 - beta)
            slow = max(np.roots([1, -(1 + beta - eta * s), beta]).real)
            errors.append(-np.log(slow) / h - s * (1 + epsilon * s / 2))
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_a_shuffled_epoch_follows_the_flow_of_its_modified_loss_on_average():
    rng = np.random.default_rng(3)
    x, y = torch.tensor(rng.normal(size=(3, 2)), dtype=F64), torch.tensor([1.0, -1.0, 0.5], dtype=F64)
    w0 = torch.tensor(rng.normal(size=3), dtype=F64)

    def point(w, n):
        return (w[2] * torch.tanh(w[:2] @ x[n]) - y[n]) ** 2

    def gradient(of, w, graph=False):
        w = w if graph else w.detach().requires_grad_()
        return torch.autograd.grad(of(w), w, create_graph=graph)[0]

    def modified(w, eta):
        each = [gradient(lambda v, n=n: point(v, n), w, graph=True) for n in range(3)]
        return sum(point(w, n) + eta / 4 * each[n].square().sum() for n in range(3)) / 3

    gaps = []
    for eta in (0.02, 0.01):
        ends = []
        for order in itertools.permutations(range(3)):
            w = w0
            for n in order:
                w = w - eta * gradient(lambda v, n=n: point(v, n), w)
            ends.append(w)
        w, dt = w0, 3 * eta / 20
        for _ in range(20):
            half = w - dt / 2 * gradient(lambda v, eta=eta: modified(v, eta), w)
            w = w - dt * gradient(lambda v, eta=eta: modified(v, eta), half)
        gaps.append((torch.stack(ends).mean(0) - w).norm().item())
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.15)


# --- where the steps come to rest


def four(decay, strengths):
    """The rest of four orthonormal points, two of each class, with these neurons' strengths for each."""
    r = np.array(strengths) * np.sqrt(np.sqrt(2) * (1 - np.sqrt(8) * decay) / np.square(strengths).sum())
    u = np.array([[1, 1, 0, 0], [0, 0, 1, 1]]) / np.sqrt(2)
    first = np.concatenate([np.outer(r, u[0]), np.outer(r, u[1])])
    W = [torch.tensor(first, dtype=F64), torch.tensor(np.concatenate([r, -r])[None], dtype=F64)]
    return W, torch.eye(4, dtype=F64), torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=F64)


def output(W, x):
    h = x.T
    for w in W[:-1]:
        h = torch.relu(w @ h)
    return (W[-1] @ h)[0]


def slopes(W, x, y):
    W = [w.detach().requires_grad_() for w in W]
    return torch.autograd.grad((output(W, x) - y).square().mean(), W)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_coupled_decoupled_and_normalised_steps_rest_where_they_should(beta):
    eta, lam = 0.1, 0.03
    W, x, y = four(lam, [1.0, 0.4, 2.0])
    G = slopes(W, x, y)
    for w, g in zip(W, G, strict=True):
        assert (g + 2 * lam * w).abs().max() < 1e-15  # coupled: b = 0 stays
        b = g / (1 - beta)
        decoupled = lam / (1 - beta)
        assert ((1 - 2 * eta * decoupled) * w - eta * b - w).abs().max() < 1e-15
        unit = g / g.norm() / (1 - beta)
        decay = 1 / (2 * (1 - beta) * w.norm())
        assert ((1 - 2 * eta * decay) * w - eta * unit - w).abs().max() < 1e-15
        e = y - output(W, x)
        assert (e * output(W, x)).mean().item() / w.square().sum().item() == pytest.approx(lam, rel=1e-12)


def test_a_switched_off_neuron_swings_where_the_exercise_says():
    for beta, step in itertools.product((0.3, 0.9), (0.5, 0.99, 1.01, 2.0)):
        roots = np.roots([1, -(1 + beta - step * (1 - np.sqrt(beta)) ** 2), beta])
        assert (abs(roots.imag).max() > 1e-12) == (step > 1)


# --- the floor under the norm


def hessian(W, x, y, lam):
    sizes = [w.numel() for w in W]

    def loss(flat):
        blocks = [v.view(w.shape) for v, w in zip(flat.split(sizes), W, strict=True)]
        return (output(blocks, x) - y).square().mean() + lam * flat.square().sum()

    return torch.autograd.functional.hessian(loss, torch.cat([w.flatten() for w in W]))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_interpolant_is_at_least_as_sharp_as_its_norms_demand(depth):
    for seed in range(8):
        rng = np.random.default_rng([seed, depth])
        widths = [4, *[6] * (depth - 1), 1]
        W = [torch.tensor(rng.normal(size=(o, i)) * rng.uniform(0.3, 2)) for i, o in itertools.pairwise(widths)]
        x = torch.tensor(rng.normal(size=(5, 4)))
        f = output(W, x)
        x, f = x[f.abs() > 1e-3], f[f.abs() > 1e-3]
        x = x / f.abs()[:, None]  # a homogeneous network interpolates its own signs on inputs so scaled
        if not len(x):
            continue
        s = torch.linalg.eigvalsh(hessian(W, x, f.sign(), 0.0))[-1].item()
        squares = np.array([w.square().sum().item() for w in W])
        bound, product = 2 * (1 / squares).sum(), np.sqrt(squares.prod())
        assert s >= bound * (1 - 1e-9)
        assert bound >= 2 * depth * product ** (-2 / depth) * (1 - 1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.02, 0.1])
def test_four_points_at_rest_attain_the_bound(lam):
    W, x, y = four(lam, [1.0, 0.4, 2.0])
    s = torch.linalg.eigvalsh(hessian(W, x, y, lam))[-1].item()
    f, first = output(W, x), W[0].square().sum().item()
    assert s == pytest.approx(4 * f.square().mean().item() / first, rel=1e-12)
    assert s == pytest.approx(np.sqrt(2) * (1 - np.sqrt(8) * lam), rel=1e-12)
    if lam == 0:
        assert s == pytest.approx(4 / first, rel=1e-12)


def test_a_heavy_ball_leaves_a_minimum_that_is_too_sharp():
    for beta, share in itertools.product((0.0, 0.5, 0.9), (0.5, 0.999, 1.001, 1.5)):
        largest = abs(np.roots([1, -(1 + beta - share * 2 * (1 + beta)), beta])).max()
        assert (largest > 1) == (share > 1)
