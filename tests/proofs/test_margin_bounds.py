"""The margin bound's proofs by another route: enumeration of coins, symbols, quadrature, and other algorithms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sympy
import torch
from scipy import stats

import nclib as nc


def coins(n: int) -> np.ndarray:
    """All 2ⁿ rows of signs."""
    return np.array(list(itertools.product([-1.0, 1.0], repeat=n)))


def circle(n: int, seed: int = 0) -> np.ndarray:
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


# --- margins of interpolating networks


@pytest.mark.parametrize("decay", [0.3, 0.01])
def test_mean_margin_at_rest_of_a_linear_network_from_ridge(decay):
    # One layer: the minimiser is ridge regression in closed form, no flow needed; ρ^(2/L) = ρ².
    problem = nc.data("teacher", n=12, d=20, dtype=torch.float64)
    x, y = problem.x.numpy(), problem.y.numpy()
    w = nc.ridge(x, y, decay)
    rho, error = np.linalg.norm(w), y - x @ w
    mean = (y * (x @ w)).mean() / rho
    assert mean == pytest.approx((1 - (error**2).mean() - decay * rho**2) / rho, rel=1e-12)


def test_mean_margin_at_rest_of_two_layers_from_the_convex_program():
    # The global minimum of two layers with weight decay on each, by a conic solver: ρ is its group norm.
    problem = nc.data("teacher", n=8, d=2, seed=3, dtype=torch.float64)
    best = nc.convex_optimum(problem, 0.05, weight_decay_on="layers")
    y = problem.y.numpy()
    error = y - best.outputs
    assert (y * best.outputs).mean() == pytest.approx(1 - (error**2).mean() - 0.05 * best.rho, abs=1e-6)


@pytest.mark.parametrize("widths", [(), (6,), (5, 4)])
def test_margin_of_a_point_is_one_minus_its_residual_over_the_norm(widths):
    # An identity, by two routes: nclib.margins folds, multiplies layer norms and divides; residuals do not.
    problem = nc.data("digits", classes=(3, 8), n=30, dtype=torch.float64)
    net = nc.mlp(widths=widths).build(problem.input_shape, dtype=torch.float64)
    norms = [layer.weight.detach().norm().item() for layer in net.layers]
    residual = (problem.y - net(problem.x)).detach()
    expected = (1 - problem.y * residual) / math.prod(norms)
    assert torch.allclose(nc.margins(net, problem.x, problem.y), expected, rtol=0, atol=1e-13)


# --- the two lemmas


def test_hoeffding_lemma_for_two_values():
    # The extreme case, a variable with two values: ln E e^{sD} ≤ s²c²/8, in symbols at second order and on a grid.
    s, p, c = sympy.symbols("s p c", positive=True)
    psi = sympy.log(p * sympy.exp(s * c * (1 - p)) + (1 - p) * sympy.exp(-s * c * p))
    second = sympy.simplify(sympy.diff(psi, s, 2).subs(s, 0))
    assert sympy.simplify(second - c**2 * p * (1 - p)) == 0
    assert sympy.diff(psi, s).subs(s, 0).simplify() == 0
    for p0, s0 in itertools.product(np.linspace(0.01, 0.99, 25), np.linspace(-8, 8, 33)):
        value = math.log(p0 * math.exp(s0 * (1 - p0)) + (1 - p0) * math.exp(-s0 * p0))
        assert value <= s0**2 / 8 + 1e-12


def test_exponential_moment_of_the_signed_sum():
    # E e^{s(Z − EZ)} ≤ e^{s²B²/2} for Z = ‖Σ ε x‖, over all signs; and EZ ≤ B.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(11, 3))
    z = np.linalg.norm(coins(11) @ x, axis=1)
    B = math.sqrt((x**2).sum())
    assert z.mean() <= B
    assert (z**2).mean() == pytest.approx(B**2)
    for s in (-2.0, -0.3, 0.1, 0.5, 1.0, 2.0):
        assert np.exp(s * (z - z.mean())).mean() <= math.exp(s**2 * B**2 / 2)


def test_contraction_over_all_signs_and_random_sets():
    rng = np.random.default_rng(1)
    signs = coins(7)
    convex = (np.exp, lambda t: np.maximum(t, 0), lambda t: t, lambda t: np.logaddexp(0, 3 * t))
    for _ in range(40):
        t = rng.normal(size=(rng.integers(2, 9), 7)) * rng.exponential(2)  # a finite set T, one row an element
        before = (signs @ t.T).max(1)
        after = (signs @ np.maximum(t, 0).T).max(1)
        for g in convex:
            assert g(after).mean() <= g(before).mean() * (1 + 1e-12) + 1e-12
        wiggle = np.sin(2 * t) / 2 + 5  # 1-Lipschitz and not zero at zero: part 1 does not mind
        assert (signs @ wiggle.T).max(1).mean() <= before.mean() + 1e-12


def test_contraction_with_a_convex_function_needs_zero_at_zero():
    # T = {0} and φ = 1: E e^{Σε} = cosh(1)ⁿ > 1. The ReLU's φ(0) = 0 is used in the proof, and needed.
    assert np.exp(coins(5) @ np.ones(5)).mean() == pytest.approx(math.cosh(1) ** 5)


def test_ramp_dominates_the_error_and_is_lipschitz():
    m = np.linspace(-2, 2, 4001)
    for gamma in (0.1, 0.7, 1.5):
        ramp = np.clip(1 - m / gamma, 0, 1)
        assert (ramp >= (m <= 0)).all()
        assert np.abs(np.diff(ramp) / np.diff(m)).max() == pytest.approx(1 / gamma)


# --- peeling


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_peeling_one_layer_over_all_signs(scale):
    # E e^{sZ₁} ≤ 2 E e^{sZ₀}, Z₁ the exact supremum over two-layer networks, and the factor 2 is not 1.
    x, signs = circle(9), coins(9)
    z0 = 9 * nc.rademacher_exact(x, signs, 1)
    z1 = 9 * nc.rademacher_exact(x, signs, 2)
    assert np.exp(scale * z1).mean() <= 2 * np.exp(scale * z0).mean()


def test_one_unit_carries_the_supremum():
    # Random wide layers of unit Frobenius norm never exceed the best single unit.
    rng = np.random.default_rng(2)
    x, signs = circle(12, seed=4), rng.choice([-1.0, 1.0], size=(30, 12))
    best = nc.rademacher_exact(x, signs, 2)
    for width in (1, 3, 30):
        for _ in range(30):
            W, a = rng.normal(size=(width, 2)), rng.normal(size=width)
            f = np.maximum(x @ (W / np.linalg.norm(W)).T, 0) @ (a / np.linalg.norm(a))
            assert (np.abs(signs @ f) / 12 <= best + 1e-12).all()


@pytest.mark.parametrize("widths", [(9,), (7, 5), (6, 6, 6)])
def test_complexity_of_deep_networks_on_orthogonal_inputs(widths):
    # No deep network beats √max(k, N − k)/N, and one positive unit a layer attains it.
    n, rng = 6, np.random.default_rng(7)
    signs = coins(n)
    best = np.sqrt(np.maximum((signs > 0).sum(1), (signs < 0).sum(1))) / n
    for _ in range(100):
        h = np.eye(n)
        for width in widths:
            W = rng.normal(size=(h.shape[1], width))
            h = np.maximum(h @ (W / np.linalg.norm(W)), 0)
        a = rng.normal(size=widths[-1])
        assert (np.abs(signs @ h @ a) / np.linalg.norm(a) / n <= best + 1e-12).all()
    for row, value in zip(signs, best, strict=True):
        side = (row > 0) if (row > 0).sum() >= n / 2 else (row < 0)
        assert abs(row @ (side / np.linalg.norm(side))) / n == pytest.approx(value)


def test_best_exponent_in_symbols():
    s, A, B = sympy.symbols("s A B", positive=True)
    bound = A / s + B + s * B**2 / 2
    best = sympy.sqrt(2 * A) / B
    assert sympy.simplify(sympy.diff(bound, s).subs(s, best)) == 0
    assert sympy.simplify(bound.subs(s, best) - B * (sympy.sqrt(2 * A) + 1)) == 0
    C, N, r = sympy.symbols("C N r", positive=True)
    patches = A / s + sympy.sqrt(C * N) * r + s * C * N * r**2 / 2
    best = sympy.sqrt(2 * A) / (sympy.sqrt(C * N) * r)
    assert sympy.simplify(sympy.diff(patches, s).subs(s, best)) == 0
    assert sympy.simplify(patches.subs(s, best) - sympy.sqrt(C * N) * r * (sympy.sqrt(2 * A) + 1)) == 0


def test_proved_form_is_below_the_published_one():
    for depth, patches in [(1, None), (2, None), (5, None), (3, (9, 4)), (4, (9, 9, 16))]:
        reads = patches or (1,) * (depth - 1)
        logarithms = (depth - 1) * math.log(2) + sum(math.log(c) for c in reads)
        proved = (math.sqrt(2 * logarithms) + 1) * math.sqrt(math.prod(reads)) / math.sqrt(50)
        assert proved < nc.rademacher_bound(50, depth, patches=patches)


# --- the whole bound


def test_uniform_bound_over_a_finite_class_by_enumerating_all_training_sets():
    # Four possible points, N = 5: every training set with its probability. The sup deviation exceeds the bound
    # with probability at most δ, and E Φ ≤ 2 E ℛ(φ∘F) holds exactly.
    points = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, -0.8]])
    labels, chance = np.array([1.0, -1.0, 1.0, -1.0]), np.array([0.4, 0.3, 0.2, 0.1])
    angle = np.linspace(0, 2 * np.pi, 73)[:-1]
    values = labels[:, None] * (points @ np.stack([np.cos(angle), np.sin(angle)]))
    gamma, n, delta = 0.8, 5, 0.3
    ramp = np.clip(1 - values / gamma, 0, 1)
    signs = coins(n)
    failing, mean_deviation, mean_complexity = 0.0, 0.0, 0.0
    for draw in itertools.product(range(4), repeat=n):
        probability, rows = chance[list(draw)].prod(), list(draw)
        deviation = (chance @ ramp - ramp[rows].mean(0)).max()
        complexity = (signs @ values[rows]).max(1).mean() / n
        bound = 2 / gamma * complexity + 3 * math.sqrt(math.log(2 / delta) / (2 * n))
        failing += probability * (deviation > bound)
        mean_deviation += probability * deviation
        mean_complexity += probability * (signs @ ramp[rows]).max(1).mean() / n
    assert failing <= delta
    assert mean_deviation <= 2 * mean_complexity


def largest_deviation_and_complexity(cells: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Φ and ℛ_N of every training set, for all sets of a few equally likely cells, by trying every set; γ = 1."""
    sets = (coins(cells) + 1) / 2  # (2^cells, cells): indicators
    deviation, complexity = [], []
    for draw in itertools.product(range(cells), repeat=n):
        f = sets[:, list(draw)]  # all labels are +1, so the ramp is 1 − f
        deviation.append(((1 - sets.mean(1)) - (1 - f).mean(1)).max())
        complexity.append((coins(n) @ f.T).max(1).mean() / n)
    return np.array(deviation), np.array(complexity)


