"""The tangent kernel and the linear network against automatic differentiation and plain products."""

import numpy as np
import pytest
import torch

import nclib as nc
from nclib.theory.relu import forward, gradients, random_directions


@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("hidden", [(), (7,), (5, 4, 3)])
def test_tangent_kernel_is_the_product_of_jacobians(hidden, leak):
    V = random_directions((6, *hidden, 1), [1, 2])
    x = np.random.default_rng(0).normal(size=(2, 8, 6))
    found = nc.tangent_kernel(V, x, leak=leak)
    for b in range(2):
        layers = [torch.tensor(v[b], requires_grad=True) for v in V]
        h = torch.tensor(x[b]).T
        for k, layer in enumerate(layers):
            h = layer @ h
            h = torch.maximum(h, leak * h) if k < len(layers) - 1 else h
        rows = [torch.autograd.grad(out, layers, retain_graph=True) for out in h[0]]
        J = torch.stack([torch.cat([g.ravel() for g in row]) for row in rows])
        np.testing.assert_allclose(found[b], J @ J.T / 8, atol=1e-13)


def test_a_linear_network_is_the_product_of_its_layers():
    V = random_directions((6, 5, 4, 1), [3])
    x, r = np.random.default_rng(1).normal(size=(1, 8, 6)), np.random.default_rng(2).normal(size=(1, 8))
    f, hidden = forward(V, x, leak=1.0)
    np.testing.assert_allclose(f[0], x[0] @ (V[2][0] @ V[1][0] @ V[0][0])[0], atol=1e-14)
    found = gradients(V, hidden, r, leak=1.0)
    np.testing.assert_allclose(found[0][0], np.outer((V[2][0] @ V[1][0])[0], r[0] @ x[0]), atol=1e-14)
