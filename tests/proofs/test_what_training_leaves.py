"""What training leaves, low rank and the noise of SGD, by other routes than the chapters' own.

Symmetries, solvers, enumeration, exact moments.
"""

from __future__ import annotations

import ast
import itertools
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import nclib as nc

F64 = torch.float64


def problem(seed, n=6, d=5):
    data = nc.data("teacher", n=n, d=d, seed=seed, dtype=F64)
    return data.x.numpy(), data.y.numpy()


def random_weights(seed, widths):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(out, into)) for into, out in itertools.pairwise(widths)]


def outputs(W, x, relu):
    h = x.T
    for w in W[:-1]:
        h = np.maximum(w @ h, 0) if relu else w @ h
    return W[-1] @ h


def data_loss(W, x, y, relu):
    return ((outputs(W, x, relu) - y) ** 2).sum(0).mean()


def loss_gradients(W, x, y, relu):
    tensors = [torch.tensor(w, requires_grad=True) for w in W]
    h = torch.tensor(x).T
    for w in tensors[:-1]:
        h = torch.relu(w @ h) if relu else w @ h
    loss = ((tensors[-1] @ h - torch.tensor(y)) ** 2).sum(0).mean()
    return [g.numpy() for g in torch.autograd.grad(loss, tensors)]


# --- where two signals meet: a symmetry of the network is an identity of its gradient


@pytest.mark.parametrize("relu", [False, True])
def test_signals_meet_because_a_change_of_basis_between_layers_changes_nothing(relu):
    x, y = problem(1)
    W = random_weights(2, (5, 4, 3, 1))
    G = loss_gradients(W, x, y, relu)
    rng = np.random.default_rng(3)
    for k in (0, 1):
        size = len(W[k])
        change = np.diag(rng.normal(size=size)) if relu else rng.normal(size=(size, size))
        step, before = 1e-4, data_loss(W, x, y, relu)
        basis = np.eye(size) + step * change  # diagonal and positive in the ReLU network
        turned = [*W]
        turned[k], turned[k + 1] = basis @ W[k], W[k + 1] @ np.linalg.inv(basis)
        assert data_loss(turned, x, y, relu) == pytest.approx(before, rel=1e-12)
        # To first order the loss changes by ⟨G_k, AW_k⟩ − ⟨G_{k+1}, W_{k+1}A⟩ = tr Aᵀ(G_kW_kᵀ − W_{k+1}ᵀG_{k+1}).
        assert np.sum(change * (G[k] @ W[k].T - W[k + 1].T @ G[k + 1])) == pytest.approx(0, abs=1e-11)


def test_signals_meet_off_the_diagonal_by_the_formula():
    x, y = problem(4)
    W = random_weights(5, (5, 4, 1))
    G = loss_gradients(W, x, y, True)
    z = W[0] @ x.T
    active = (z > 0).astype(float)
    residual = y - outputs(W, x, True)[0]
    gap = G[0] @ W[0].T - W[1].T @ G[1]
    for i, j in itertools.product(range(4), repeat=2):
        terms = [residual[n] * W[1][0, i] * (active[i, n] - active[j, n]) * z[j, n] for n in range(len(x))]
        assert gap[i, j] == pytest.approx(-2 * np.mean(terms), abs=1e-12)


# --- linear layers, by a general-purpose minimiser


def minimised(objective, start):
    """A minimum by L-BFGS from autograd's gradients, as arrays of the shapes of `start`."""
    shapes = [w.shape for w in start]
    ends = np.cumsum([w.size for w in start])[:-1]

    def unpack(flat):
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]

    def value(flat):
        tensors = [torch.tensor(w, requires_grad=True) for w in unpack(flat)]
        loss = objective(tensors)
        grads = torch.autograd.grad(loss, tensors)
        return loss.item(), np.concatenate([g.numpy().ravel() for g in grads])

    flat = np.concatenate([w.ravel() for w in start])
    options = dict(maxiter=20_000, maxfun=40_000, ftol=1e-16, gtol=1e-10, maxcor=30)
    return unpack(minimize(value, flat, jac=True, method="L-BFGS-B", options=options).x)


