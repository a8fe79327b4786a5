"""Exact complexities against enumeration and fine scans, ascent against exact ones."""

import itertools

import numpy as np
import pytest
import torch

from nclib.networks.models import convnet, mlp, resnet18
from nclib.theory import bounds, complexity


def plane(n, seed=0):
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def flips(n, draws=20, seed=1):
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, n))


def test_one_layer_is_the_length_of_the_signed_sum():
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    assert complexity.rademacher_exact(np.eye(6), signs, 1).mean() == pytest.approx(6**-0.5)
    same = np.ones((4, 1)) * [[0.6, 0.8]]  # four times one point: E|ε₁ + … + ε₄| = 24/16
    signs = np.array(list(itertools.product([-1, 1], repeat=4)))
    assert complexity.rademacher_exact(same, signs, 1).mean() == pytest.approx(1.5 / 4)


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_two_layers_agree_with_a_scan_of_directions(n):
    x, signs = plane(n), flips(n)
    angle = np.linspace(0, 2 * np.pi, 20_001)
    units = np.stack([np.cos(angle), np.sin(angle)])
    scan = np.abs(signs @ np.maximum(x @ units, 0)).max(1) / n
    exact = complexity.rademacher_exact(x, signs, 2)
    assert (exact >= scan - 1e-12).all()
    # The correlation is 1-Lipschitz in the direction, and the scan misses the best by half its step at most.
    np.testing.assert_allclose(exact, scan, atol=np.pi / 20_000)


def test_two_layers_with_inputs_of_different_length_and_opposite_inputs():
    x = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.5]])
    # ε = (1, 1, 1): the unit looks along −e₁ and a little along e₂, on one side of the kink; √(2² + ½²).
    assert complexity.rademacher_exact(x, [[1, 1, 1]], 2) == pytest.approx(np.sqrt(4.25) / 3)


def test_ascent_finds_the_exact_value_and_never_more():
    x, signs = plane(30), flips(30)
    for depth, widths in [(1, ()), (2, (16,))]:
        exact = complexity.rademacher_exact(x, signs, depth)
        found = complexity.rademacher_ascent(x, signs, mlp(widths=widths))
        assert (found <= exact + 1e-12).all()
        assert found.mean() > 0.97 * exact.mean()


def test_ascent_is_below_the_bounds_and_repeatable():
    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images /= images.flatten(1).norm(dim=1)[:, None, None, None]
    signs = flips(20, draws=4)
    found = complexity.rademacher_ascent(images, signs, convnet(widths=(4, 4)), steps=30)
    radius = bounds.patch_radius(images, 3, 2, 1)
    assert 0 < found.mean() < bounds.rademacher_bound(20, 3, radius, patches=(9, 4))
    again = complexity.rademacher_ascent(images, signs, convnet(widths=(4, 4)), steps=30)
    np.testing.assert_array_equal(found, again)
    more = complexity.rademacher_ascent(images, signs, convnet(widths=(4, 4)), steps=60)
    assert (more >= found).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: complexity.rademacher_exact(np.eye(3), [[1, 1, 1]], 2), "depth=2.*write x of shape"),
        (lambda: complexity.rademacher_exact(np.eye(2), [[1, 1]], 3), "depth=3.*rademacher_ascent"),
        (lambda: complexity.rademacher_exact(np.zeros((2, 2)), [[1, 1]], 1), "x has shape.*none of them 0"),
        (lambda: complexity.rademacher_exact(np.eye(2), [[1, 1, 1]], 1), r"signs has shape \(1, 3\).*±1"),
        (lambda: complexity.rademacher_exact(np.eye(2), [[1, 0]], 1), "signs has shape.*±1"),
        (lambda: complexity.rademacher_ascent(np.eye(2), [[1, 1]], mlp(norm="bn")), "arch=.*write mlp or convnet"),
        (lambda: complexity.rademacher_ascent(np.eye(2), [[1, 1]], resnet18(norm="none")), "arch=.*write mlp"),
        (lambda: complexity.rademacher_ascent(np.eye(2), [[1, 1]], mlp(), restarts=0), "restarts=0.*≥ 1"),
        (lambda: complexity.rademacher_ascent(np.eye(2), [[1, 1]], mlp(), steps=0), "steps=0.*≥ 1"),
    ],
)
def test_errors_say_what_to_write(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
