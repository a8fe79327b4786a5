import sys

import numpy as np
import pytest
import torch

import nclib as nc
from nclib.theory.convex import activation_patterns

pytest.importorskip("cvxpy", reason="the global optimum needs CVXPY")


def plane(seed, n=5):
    return nc.data("teacher", n=n, d=2, seed=seed, dtype=torch.float64)


def test_every_pattern_is_listed():
    x = plane(1, n=7).x.numpy()
    angles = np.linspace(0, 2 * np.pi, 200_001)
    seen = np.unique(np.stack([np.cos(angles), np.sin(angles)], 1) @ x.T > 0, axis=0)
    found = activation_patterns(x)
    assert {tuple(p) for p in seen} <= {tuple(p) for p in found}
    assert len(found) <= 14


def test_no_network_beats_the_optimum_and_a_wide_one_reaches_it():
    for seed in (1, 2):
        problem = plane(seed)
        best = nc.convex_optimum(problem, 0.05)
        run = nc.flow(problem, (48,), weight_decay=0.05, rho0=[0.3, 1.0, 3.0], seed=[1, 2, 3], time=200)
        excess = run.final.loss / best.loss - 1
        assert excess.min() > -1e-6
        assert excess.min() < 1e-3


def test_weight_decay_on_layers_is_the_plain_models_price():
    problem = plane(1)
    best = nc.convex_optimum(problem, 0.05, weight_decay_on="layers")
    run = nc.flow(problem, (48,), weight_decay=0.05, seed=[1, 2, 3], time=200, model="plain")
    excess = run.final.loss / best.loss - 1
    assert -1e-6 < excess.min() < 1e-3


def test_one_point_by_hand():
    """One point of unit norm, y = 1: minimise (ρ − 1)² + λρ², so ρ = 1/(1 + λ) and the loss is λ/(1 + λ)."""
    problem = nc.from_arrays(np.array([[0.6, 0.8], [-0.6, -0.8]]), np.array([1, -1]), dtype=torch.float64)
    best = nc.convex_optimum(problem, 0.1)
    # Two opposite points need one neuron each: f = ±ρ/2, so μ = ρ-wise 1/2 and M = 1/4.
    rho = 0.5 / (0.25 + 0.1)
    assert best.rho == pytest.approx(rho, rel=1e-5)
    assert best.loss == pytest.approx(1 - 0.25 / 0.35, rel=1e-5)


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


def test_points_in_space_have_the_optimum_that_a_wide_network_reaches():
    problem = nc.data("teacher", n=4, d=12, seed=3, dtype=torch.float64)
    best = nc.convex_optimum(problem, 0.05)
    run = nc.flow(problem, (48,), weight_decay=0.05, rho0=[0.3, 3.0], seed=[1, 2], time=200)
    excess = run.final.loss / best.loss - 1
    assert -1e-6 < excess.min() < 1e-3


def test_what_no_network_fits_is_said():
    twice = nc.from_arrays(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, -1]), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="or give a positive weight_decay"):
        nc.convex_optimum(twice, 0.0)


def test_bad_input_says_what_to_write():
    with pytest.raises(ValueError, match=r"give points of shape \(N, 2\), or fewer of them"):
        nc.convex_optimum(nc.data("teacher", n=4, d=3), 0.1)
    with pytest.raises(ValueError, match="at most 10 linearly independent points"):
        nc.convex_optimum(nc.data("teacher", n=11, d=20), 0.1)
    with pytest.raises(ValueError, match="a decay cannot be negative"):
        nc.convex_optimum(plane(1), -0.1)
    with pytest.raises(ValueError, match="write 'rho' or 'layers'"):
        nc.convex_optimum(plane(1), 0.1, weight_decay_on="biases")


def test_without_cvxpy_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match="pip install cvxpy"):
        nc.convex_optimum(plane(1), 0.1)