def test_linear_layers_match_at_a_minimum_with_several_outputs():
    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(size=(5, 8))), torch.tensor(rng.normal(size=(3, 8)))
    start = [0.5 * w for w in random_weights(1, (5, 4, 4, 3))]
    decay = 0.02

    def objective(W):
        fit = ((W[2] @ W[1] @ W[0] @ x - y) ** 2).sum(0).mean()
        return fit + decay * sum((w**2).sum() for w in W)

    W = minimised(objective, start)
    singular = [np.linalg.svd(w, compute_uv=False) for w in W]
    assert singular[2][0] > 0.1
    for below, above in itertools.pairwise(W):
        np.testing.assert_allclose(above.T @ above, below @ below.T, atol=1e-5)
    for k in (0, 1):
        np.testing.assert_allclose(singular[k][:3], singular[2], atol=1e-5)
    product = np.linalg.svd(W[2] @ W[1] @ W[0], compute_uv=False)
    price = sum((w**2).sum() for w in W)
    assert price == pytest.approx(3 * (product ** (2 / 3)).sum(), rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_deep_linear_normalised_network_is_a_ridge_solution_at_any_depth(depth):
    x, y = problem(depth)
    decay = 0.05
    widths = (5, *[3] * (depth - 1), 1)
    tx, ty = torch.tensor(x), torch.tensor(y)

    def objective(parameters):
        rho, *U = parameters
        h = tx.T
        for u in U:
            h = (u / u.norm()) @ h
        return ((rho * h[0] - ty) ** 2).mean() + decay * (rho**2).sum()

    rho, *U = minimised(objective, [np.array([1.5]), *random_weights(depth + 7, widths)])
    w = rho[0] * np.linalg.multi_dot([np.eye(1), *reversed([u / np.linalg.norm(u) for u in U])])[0]
    np.testing.assert_allclose(w, nc.ridge(x, y, decay), atol=1e-5)


# --- ReLU neurons: rescaling and merging, the two moves that the balance excludes


def test_balance_is_the_cheapest_of_all_scalings_of_a_neuron():
    rng = np.random.default_rng(1)
    for _ in range(20):
        into, out = rng.uniform(0.1, 3, size=2)
        best = minimize(
            lambda s, i=into, o=out: (i * np.exp(s[0])) ** 2 + (o * np.exp(-s[0])) ** 2, [0.0], tol=1e-14
        ).x
        assert into * np.exp(best[0]) == pytest.approx(out * np.exp(-best[0]), rel=1e-4)


def test_merging_two_neurons_of_one_pattern_keeps_the_function_and_is_cheaper_unless_they_are_parallel():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 6))
    tried = 0
    while tried < 20:
        w, v = rng.normal(size=(2, 6))
        if not (np.sign(x @ w) == np.sign(x @ v)).all():
            continue
        tried += 1
        w, v = (
            np.sqrt(np.linalg.norm(w)) * w / np.linalg.norm(w),
            np.sqrt(np.linalg.norm(v)) * v / np.linalg.norm(v),
        )
        a, b = np.linalg.norm(w), np.linalg.norm(v)  # balanced neurons of output weights a, b > 0
        both = a * w + b * v
        merged, out = both / np.sqrt(np.linalg.norm(both)), np.sqrt(np.linalg.norm(both))
        before = a * np.maximum(x @ w, 0) + b * np.maximum(x @ v, 0)
        np.testing.assert_allclose(out * np.maximum(x @ merged, 0), before, atol=1e-12)
        price, cheaper = 2 * (a**2 + b**2), merged @ merged + out**2
        assert cheaper < price - 1e-6
        parallel = a * w + b * (b / a) * w  # v a positive multiple of w: nothing to gain
        assert 2 * np.linalg.norm(parallel) == pytest.approx(2 * (a**2 + b**2), rel=1e-12)


# --- the approach to balance, weight decay and its integral included


