"""BN's two chapters, every proof by a second route: symbols, finite differences, dynamics without any network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy as sp
from conftest import ROOT, solution
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from bookkit import notebooks

Array = NDArray[np.float64]
TURNS, SINGULAR = "06_batch_normalisation", "07_bn_singularity"


# --- thm-scale-invariance and prop-epsilon: finite differences of a network in NumPy -----------------------------


def bn_loss(W: list[Array], x: Array, y: Array, eps: float, gains: list[Array] | None = None) -> float:
    h = x
    for k, w in enumerate(W[:-1]):
        z = h @ w.T
        z = (z - z.mean(0)) / np.sqrt(z.var(0) + eps)
        h = np.maximum(z if gains is None else gains[k] * z, 0)
    return float((((h @ W[-1].T)[:, 0] - y) ** 2).mean())


def random_problem(seed: int) -> tuple[list[Array], Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 5))
    return [rng.normal(size=s) for s in [(4, 5), (3, 4), (1, 3)]], x, np.sign(rng.normal(size=12))


def slope(f: Callable[[float], float], at: float = 1.0, h: float = 1e-5) -> float:
    return (f(at + h) - f(at - h)) / (2 * h)


@pytest.mark.parametrize("eps", [0.0, 0.3, 30.0])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_change_of_scale_is_delta_times_a_change_of_the_gain(eps: float, layer: int) -> None:
    W, x, y = random_problem(layer)
    h = x if layer == 0 else np.maximum((z := x @ W[0].T) - z.mean(0), 0) / np.sqrt(z.var(0) + eps)
    for row in range(len(W[layer])):
        delta = eps / (np.var(h @ W[layer][row]) + eps)

        def scaled(c: float, row: int = row) -> float:
            V = [w.copy() for w in W]
            V[layer][row] *= c
            return bn_loss(V, x, y, eps)

        def gained(c: float, row: int = row) -> float:
            gains = [np.ones(len(w)) for w in W[:-1]]
            gains[layer][row] = c
            return bn_loss(W, x, y, eps, gains)

        assert slope(scaled) == pytest.approx(delta * slope(gained), abs=1e-8)
        if eps == 0:
            assert scaled(7.0) == pytest.approx(scaled(1.0), rel=1e-12)


def test_the_degree_of_homogeneity_in_symbols() -> None:
    c, v, eps = sp.symbols("c v epsilon", positive=True)
    z_hat = c / sp.sqrt(c**2 * v + eps)  # in units of z − ⟨z⟩
    degree = (sp.diff(sp.log(z_hat), c) * c).subs(c, 1)
    assert sp.simplify(degree - eps / (v + eps)) == 0


def test_other_layers_keep_their_gradient() -> None:
    W, x, y = random_problem(5)
    direction = [np.random.default_rng(k).normal(size=w.shape) for k, w in enumerate(W)]

    def along(k: int, factor: float) -> float:
        def f(t: float) -> float:
            V = [factor * w if j == 0 else w for j, w in enumerate(W)]
            V[k] = V[k] + t * direction[k]
            return bn_loss(V, x, y, 0.0)

        return slope(f, 0.0)

    assert along(0, 3.0) == pytest.approx(along(0, 1.0) / 3, rel=1e-6)
    for k in (1, 2):
        assert along(k, 3.0) == pytest.approx(along(k, 1.0), rel=1e-6)


# --- thm-norm-growth and thm-turning-angle: any vectors that are orthogonal to the weights -----------------------


def orthogonal_walk(eta: float, lam: float, beta: float, steps: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Weights, momenta and gradients of SGD whose gradients are correlated, but orthogonal to the weights."""
    rng = np.random.default_rng(seed)
    w, b, drift = rng.normal(size=6), np.zeros(6), rng.normal(size=6)
    weights, momenta, gradients = [w], [], []
    for _ in range(steps):
        drift = 0.95 * drift + rng.normal(size=6)  # far from independent noise
        g = drift - (drift @ w) / (w @ w) * w
        g /= np.linalg.norm(w)
        b = beta * b + g + 2 * lam * w
        w = w - eta * b
        weights.append(w)
        momenta.append(b)
        gradients.append(g)
    return np.array(weights), np.array(momenta), np.array(gradients)


