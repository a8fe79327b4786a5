"""The last layer by itself is the network's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nclib import calibrate, fold, last_layer, mlp


@pytest.mark.parametrize("norm", ["none", "bn", "wn", "lm"])
def test_features_times_classifier_are_the_outputs(norm):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = mlp(widths=(16, 12), norm=norm, eps=0).build((6,), 3, init_norm=2.0, seed=1, dtype=torch.float64)
    calibrate(net, x)
    net.eval()
    features, weight, bias = last_layer(net, x, chunk=7)
    assert features.dtype == weight.dtype == np.float64
    assert features.shape == (30, 12)
    assert features.min() >= 0
    assert bias is None
    np.testing.assert_allclose(features @ weight.T, net(x).detach().numpy(), atol=1e-12)


def test_a_bias_is_returned():
    net = mlp(widths=(8,), norm="bn").build((4,), 3)
    calibrate(net, torch.eye(4))
    net = fold(net)
    with torch.no_grad():
        net.layers[-1].bias += torch.arange(3)
    x = torch.ones(2, 4)
    features, weight, bias = last_layer(net, x)
    assert bias.tolist() == [0.0, 1.0, 2.0]
    np.testing.assert_allclose(features @ weight.T + bias, net(x).detach().numpy(), atol=1e-6)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="x: no samples; give at least 1"):
        last_layer(mlp(widths=(8,)).build((4,), 3), torch.ones(0, 4))