def test_the_normalised_mismatch_follows_its_law_with_weight_decay():
    x, y = problem(3)
    decay, n = 0.07, len(x)
    V = [v / np.linalg.norm(v) for v in random_weights(9, (5, 4, 1))]

    def unpack(state):
        return state[:20].reshape(4, 5), state[20:24].reshape(1, 4), state[24], state[25]

    def velocity(_, state):
        first, second, rho, _integral = unpack(state)
        f = (second @ first @ x.T)[0]
        residual = y - rho * f
        pull = residual @ f / n
        d_first = 2 * rho * (np.outer(second[0], residual @ x / n) - pull * first)
        d_second = 2 * rho * ((residual @ (first @ x.T).T / n)[None] - pull * second)
        d_rho = 2 * (pull - decay * rho)
        return np.concatenate([d_first.ravel(), d_second.ravel(), [d_rho, rho**2]])

    start = np.concatenate([V[0].ravel(), V[1].ravel(), [0.8, 0.0]])
    end = solve_ivp(velocity, (0, 6), start, "DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    first, second, rho, integral = unpack(end)
    before, after = V[1].T @ V[1] - V[0] @ V[0].T, second.T @ second - first @ first.T
    shrinking = np.exp(-(rho**2 - 0.8**2) - 4 * decay * integral)
    assert 1e-6 < shrinking < 0.5
    np.testing.assert_allclose(after, shrinking * before, atol=1e-9)


# --- batch normalisation


def test_a_centred_variable_of_variance_one_has_small_rectified_moments_and_reaches_the_bound():
    rng = np.random.default_rng(4)
    for sample in (rng.normal(size=999), rng.exponential(size=999), rng.choice([-1.0, 5.0], size=999)):
        z = (sample - sample.mean()) / sample.std()
        assert np.maximum(z, 0).mean() <= 0.5
        assert (np.maximum(z, 0) ** 2).mean() <= 1
    coin = np.array([-1.0, 1.0])
    assert np.maximum(coin, 0).mean() == 0.5  # sharp
    assert np.maximum(coin, 0) @ [0, 1] == 1


def test_the_gradient_of_a_bn_layer_with_decay_is_never_shorter_than_that_of_the_decay():
    data = nc.data("digits", classes=(3, 8), n=30, seed=0, dtype=F64)
    net = nc.mlp(widths=(6, 5), norm="bn", eps=0.0).build((64,), 1, init_norm=0.7, dtype=F64).train()
    loss = (net(data.x) - data.y).square().mean() + 0.2 * sum(layer.weight.square().sum() for layer in net.layers)
    loss.backward()
    for layer in net.layers[:-1]:
        data_part = layer.weight.grad - 0.4 * layer.weight.detach()
        assert layer.weight.grad.norm() >= 0.4 * layer.weight.norm()
        expected = (data_part.norm() ** 2 + (0.4 * layer.weight.detach().norm()) ** 2).sqrt()
        torch.testing.assert_close(layer.weight.grad.norm(), expected, rtol=1e-10, atol=0)


# --- low rank, with torch's own optimiser as the witness


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_what_was_added_in_s_steps_has_rank_sb(momentum):
    torch.manual_seed(0)
    rate, decay, batch, steps = 0.02, 0.2, 2, 4
    x, y = torch.randn(30, 9, dtype=F64), torch.randn(30, dtype=F64)
    net = nc.mlp(widths=(16, 15)).build((9,), 1, init_norm=2.0, dtype=F64)
    weight = net.layers[1].weight
    descent = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum, weight_decay=2 * decay)

    def run(count):
        for _ in range(count):
            index = torch.randperm(30)[:batch]
            descent.zero_grad()
            (net(x[index]) - y[index]).square().mean().backward()
            descent.step()

    run(5)
    before = weight.detach().clone()
    buffer = descent.state[weight].get("momentum_buffer") if momentum else torch.zeros_like(before)
    buffer = buffer.clone()
    run(steps)
    matrix = np.array([[1 - 2 * rate * decay, -rate * momentum], [2 * decay, momentum]])
    p, c = np.linalg.matrix_power(matrix, steps)[0]
    if not momentum:
        assert p == pytest.approx((1 - 2 * rate * decay) ** steps)
    added = weight.detach() - p * before - c * buffer
    singular = torch.linalg.svdvals(added)
    assert singular[steps * batch - 1] > 1e-8
    assert singular[steps * batch] < 1e-13
    bound = nc.low_rank_distance(p * before + c * buffer)
    now = nc.low_rank_distance(weight)
    assert (now[steps * batch :] <= bound[: len(now) - steps * batch] + 1e-13).all()


# --- the noise, by enumeration of all batches


def net_and_points(seed, n=5, d=4):
    x, y = problem(seed, n, d)
    net = nc.mlp(widths=(7, 6)).build((d,), 1, init_norm=1.4, seed=seed, dtype=F64)
    return net, torch.tensor(x), torch.tensor(y)


