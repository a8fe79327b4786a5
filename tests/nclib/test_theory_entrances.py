"""Whatever is given to the theory: the right number, or an error that names the argument."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nclib as nc

WRONG = [np.nan, np.inf, -np.inf, 1j, "one", None, True]
exponents = st.integers(-200, 200)


def teacher(seed, n=6, d=5):
    return nc.data("teacher", n=n, d=d, seed=seed, dtype=torch.float64)


# --- scale


@settings(deadline=None, max_examples=40)
@given(exponents, exponents, st.integers(0, 10**6))
def test_least_norms_follow_the_unit(in_x, in_y, seed):
    rng = np.random.default_rng(seed)
    x, y, w0 = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=6)
    c, b = 10.0**in_x, 10.0**in_y
    if in_y - in_x > 310:
        with pytest.raises(ValueError, match=r"x and y .*can't hold the result"):
            nc.minimum_norm(c * x, b * y)
    if abs(in_y - in_x) < 290:
        np.testing.assert_allclose(nc.minimum_norm(c * x, b * y), b / c * nc.minimum_norm(x, y), rtol=1e-9)
    if abs(in_x) < 150:
        np.testing.assert_allclose(nc.ridge(c * x, y, c**2 * 0.1), nc.ridge(x, y, 0.1) / c, rtol=1e-9)
        np.testing.assert_allclose(nc.ridge(1e-150 * x, y, 10.0), 1e-151 / 4 * x.T @ y, rtol=1e-9)
    for depth in (1, 2, 4):
        if abs(in_x - in_y) < 200:
            expected = nc.interpolant_from(x, y, w0, depth)
            found = nc.interpolant_from(c * x, b * y, b / c * w0, depth)
            np.testing.assert_allclose(found, b / c * expected, rtol=1e-8, atol=1e-10 * b / c)


@settings(deadline=None, max_examples=30)
@given(exponents)
def test_random_correlations_are_proportional_to_the_inputs(exponent):
    c, x, signs = 10.0**exponent, np.random.default_rng(0).normal(size=(5, 2)), [[1, -1, 1, 1, -1], [1] * 5]
    for depth in (1, 2):
        np.testing.assert_allclose(
            nc.rademacher_exact(c * x, signs, depth), c * nc.rademacher_exact(x, signs, depth), rtol=1e-12
        )
    options = dict(arch=nc.mlp((3,)), restarts=1, steps=5)
    np.testing.assert_allclose(
        nc.rademacher_ascent(c * x, signs, **options), c * nc.rademacher_ascent(x, signs, **options), rtol=1e-9
    )


@settings(deadline=None, max_examples=40)
@given(exponents)
def test_the_kernel_and_the_resting_norm_follow_the_unit_or_name_it(exponent):
    c, (x, f, y) = 10.0**exponent, (np.eye(3)[None], np.array([0.3, -0.1]), [1, -1])
    W = [np.full((1, 2, 3), 0.4), np.full((1, 1, 2), 0.7)]
    if abs(exponent) < 100:
        np.testing.assert_allclose(nc.tangent_kernel(W, c * x), c**2 * nc.tangent_kernel(W, x), rtol=1e-12)
        np.testing.assert_allclose(nc.equilibrium_norm(c * f, y, 0), nc.equilibrium_norm(f, y, 0) / c, rtol=1e-12)
    elif abs(exponent) > 101:
        with pytest.raises(ValueError, match="x is so large or small"):
            nc.tangent_kernel(W, c * x)
        with pytest.raises(ValueError, match="f is so large or small"):
            nc.equilibrium_norm(c * f, y, 0)


# --- the flow goes on


@pytest.mark.parametrize("options", [dict(), dict(model="plain"), dict(model="plain", biases=True), dict(leak=0.3)])
def test_a_flow_goes_on_exactly_where_it_ended(options):
    one = nc.flow(teacher, (4, 3), weight_decay=0.01, rho0=[0.7, 2.0], seed=[3, 4], time=3.0, cooling=1, **options)
    options |= dict(rho0=[0.7, 2.0], seed=[3, 4], start=one)
    on = nc.flow(teacher, (4, 3), weight_decay=0.02, time=0.1, cooling=0, **options)
    first = on.history.groupby("member").head(1)
    for name in ("seed", "rho0", "rho", "mse", "mu", "margin_min"):
        np.testing.assert_allclose(first[name], one.final[name], rtol=1e-12, err_msg=name)


def test_a_flow_goes_on_in_the_other_model():
    for model, other in (("plain", "normalised"), ("normalised", "plain")):
        one = nc.flow(teacher, (4,), weight_decay=0.01, time=3.0, cooling=1, model=model)
        on = nc.flow(teacher, (4,), weight_decay=0.01, time=0.1, cooling=0, model=other, start=one)
        np.testing.assert_allclose(on.history.mse[0], one.final.mse[0], rtol=1e-12)
        np.testing.assert_allclose(on.history.rho[0], one.final.rho[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(widths=(5,)), r"widths=\(5,\), but start has \(4,\)"),
        (dict(widths=(4, 4)), r"widths=\(4, 4\), but start has \(4,\)"),
        (dict(widths=()), r"widths=\(\), but start has \(4,\)"),
        (dict(seed=1), r"seed=\[1\], but start has \[0\]"),
        (dict(rho0=2.0), r"rho0=\[2.0\], but start has \[1.0\]"),
        (dict(leak=0.5), "leak=0.5, but start has 0.0"),
        (dict(problem=teacher(0, d=7)), "dimension of the inputs=7, but start has 5"),
        (dict(model="plain", layer_norms=(1.0, 1.0)), "layer_norms=.*: give a fresh start"),
        (dict(start="ended"), "start='ended': expected what flow or exact_flow returned"),
        (dict(seed=[0, 1]), "number of members=2, but start has 1"),
    ],
)
def test_a_start_of_another_kind_is_refused(changed, message):
    begin = nc.flow(teacher, (4,), weight_decay=0.1, time=1.0, cooling=0)
    given = dict(problem=teacher, widths=(4,), weight_decay=0.1, time=1.0, start=begin) | changed
    with pytest.raises(ValueError, match=message):
        nc.flow(given.pop("problem"), given.pop("widths"), **given)


# --- the convex optimum, for every weight decay


@pytest.mark.parametrize("on", ["rho", "layers"])
def test_the_convex_optimum_tends_to_the_least_norm(on):
    pytest.importorskip("cvxpy")
    points = teacher(1, d=2)
    least = nc.convex_optimum(points, 0.0).rho
    for lam in (1e-6, 1e-8, 1e-10, 1e-12):
        best = nc.convex_optimum(points, lam, weight_decay_on=on)
        limit = lam * least**2 if on == "rho" else 2 * lam * least
        assert best.loss == pytest.approx(limit, rel=1e-5 + 1e3 * lam)
        assert best.rho == pytest.approx(least, rel=1e-5 + 1e3 * lam)
    with pytest.raises(ValueError, match=r"weight_decay=1e-20 .*write 0 for the limit"):
        nc.convex_optimum(points, 1e-20, weight_decay_on=on)


def test_the_convex_optimum_of_a_strong_decay_is_one_neuron():
    pytest.importorskip("cvxpy")
    points = teacher(1, d=2)
    x, y = points.x.numpy(), points.y.numpy()
    reach = nc.rademacher_exact(x, [y], depth=2).item()  # the best unit neuron: ρ = reach/λ, L = 1 − reach²/λ
    best = nc.convex_optimum(points, 1e6)
    assert best.rho == pytest.approx(reach / 1e6, rel=1e-4)
    assert 1 - best.loss == pytest.approx(reach**2 / 1e6, rel=1e-4)
    assert nc.convex_optimum(points, 2.0, weight_decay_on="layers").rho == 0


@pytest.mark.parametrize("unit", [1e-150, 1e-6, 1e6, 1e150])
def test_the_convex_optimum_follows_the_unit(unit):
    pytest.importorskip("cvxpy")
    x, y = teacher(1, d=2).x.numpy(), [1, -1, 1, -1, 1, -1]
    one, other = (nc.from_arrays(c * x, y, unit_norm=False, dtype=torch.float64) for c in (1.0, unit))
    for lam, on, power in ((0.0, "rho", 2), (0.05, "rho", 2), (0.05, "layers", 1)):
        best = nc.convex_optimum(one, lam, weight_decay_on=on)
        found = nc.convex_optimum(other, lam * unit**power, weight_decay_on=on)
        assert found.loss == pytest.approx(best.loss, rel=1e-5)
        assert found.rho * unit == pytest.approx(best.rho, rel=1e-5)


@pytest.mark.parametrize("on", ["rho", "layers"])
def test_labels_that_no_network_correlates_with_leave_zero(on):
    pytest.importorskip("cvxpy")
    twice = nc.from_arrays(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, -1]), dtype=torch.float64)
    best = nc.convex_optimum(twice, 0.1, weight_decay_on=on)
    assert best.loss == pytest.approx(1, rel=1e-6)
    assert best.rho == pytest.approx(0, abs=1e-4)


def test_a_solver_that_fails_or_is_not_there_is_said(monkeypatch):
    cp = pytest.importorskip("cvxpy")
    monkeypatch.setattr(cp, "installed_solvers", lambda: [])
    with pytest.raises(ImportError, match="pip install clarabel"):
        nc.convex_optimum(teacher(1, d=2), 0.1)
    monkeypatch.undo()
    solve = cp.Problem.solve

    def short(problem, **options):
        return solve(problem, max_iter=3, **options)

    monkeypatch.setattr(cp.Problem, "solve", short)
    with pytest.raises(RuntimeError, match="the conic solver ended with status"):
        nc.convex_optimum(teacher(1, d=2), 0.1)

    def rough(problem, **options):
        return solve(problem, tol_gap_rel=1e-2, tol_gap_abs=1e-2, tol_feas=1e-2, **options)

    monkeypatch.setattr(cp.Problem, "solve", rough)
    with pytest.raises(RuntimeError, match="not the minimum to six digits"):
        nc.convex_optimum(teacher(1, d=2), 0.1)


# --- what is no number, and what would never end

X, Y, W0, M = np.eye(3), np.ones(3), np.ones(3), [0.1, 0.2]
CALLS = {
    "equilibrium_norm": (nc.equilibrium_norm, dict(f=M, y=[1, -1], weight_decay=0.1)),
    "equilibrium_loss": (nc.equilibrium_loss, dict(f=M, y=[1, -1], weight_decay=0.1)),
    "minimum_norm": (nc.minimum_norm, dict(x=X, y=Y)),
    "ridge": (nc.ridge, dict(x=X, y=Y, weight_decay=0.1)),
    "interpolant_from": (nc.interpolant_from, dict(x=X, y=Y, w0=W0, depth=2)),
    "growth_clock": (nc.growth_clock, dict(rho=M, depth=3)),
    "linear_escape_time": (nc.linear_escape_time, dict(rho0=1e-4, level=1e-2, depth=2, size=0.5, angle=0.3)),
    "simplex_etf": (nc.simplex_etf, dict(classes=3, dim=3, seed=0)),
    "ufm_minimiser": (
        nc.ufm_minimiser,
        dict(classes=2, per_class=2, weight_decay_w=0.1, weight_decay_h=0.1, dim=3, seed=0),
    ),
    "ufm_descent": (
        nc.ufm_descent,
        dict(classes=2, per_class=2, weight_decay_w=0.1, weight_decay_h=0.1, dim=3, seed=0, init=0.5),
    ),
    "rademacher_bound": (nc.rademacher_bound, dict(n=5, depth=2, radius=1.0, patches=[4], classes=3)),
    "rademacher_exact": (nc.rademacher_exact, dict(x=np.eye(2), signs=[[1, -1]], depth=2)),
    "rademacher_ascent": (
        nc.rademacher_ascent,
        dict(x=np.eye(2), signs=[[1, -1]], arch=nc.mlp(()), restarts=1, steps=1, seed=0),
    ),
    "patch_radius": (nc.patch_radius, dict(images=np.ones((2, 1, 3, 3)), kernel=2, stride=1, padding=0)),
    "margin_bound": (
        nc.margin_bound,
        dict(margins=M, gamma=0.1, depth=2, radius=1.0, delta=0.1, patches=[2], classes=3),
    ),
    "margin_bound_over_grid": (
        nc.margin_bound_over_grid,
        dict(margins=M, depth=2, radius=1.0, delta=0.1, gammas=M, patches=[2], classes=3),
    ),
    "tangent_kernel": (nc.tangent_kernel, dict(layers=[np.ones((1, 1, 3))], x=X[None], leak=0.1)),
    "convex_optimum": (nc.convex_optimum, dict(weight_decay=0.1, weight_decay_on="rho", problem=teacher(1, d=2))),
    "flow": (
        nc.flow,
        dict(problem=teacher, widths=(3,), weight_decay=0.1, time=1.0, rho0=1.0, seed=0, leak=0.1, dt=0.1,
             cooling=1, records=3),
    ),
    "exact_flow": (
        nc.exact_flow,
        dict(problem=teacher, widths=(2,), weight_decay=0.1, time=1.0, rho0=1.0, seed=0, leak=0.1, rtol=1e-6,
             records=3, max_evaluations=1000),
    ),
}  # fmt: skip
SKIP = {"problem", "arch", "weight_decay_on"}


def holed(value, wrong):
    """The value with its last number replaced."""
    if np.ndim(value) == 0:
        return wrong
    if isinstance(value, list) and np.ndim(value[0]) == 3:
        return [holed(value[0], wrong)]
    found = np.array(value, dtype=object)
    found.flat[-1] = wrong
    return found.tolist() if isinstance(value, list) else found


def meant(name, key, wrong):
    """Whether this is no number, there: in arrays truth values are 0 and 1, and None may leave an argument out."""
    array = np.ndim(CALLS[name][1][key]) > 0 and key not in ("patches", "widths")
    if wrong is True:
        return not (array or (key == "weight_decay" and name.startswith("equilibrium")))
    return not (wrong is None and key in ("dim", "patches"))


def wrong_numbers():
    """Every argument of every call at least once, and every wrong number where a call can be given it, in turn."""
    for name in CALLS:
        keys = [key for key in CALLS[name][1] if key not in SKIP]
        pairs = [
            (keys[(i + shift) % len(keys)], wrong) for shift in range(len(keys)) for i, wrong in enumerate(WRONG)
        ]
        pairs = [(key, wrong) for key, wrong in pairs if meant(name, key, wrong)]
        seen_keys, seen_kinds = set(), set()
        for key, wrong in pairs:
            if key not in seen_keys or str(wrong) not in seen_kinds:
                seen_keys.add(key)
                seen_kinds.add(str(wrong))
                yield name, key, wrong


@pytest.mark.parametrize(("name", "key", "wrong"), [*wrong_numbers()])
def test_what_is_no_number_is_named(name, key, wrong):
    call, options = CALLS[name]
    with pytest.raises((ValueError, TypeError), match=key):
        call(**options | {key: holed(options[key], wrong)})


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("flow", dict(time=1e300)),
        ("flow", dict(dt=1e-300)),
        ("flow", dict(records=10**12)),
        ("flow", dict(cooling=10**9)),
        ("flow", dict(widths=(10**12,))),
        ("exact_flow", dict(records=10**12)),
        ("ufm_minimiser", dict(per_class=10**12)),
        ("ufm_minimiser", dict(classes=10**9)),
        ("ufm_descent", dict(dim=10**12)),
        ("simplex_etf", dict(classes=10**9, dim=None)),
        ("simplex_etf", dict(dim=10**12)),
        ("rademacher_ascent", dict(steps=10**12)),
        ("rademacher_ascent", dict(restarts=10**12)),
        ("rademacher_bound", dict(depth=10**12, patches=None)),
        ("rademacher_bound", dict(n=10**400)),
        ("rademacher_bound", dict(patches=[10**400])),
        ("growth_clock", dict(depth=10**400)),
        ("patch_radius", dict(padding=10**12)),
    ],
)
def test_what_would_never_end_is_refused(name, changed):
    call, options = CALLS[name]
    with pytest.raises(ValueError, match=next(iter(changed))):
        call(**options | changed)


@pytest.mark.parametrize("name", [name for name, (_, options) in CALLS.items() if "seed" in options])
def test_seeds_are_whole_numbers_below_two_to_the_64(name):
    call, options = CALLS[name]
    for wrong in (-1, 2**64, 0.5, "0", True):
        with pytest.raises(ValueError, match="seed="):
            call(**options | dict(seed=wrong))
    for right in (np.int64(3), np.uint8(3), 2**64 - 1):
        if name != "flow" and name != "exact_flow":
            call(**options | dict(seed=right))


@pytest.mark.parametrize("seed", [np.int64(3), 2**64 - 1])
def test_a_flow_keeps_its_seed(seed):
    for follow in (nc.flow, nc.exact_flow):
        assert follow(teacher(1), (), weight_decay=0.1, time=0.1, seed=seed).history.seed[0] == seed


# --- in whatever it comes

DRESSES = {
    "a list": lambda a: a.tolist(),
    "a tensor": torch.tensor,
    "with a gradient": lambda a: torch.tensor(a, requires_grad=True),
    "bfloat16": lambda a: torch.tensor(a, dtype=torch.bfloat16),
    "big-endian": lambda a: a.astype(">f8"),
    "reversed strides": lambda a: np.array(a[::-1])[::-1],
    "a frame": lambda a: pd.DataFrame(a) if a.ndim == 2 else pd.Series(a, index=range(7, 7 + len(a))),
    "half": lambda a: a.astype(np.float16),
}


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("dress", [*DRESSES.values(), read_only], ids=[*DRESSES, "read-only"])
def test_arrays_are_taken_as_they_come(dress):
    x, y, signs = np.array([[1.0, 0.5], [-0.25, 1.0], [0.5, 0.5]]), np.array([1.0, -1.0, 1.0]), np.eye(3) * 2 - 1
    for call in (
        lambda x, y, _: nc.minimum_norm(x, y),
        lambda x, y, _: nc.ridge(x, y, 0.1),
        lambda x, y, _: nc.interpolant_from(x, y, y[:2] if isinstance(y, list) else [1.0, -1.0], 2),
        lambda x, y, _: nc.equilibrium_norm(y, y, 0.1),
        lambda x, y, _: nc.growth_clock(x[0] if isinstance(x, list) else [1.0, 0.5], 3),
        lambda x, y, s: nc.rademacher_exact(x, s, 2),
        lambda x, y, _: nc.margin_bound(y, 0.5, 2).total,
    ):
        np.testing.assert_array_equal(call(dress(x), dress(y), dress(signs)), call(x, y, signs))


def test_the_table_of_calls_is_complete():
    assert set(CALLS) <= set(nc.__all__)
    for call, options in CALLS.values():
        if call is nc.convex_optimum and "cvxpy" not in sys.modules:
            continue
        call(**options)
