"""Folding: the same outputs, plain weights, and the trap of the norm of the standard deviations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nclib.networks.models import Architecture, Net, convnet, mlp, resnet18
from nclib.networks.normalisation import calibrate, fold, folded_weights
from nclib.networks.readings import rho

F64 = torch.float64
SHAPES: dict[str, tuple[int, ...]] = {"mlp": (4,), "convnet": (2, 12, 12), "resnet18": (2, 6, 6)}


def inputs(n: int, *shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def architecture(kind: str, norm: Any, eps: float) -> Architecture:
    if kind == "mlp":
        return mlp((6, 5), norm, eps=eps)
    if kind == "convnet":
        return convnet((3, 4, 5), norm, eps=eps)
    return resnet18(norm, widths=(3, 4), eps=eps)


def shake(net: Net, seed: int) -> None:
    """Move every parameter away from its special start (‖v‖ = 1, scale > 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=F64).to(p.dtype))
        if net.scale is not None and seed % 2:
            net.scale.neg_()


@pytest.mark.parametrize("kind", list(SHAPES))
@given(
    norm=st.sampled_from(["none", "bn", "bn", "wn", "lm"]),
    eps=st.sampled_from([0.0, 1e-5, 0.1]),
    outputs=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, F64]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_folding_keeps_the_outputs(
    kind: str, norm: str, eps: float, outputs: int, dtype: torch.dtype, seed: int
) -> None:
    arch = architecture(kind, norm, eps)
    net = arch.build(SHAPES[kind], outputs, seed=seed, dtype=dtype)
    shake(net, seed)
    x = inputs(20, *SHAPES[kind], seed=seed, dtype=dtype)
    calibrate(net, x)
    plain = fold(net)
    assert plain.arch.norm == "none"
    assert len(plain.norms) == 0
    new = inputs(10, *SHAPES[kind], seed=seed + 1, dtype=dtype)
    with torch.no_grad():
        for z in (x, new):
            f = net.eval()(z)
            error = (plain(z) - f).abs().max() / f.abs().max()
            assert error <= (1e-5 if dtype == torch.float32 else 1e-10)


def test_full_size_networks_fold_in_both_types() -> None:
    for arch in (convnet(norm="bn"), resnet18()):
        for dtype, bound in ((torch.float32, 1e-5), (F64, 1e-10)):
            net = arch.build((3, 16, 16), 10, dtype=dtype)
            x = inputs(6, 3, 16, 16, dtype=dtype)
            f = calibrate(net, x)
            with torch.no_grad():
                assert (fold(net)(x) - f).abs().max() <= bound * f.abs().max()


def test_padding_is_folded_too() -> None:
    # The bias must be added after the convolution, also where the kernel hangs over the border.
    net = convnet((2,), "bn").build((1, 3, 3), dtype=F64)
    x = inputs(5, 1, 3, 3) + 10.0
    assert torch.allclose(fold(net_calibrated := _calibrated(net, x))(x), net_calibrated.eval()(x), rtol=1e-12)


def _calibrated(net: Net, x: Tensor) -> Net:
    calibrate(net, x)
    return net


def test_folded_rows_have_unit_output_variance() -> None:
    # diag(Ŵ Σ_h Ŵᵀ) = 1 with ε = 0: the constraint that BN puts on the folded weights.
    net = mlp((6, 5), "bn", eps=0.0).build((4,), dtype=F64)
    x = inputs(40, 4)
    calibrate(net, x)
    plain = fold(net)
    h = x
    for layer in plain.layers[:-1]:
        covariance = torch.cov(h.T, correction=0)
        assert torch.allclose((layer.weight @ covariance * layer.weight).sum(1), torch.ones(1, dtype=F64))
        h = layer(h).relu()


def test_dividing_by_the_norm_of_the_standard_deviations_is_wrong_by_the_root_of_the_channels() -> None:
    net = convnet(norm="bn", eps=0.0).build((3, 16, 16), init_norm=0.1, dtype=F64)
    x = inputs(100, 3, 16, 16)
    calibrate(net, x)
    wrong = net.layers[-1].weight.norm().item()
    for layer, bn in zip(net.layers[:-1], net.norms, strict=True):
        wrong *= (layer.weight.norm() / bn.var.sqrt().norm()).item()
    right = rho(net)
    root = math.sqrt(32 * 64 * 128)
    assert right == pytest.approx(190.4, rel=0.05)
    assert wrong == pytest.approx(0.366, rel=0.05)
    assert root <= right / wrong <= 1.05 * root  # ≥ by Cauchy and Schwarz


def test_both_formulas_on_channels_of_equal_variance() -> None:
    # 16 rows, each reading one of 16 inputs of variance 4: ‖W‖ = 4, s = 2, so that ‖Ŵ‖ = 2.
    x = 2 * torch.cat([torch.eye(16, dtype=F64), -torch.eye(16, dtype=F64)]) * 4
    net = mlp((16,), "bn", eps=0.0).build((16,), dtype=F64)
    net.layers[0].set_weight(torch.eye(16, dtype=F64))
    calibrate(net, x)
    right = fold(net).layers[0].weight.norm().item()
    wrong = (net.layers[0].weight.norm() / net.norms[0].var.sqrt().norm()).item()
    assert right == pytest.approx(2.0)
    assert wrong == pytest.approx(0.5)  # too small by √16


def test_lm_shares_the_scale_and_keeps_its_sign() -> None:
    for sign in (1.0, -1.0):
        net = mlp((6, 5), "lm").build((4,), init_norm=2.0, dtype=F64)
        assert net.scale is not None
        net.scale.data.mul_(sign)
        assert [w.norm().item() for w in folded_weights(net)] == pytest.approx([2.0] * 3)
        x = inputs(5, 4)
        assert torch.allclose(fold(net)(x), net(x))


def test_folded_weights_share_nothing_with_the_network() -> None:
    net = mlp((6,)).build((4,), dtype=F64)
    folded = folded_weights(net)
    assert not any(w.requires_grad for w in folded)
    folded[0].zero_()
    assert net.layers[0].weight.all()


def test_a_plain_network_folds_to_a_copy_of_its_own() -> None:
    biased = fold(_calibrated(mlp((6,), "bn").build((4,)), inputs(9, 4, dtype=torch.float32)))
    for net in (mlp((6,)).build((4,)), biased):
        plain = fold(net)
        assert plain.arch == net.arch
        assert not plain.training
        assert torch.equal(plain.layers[0].weight, net.layers[0].weight)
        assert net is not biased or torch.equal(plain.layers[0].bias, net.layers[0].bias)
        with torch.no_grad():
            plain.layers[0].weight.zero_()
        assert net.layers[0].weight.any()


def test_folded_batch_norm_keeps_the_mean_as_a_bias() -> None:
    net = mlp((6,), "bn").build((4,), dtype=F64)
    calibrate(net, inputs(9, 4) + 1)
    plain = fold(net)
    assert plain.layers[0].bias.any()
    assert not plain.layers[1].bias.any()


def test_uncalibrated() -> None:
    with pytest.raises(ValueError, match=r"batch norm 1 has no statistics; set them with calibrate"):
        fold(mlp((3,), "bn").build((4,)))


def test_zero_variance_without_eps() -> None:
    net = mlp((3,), "bn", eps=0.0).build((4,))
    calibrate(net, torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"3 channel.*zero variance and eps=0"):
        fold(net)