def test_all_sets_of_cells_attain_symmetrisation_and_contraction():
    # What the chapter uses for a million cells, against every set, every sign and every training set of few cells.
    cells, n = 6, 3
    deviation, complexity = largest_deviation_and_complexity(cells, n)
    drawn = [np.unique(draw, return_counts=True)[1] for draw in itertools.product(range(cells), repeat=n)]
    assert deviation == pytest.approx([1 - len(counts) / cells for counts in drawn])
    assert deviation == pytest.approx([(counts / n - 1 / cells).sum() for counts in drawn])
    sums = np.array([np.abs(coins(k).sum(1)).mean() if k else 0 for k in range(6)])
    assert sums == pytest.approx([0, 1, 1, 1.5, 1.5, 1.875])
    assert complexity == pytest.approx([sums[counts].sum() / (2 * n) for counts in drawn])
    assert deviation.mean() == pytest.approx((1 - 1 / cells) ** n)
    assert deviation.mean() <= 2 * complexity.mean()
    many, size = 10_000, 200  # the mean deviation over 2ℛ_N/γ tends to one
    counts = np.unique(np.random.default_rng(0).integers(many, size=size), return_counts=True)[1]
    assert (1 - len(counts) / many) / (2 * sums[counts].sum() / (2 * size)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("complexity_share", "chance_share", "holds"), [(1, 1, True), (0.5, 1, False), (0, 1, False)]
)
def test_the_bound_with_half_its_complexity_fails_on_every_training_set(complexity_share, chance_share, holds):
    n, delta, cells = 200, 0.05, 1_000_000  # no cell drawn twice: Φ = 1 − n/cells, ℛ_N = 1/2
    chance = 3 * math.sqrt(math.log(2 / delta) / (2 * n))
    assert nc.margin_bound(np.ones(n), 1.0, depth=1, delta=delta).confidence == pytest.approx(chance)
    bound = complexity_share * 2 * 0.5 + chance_share * chance
    assert (1 - n / cells <= bound) is holds


