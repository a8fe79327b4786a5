"""Architectures and networks: shapes, exact initial norms, statelessness, errors."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from nclib.networks.models import Architecture, Net, convnet, mlp, resnet18
from nclib.networks.normalisation import calibrate

F64 = torch.float64
NORMS = ("none", "bn", "wn", "lm")


def inputs(n: int, *shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def architectures(norm: Any) -> list[tuple[Architecture, tuple[int, ...]]]:
    return [
        (mlp((6, 5), norm), (4,)),
        (convnet((3, 4, 5), norm), (2, 12, 12)),
        (resnet18(norm, widths=(3, 4)), (2, 6, 6)),
    ]


@given(
    widths=st.lists(st.integers(1, 9), max_size=4),
    norm=st.sampled_from(NORMS),
    norms=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, F64]),
)
@settings(deadline=None, max_examples=30, derandomize=True)
def test_initial_norms_are_exact(widths: list[int], norm: Any, norms: list[float], dtype: torch.dtype) -> None:
    norms = norms[: len(widths) + 1]
    net = mlp(widths, norm).build((3,), init_norm=norms, dtype=dtype)
    expected = [1.0] * len(norms) if norm == "lm" else norms
    measured = [layer.weight.double().norm().item() for layer in net.layers]
    assert measured == pytest.approx(expected, rel=1e-14 if dtype == F64 else 3e-7)
    if net.scale is not None:
        assert net.scale.item() == pytest.approx(torch.tensor(norms, dtype=F64).prod().item(), rel=1e-6)


def test_same_seed_same_directions_whatever_the_rest() -> None:
    a = mlp((6,)).build((4,), init_norm=1.0, seed=3)
    b = mlp((6,), "wn").build((4,), init_norm=0.1, seed=3)
    c = mlp((6,)).build((4,), seed=4)
    assert torch.allclose(a.layers[0].weight, 10 * b.layers[0].weight, atol=1e-6)
    assert not torch.allclose(a.layers[0].weight, c.layers[0].weight)


def test_build_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    mlp((6,)).build((4,))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_output_and_feature_shapes(norm: str, outputs: int) -> None:
    for (arch, shape), width in zip(architectures(norm), (5, 5 * 4, 4), strict=True):
        net = arch.build(shape, outputs, dtype=F64)
        x = inputs(7, *shape)
        assert net(x).shape == ((7,) if outputs == 1 else (7, outputs))
        features = net.features(x)
        assert features.shape == (7, width)
        assert (features >= 0).all()
        assert torch.equal(net.head(features), net(x))


def test_mlp_is_the_textbook_formula() -> None:
    net = mlp((6, 5)).build((2, 2), outputs=3, dtype=F64)
    w1, w2, w3 = (layer.weight for layer in net.layers)
    x = inputs(8, 2, 2)
    expected = ((x.reshape(8, 4) @ w1.T).relu() @ w2.T).relu() @ w3.T
    assert torch.allclose(net(x), expected, rtol=1e-13)


def test_linear_model() -> None:
    net = mlp(()).build((4,), dtype=F64)
    x = inputs(5, 4)
    assert len(net.layers) == 1
    assert torch.allclose(net(x), x @ net.layers[0].weight[0])


@pytest.mark.parametrize(("side", "kernel"), [(32, 4), (28, 4), (8, 1), (1, 1)])
def test_convnet_fits_every_image_size(side: int, kernel: int) -> None:
    net = convnet().build((3, side, side), outputs=2)
    assert tuple(net.layers[-1].weight.shape) == (2, 128, kernel, kernel)
    assert net(torch.zeros(2, 3, side, side)).shape == (2, 2)


def test_resnet18_is_resnet18() -> None:
    net = resnet18().build((3, 32, 32), outputs=10)
    shapes = [tuple(layer.weight.shape) for layer in net.layers]
    assert shapes[0] == (64, 3, 3, 3)
    assert shapes[-1] == (10, 512)
    assert sum(s[-1] == 3 for s in shapes[1:-1]) == 16
    assert [s for s in shapes if s[2:] == (1, 1)] == [(128, 64, 1, 1), (256, 128, 1, 1), (512, 256, 1, 1)]
    assert len(net.norms) == 20
    # 11,173,962 of the usual affine network with a bias: 2·4,800 affine parameters and 10 biases fewer.
    assert sum(p.numel() for p in net.parameters()) == 11_173_962 - 2 * 4_800 - 10
    assert net(torch.zeros(2, 3, 32, 32) + inputs(2, 1, 1, 1, dtype=torch.float32)).shape == (2, 10)


def test_resnet_blocks_add_their_input() -> None:
    net = resnet18("none", widths=(3,)).build((2, 6, 6), dtype=F64)
    with torch.no_grad():
        for layer in net.layers[1:-1]:
            layer.set_weight(torch.zeros_like(layer.weight))
    x = inputs(4, 2, 6, 6)
    stem = net.layers[0](x).relu().mean((2, 3))
    assert torch.allclose(net.features(x), stem)  # blocks of zero weights are identities


def test_there_are_no_biases() -> None:
    for norm in NORMS:
        for arch, shape in architectures(norm):
            net = arch.build(shape)
            assert all(layer.bias is None for layer in net.layers)
            assert torch.equal(
                arch.build(shape).eval()(torch.zeros(1, *shape)).isnan(), torch.tensor([norm == "bn"])
            )


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_training_mode_normalises_the_batch_by_its_biased_variance(eps: float) -> None:
    net = mlp((6,), "bn", eps=eps).build((4,), dtype=F64)
    x = inputs(9, 4)
    a = x @ net.layers[0].weight.T
    normalised = (a - a.mean(0)) / (a.var(0, correction=0) + eps).sqrt()
    assert torch.allclose(net.features(x), normalised.relu(), rtol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_forward_has_no_side_effect(norm: str) -> None:
    for arch, shape in architectures(norm):
        net = arch.build(shape, dtype=F64)
        before = copy.deepcopy(net.state_dict())
        net(inputs(6, *shape)).sum().backward()
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]) or value.isnan().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_an_ensemble_by_vmap_is_its_members(norm: str, training: bool) -> None:
    for arch, shape in architectures(norm):
        x = inputs(6, *shape)
        nets = [arch.build(shape, 2, seed=s, dtype=F64).train(training) for s in range(3)]
        for net in nets:
            calibrate(net, x)
        params, buffers = stack_module_state(nets)

        def loss(p: dict[str, Tensor], b: dict[str, Tensor], net: Net, x: Tensor) -> Tensor:
            return functional_call(net, (p, b), (x,)).square().sum()

        together = vmap(grad(loss), in_dims=(0, 0, None, None))(params, buffers, nets[0], x)
        for i, net in enumerate(nets):
            loss(dict(net.named_parameters()), dict(net.named_buffers()), net, x).backward()
            for name, p in net.named_parameters():
                assert torch.allclose(together[name][i], p.grad, rtol=1e-8, atol=1e-10), name


def test_weight_norm_moves_on_the_sphere_with_the_factor_of_the_theory() -> None:
    x = inputs(5, 4)
    plain = mlp((6,)).build((4,), init_norm=3.0, dtype=F64)
    wn = mlp((6,), "wn").build((4,), init_norm=3.0, dtype=F64)
    with torch.no_grad():
        wn.layers[0].direction.mul_(2.0)  # ‖v‖ = 2 leaves W = g v/‖v‖ as it is
    assert torch.allclose(plain(x), wn(x))
    plain(x).sum().backward()
    wn(x).sum().backward()
    v, slope = wn.layers[0].direction.detach() / 2, plain.layers[0].weight.grad
    assert torch.allclose(wn.layers[0].direction.grad, 3 / 2 * (slope - (slope * v).sum() * v))
    assert wn.layers[0].gain.grad.item() == pytest.approx((slope * v).sum().item())


def test_lm_scales_the_output_of_a_network_on_the_sphere() -> None:
    net = mlp((6, 5), "lm").build((4,), init_norm=2.0, dtype=F64)
    x = inputs(5, 4)
    unit = mlp((6, 5)).build((4,), init_norm=1.0, dtype=F64)
    assert torch.allclose(net(x), 8 * unit(x))
    assert net.scale is not None
    assert net.scale.item() == pytest.approx(8)


def test_architectures_are_values() -> None:
    assert mlp([6, 5], "bn") == mlp((6, 5), norm="bn")
    assert hash(convnet()) == hash(convnet())
    assert mlp((6,)) != convnet((6,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        mlp().eps = 0.0  # type: ignore[misc]


def test_state_survives_saving() -> None:
    x = inputs(6, 4)
    a, b = (mlp((6,), "bn").build((4,), seed=s, dtype=F64).eval() for s in (0, 1))
    outputs = calibrate(a, x)
    b.load_state_dict(a.state_dict())
    assert torch.equal(b(x), outputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp((0,)), r"widths=\(0,\)"),
        (lambda: mlp((2.5,)), r"widths=\(2.5,\)"),
        (lambda: mlp((3,), "layer"), "norm='layer': unknown; write one of"),
        (lambda: mlp((3,), "bn", eps=-1.0), "eps=-1.0"),
        (lambda: mlp((3,), "bn", eps=float("nan")), "eps=nan"),
        (lambda: resnet18(widths=()), r"widths=\(\)"),
        (lambda: mlp((3,)).build(()), r"input_shape=\(\)"),
        (lambda: mlp((3,)).build((4, 0)), r"input_shape=\(4, 0\)"),
        (lambda: convnet().build((784,)), r"input_shape=\(784,\): convnet needs"),
        (lambda: resnet18().build((28, 28)), r"input_shape=\(28, 28\): resnet18 needs"),
        (lambda: mlp((3,)).build((4,), outputs=0), "outputs=0"),
        (
            lambda: mlp((3,)).build((4,), init_norm=0.0),
            "init_norm=0.0: expected a positive number, or one per layer",
        ),
        (lambda: mlp((3,)).build((4,), init_norm=(1.0,)), "or 2 of them"),
        (lambda: mlp((3,)).build((4,), init_norm=float("inf")), "init_norm=inf"),
    ],
)
def test_errors_name_the_argument(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
