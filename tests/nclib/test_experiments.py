"""The published experiment at a small size: what it trains, and its norm beside ours."""

import numpy as np
import pytest
import torch

import nclib as nc


@pytest.fixture(scope="module")
def pair() -> nc.Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 3, 32, 32, generator=generator)
    return nc.from_arrays(images, [0, 1] * 12, images[:6], [0, 1] * 3)


@pytest.fixture(scope="module", params=["bn", "none"])
def runs(pair: nc.Data, request: pytest.FixtureRequest) -> nc.Runs:
    options = dict(norm=request.param, weight_decay=0.005, init_norms=[1, 3], seeds=[0, 1], epochs=2, batch=12)
    return nc.binary_experiment(pair, measure_every=1, **options)


def test_one_run_for_each_initial_norm_and_seed(runs: nc.Runs) -> None:
    assert sorted(runs.final[["seed", "init_norm"]].values.tolist()) == [[0, 1], [0, 3], [1, 1], [1, 3]]
    assert {"rho", "rho_published", "margin_mean", "margin_q05", "test_error", "mse"} <= set(runs.history)
    assert runs.history.epoch.unique().tolist() == [0, 1, 2]


def test_the_two_norms_agree_without_bn_and_differ_by_the_predicted_factor_with_it(runs: nc.Runs) -> None:
    ratio = runs.history.rho / runs.history.rho_published
    if runs.model(0).arch.norm == "none":
        np.testing.assert_allclose(ratio, 1, rtol=1e-6)
    else:
        assert (ratio >= 0.9 * np.sqrt(32 * 64 * 128)).all()  # thm-folding, for rows of nearly equal norm


def test_the_published_norm_by_hand(pair: nc.Data) -> None:
    net = nc.convnet(norm="bn").build(pair.input_shape, init_norm=2.0, seed=3, outputs=2)
    nc.calibrate(net, pair.x)
    expected = torch.linalg.vector_norm(net.layers[3].weight).double()
    for layer, bn in zip(net.layers[:3], net.norms, strict=True):
        deviations = torch.sqrt(bn.var.double() + bn.eps)
        expected = expected * torch.linalg.vector_norm(layer.weight).double() / torch.linalg.vector_norm(deviations)
    assert nc.published_norm(net) == pytest.approx(expected.item(), rel=1e-6)


def test_two_classes_are_needed() -> None:
    with pytest.raises(ValueError, match=r"data has 10 classes; choose two, e.g. classes=\(1, 2\)"):
        nc.binary_experiment(
            nc.data("digits", n=20), norm="bn", weight_decay=0.0, init_norms=[1], seeds=[0], epochs=1
        )