def test_growth_without_decay() -> None:
    eta = 0.1
    w, _, g = orthogonal_walk(eta, 0.0, 0.0, 500)
    squares = (w**2).sum(1)
    np.testing.assert_allclose(np.diff(squares), eta**2 * (g**2).sum(1), rtol=1e-9)
    unit = squares[:-1] * (g**2).sum(1)
    bound = (squares[0] ** 2 / eta**2 + 2 * unit.sum()) ** -0.5
    largest = (eta**2 * (g**2).sum(1) / squares[:-1]).max()
    assert bound / (1 + largest) <= eta / squares[-1] <= bound


def test_momentum_multiplies_the_growth() -> None:
    beta, eta = 0.9, 0.1
    w, b, _ = orthogonal_walk(eta, 0.0, beta, 400)
    tail = [w[-1]]  # the gradients vanish, and the momentum runs out
    momenta = [*b]
    for _ in range(600):
        momenta.append(beta * momenta[-1])
        tail.append(tail[-1] - eta * momenta[-1])
    growth = tail[-1] @ tail[-1] - w[0] @ w[0]
    assert growth == pytest.approx((1 + beta) / (1 - beta) * eta**2 * (np.array(momenta) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize(("eta", "lam"), [(0.1, 0.01), (0.5, 0.2), (1.0, 0.4)])
def test_the_turning_identity_is_exact_at_any_step_size(eta: float, lam: float) -> None:
    w, _, g = orthogonal_walk(eta, lam, 0.0, 300)
    norm = np.linalg.norm(w, axis=1)
    cosine = (w[1:] * w[:-1]).sum(1) / norm[1:] / norm[:-1]
    np.testing.assert_allclose(cosine, (1 - 2 * eta * lam) * norm[:-1] / norm[1:], rtol=1e-12)
    right = -np.log(1 - 2 * eta * lam) + np.log(norm[-1] / norm[0]) / 300
    assert -np.log(cosine).mean() == pytest.approx(right, rel=1e-10)
    alpha, squares = 1 - 2 * eta * lam, norm**2  # the fourth powers of part 3
    unit = squares[:-1] * (g**2).sum(1)
    fourth = alpha**4 * squares[:-1] ** 2 + 2 * alpha**2 * eta**2 * unit + eta**4 * (g**2).sum(1) ** 2
    np.testing.assert_allclose(squares[1:] ** 2, fourth, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_step_with_momentum_up_to_its_ends(beta: float) -> None:
    eta, lam, steps = 0.05, 0.1, 400
    w, b, g = orthogonal_walk(eta, lam, beta, steps)
    squares, inner = (w**2).sum(1), (w[:-1] * b).sum(1)
    after = beta * (inner[-1] - eta * b[-1] @ b[-1]) + 2 * lam * squares[-1]  # W·b of the next step, had it none
    gain = squares[-1] - squares[0]
    ends = (1 - beta) * gain + 4 * eta * lam * gain - 2 * eta * (after - inner[0])
    left = (1 + beta) * eta**2 * (b**2).sum()
    assert left == pytest.approx(4 * eta * lam * squares[:-1].sum() + ends, rel=1e-10)
    assert np.abs((w[:-1] * g).sum(1)).max() < 1e-12


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_a_long_correlated_walk_turns_by_the_angle(beta: float) -> None:
    eta, lam = 0.05, 0.02
    w = orthogonal_walk(eta, lam, beta, 10_000)[0][2000:]
    ratio = (np.diff(w, axis=0) ** 2).sum() / (w[:-1] ** 2).sum()
    assert ratio == pytest.approx(4 * eta * lam / (1 + beta), rel=0.02)


# --- thm-singular and thm-symmetry-modes: in symbols -------------------------------------------------------------


def test_one_neuron_has_the_eigenvalue_4_lambda() -> None:
    a, u, lam = sp.symbols("a u lambda", positive=True)
    loss = (a * u - 1) ** 2 + lam * (a**2 + u**2)
    size = sp.sqrt(1 - lam)
    at = {a: size, u: size}
    assert all(sp.simplify(sp.diff(loss, s).subs(at)) == 0 for s in (a, u))
    H = sp.hessian(loss, (a, u)).subs(at)
    direction = sp.Matrix([-1, 1])
    assert sp.simplify(H * direction - 4 * lam * direction) == sp.zeros(2, 1)


def test_two_neurons_and_two_inputs_have_the_predicted_spectrum() -> None:
    lam = sp.Rational(1, 10)
    a1, a2, u11, u12, u21, u22 = symbols = sp.symbols("a1 a2 u11 u12 u21 u22")
    x, weights = sp.Matrix([1, 2]), (sp.Matrix([u11, u12]), sp.Matrix([u21, u22]))
    f = a1 * weights[0].dot(x) + a2 * weights[1].dot(x)  # both neurons active on the one point
    loss = (f - 1) ** 2 + lam * sum(s**2 for s in symbols)
    e = x / x.norm()
    share = sp.sqrt((1 - lam / x.norm()) / x.norm() / 2)  # of each neuron: a = ‖u‖, equal shares
    at = dict(zip(symbols, [share, share, *(share * e), *(share * e)], strict=True))
    assert all(sp.simplify(sp.diff(loss, s).subs(at)) == 0 for s in symbols)
    eigenvalues = np.linalg.eigvalsh(np.array(sp.hessian(loss, symbols).subs(at).evalf(30), dtype=float))
    counts = [int((abs(eigenvalues / float(lam) - level) < 1e-10).sum()) for level in (0, 2, 4)]
    assert counts == [2 - 1, 2 * (2 - 1) - (1 - 1), 2]  # m − groups; m(d − 1) − (r − groups); m


def test_no_equilibrium_for_a_scale_invariant_layer() -> None:
    u, v, lam = sp.symbols("u v lambda", positive=True)
    loss = (u / sp.sqrt(u**2 + v**2) - sp.Rational(3, 5)) ** 2 + lam * (u**2 + v**2)
    radial = u * sp.diff(loss, u) + v * sp.diff(loss, v)
    assert sp.simplify(radial - 2 * lam * (u**2 + v**2)) == 0


# --- thm-two-times and cor-linear-drift --------------------------------------------------------------------------


def gradient_of_hyperbola(w: Array) -> Array:
    return 2 * (w[0] * w[1] - 1) * w[::-1]  # of (w₀w₁ − 1)²


def limit(w: Array) -> Array:
    end: Array = solve_ivp(lambda t, z: -gradient_of_hyperbola(z), (0, 30), w, rtol=1e-11, atol=1e-13).y[:, -1]
    return end


def test_the_limit_map_is_constant_along_the_flow_and_projects_on_the_surface() -> None:
    point = np.array([2.0, 0.5])
    h = 1e-4
    D = np.stack([(limit(point + h * e) - limit(point - h * e)) / (2 * h) for e in np.eye(2)], 1)
    normal = point[::-1] / np.linalg.norm(point)
    np.testing.assert_allclose(D, np.eye(2) - np.outer(normal, normal), atol=1e-5)
    off = np.array([2.0, 0.7])
    g = gradient_of_hyperbola(off)
    along = (limit(off + h * g / np.linalg.norm(g)) - limit(off - h * g / np.linalg.norm(g))) / (2 * h)
    np.testing.assert_allclose(along, 0, atol=1e-5)


def test_the_slow_flow_is_approached_in_proportion_to_lambda() -> None:
    start, tau = np.array([2.5, 0.9]), 0.2

    def slow(t: float, z: Array) -> Array:
        normal = z[::-1] / np.linalg.norm(z)
        pull = -2 * z
        return pull - (pull @ normal) * normal

    target = solve_ivp(slow, (0, tau), limit(start), rtol=1e-10, atol=1e-12).y[:, -1]
    distance = []
    for lam in (4e-3, 2e-3):
        run = solve_ivp(
            lambda t, z, lam=lam: -gradient_of_hyperbola(z) - 2 * lam * z,
            (0, tau / lam), start, "LSODA", rtol=1e-10, atol=1e-12,
        )  # fmt: skip
        distance.append(np.linalg.norm(run.y[:, -1] - target))
    assert distance[0] < 0.02
    assert distance[0] / distance[1] == pytest.approx(2, rel=0.05)


def test_the_closed_form_of_the_drift_in_symbols() -> None:
    q, s = sp.symbols("q s", positive=True)
    clock = (1 - 1 / s) * sp.log(q) + 1 / q + sp.log(q - s) / s
    speed = -4 * q**2 * (q - s) / (q * (q - s) + s)
    assert sp.simplify(sp.diff(clock, q) * speed + 4) == 0


def test_the_closed_form_of_the_drift_against_projection_in_weight_space() -> None:
    rng = np.random.default_rng(0)
    X, y, least = rng.normal(size=(3, 6)), np.array([1.0, -1.0, 1.0]), 0.0
    X /= np.linalg.norm(X, axis=1)[:, None]
    least = np.linalg.norm(np.linalg.pinv(X) @ y)
    null = (np.eye(6) - np.linalg.pinv(X) @ X) @ rng.normal(size=6)
    w = np.linalg.pinv(X) @ y + 2.5 * least * null / np.linalg.norm(null)

    def velocity(t: float, z: Array) -> Array:
        """−Π∇ρ² on pairs (ρ, V): projected by brute force on the tangents of sphere and surface."""
        rho, V = z[0], z[1:]
        constraints = np.vstack([np.column_stack([X @ V, rho * X]), np.concatenate([[0], V])])
        pull = np.concatenate([[-2 * rho], np.zeros(6)])
        return pull - np.linalg.pinv(constraints) @ (constraints @ pull)

    rho0 = np.linalg.norm(w)
    taus = [0.05, 0.2, 0.4]
    path = solve_ivp(velocity, (0, 0.4), np.concatenate([[rho0], w / rho0]), "DOP853", taus, rtol=1e-9).y[0]
    s = least**2

    def clock(rho: float) -> float:
        q = rho**2
        return float((1 - 1 / s) * np.log(q) + 1 / q + np.log(q - s) / s)

    for tau, rho in zip(taus, path, strict=True):
        closed = brentq(lambda r, tau=tau: clock(rho0) - clock(r) - 4 * tau, least * (1 + 1e-12), rho0)
        assert closed == pytest.approx(rho, rel=1e-6)


# --- thm-instability: a scale-invariant loss in three dimensions --------------------------------------------------

SHARP = 3.0


def gradient_on_the_cone(w: Array) -> Array:
    """Gradient of ½ (SHARP w₁² + w₂²)/‖w‖², whose Hessian at the unit pole has the eigenvalues SHARP, 1 and 0."""
    curved = np.array([0.0, SHARP * w[1], w[2]])
    square = w @ w
    gradient: Array = curved / square - (w @ curved) / square**2 * w
    return gradient


def test_deviations_from_the_shrinking_ray() -> None:
    eta, lam = 0.05, 0.02
    alpha, w = 1 - 2 * eta * lam, np.array([0.6, 1e-9, -1e-9])
    s, r = SHARP / w[0] ** 2, 0.6
    u = w / r
    for n in range(400):
        w = alpha * w - eta * gradient_on_the_cone(w)
        u[1:] *= 1 - eta * np.array([s, s / SHARP]) * alpha ** -(2 * n + 1)
        np.testing.assert_allclose(w[1:] / (alpha ** (n + 1) * r), u[1:], rtol=1e-6, atol=1e-300)
        if np.abs(u[1:]).max() > 1e-5:
            break
    threshold = np.log(eta * s / 2 / alpha) / 2 / np.log(alpha)
    assert threshold < n < 400


def test_delay_of_the_explosion_to_leading_order() -> None:
    for product, tolerance in ((1e-4, 0.1), (1e-6, 0.01)):
        j = np.arange(200_000)
        grown = np.cumsum(np.log(2 * (1 - 2 * product) ** (-2.0 * j) - 1))
        exact = np.searchsorted(grown, 25.0)
        assert np.sqrt(25.0 / (4 * product)) == pytest.approx(exact, rel=tolerance)


# --- the exercises' solutions -------------------------------------------------------------------------------------


def run_cells(chapter: str, marks: tuple[str, ...], folder: Path) -> Iterator[dict[str, Any]]:
    """What the solutions of a chapter use, from its cells that hold one of `marks`; without their claims."""
    import matplotlib.pyplot as plt

    import nclib as nc

    made = notebooks.notebook((ROOT / "chapters" / f"{chapter}.md").read_text("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCLIB_CLAIMS", str(folder))
        patch.setattr(nc, "claim", lambda *_, **__: None)
        names: dict[str, Any] = {}
        for mark in ("nc.chapter(", *marks):
            (source,) = [cell.source for cell in made.cells if cell.cell_type == "code" and mark in cell.source]
            exec(source, names)
        yield names
        plt.close("all")


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    marks = ("def turn(", "def bn_network", "def sharpness", "def explosion")
    yield from run_cells(TURNS, marks, tmp_path_factory.mktemp("claims"))


@pytest.fixture(scope="module")
def singular(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    yield from run_cells(SINGULAR, ("def full_hessian", "clusters ="), tmp_path_factory.mktemp("claims"))


def test_solution_decay_convention(turns: dict[str, Any]) -> None:
    degrees, steps = solution(TURNS, "ex-decay-convention", **turns)
    assert degrees == pytest.approx(0.573, abs=1e-3)
    assert steps == pytest.approx(13_863, abs=1)


def test_solution_drop(turns: dict[str, Any]) -> None:
    right_after, after_720, end = solution(TURNS, "ex-drop", **turns)
    assert right_after == pytest.approx(0.1, rel=0.3)
    assert after_720 == pytest.approx((1 + 9 * np.exp(-8 * 0.0004 * 720)) ** -0.5, rel=0.1)
    assert end == pytest.approx(10**-0.5, rel=0.03)


def test_solution_momentum(turns: dict[str, Any]) -> None:
    np.testing.assert_allclose(solution(TURNS, "ex-momentum", **turns), 19, rtol=1e-3)


def test_solution_float32(turns: dict[str, Any]) -> None:
    earlier = solution(TURNS, "ex-float32", **turns)
    delay = turns["forecast"][:, 1] - turns["forecast"][:, 0]
    # √(ln(Δ/δ)) in single over double precision, with Δ about 1e-4
    ratio = np.sqrt(np.log(1e-4 / 2.0**-23) / np.log(1e-4 / 2.0**-52))
    np.testing.assert_allclose(earlier / delay, 1 - ratio, atol=0.05)


def test_solution_spectrum(singular: dict[str, Any]) -> None:
    counts, at_least = solution(SINGULAR, "ex-spectrum", **singular)
    assert counts[0] == 8 - 2
    assert counts[2] == 8
    assert counts[1] >= at_least


def test_solution_one_neuron() -> None:
    np.testing.assert_allclose(solution(SINGULAR, "ex-one-neuron"), [0.4, 3.6], rtol=1e-12)
