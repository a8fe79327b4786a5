import sys

import numpy as np
import pytest
import torch

import nclib as nc
from nclib.convex import activation_patterns

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


def test_bad_input_says_what_to_write():
    with pytest.raises(ValueError, match=r"give points of shape \(N, 2\)"):
        nc.convex_optimum(nc.data("teacher", n=4, d=3), 0.1)
    with pytest.raises(ValueError, match="the minimum needs a positive decay"):
        nc.convex_optimum(plane(1), 0.0)
    with pytest.raises(ValueError, match="write 'rho' or 'layers'"):
        nc.convex_optimum(plane(1), 0.1, weight_decay_on="biases")


def test_without_cvxpy_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match="pip install cvxpy"):
        nc.convex_optimum(plane(1), 0.1)