def test_the_price_of_chance_for_one_function_by_the_binomial():
    # One function, right with probability 1/2: ℛ_N = 0. Without the price the bound fails far more often than δ;
    # with a third of it, which is all that McDiarmid asks of one function, it fails less often; with a sixth not.
    n, delta = 200, 0.05
    price = nc.margin_bound(np.ones(n), 1.0, depth=1, delta=delta).confidence

    def failing(share: float) -> float:
        wrong = np.arange(n + 1) / n
        return stats.binom.pmf(np.arange(n + 1), n, 0.5)[wrong + share * price < 0.5].sum()

    assert failing(0) == pytest.approx(0.472, abs=1e-3)
    assert failing(1) < failing(1 / 3) < delta / 2 < failing(1 / 6)


def test_grid_rounds_one_over_rho_by_its_ratio_at_most():
    gammas, n = np.array(nc.theory.bounds.GAMMAS), 1_000_000
    q = 10 ** (1 / 20)
    assert (gammas[1:] / gammas[:-1]).max() == pytest.approx(q)
    for rho in (1.0, 2.345, 17.0, 400.0):
        below = gammas[gammas <= 1 / rho + 1e-12].max()
        bound = nc.margin_bound(np.full(n, 1 / rho), below, depth=2)
        assert bound.ramp_loss <= 1e-9
        assert bound.complexity <= q * 2 * rho * nc.rademacher_bound(n, 2) * (1 + 1e-9)


