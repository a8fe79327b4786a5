"""Training step by step against plain PyTorch and against nclib.train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nclib.data import Data, data
from nclib.networks.models import convnet, mlp
from nclib.training import train
from nclib.training.ensemble import permutation
from nclib.training.optim import sgd
from nclib.training.steps import step_by_step


def small(**options: Any) -> Data:
    return data("gaussians", n=24, d=6, seed=1, dtype=torch.float64, **options)


GRID = dict(seed=[3, 4], weight_decay=[0.0, 0.05])


@pytest.mark.parametrize("batch", [None, 7])
@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
def test_every_step_is_that_of_torch_sgd(batch: int | None, loss: str) -> None:
    points, arch = small(), mlp(widths=(5, 4), norm="bn", eps=0)
    opt = sgd(lr=0.1, batch=batch, epochs=3, momentum=0.5, loss=loss, schedule=((2, 0.5),))  # type: ignore[arg-type]
    steps = step_by_step(points, arch, opt, grid=GRID)
    for member, hyper in enumerate([(seed, decay) for seed in (3, 4) for decay in (0.0, 0.05)]):
        seed, decay = hyper
        net = arch.build((6,), 1, seed=seed, dtype=torch.float64)
        weights = [layer.weight for layer in net.layers]
        oracle = torch.optim.SGD(weights, lr=0.1, momentum=0.5, weight_decay=2 * decay)
        step = 0
        for epoch in range(3):
            oracle.param_groups[0]["lr"] = 0.1 * opt.rate(epoch)
            order = permutation(24, seed, epoch) if batch else torch.arange(24)
            for index in order.split(batch or 24):
                oracle.zero_grad()
                f, y = net(points.x[index]), points.y[index]
                value = (f - y).square().mean() if loss == "square" else nn.functional.softplus(-f * y).mean()
                value.backward()
                assert steps.loss[step, member] == pytest.approx(value.item(), rel=1e-10)
                before = [w.detach().clone() for w in weights]
                gradients = [w.grad.norm().item() for w in weights]  # type: ignore[union-attr]
                np.testing.assert_allclose(steps.gradient[step, member], gradients, rtol=1e-9)
                oracle.step()
                for k, (old, new) in enumerate(zip(before, weights, strict=True)):
                    cosine = ((old * new).sum() / old.norm() / new.norm()).item()
                    assert np.cos(steps.angle[step, member, k]) == pytest.approx(cosine, abs=1e-12)
                    assert steps.norm[step, member, k] == pytest.approx(old.norm().item(), rel=1e-10)
                step += 1
        assert step == len(steps.loss) == len(steps.norm) - 1
        for ours, theirs in zip(steps.weights, weights, strict=True):
            torch.testing.assert_close(ours[member], theirs.detach(), rtol=1e-9, atol=1e-12)


def test_it_ends_where_train_ends() -> None:
    points, arch, opt = small(), mlp(widths=(5,), norm="bn"), sgd(lr=0.1, batch=5, epochs=4, momentum=0.9)
    steps, runs = step_by_step(points, arch, opt, grid=GRID), train(points, arch, opt, grid=GRID)
    for member in range(4):
        for k, layer in enumerate(runs.model(member).layers):
            torch.testing.assert_close(steps.weights[k][member], layer.weight.detach(), rtol=0, atol=0)
    assert steps.members[["seed", "weight_decay"]].equals(runs.members[["seed", "weight_decay"]])


def test_going_on_and_keeping_the_last_layer() -> None:
    points, arch = small(), mlp(widths=(5,), norm="bn", eps=0)
    whole = step_by_step(points, arch, sgd(lr=0.1, epochs=6, weight_decay=0.1), grid=GRID, train_last=False)
    half = sgd(lr=0.1, epochs=3, weight_decay=0.1)
    first = step_by_step(points, arch, half, grid=GRID, train_last=False)
    second = step_by_step(points, arch, half, grid=GRID, train_last=False, start=first.weights)
    np.testing.assert_array_equal(np.concatenate([first.angle, second.angle]), whole.angle)
    np.testing.assert_array_equal(second.norm[-1], whole.norm[-1])
    assert (whole.norm[..., 1] == whole.norm[0, :, 1]).all()
    assert (whole.angle[..., 1] == 0).all()
    assert (whole.angle[..., 0] > 0).all()


def test_small_angles_keep_their_digits() -> None:
    points, arch = small(), mlp(widths=(5,), norm="bn", eps=0)
    tiny = step_by_step(points, arch, sgd(lr=1e-10, epochs=1))
    expected = np.arctan(1e-10 * tiny.gradient / tiny.norm[:-1])  # the gradient is orthogonal before BN
    np.testing.assert_allclose(tiny.angle[..., 0], expected[..., 0], rtol=1e-4)


def test_table_and_effective_rate() -> None:
    opt = sgd(epochs=200, batch=12)
    steps = step_by_step(small(), mlp(widths=(5, 4), norm="bn"), opt, grid=dict(lr=[0.01, 0.1]))
    np.testing.assert_array_equal(steps.effective_rate[5, :, 1], [0.01, 0.1] / steps.norm[5, :, 1] ** 2)
    table = steps.table()
    assert table.step.min() == 0
    assert table.step.max() == 399
    assert len(table) == table.step.nunique() * 2 * 3
    row = steps.table([17]).query("member == 1 and layer == 2").iloc[0]
    expected = steps.loss[17, 1], steps.norm[17, 1, 1], steps.gradient[17, 1, 1], steps.angle[17, 1, 1]
    assert (row.loss, row.norm, row.gradient, row.angle) == expected
    assert (row.lr, row.effective_rate) == (0.1, steps.effective_rate[17, 1, 1])


def test_convolutions_too() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    images = Data("noise", ("a", "b"), x, torch.arange(12) % 2, x[:0], torch.arange(0))
    opt = sgd(lr=0.1, epochs=3, weight_decay=0.1)
    steps = step_by_step(images, convnet(widths=(3, 4), norm="bn", eps=0), opt, grid=dict(seed=[1, 2]))
    cosine = (1 - 2 * 0.1 * 0.1) * steps.norm[:-1] / steps.norm[1:]
    np.testing.assert_allclose(np.cos(steps.angle)[..., :2], cosine[..., :2], rtol=1e-12)
    assert np.isfinite(steps.loss).all()


def test_errors_name_the_argument() -> None:
    points, opt = small(), sgd(epochs=1)
    with pytest.raises(ValueError, match="norm='lm'"):
        step_by_step(points, mlp(widths=(5,), norm="lm"), opt)
    with pytest.raises(ValueError, match=r"start has shapes \[\(1, 2, 2\)\]"):
        step_by_step(points, mlp(widths=(5,)), opt, start=[torch.ones(1, 2, 2)])
    with pytest.raises(FloatingPointError, match=r"'lr': 1000000.0.* take a smaller lr"):
        step_by_step(points, mlp(widths=(5,)), sgd(epochs=200), grid=dict(lr=[0.1, 1e6]))
