"""Exact batch-norm statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nclib.networks.models import Architecture, convnet, mlp, resnet18
from nclib.networks.normalisation import calibrate, calibrated

F64 = torch.float64
CASES = [
    (mlp((6, 5), "bn"), (4,)),
    (mlp((6, 5), "bn", eps=0.0), (4,)),
    (convnet((3, 4, 5), "bn"), (2, 12, 12)),
    (resnet18(widths=(3, 4)), (2, 6, 6)),
]


def inputs(n: int, *shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("arch", "shape"), CASES)
@given(n=st.integers(2, 30), chunk=st.integers(1, 31), keep=st.booleans())
@settings(deadline=None, max_examples=12, derandomize=True)
def test_evaluation_equals_one_training_batch(
    arch: Architecture, shape: tuple[int, ...], n: int, chunk: int, keep: bool
) -> None:
    x = inputs(n, *shape, seed=n)
    net = arch.build(shape, 2, init_norm=0.5, dtype=F64)
    with torch.no_grad():
        expected = net.train()(x)
        outputs = calibrate(net, x, chunk=chunk, max_bytes=2**30 if keep else 0)
        assert torch.allclose(outputs, expected, rtol=1e-9, atol=1e-11)
        assert torch.allclose(net.eval()(x), expected, rtol=1e-9, atol=1e-11)


def test_statistics_of_every_layer_are_those_of_the_whole_set() -> None:
    net = mlp((6, 5), "bn").build((4,), dtype=F64)
    x = inputs(50, 4)
    calibrate(net, x, chunk=7)
    h = x
    for layer, bn in zip(net.layers[:-1], net.norms, strict=True):
        a = h @ layer.weight.T
        assert torch.allclose(bn.mean, a.mean(0), rtol=1e-12)
        assert torch.allclose(bn.var, a.var(0, correction=0), rtol=1e-12)
        h = ((a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt()).relu()


def test_float32_statistics_do_not_cancel() -> None:
    # A mean 10⁴ times the spread: E[a²] − E[a]² in float32 would have no correct digit.
    x = inputs(400, 1, dtype=F64) + 1e4
    x32 = x.float()
    net = mlp((1,), "bn", eps=0.0).build((1,))
    net.layers[0].set_weight(torch.ones(1, 1))
    calibrate(net, x32)
    assert net.norms[0].var.item() == pytest.approx(x32.double().var(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_constant_channel_has_no_variance(dtype: torch.dtype) -> None:
    x = torch.full((300, 1), 0.1, dtype=dtype)
    net = mlp((2,), "bn").build((1,), dtype=dtype)
    net.layers[0].set_weight(torch.tensor([[1 / 3], [0.0]]))
    calibrate(net, x)
    assert net.norms[0].var.tolist() == [0.0, 0.0]
    assert net.norms[0].mean.tolist() == pytest.approx([0.1 / 3, 0.0], rel=1e-6)


def test_mode_and_weights_are_left_alone() -> None:
    for training in (True, False):
        net = mlp((6,), "bn").build((4,)).train(training)
        weights = [layer.weight.clone() for layer in net.layers]
        outputs = calibrate(net, inputs(9, 4, dtype=torch.float32))
        assert net.training is training
        assert not outputs.requires_grad
        assert all(torch.equal(w, layer.weight) for w, layer in zip(weights, net.layers, strict=True))


@pytest.mark.parametrize("norm", ["none", "wn", "lm"])
def test_without_batch_norm_it_returns_the_outputs(norm: Any) -> None:
    net = mlp((6,), norm).build((4,), dtype=F64)
    x = inputs(9, 4)
    assert torch.allclose(calibrate(net, x, chunk=4), net(x))


@pytest.mark.parametrize("max_bytes", [0, 2**30])
def test_an_error_leaves_the_network_as_it_was(max_bytes: int) -> None:
    net = mlp((6, 5), "bn").build((4,))
    with pytest.raises(RuntimeError):
        calibrated(net, torch.ones(9, 3), max_bytes=max_bytes)
    assert all(bn.training and not bn._forward_pre_hooks for bn in net.norms)


def test_nothing_is_kept_in_reserve() -> None:
    net = mlp((6,), "bn").build((4,), dtype=F64)
    calibrate(net, inputs(9, 4))
    x = inputs(30, 4, seed=1) * 5 + 2
    calibrate(net, x)  # no moving average: the second call forgets the first
    assert torch.allclose(net.norms[0].mean, (x @ net.layers[0].weight.T).mean(0))


def test_before_calibration_evaluation_is_nan() -> None:
    net = mlp((6,), "bn").build((4,)).eval()
    assert net(torch.ones(2, 4)).isnan().all()


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="x: no samples"):
        calibrate(mlp((3,), "bn").build((4,)), torch.empty(0, 4))