@pytest.mark.parametrize("batch", [1, 2, 4, 5])
def test_the_mean_square_over_all_batches_and_its_lower_bound(batch):
    net, x, y = net_and_points(3)
    n, decay = len(x), 0.3
    g = nc.per_sample_gradients(net, x, y, weight_decay=decay)
    c = (n - batch) / (batch * (n - 1))
    h = x
    for k, gk in enumerate(g):
        batches = [gk[list(b)].mean(0).square().sum() for b in itertools.combinations(range(n), batch)]
        whole = gk.mean(0)
        formula = whole.square().sum() + c * (gk - whole).square().sum((1, 2)).mean()
        torch.testing.assert_close(torch.stack(batches).mean(), formula, rtol=1e-12, atol=0)
        unit = torch.nn.functional.normalize(h, dim=1)
        nu = torch.linalg.eigvalsh(unit.T @ unit / n)[-1]
        W = net.layers[k].weight.detach()
        assert formula >= 4 * c * decay**2 * W.square().sum() * (1 - nu) - 1e-15
        h = torch.relu(h @ W.T)


def test_the_bound_at_rest_is_a_trace_inequality_and_sharp_for_orthonormal_inputs():
    rng = np.random.default_rng(5)
    for n, d in ((4, 3), (5, 8)):
        x = rng.normal(size=(n, d))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        a = rng.normal(size=(n, 6))
        W = a.T @ x / n  # 2λW₁ at a critical point
        nu = np.linalg.eigvalsh(x.T @ x / n)[-1]
        assert (W**2).sum() <= nu * (a**2).sum() / n
    x = np.eye(5)
    a = rng.normal(size=(5, 6))
    assert ((a.T @ x / 5) ** 2).sum() == pytest.approx((a**2).sum() / 25)  # ν = 1/5


def test_parallel_inputs_of_both_signs_leave_no_common_critical_point():
    """A row of W₁ that is active at x is inactive at −x, where its gradient is that of the decay alone."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    net = nc.mlp(widths=(3,)).build((2,), 1, dtype=F64)
    first, _ = nc.per_sample_gradients(net, x, torch.tensor([1.0, -1.0], dtype=F64), weight_decay=0.1)
    W = net.layers[0].weight.detach()
    for row in range(3):
        silent = 0 if W[row, 0] < 0 else 1
        torch.testing.assert_close(first[silent, row], 0.2 * W[row], rtol=1e-12, atol=0)


# --- the price of the noise: exact second moments of the linear recursion


def ridge_recursion(x, y, decay, batch):
    """H_b and ξ_b of every batch, and the pieces of the chapter's formulas."""
    n, d = x.shape
    w = nc.ridge(x, y, decay)
    e = y - x @ w
    sets = [list(b) for b in itertools.combinations(range(n), batch)]
    H = [2 * x[b].T @ x[b] / batch + 2 * decay * np.eye(d) for b in sets]
    xi = [2 * decay * w - 2 * (e[b] @ x[b]) / batch for b in sets]
    return H, xi, w, e, (n - batch) / (batch * (n - 1))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("rate", [0.02, 0.3, 0.8])
def test_the_stationary_excess_lies_between_its_bounds(batch, rate):
    x, y = problem(6, n=4, d=3)
    decay = 0.1
    H, xi, w, e, c = ridge_recursion(x, y, decay, batch)
    d, eye = 3, np.eye(3)
    maps = [np.kron(eye - rate * h, eye - rate * h) for h in H]
    noise = np.mean([np.outer(v, v) for v in xi], axis=0)
    C = np.linalg.solve(np.eye(d * d) - np.mean(maps, axis=0), rate**2 * noise.ravel()).reshape(d, d)
    excess = np.trace(np.mean(H, axis=0) @ C) / 2
    theta = excess / (rate * c * ((e**2).mean() - decay**2 * w @ w))
    assert 1 <= theta <= 1 / (1 - rate * (1 + decay))