def test_angular_density_and_the_exact_error():
    # The density integrates to one, and the integral over the circle agrees with a large sample.
    theta = (np.arange(7200) + 0.5) * 2 * np.pi / 7200
    ray = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    m = np.array([1.2, -0.9])
    density = []
    for sign in (1, -1):
        kappa = sign * ray @ m
        density.append(np.exp(-m @ m / 2) * (1 + kappa * stats.norm.cdf(kappa) / stats.norm.pdf(kappa)) / 7200)
    assert [part.sum() for part in density] == pytest.approx([1, 1], abs=1e-12)
    rng = np.random.default_rng(0)
    W, a = rng.normal(size=(2, 5)), rng.normal(size=5)

    def f(x):
        return np.maximum(x @ W, 0) @ a

    exact = (density[0] * (f(ray) <= 0) + density[1] * (f(ray) >= 0)).sum() / 2
    y = rng.choice([-1, 1], size=400_000)
    sampled = (y * f(y[:, None] * m + rng.normal(size=(len(y), 2))) <= 0).mean()
    assert exact == pytest.approx(sampled, abs=4 * 0.5 / math.sqrt(len(y)))
    # A linear rule along m is Bayes': Φ(−‖m‖).
    bayes = (density[0] * (ray @ m <= 0) + density[1] * (ray @ m >= 0)).sum() / 2
    assert bayes == pytest.approx(stats.norm.cdf(-1.5), abs=1e-4)


# --- convolutions


def test_one_shared_unit_carries_a_two_layer_convolution():
    # Random kernels and readouts of unit norms never exceed sup_w √(Σ_q (Σ ε relu(w·z_q))²), w in the plane.
    rng = np.random.default_rng(3)
    n, c = 20, 4
    patches = np.stack([circle(n, seed) for seed in range(c)])  # (c, N, 2)
    signs = rng.choice([-1.0, 1.0], size=(25, n))
    angle = np.linspace(0, 2 * np.pi, 3601)
    units = np.stack([np.cos(angle), np.sin(angle)])
    sums = np.stack([signs @ np.maximum(patch @ units, 0) for patch in patches])
    best = np.sqrt((sums**2).sum(0)).max(1) / n
    for _ in range(60):
        W, a = rng.normal(size=(2, 6)), rng.normal(size=(c, 6))
        W, a = W / np.linalg.norm(W), a / np.linalg.norm(a)
        f = sum(np.maximum(patch @ W, 0) @ row for patch, row in zip(patches, a, strict=True))
        assert (np.abs(signs @ f) / n <= best + 1e-3).all()
    assert best.mean() < nc.rademacher_bound(n, 2, patches=(c,))


def test_dense_norm_of_a_convolution_is_at_most_the_root_of_its_positions():
    net = nc.convnet(widths=(3,)).build(input_shape=(1, 8, 8))
    basis = torch.eye(64).reshape(-1, 1, 8, 8)
    dense = net.layers[0](basis).detach().norm().item()
    assert 0.8 * 4 < dense <= 4  # 4 × 4 positions, kernel norm 1; less where a kernel hangs over the edge


