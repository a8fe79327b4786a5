"""Norms, margins, ranks and balance."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nclib.networks.models import Net, convnet, mlp, resnet18
from nclib.networks.normalisation import calibrate, fold
from nclib.networks.readings import balance, layer_norms, low_rank_distance, margins, rho, stable_ranks

F64 = torch.float64
FEW = settings(deadline=None, max_examples=20, derandomize=True)


def inputs(n: int, *shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def nets(norm: Any, outputs: int, seed: int, init_norm: float = 1.0) -> list[tuple[Net, Tensor]]:
    pairs = [(mlp((6, 5), norm), (4,)), (convnet((3, 4), norm), (2, 8, 8))]
    return [
        (arch.build(shape, outputs, init_norm=init_norm, seed=seed, dtype=F64), inputs(12, *shape, seed=seed))
        for arch, shape in pairs
    ]


@given(norms=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), norm=st.sampled_from(["none", "wn", "lm"]))
@FEW
def test_rho_at_the_start_is_the_product_of_the_initial_norms(norms: list[float], norm: Any) -> None:
    net = mlp((6, 5), norm).build((4,), init_norm=norms, dtype=F64)
    assert rho(net) == pytest.approx(math.prod(norms), rel=1e-12)
    assert layer_norms(net).prod().item() == pytest.approx(math.prod(norms), rel=1e-12)
    if norm != "lm":
        assert layer_norms(net).tolist() == pytest.approx(norms, rel=1e-12)


def test_rho_neither_under_nor_overflows_on_the_way() -> None:
    net = mlp((3,) * 9).build((3,), init_norm=[1e-38] * 5 + [1e38] * 5, dtype=torch.float32)
    assert rho(net) == pytest.approx(1.0, rel=1e-4)
    with torch.no_grad():
        net.layers[3].weight.zero_()
    assert rho(net) == 0.0


def test_rho_ignores_biases() -> None:
    net, x = nets("bn", 1, 0)[0]
    calibrate(net, x)
    plain = fold(net)
    with torch.no_grad():
        plain.layers[0].bias.add_(7.0)
    assert rho(plain) == pytest.approx(rho(net), rel=1e-13)


def test_rho_under_batch_norm_is_that_of_the_folded_network() -> None:
    net, x = nets("bn", 1, 0)[1]
    calibrate(net, x)
    assert rho(net) == pytest.approx(rho(fold(net)), rel=1e-13)
    assert rho(net) != pytest.approx(math.prod(layer.weight.norm().item() for layer in net.layers))


def test_rho_of_a_negative_scale_is_its_magnitude() -> None:
    net = mlp((6, 5), "lm").build((4,), init_norm=2.0, dtype=F64)
    assert net.scale is not None
    net.scale.data.neg_()
    assert rho(net) == pytest.approx(8.0)


def test_resnet_has_layer_norms_but_no_rho_no_margins_no_balance() -> None:
    net = resnet18("none", widths=(3, 4)).build((2, 6, 6), init_norm=0.5, dtype=F64)
    assert layer_norms(net).tolist() == pytest.approx([0.5] * len(net.layers))
    x, y = inputs(3, 2, 6, 6), torch.ones(3)
    for call in (lambda: rho(net), lambda: margins(net, x, y), lambda: balance(net)):
        with pytest.raises(
            ValueError, match=r"not defined for ResNet18.*use the norms of the layers of nclib.fold"
        ):
            call()


@given(
    seed=st.integers(0, 50),
    norm=st.sampled_from(["none", "wn", "lm"]),
    outputs=st.sampled_from([1, 3]),
    factor=st.floats(1e-3, 1e3),
)
@FEW
def test_margins_do_not_see_the_scale_of_a_layer(seed: int, norm: Any, outputs: int, factor: float) -> None:
    for net, x in nets(norm, outputs, seed):
        y = torch.arange(12) % 3 if outputs == 3 else 1.0 - 2 * (torch.arange(12) % 2)
        before = margins(net, x, y)
        with torch.no_grad():
            parameter = {"none": "weight", "wn": "gain"}.get(norm)
            (net.scale if parameter is None else getattr(net.layers[seed % 3], parameter)).mul_(factor)
        assert torch.allclose(margins(net, x, y), before, rtol=1e-10, atol=1e-14)
        assert before.abs().max() <= x.flatten(1).norm(dim=1).max() * (2 if outputs > 1 else 1) * 6


@given(seed=st.integers(0, 50), k=st.integers(0, 2), factor=st.floats(1e-2, 1e2))
@FEW
def test_margins_under_batch_norm_do_not_see_the_scale_either(seed: int, k: int, factor: float) -> None:
    net = mlp((6, 5), "bn", eps=0.0).build((4,), seed=seed, dtype=F64)
    x, y = inputs(12, 4, seed=seed), 1.0 - 2 * (torch.arange(12) % 2)
    calibrate(net, x)
    before = margins(net, x, y)
    with torch.no_grad():
        net.layers[k].weight.mul_(factor)
    calibrate(net, x)
    assert torch.allclose(margins(net, x, y), before, rtol=1e-8, atol=1e-12)


def test_margins_by_hand_and_by_chunks() -> None:
    net, x = nets("bn", 3, 1)[0]
    calibrate(net, x)
    labels = torch.arange(12) % 3
    f = net.eval()(x).detach()
    expected = [
        (f[n, c] - max(f[n, j] for j in range(3) if j != c)).item() / rho(net)
        for n, c in enumerate(labels.tolist())
    ]
    for y in (labels, torch.nn.functional.one_hot(labels), torch.nn.functional.one_hot(labels).double()):
        assert margins(net, x, y, chunk=5).tolist() == pytest.approx(expected)


def test_margins_are_float64_and_positive_where_right() -> None:
    net = mlp((6,)).build((4,))
    x = inputs(20, 4, dtype=torch.float32)
    y = net(x).sign().detach()
    m = margins(net, x, y)
    assert m.dtype == F64
    assert (m > 0).all()
    assert torch.equal(margins(net, x, -y), -m)


@pytest.mark.parametrize(
    ("outputs", "y", "message"),
    [
        (1, torch.ones(3), "expected one label per sample"),
        (1, torch.tensor([0, 1]), r"expected labels \+1 and -1"),
        (1, torch.ones(2, 1), r"expected labels \+1 and -1"),
        (3, torch.tensor([0, 3]), r"class numbers 0\.\.2"),
        (3, torch.tensor([0.5, 1.0]), r"class numbers 0\.\.2"),
        (3, torch.ones(2, 3), "one-hot"),
        (3, torch.ones(2, 2), r"one-hot rows, shape \(N, 3\)"),
    ],
)
def test_margins_refuse_labels_that_do_not_fit(outputs: int, y: Tensor, message: str) -> None:
    net = mlp((6,)).build((4,), outputs)
    with pytest.raises(ValueError, match=message):
        margins(net, torch.ones(2, 4), y)


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5), seed=st.integers(0, 20))
@FEW
def test_stable_rank_is_that_of_the_singular_values(values: list[float], seed: int) -> None:
    s = torch.tensor(values, dtype=F64)
    u = torch.linalg.qr(inputs(7, 7, seed=seed))[0][:, : len(values)]
    v = torch.linalg.qr(inputs(9, 9, seed=seed + 1))[0][:, : len(values)]
    expected = (s.square().sum() / s.max() ** 2).item()
    for w in ((u * s) @ v.T, ((u * s) @ v.T).T * 1e-200, ((u * s) @ v.T).reshape(7, 1, 3, 3)):
        assert stable_ranks(torch.stack([w, w.flip(0)])).tolist() == pytest.approx([expected] * 2, rel=1e-9)
    assert 1 <= expected <= len(values)


def test_stable_rank_at_its_edges() -> None:
    for undefined in (0.0, math.nan, math.inf):
        found = stable_ranks(torch.stack([torch.full((4, 4), undefined), torch.eye(4) * 1e-30]))
        assert math.isnan(found[0])
        assert found[1].item() == pytest.approx(4.0)


@given(seed=st.integers(0, 50), norm=st.sampled_from(["none", "bn", "wn", "lm"]))
@FEW
def test_neurons_sum_to_layers(seed: int, norm: Any) -> None:
    for net, x in nets(norm, 2, seed, init_norm=0.7):
        calibrate(net, x)
        layers, neurons = balance(net)
        squares = layer_norms(net).square()
        assert torch.allclose(layers, squares[:-1] - squares[1:], atol=1e-12)
        assert torch.allclose(torch.stack([n.sum() for n in neurons]), layers, atol=1e-10)
        assert [n.shape[0] for n in neurons] == [layer.shape.out for layer in net.layers[:-1]]


def test_gradient_flow_conserves_balance_neuron_by_neuron() -> None:
    # d/dt of rows minus columns is −2⟨row, ∂L/∂row⟩ + 2⟨column, ∂L/∂column⟩: zero, to rounding.
    for net, x in nets("none", 1, 3):
        (net(x) - 1).square().mean().backward()
        steps = [(layer.weight, layer.weight.grad) for layer in net.layers]
        for (w, g), (w_next, g_next) in pairwise(steps):
            rows = (w * g).flatten(1).sum(1)
            columns = (w_next * g_next).reshape(w_next.shape[0], rows.shape[0], -1).sum((0, 2))
            assert torch.allclose(rows, columns, rtol=1e-10, atol=1e-14)
            assert rows.abs().max() > 1e-6
        before = balance(net)
        with torch.no_grad():
            for w, g in steps:
                w -= 1e-4 * g
        after = balance(net)
        # One step of size η moves them by O(η²), where the norms themselves move by O(η).
        assert all((a - b).abs().max() < 1e-6 for a, b in zip(before.neurons, after.neurons, strict=True))


def test_balance_of_one_layer_is_empty() -> None:
    layers, neurons = balance(mlp(()).build((4,)))
    assert layers.shape == (0,)
    assert neurons == []


def test_low_rank_distance_is_the_distance_to_the_truncated_matrix() -> None:
    matrix = inputs(6, 4, seed=3)
    found = low_rank_distance(matrix)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    for r in range(5):
        nearest = u[:, :r] @ torch.diag(s[:r]) @ v[:r]
        assert found[r].item() == pytest.approx((matrix - nearest).norm().item(), abs=1e-13)
        low_rank = inputs(6, r, seed=4) @ inputs(r, 4, seed=5)  # another matrix of that rank is no nearer
        assert found[r] <= (matrix - low_rank).norm() + 1e-13


def test_low_rank_distance_keeps_small_singular_values_and_flattens_kernels() -> None:
    values = torch.tensor([1.0, 1e-9, 1e-12], dtype=F64)
    found = low_rank_distance(torch.diag(values))
    torch.testing.assert_close(found[1:3], torch.tensor([1e-9, 1e-12], dtype=F64), rtol=1e-5, atol=0)
    kernel = inputs(3, 2, 3, 3)
    assert low_rank_distance(kernel).tolist() == low_rank_distance(kernel.flatten(1)).tolist()
    with pytest.raises(ValueError, match=r"weight: shape \(3,\); expected a matrix"):
        low_rank_distance(torch.ones(3))
