"""No network beats the convex program and a wide one reaches it; descent finds what the closed form says."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

import nclib as nc
from nclib import ufm_descent, ufm_minimiser
from nclib.theory.optima import activation_patterns

needs_cvxpy = pytest.mark.skipif(not importlib.util.find_spec("cvxpy"), reason="the global optimum needs CVXPY")

# --- two layers


def plane(seed, n=5):
    return nc.data("teacher", n=n, d=2, seed=seed, dtype=torch.float64)


def test_every_pattern_is_listed():
    x = plane(1, n=7).x.numpy()
    angles = np.linspace(0, 2 * np.pi, 200_001)
    seen = np.unique(np.stack([np.cos(angles), np.sin(angles)], 1) @ x.T > 0, axis=0)
    found = activation_patterns(x)
    assert {tuple(p) for p in seen} <= {tuple(p) for p in found}
    assert len(found) <= 14


@needs_cvxpy
def test_no_network_beats_the_optimum_and_a_wide_one_reaches_it():
    for seed in (1, 2):
        problem = plane(seed)
        best = nc.convex_optimum(problem, 0.05)
        run = nc.flow(problem, (48,), weight_decay=0.05, rho0=[0.3, 1.0, 3.0], seed=[1, 2, 3], time=200)
        excess = run.final.loss / best.loss - 1
        assert excess.min() > -1e-6
        assert excess.min() < 1e-3


@needs_cvxpy
def test_weight_decay_on_layers_is_the_plain_models_price():
    problem = plane(1)
    best = nc.convex_optimum(problem, 0.05, weight_decay_on="layers")
    run = nc.flow(problem, (48,), weight_decay=0.05, seed=[1, 2, 3], time=200, model="plain")
    excess = run.final.loss / best.loss - 1
    assert -1e-6 < excess.min() < 1e-3


@needs_cvxpy
def test_one_point_by_hand():
    """One point of unit norm, y = 1: minimise (ρ − 1)² + λρ², so ρ = 1/(1 + λ) and the loss is λ/(1 + λ)."""
    problem = nc.from_arrays(np.array([[0.6, 0.8], [-0.6, -0.8]]), np.array([1, -1]), dtype=torch.float64)
    best = nc.convex_optimum(problem, 0.1)
    # Two opposite points need one neuron each: f = ±ρ/2, so μ = ρ-wise 1/2 and M = 1/4.
    rho = 0.5 / (0.25 + 0.1)
    assert best.rho == pytest.approx(rho, rel=1e-5)
    assert best.loss == pytest.approx(1 - 0.25 / 0.35, rel=1e-5)


@needs_cvxpy
def test_no_weight_decay_is_the_least_norm_that_fits():
    """Orthonormal points: v = Σ₊ x_n and u = Σ₋ x_n fit, and no network does with less than √N₊ + √N₋."""
    problem = nc.from_arrays(np.eye(5), np.array([1, 1, 1, -1, -1]), dtype=torch.float64)
    best = nc.convex_optimum(problem, 0.0)
    assert best.rho == pytest.approx(3**0.5 + 2**0.5, rel=1e-6)
    assert best.loss == 0.0
    np.testing.assert_allclose(best.outputs, problem.y.numpy(), atol=1e-6)
    near = nc.convex_optimum(problem, 1e-4)
    assert near.rho == pytest.approx(best.rho, rel=2e-3)
    assert near.rho < best.rho


@needs_cvxpy
def test_points_in_space_have_the_optimum_that_a_wide_network_reaches():
    problem = nc.data("teacher", n=4, d=12, seed=3, dtype=torch.float64)
    best = nc.convex_optimum(problem, 0.05)
    run = nc.flow(problem, (48,), weight_decay=0.05, rho0=[0.3, 3.0], seed=[1, 2], time=200)
    excess = run.final.loss / best.loss - 1
    assert -1e-6 < excess.min() < 1e-3


@needs_cvxpy
def test_the_dual_judges_not_the_solvers_opinion_of_itself():
    """On these points Clarabel calls its own point inaccurate; it is the optimum to nine digits."""
    problem = nc.data("teacher", n=6, d=20, seed=2615699934, dtype=torch.float64)
    best = nc.convex_optimum(problem, 0.0)
    assert best.rho == pytest.approx(3.2937781, rel=1e-6)
    assert best.rho > nc.convex_optimum(problem, 1e-4).rho > 0.99 * best.rho


@needs_cvxpy
def test_what_no_network_fits_is_said():
    twice = nc.from_arrays(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, -1]), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="or give a positive weight_decay"):
        nc.convex_optimum(twice, 0.0)


@needs_cvxpy
def test_bad_input_says_what_to_write():
    with pytest.raises(ValueError, match=r"give points of shape \(N, 2\), or fewer of them"):
        nc.convex_optimum(nc.data("teacher", n=4, d=3), 0.1)
    with pytest.raises(ValueError, match="at most 10 linearly independent points"):
        nc.convex_optimum(nc.data("teacher", n=11, d=20), 0.1)
    with pytest.raises(ValueError, match="expected a weight decay"):
        nc.convex_optimum(plane(1), -0.1)
    with pytest.raises(ValueError, match="write one of 'rho', 'layers'"):
        nc.convex_optimum(plane(1), 0.1, weight_decay_on="biases")


def test_without_cvxpy_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match="pip install cvxpy"):
        nc.convex_optimum(plane(1), 0.1)


# --- unconstrained features


@pytest.mark.parametrize(
    ("classes", "per_class", "decay_w", "decay_h", "bias", "dim"),
    [
        (4, 10, 5e-3, 5e-3, True, 6),
        (2, 4, 1e-2, 4e-2, True, 2),
        (3, [7, 4, 1], 0.02, 0.01, True, 3),
        (3, [7, 4, 1], 0.02, 0.01, False, 5),
        (3, 4, 0.5, 0.5, True, 3),
    ],
)
def test_descent_and_closed_form_agree(classes, per_class, decay_w, decay_h, bias, dim):
    found = ufm_descent(classes, per_class, decay_w, decay_h, bias=bias, dim=dim, seed=3)
    best = ufm_minimiser(classes, per_class, decay_w, decay_h, bias=bias, dim=dim, seed=3)
    assert found.loss == pytest.approx(best.loss, rel=1e-12)
    np.testing.assert_allclose(found.singular_values, best.singular_values, atol=1e-6)
    np.testing.assert_allclose(found.mean_norms, best.mean_norms, atol=1e-6)
    np.testing.assert_allclose(found.features @ found.weight.T, best.features @ best.weight.T, atol=1e-6)
    np.testing.assert_allclose(found.bias, best.bias, atol=1e-6)
    assert found.labels.tolist() == best.labels.tolist()
    if not bias:
        assert not found.bias.any()


def test_the_seed_and_the_size_of_the_start_are_used():
    one, same, other = (ufm_descent(3, 2, 0.0, 0.0, seed=seed, init=0.3) for seed in (1, 1, 2))
    assert np.array_equal(one.weight, same.weight)
    assert not np.allclose(one.weight, other.weight)
    assert np.linalg.norm(ufm_descent(3, 2, 0.0, 0.0, seed=1, init=0.6).features) > np.linalg.norm(one.features)


def test_features_behind_a_relu_are_not_negative_and_collapse_onto_a_frame():
    found = min(
        (ufm_descent(3, 5, 0.02, 0.02, bias=False, relu=True, dim=6, seed=s) for s in range(3)),
        key=lambda e: e.loss,
    )
    assert found.features.min() >= 0
    assert found.loss == pytest.approx(ufm_minimiser(3, 5, 0.02, 0.02, bias=False).loss, rel=1e-6)
    read = nc.collapse(found.features, found.labels, found.weight)
    assert read["nc1_quotient"] < 1e-4
    assert read["nc3"] == pytest.approx(2 - 2 * np.sqrt(2 / 3), abs=1e-2)


def test_singular_values_are_as_many_as_the_model_has():
    assert ufm_descent(4, 3, 0.01, 0.01, dim=2).singular_values.shape == (3,)
    assert ufm_descent(4, 3, 0.01, 0.01, dim=2).singular_values[2] < 1e-12
    assert ufm_descent(4, 3, 0.01, 0.01, bias=False, dim=4).singular_values.shape == (4,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ufm_descent(1, 5, 0.1, 0.1), "classes=1: expected a whole number >= 2"),
        (lambda: ufm_descent(3, [2, 2], 0.1, 0.1), r"per_class=\[2, 2\]: write"),
        (lambda: ufm_descent(3, 5, -0.1, 0.1), "weight_decay_w=-0.1: expected a weight decay"),
        (lambda: ufm_descent(3, 5, 0.1, float("nan")), "weight_decay_h=nan: expected a weight decay"),
        (lambda: ufm_descent(3, 5, 0.1, 0.1, dim=0), "dim=0: expected a whole number >= 1"),
    ],
)
def test_errors_say_what_to_write(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_optimiser_that_gives_up_is_an_error(monkeypatch):
    monkeypatch.setattr("nclib.theory.optima._ITERATIONS", 2)
    monkeypatch.setattr("nclib.theory.optima._RESTARTS", 1)
    with pytest.raises(RuntimeError, match=r"gradient is still .*; try another seed or a smaller init") as caught:
        ufm_descent(4, 10, 5e-3, 5e-3)
    assert "\n" not in str(caught.value)
