"""Setting the stage, each proof by a second route: exact arithmetic, symbols, or fifty digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp

Matrix = list[list[Fraction]]


def random_fractions(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    return [[Fraction(int(v), 7) for v in row] for row in rng.integers(-9, 10, size=(rows, columns))]


def times(a: Matrix, b: Matrix) -> Matrix:
    return [[sum((u * v for u, v in zip(row, column, strict=True)), Fraction(0)) for column in zip(*b, strict=True)]
            for row in a]  # fmt: skip


def output(layers: list[Matrix], x: Matrix) -> Fraction:
    for layer in layers[:-1]:
        x = [[max(v, Fraction(0)) for v in row] for row in times(layer, x)]
    return times(layers[-1], x)[0][0]


# --- thm-homogeneity: rational arithmetic has no rounding to hide behind --------------------------


@pytest.mark.parametrize("seed", range(5))
def test_homogeneity_is_exact_in_rational_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [random_fractions(rng, *shape) for shape in ((4, 3), (4, 4), (1, 4))]
    x = random_fractions(rng, 3, 1)
    f = output(layers, x)
    c = Fraction(3, 5)
    for k in range(3):
        scaled = [[[c * v for v in row] for row in layer] if j == k else layer for j, layer in enumerate(layers)]
        assert output(scaled, x) == c * f
    assert output([[[c * v for v in row] for row in layer] for layer in layers], x) == c**3 * f


@pytest.mark.parametrize("seed", range(5))
def test_eulers_identity_is_exact_in_rational_arithmetic(seed: int) -> None:
    # Off the kinks f is affine in a single weight, so an exact difference over a small step is the derivative.
    rng = np.random.default_rng(seed)
    layers = [random_fractions(rng, *shape) for shape in ((3, 2), (3, 3), (1, 3))]
    x = random_fractions(rng, 2, 1)
    f, step = output(layers, x), Fraction(1, 10**9)
    for k, layer in enumerate(layers):
        along = Fraction(0)
        for i, j in itertools.product(range(len(layer)), range(len(layer[0]))):
            moved = [[list(row) for row in w] for w in layers]
            moved[k][i][j] += step
            along += (output(moved, x) - f) / step * layer[i][j]
        assert along == f


# --- thm-flow: the formulas against derivatives to fifty digits -----------------------------------


def test_rho_dot_is_minus_the_derivative_of_the_loss() -> None:
    rho, decay = sp.symbols("rho lambda", positive=True)
    f, y = sp.symbols("f1:4"), sp.symbols("y1:4")
    mean = lambda values: sp.Add(*values) / 3  # noqa: E731
    loss = mean([(rho * a - b) ** 2 for a, b in zip(f, y, strict=True)]) + decay * rho**2
    mu, M = mean([a * b for a, b in zip(f, y, strict=True)]), mean([a**2 for a in f])
    assert sp.simplify(-sp.diff(loss, rho) - 2 * (mu - rho * (M + decay))) == 0


def test_the_multipliers_velocity_is_the_gradient_through_the_quotient() -> None:
    # L(ρ, U/‖U‖) at U = V: differentiated by finite differences in fifty digits, without multipliers.
    with mpmath.workdps(50):
        rng = np.random.default_rng(0)
        x = [[mpmath.mpf(float(v)) for v in row] for row in rng.normal(size=(4, 3))]
        y = [mpmath.mpf(v) for v in (1, -1, -1, 1)]
        V = [unit(mpmath.matrix(rng.normal(size=shape).tolist())) for shape in ((3, 3), (1, 3))]
        rho, decay = mpmath.mpf(2), mpmath.mpf("0.1")

        def loss(layers: list[mpmath.matrix]) -> mpmath.mpf:
            f = [network([unit(w) for w in layers], point) for point in x]
            return sum((rho * a - b) ** 2 for a, b in zip(f, y, strict=True)) / 4 + decay * rho**2

        f = [network(V, point) for point in x]
        pull = sum((b - rho * a) * a for a, b in zip(f, y, strict=True)) / 4
        for k, layer in enumerate(V):
            for i, j in itertools.product(range(layer.rows), range(layer.cols)):
                slopes = [derivative(lambda w, p=point: network(w, p), V, k, i, j) for point in x]
                toward = sum((b - rho * a) * s for a, b, s in zip(f, y, slopes, strict=True)) / 4
                formula = 2 * rho * (toward - pull * layer[i, j])
                assert abs(formula + derivative(loss, V, k, i, j)) < mpmath.mpf(10) ** -12


def unit(w: mpmath.matrix) -> mpmath.matrix:
    return w / mpmath.sqrt(sum(v**2 for v in w))


def network(layers: list[mpmath.matrix], point: list[mpmath.mpf]) -> mpmath.mpf:
    h = mpmath.matrix(point)
    for layer in layers[:-1]:
        h = (layer * h).apply(lambda v: max(v, mpmath.mpf(0)))
    return (layers[-1] * h)[0]


def derivative(
    function: Callable[..., mpmath.mpf], layers: list[mpmath.matrix], k: int, i: int, j: int
) -> mpmath.mpf:
    step, values = mpmath.mpf(10) ** -15, []
    for sign in (1, -1):
        moved = [w.copy() for w in layers]
        moved[k][i, j] += sign * step
        values.append(function(moved))
    return (values[0] - values[1]) / (2 * step)


def test_the_loss_falls_at_the_squared_speed() -> None:
    # Projection P on the tangent plane of V: ⟨G, PG⟩ = ‖PG‖², in symbols.
    a, b = sp.symbols("a b", real=True)
    v = sp.Matrix([sp.cos(a) * sp.cos(b), sp.cos(a) * sp.sin(b), sp.sin(a)])  # any point of the sphere
    g = sp.Matrix(sp.symbols("g1:4", real=True))
    projected = g - (v.T * g)[0] * v
    assert sp.simplify((g.T * projected)[0] - (projected.T * projected)[0]) == 0


# --- thm-three-normalisations: explicit coordinates on a circle -----------------------------------


@pytest.mark.parametrize("name", ["wn", "bn"])
def test_the_speed_of_the_direction_in_polar_coordinates(name: str) -> None:
    # A direction in the plane is an angle, and the loss any function F of it. In Cartesian coordinates the free
    # parameter v (or W) moves down F(atan2(v₂, v₁)); its angle must move with −F'/‖v‖², its length not at all.
    a, b, angle = sp.symbols("a b theta", real=True)
    F = sp.Function("F")
    loss = F(sp.atan2(b, a))
    velocity = [-sp.diff(loss, a).doit(), -sp.diff(loss, b).doit()]
    polar = {a: 3 * sp.cos(angle), b: 3 * sp.sin(angle)}
    slope = sp.Symbol("slope")

    def at_angle(expression: sp.Expr) -> sp.Expr:
        return sp.simplify(expression.replace(sp.Subs, lambda *_: slope).replace(sp.Derivative, lambda *_: slope))

    turning = at_angle((a * velocity[1] - b * velocity[0]) / (a**2 + b**2))
    growing = at_angle(a * velocity[0] + b * velocity[1])
    assert sp.simplify(turning.subs(polar) + slope / 9) == 0  # κ = 1/‖v‖² = 1/9
    assert sp.simplify(growing) == 0


def test_batch_normalised_outputs_do_not_see_the_length_of_the_weights() -> None:
    c = sp.Symbol("c", positive=True)
    a = sp.Matrix(sp.symbols("a1:4", real=True))

    def normalised(z: sp.Matrix) -> sp.Matrix:
        mean = sum(z) / 3
        return (z - sp.ones(3, 1) * mean) / sp.sqrt(sum((v - mean) ** 2 for v in z) / 3)

    assert (normalised(c * a) - normalised(a)).applyfunc(sp.simplify) == sp.zeros(3, 1)


# --- thm-folding ----------------------------------------------------------------------------------


def test_folding_in_symbols() -> None:
    w, x = sp.Matrix([sp.symbols("w1:4")]), sp.Matrix(sp.symbols("x1:4"))
    gamma, beta, mean, var, eps = sp.symbols("gamma beta m s epsilon", positive=True)
    normalised = gamma * ((w * x)[0] - mean) / sp.sqrt(var + eps) + beta
    gain = gamma / sp.sqrt(var + eps)
    assert sp.simplify(normalised - ((gain * w * x)[0] + beta - gain * mean)) == 0


def test_dividing_by_the_norm_of_the_deviations_is_too_small_by_the_root_of_the_channels() -> None:
    # Rows of equal norm r: folded ‖Ŵ‖² = r²Σ1/s_i², the other ‖W‖²/‖s‖² = C r²/Σs_i²; their ratio is at least C.
    s = sp.symbols("s1:5", positive=True)
    ratio = sum(1 / v**2 for v in s) / (4 / sum(v**2 for v in s))
    assert ratio.subs({v: 3 for v in s}) == 4
    rng = np.random.default_rng(0)
    for values in rng.uniform(0.1, 2, size=(200, 4)):
        assert float(ratio.subs(dict(zip(s, values, strict=True)))) >= 4 - 1e-9