def test_stationarity_of_the_norm_is_the_relation_of_the_layers():
    """2E⟨W, ∂L⟩ = ηE‖∂L_b‖² for the linear model, with the exact second moments instead of an average."""
    x, y = problem(8, n=4, d=3)
    decay, rate = 0.1, 0.2
    H, xi, *_ = ridge_recursion(x, y, decay, 1)
    eye = np.eye(3)
    maps = np.mean([np.kron(eye - rate * h, eye - rate * h) for h in H], axis=0)
    noise = np.mean([np.outer(v, v) for v in xi], axis=0)
    C = np.linalg.solve(np.eye(9) - maps, rate**2 * noise.ravel()).reshape(3, 3)
    pull = np.trace(np.mean(H, axis=0) @ C)  # E⟨w_λ + u, Hu⟩ with Eu = 0
    square = np.mean([np.trace(h @ C @ h) + v @ v for h, v in zip(H, xi, strict=True)])
    assert 2 * pull == pytest.approx(rate * square, rel=1e-10)


@pytest.mark.parametrize("batch", [1, 2])
def test_shuffling_by_enumeration_of_all_orders(batch):
    x, y = problem(9, n=4, d=3)
    decay = 0.15
    w = nc.ridge(x, y, decay)
    e = y - x @ w
    g = 2 * decay * w - 2 * e[:, None] * x
    c = (4 - batch) / (batch * 3)
    whole = 2 * x.T @ x / 4 + 2 * decay * np.eye(3)
    v = 2 * c * (x * (x * g).sum(1, keepdims=True)).mean(0)
    predicted = v @ np.linalg.solve(whole, v) / 8

    def ratio(rate):
        epochs = []
        for order in itertools.permutations(range(4)):
            A, b = np.eye(3), np.zeros(3)
            for start in range(0, 4, batch):
                points = list(order[start : start + batch])
                step = np.eye(3) - rate * (2 * x[points].T @ x[points] / batch + 2 * decay * np.eye(3))
                A, b = step @ A, step @ b - rate * g[points].mean(0)
            epochs.append((A, b))
        mean = np.linalg.solve(np.eye(3) - np.mean([A for A, _ in epochs], 0), np.mean([b for _, b in epochs], 0))
        kicks = np.mean([np.outer(A @ mean + b - mean, A @ mean + b - mean) for A, b in epochs], axis=0)
        maps = np.mean([np.kron(A, A) for A, _ in epochs], axis=0)
        C = np.linalg.solve(np.eye(9) - maps, kicks.ravel()).reshape(3, 3)
        return (mean @ whole @ mean + np.trace(whole @ C)) / 2 / (rate**2 * predicted)

    fine = 1e-3
    assert 2 * ratio(fine) - ratio(2 * fine) == pytest.approx(1, abs=1e-3)
    assert abs(ratio(fine) - 1) < abs(ratio(10 * fine) - 1)


# --- the exercises' solutions


def solutions():
    """The Python blocks of the three chapters' solutions, by the exercise's label."""
    names = ("12_what_training_leaves", "13_low_rank", "14_sgd_noise")
    text = "\n".join((ROOT / "chapters" / f"{name}.md").read_text("utf-8") for name in names)
    pattern = r":::\{solution\} (\S+)\n.*?```python\n(.*?)```"
    return dict(re.findall(pattern, text, flags=re.DOTALL))


def run_solution(label):
    """Execute a solution and return the value of its last line."""
    tree = ast.parse(solutions()[label])
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    seeds = nc.seeds(5)
    names = {
        "np": np, "torch": torch, "nc": nc, "seeds": seeds,
        "teacher": lambda seed: nc.data("teacher", n=6, d=20, seed=seed, dtype=F64),
    }  # fmt: skip
    exec(compile(ast.Module(tree.body, []), label, "exec"), names)
    return eval(compile(ast.Expression(last.value), label, "eval"), names)


def test_every_exercise_with_code_has_a_test():
    assert set(solutions()) == {"ex-memory", "ex-unequal", "ex-two-lengths", "ex-schatten"}


def test_solution_memory():
    steps, rank, batch = run_solution("ex-memory")
    assert steps == pytest.approx(9210, rel=1e-3)
    assert rank > 1e6
    assert batch < 1


def test_solution_unequal_decay():
    found, predicted = run_solution("ex-unequal")
    assert found == pytest.approx(predicted, rel=1e-3)


def test_solution_two_lengths():
    assert max(run_solution("ex-two-lengths")) < 1e-14


def test_solution_several_outputs():
    found, predicted = run_solution("ex-schatten")
    np.testing.assert_allclose(found, predicted, atol=2e-3)
