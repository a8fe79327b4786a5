"""The gradient of each point against autograd, one point at a time."""

from __future__ import annotations

import pytest
import torch

from nclib.networks.models import convnet, mlp
from nclib.networks.normalisation import calibrate, fold
from nclib.networks.readings import per_sample_gradients

F64 = torch.float64


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    ("arch", "shape"), [(mlp((6, 5)), (4,)), (mlp((6,), norm="bn"), (4,)), (convnet((3, 4)), (2, 8, 8))]
)
def test_gradients_are_those_of_one_point_at_a_time(arch, shape, outputs):
    generator = torch.Generator().manual_seed(1)
    net = arch.build(shape, outputs, init_norm=2.0, seed=1, dtype=F64)
    x = torch.randn(5, *shape, generator=generator, dtype=F64)
    y = torch.randn(*((5,) if outputs == 1 else (5, outputs)), generator=generator, dtype=F64)
    if arch.norm == "bn":  # folding leaves biases
        calibrate(net, x)
        net = fold(net)
    found = per_sample_gradients(net, x, y, weight_decay=0.3)
    weights = [layer.weight for layer in net.layers]
    assert [g.shape for g in found] == [(5, *w.shape) for w in weights]
    for n in range(5):
        loss = (net(x[n : n + 1])[0] - y[n]).square().mean() + 0.3 * sum(w.square().sum() for w in weights)
        for ours, theirs in zip(found, torch.autograd.grad(loss, weights), strict=True):
            torch.testing.assert_close(ours[n], theirs, rtol=1e-12, atol=1e-13)


def test_a_dense_point_has_rank_one_and_a_convolution_the_rank_of_its_patches():
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    net = convnet((8, 20)).build((1, 8, 8), dtype=F64)
    ranks = [
        torch.linalg.matrix_rank(g.flatten(2)).tolist()
        for g in per_sample_gradients(net, x, torch.ones(3, dtype=F64))
    ]
    assert ranks == [[8] * 3, [4] * 3, [1] * 3]  # 16 patches but 8 channels; 4 patches; a map to one output


def test_errors_name_the_argument():
    x, y = torch.eye(3), torch.ones(3)
    with pytest.raises(
        ValueError, match=r"net: norm='wn' has no gradient of its own per point; pass nclib.fold\(net\)"
    ):
        per_sample_gradients(mlp((2,), norm="wn").build((3,)), x, y)
    with pytest.raises(ValueError, match=r"y: shape \(3,\); expected targets of shape \(3, 2\)"):
        per_sample_gradients(mlp((2,)).build((3,), 2), x, y)