def test_dense_norms_of_three_strided_convolutions_with_entries_of_one_size():
    # 32 × 32 pixels, stride 2: a kernel loses one of three rows (columns) at one border only, so 440, not 512.
    product = 1.0
    for size in (32, 16, 8):
        layer = torch.nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
        torch.nn.init.ones_(layer.weight)
        basis = torch.eye(size**2, dtype=torch.float64).reshape(-1, 1, size, size)
        product *= (layer(basis).norm() / layer.weight.norm()).item()
    assert product == pytest.approx((16 - 1 / 3) * (8 - 1 / 3) * (4 - 1 / 3))
    assert product == pytest.approx(440, abs=0.5)


# --- random labels


def test_random_labels_for_two_layers_over_all_labellings():
    # Each labelling's best mean margin, found by ascent, averages to the complexity; interpolants pay at least 1/ℛ.
    x, labels = circle(6, seed=1), coins(6)
    complexity = nc.rademacher_exact(x, labels, 2).mean()
    climbed = nc.rademacher_ascent(x, labels, nc.mlp(widths=(8,)), restarts=6).mean()
    assert climbed == pytest.approx(complexity, rel=0.01)
    assert climbed <= complexity + 1e-12
    inputs = np.random.default_rng(5).normal(size=(6, 8))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    rho = np.array([np.linalg.norm(nc.minimum_norm(inputs, y)) for y in labels])
    assert rho.mean() >= 1 / (1 / rho).mean() >= 1 / nc.rademacher_exact(inputs, labels, 1).mean()


# --- solutions of the exercises


def test_solution_how_many_points():
    def needed(rho):
        K = 2 * rho * nc.rademacher_bound(1, depth=2) + 3 * np.sqrt(np.log(40) / 2)
        return int(np.floor(4 * K**2)) + 1

    n = needed(5)
    assert n == 3777
    assert nc.margin_bound(np.full(n, 0.2), gamma=0.2, depth=2).total < 0.5
    assert nc.margin_bound(np.full(n - 1, 0.2), gamma=0.2, depth=2).total >= 0.5
    assert needed(50) == pytest.approx(293_000, rel=0.01)


def test_solution_two_layers():
    direct = [2 ** (depth - 1) for depth in (1, 2, 3, 4)]
    peeled = [math.sqrt(2 * (depth - 1) * math.log(2)) + 1 for depth in (1, 2, 3, 4)]
    assert direct[0] == peeled[0]
    assert direct[1] < peeled[1]
    assert direct[2] > peeled[2]
    assert direct[3] > peeled[3]
    assert [round(value, 2) for value in peeled[1:3]] == [2.18, 2.67]


def test_solution_known_complexity():
    N, G, delta = 2000, 81, 0.05
    assert 3 * math.sqrt(math.log(2 * G / delta) / (2 * N)) == pytest.approx(0.135, abs=5e-4)
    assert math.sqrt(math.log(G / delta) / (2 * N)) == pytest.approx(0.043, abs=5e-4)


def test_solution_depth_afterwards():
    def chance(L, N=20_000, G=81, delta=0.05):
        return 3 * np.sqrt(np.log(2 * G * L * (L + 1) / delta) / (2 * N))

    fixed = 3 * np.sqrt(np.log(2 * 81 / 0.05) / 40_000)
    assert sum(1 / (L * (L + 1)) for L in range(1, 100_000)) == pytest.approx(1, abs=1e-4)
    assert chance(10) - fixed < 0.02


def test_dense_matrices_of_the_convolutional_network_have_440_times_the_norms_of_their_kernels():
    # The matrix itself, by sending every basis vector through the layer; one channel in and out shows the counting.
    product, most = 1.0, 1.0
    for size in (32, 16, 8):
        basis = torch.eye(size * size).reshape(-1, 1, size, size)
        for kernel in (
            torch.ones(1, 1, 3, 3),
            torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(size)),
        ):
            dense = torch.nn.functional.conv2d(basis, kernel, stride=2, padding=1)
            ratio = (dense.norm() / kernel.norm()).item()
            assert ratio <= size / 2
            if kernel.min() == 1:
                assert ratio == pytest.approx(size / 2 - 1 / 3, rel=1e-6)
                product, most = product * ratio, most * size / 2
    assert product == pytest.approx(440, abs=1)
    assert most == 512
