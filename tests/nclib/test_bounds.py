"""The bounds against exact complexities and known errors; complexities against enumeration, scans, each other."""

import itertools
import math

import numpy as np
import pytest
import torch

from nclib.networks.models import convnet, mlp, resnet18
from nclib.theory import bounds, closed_forms

ANGLES = np.linspace(0, 2 * np.pi, 721)
PLANE = np.stack([np.cos(ANGLES), np.sin(ANGLES)])  # every direction in the plane, (2, angles)


def circle(rng, n):
    """Points uniform on the unit circle, (n, 2)."""
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def signs(rng, n, draws=200):
    return rng.choice([-1.0, 1.0], size=(draws, n))


# --- complexity


@pytest.mark.parametrize(("n", "depth"), [(20, 1), (20, 2), (500, 1), (500, 2)])
def test_rademacher_bound_is_above_the_exact_complexity(n, depth):
    # With unit norms the supremum over a two-layer network is that over a single unit, up to its sign;
    # in the plane its direction can be scanned.
    rng = np.random.default_rng(0)
    x, epsilon = circle(rng, n), signs(rng, n)
    if depth == 1:
        exact = np.linalg.norm(epsilon @ x, axis=1).mean() / n
    else:
        exact = np.abs(epsilon @ np.maximum(x @ PLANE, 0)).max(1).mean() / n
    bound = bounds.rademacher_bound(n, depth)
    assert exact < bound < 6 * exact


@pytest.mark.parametrize("alike", [True, False])
def test_convolutional_bound_is_above_the_exact_complexity(alike):
    # Two layers over c patches: the supremum is that over one shared direction w of √Σ_q (Σ ε σ(w·z_q))².
    rng = np.random.default_rng(0)
    n, count = 200, 9
    patches = np.stack([circle(rng, n) for _ in range(count)])
    if alike:
        patches[:] = patches[0]
    epsilon = signs(rng, n, draws=50)
    sums = np.stack([epsilon @ np.maximum(patch @ PLANE, 0) for patch in patches])
    exact = np.sqrt((sums**2).sum(0)).max(1).mean() / n
    bound = bounds.rademacher_bound(n, 2, patches=(count,))
    assert exact < bound < 12 * exact
    if alike:  # the factor √c is really there
        one = np.abs(sums[0]).max(1).mean() / n
        assert exact == pytest.approx(math.sqrt(count) * one)


def test_published_constants():
    assert bounds.rademacher_bound(12_000, 2) == pytest.approx((math.sqrt(4 * math.log(2)) + 1) / 12_000**0.5)
    assert 2 * 10 * bounds.rademacher_bound(12_000, 2) == pytest.approx(0.49, abs=0.005)
    assert bounds.rademacher_bound(100, 3, 2.5) == pytest.approx(2.5 * bounds.rademacher_bound(100, 3))
    assert bounds.rademacher_bound(100, 3, patches=(1, 1)) == bounds.rademacher_bound(100, 3)


def test_kernels_counted_once_beat_the_dense_matrix_they_stand_for():
    # Three 3×3 convolutions of stride 2 on 32×32, then the 4×4 map: 256, 64, 16 and 1 copies of a kernel.
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images /= images.flatten(1).norm(dim=1)[:, None, None, None]
    radius = bounds.patch_radius(images, 3, stride=2, padding=1)
    patched = bounds.rademacher_bound(10_000, 4, radius, patches=(9, 9, 16))
    dense = bounds.rademacher_bound(10_000, 4) * math.sqrt(256 * 64 * 16)
    assert patched < dense / 50


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (3, 2)])
def test_patch_radius_is_the_largest_patch(stride, padding):
    images = torch.randn(5, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    columns = torch.nn.functional.unfold(images, 3, stride=stride, padding=padding)
    expected = columns.double().square().sum(1).mean(0).max().sqrt()
    assert bounds.patch_radius(images, 3, stride, padding) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("classes", [3, 10])
def test_several_outputs_count_as_positions_that_the_last_layer_reads(classes):
    found = bounds.rademacher_bound(500, 3, 0.7, classes=classes)
    by_hand = math.sqrt(classes) * (math.sqrt(2 * (3 * math.log(2) + math.log(classes))) + 1) * 0.7 / math.sqrt(500)
    assert found == pytest.approx(by_hand, rel=1e-14)
    assert found == bounds.rademacher_bound(500, 3, 0.7, patches=(classes, 1))
    patched = bounds.rademacher_bound(500, 3, 0.7, patches=(9, 4), classes=classes)
    assert patched == pytest.approx(bounds.rademacher_bound(500, 4, 0.7, patches=(9, 4, classes)), rel=0.05)
    assert bounds.rademacher_bound(500, 3, classes=2) == bounds.rademacher_bound(500, 3)


def test_several_outputs_bound_lies_above_the_exact_complexity_and_needs_its_root():
    # One layer: (1/N) E‖Σ εₙ xₙᵀ‖, over all signs of three outputs at three points.
    epsilon = np.array(list(itertools.product([-1.0, 1.0], repeat=9))).reshape(-1, 3, 3)
    for x in (np.eye(3), np.ones((3, 1)), circle(np.random.default_rng(0), 3)):
        exact = np.linalg.norm(epsilon @ x, axis=(1, 2)).mean() / 3
        bound = bounds.rademacher_bound(3, 1, classes=3)
        assert exact < bound < 4 * exact
        assert bounds.rademacher_bound(3, 1) / 1.5 < exact  # √3 is really there
    assert np.linalg.norm(epsilon @ np.eye(3), axis=(1, 2)).mean() / 3 == pytest.approx(1.0)


# --- complexities that are measured


def test_one_layer_is_the_length_of_the_signed_sum():
    epsilon = np.array(list(itertools.product([-1, 1], repeat=6)))
    assert bounds.rademacher_exact(np.eye(6), epsilon, 1).mean() == pytest.approx(6**-0.5)
    same = np.ones((4, 1)) * [[0.6, 0.8]]  # four times one point: E|ε₁ + … + ε₄| = 24/16
    epsilon = np.array(list(itertools.product([-1, 1], repeat=4)))
    assert bounds.rademacher_exact(same, epsilon, 1).mean() == pytest.approx(1.5 / 4)


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_two_layers_agree_with_a_scan_of_directions(n):
    x, epsilon = circle(np.random.default_rng(0), n), signs(np.random.default_rng(1), n, draws=20)
    angle = np.linspace(0, 2 * np.pi, 20_001)
    units = np.stack([np.cos(angle), np.sin(angle)])
    scan = np.abs(epsilon @ np.maximum(x @ units, 0)).max(1) / n
    exact = bounds.rademacher_exact(x, epsilon, 2)
    assert (exact >= scan - 1e-12).all()
    # The correlation is 1-Lipschitz in the direction, and the scan misses the best by half its step at most.
    np.testing.assert_allclose(exact, scan, atol=np.pi / 20_000)


def test_two_layers_with_inputs_of_different_length_and_opposite_inputs():
    x = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.5]])
    # ε = (1, 1, 1): the unit looks along −e₁ and a little along e₂, on one side of the kink; √(2² + ½²).
    assert bounds.rademacher_exact(x, [[1, 1, 1]], 2) == pytest.approx(np.sqrt(4.25) / 3)


def test_ascent_finds_the_exact_value_and_never_more():
    x, epsilon = circle(np.random.default_rng(0), 30), signs(np.random.default_rng(1), 30, draws=20)
    for depth, widths in [(1, ()), (2, (16,))]:
        exact = bounds.rademacher_exact(x, epsilon, depth)
        found = bounds.rademacher_ascent(x, epsilon, mlp(widths=widths))
        assert (found <= exact + 1e-12).all()
        assert found.mean() > 0.97 * exact.mean()


def test_ascent_is_below_the_bounds_and_repeatable():
    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images /= images.flatten(1).norm(dim=1)[:, None, None, None]
    epsilon = signs(np.random.default_rng(1), 20, draws=4)
    found = bounds.rademacher_ascent(images, epsilon, convnet(widths=(4, 4)), steps=30)
    radius = bounds.patch_radius(images, 3, 2, 1)
    assert 0 < found.mean() < bounds.rademacher_bound(20, 3, radius, patches=(9, 4))
    again = bounds.rademacher_ascent(images, epsilon, convnet(widths=(4, 4)), steps=30)
    np.testing.assert_array_equal(found, again)
    more = bounds.rademacher_ascent(images, epsilon, convnet(widths=(4, 4)), steps=60)
    assert (more >= found).all()


# --- the bound


def test_parts_by_hand():
    bound = bounds.margin_bound([-0.2, 0.0, 0.1, 0.2, 0.5], gamma=0.2, depth=3, delta=0.1)
    assert bound.ramp_loss == pytest.approx((1 + 1 + 0.5 + 0 + 0) / 5)
    assert bound.complexity == pytest.approx(10 * bounds.rademacher_bound(5, 3))
    assert bound.confidence == pytest.approx(3 * math.sqrt(math.log(20) / 10))
    assert bound.total == pytest.approx(bound.ramp_loss + bound.complexity + bound.confidence)
    assert bound.vacuous


def test_patches_reach_the_bound():
    few, many = (bounds.margin_bound([0.1] * 9, 0.1, 2, patches=(count,)) for count in (1, 4))
    assert few.complexity == bounds.margin_bound([0.1] * 9, 0.1, 2).complexity
    assert many.complexity > 2 * few.complexity
    assert bounds.margin_bound_over_grid([0.1] * 9, 2, patches=(4,), gammas=[0.1]) == many


def test_several_classes_pay_four_times_their_complexity():
    margins = [-0.2, 0.0, 0.1, 0.2, 1.4]  # √2 is the most that unit norms allow
    bound = bounds.margin_bound(margins, 0.2, 2, delta=0.1, classes=5)
    two = bounds.margin_bound(margins[:4], 0.2, 2, delta=0.1, classes=2)
    assert bound.ramp_loss == pytest.approx((1 + 1 + 0.5) / 5)
    assert bound.complexity == pytest.approx(20 * bounds.rademacher_bound(5, 2, classes=5))
    assert bound.confidence == pytest.approx(3 * math.sqrt(math.log(20) / 10))
    assert two == bounds.margin_bound(margins[:4], 0.2, 2, delta=0.1)
    assert bounds.margin_bound_over_grid(margins, 2, gammas=[0.2], delta=0.1, classes=5) == bound


def test_bound_for_three_classes_holds_on_many_draws():
    # A third of the circle each, some labels redrawn: the rule that picks the nearest of three directions.
    rng = np.random.default_rng(1)
    n, redrawn, totals = 4000, 0.1, []
    corners = np.array([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    around = PLANE.T[:-1]
    truth = (around @ corners.T).argmax(1)
    for _ in range(40):
        x = circle(rng, n)
        y = (x @ corners.T).argmax(1)
        y = np.where(rng.random(n) < redrawn, rng.integers(3, size=n), y)
        W = closed_forms.ridge(x, np.eye(3)[y] - 1 / 3, 1e-3).T
        W /= np.linalg.norm(W)
        wrong = ((around @ W.T).argmax(1) != truth).mean()
        error = wrong * (1 - redrawn / 3) + (1 - wrong) * redrawn * 2 / 3
        f = x @ W.T
        margins = f[np.arange(n), y] - np.where(np.eye(3)[y] > 0, -np.inf, f).max(1)
        totals.append(bounds.margin_bound_over_grid(margins, 1, classes=3).total)
        assert error <= totals[-1]
    assert max(totals) < 1


def test_interpolation_gives_twice_rho_times_the_complexity():
    rho, n = 7.0, 500
    bound = bounds.margin_bound(np.full(n, 1 / rho), gamma=1 / rho, depth=2)
    assert bound.ramp_loss == pytest.approx(0, abs=1e-15)
    assert bound.complexity == pytest.approx(2 * rho * bounds.rademacher_bound(n, 2))


def test_grid_pays_for_the_choice_and_takes_the_best():
    margins = np.random.default_rng(0).uniform(-0.1, 0.9, size=3000)
    chosen = bounds.margin_bound_over_grid(margins, 2, delta=0.05)
    each = [bounds.margin_bound(margins, gamma, 2, delta=0.05 / 81) for gamma in bounds.GAMMAS]
    assert len(each) == 81
    assert chosen.total == min(bound.total for bound in each)
    free = bounds.margin_bound(margins, chosen.gamma, 2, delta=0.05)
    assert free.confidence < chosen.confidence < 1.8 * free.confidence
    assert not chosen.vacuous
    assert bounds.margin_bound_over_grid(torch.tensor(margins), 2) == chosen


@pytest.mark.parametrize("flips", [0.0, 0.1])
def test_linear_bound_holds_on_many_draws(flips):
    # y = sign(x₁), some labels flipped. A direction at angle α to e₁ errs on a share α/π of the circle.
    rng = np.random.default_rng(1)
    n, totals = 2000, []
    for _ in range(100):
        x = circle(rng, n)
        y = np.sign(x[:, 0]) * rng.choice([1, -1], size=n, p=[1 - flips, flips])
        w = closed_forms.ridge(x, y, 1e-3)
        w /= np.linalg.norm(w)
        wrong = math.acos(min(1.0, w[0])) / math.pi
        error = flips + (1 - 2 * flips) * wrong
        totals.append(bounds.margin_bound_over_grid(y * (x @ w), 1).total)
        assert error <= totals[-1]
    assert max(totals) < 0.8  # not by saying nothing


def test_two_layer_bound_holds_on_many_draws():
    # Random ReLU features and a ridge readout: their error is known by going round the circle.
    rng = np.random.default_rng(2)
    n, width, flips, totals = 4000, 30, 0.05, []
    labels = np.sign(PLANE[0] * PLANE[1] + 0.5)  # two arcs of each class
    for _ in range(40):
        x = circle(rng, n)
        y = np.sign(x[:, 0] * x[:, 1] + 0.5) * rng.choice([1, -1], size=n, p=[1 - flips, flips])
        first = rng.normal(size=(2, width))
        readout = closed_forms.ridge(np.maximum(x @ first, 0), y, 1e-2)
        rho = np.linalg.norm(first) * np.linalg.norm(readout)
        wrong = (labels * (np.maximum(PLANE.T @ first, 0) @ readout) <= 0)[:-1].mean()
        error = flips + (1 - 2 * flips) * wrong
        margins = y * (np.maximum(x @ first, 0) @ readout) / rho
        totals.append(bounds.margin_bound_over_grid(margins, 2).total)
        assert error <= totals[-1]
    assert min(totals) < 1


def test_interpolated_noise_makes_it_vacuous():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 600))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.choice([-1.0, 1.0], size=300)
    w = closed_forms.minimum_norm(x, y)
    margins = y * (x @ w) / np.linalg.norm(w)
    np.testing.assert_allclose(margins, 1 / np.linalg.norm(w), rtol=1e-9)
    assert bounds.margin_bound_over_grid(margins, 1).vacuous


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.rademacher_bound(0, 2), "n=0: expected a whole number >= 1"),
        (lambda: bounds.rademacher_bound(5, 0), "depth=0: expected a whole number >= 1"),
        (lambda: bounds.rademacher_bound(5, 2, -1.0), "radius=-1.0: expected the largest norm"),
        (
            lambda: bounds.rademacher_bound(5, 3, patches=(9,)),
            r"patches=\(9,\): layers 2 to 3.*write 2 whole",
        ),
        (lambda: bounds.rademacher_bound(5, 2, patches=(0,)), "patches=0: expected a whole number >= 1"),
        (lambda: bounds.rademacher_exact(np.eye(3), [[1, 1, 1]], 2), "depth=2.*write x of shape"),
        (lambda: bounds.rademacher_exact(np.eye(2), [[1, 1]], 3), "depth=3.*rademacher_ascent"),
        (lambda: bounds.rademacher_exact(np.zeros((2, 2)), [[1, 1]], 1), "x has shape.*none of them 0"),
        (lambda: bounds.rademacher_exact(np.eye(2), [[1, 1, 1]], 1), r"signs has shape \(1, 3\).*±1"),
        (lambda: bounds.rademacher_exact(np.eye(2), [[1, 0]], 1), "signs has shape.*±1"),
        (lambda: bounds.rademacher_ascent(np.eye(2), [[1, 1]], mlp(norm="bn")), "arch=.*write mlp or convnet"),
        (lambda: bounds.rademacher_ascent(np.eye(2), [[1, 1]], resnet18(norm="none")), "arch=.*write mlp"),
        (lambda: bounds.rademacher_ascent(np.eye(2), [[1, 1]], mlp(), restarts=0), "restarts=0: expected a whole"),
        (lambda: bounds.rademacher_ascent(np.eye(2), [[1, 1]], mlp(), steps=0), "steps=0: expected a whole"),
        (lambda: bounds.patch_radius(torch.ones(2, 3, 4), 3), r"images has shape \(2, 3, 4\); write"),
        (lambda: bounds.patch_radius(torch.ones(2, 3, 4, 4), 5), "kernel=5: expected a whole number >= 1 and <= 4"),
        (lambda: bounds.margin_bound([0.1], 0.0, 2), "gamma=0.0: expected a positive number"),
        (lambda: bounds.margin_bound([0.1], 0.1, 2, delta=0), "delta=0: expected a probability"),
        (lambda: bounds.margin_bound([5.0, 0.1], 0.1, 2), "margins reach 5,.*divide outputs by rho"),
        (lambda: bounds.margin_bound([1.5, 0.1], 0.1, 2, classes=3), "margins reach 1.5,.*exceed √2 radius=1.41;"),
        (lambda: bounds.margin_bound([0.1], 0.1, 2, classes=1), "classes=1: expected a whole number >= 2"),
        (lambda: bounds.margin_bound([[0.1]], 0.1, 2), r"margins has shape \(1, 1\); write"),
        (lambda: bounds.margin_bound([], 0.1, 2), r"margins has shape \(0,\); write"),
        (lambda: bounds.margin_bound([float("nan")], 0.1, 2), "margins: holds NaN"),
        (lambda: bounds.margin_bound_over_grid([0.1], 2, gammas=[]), "gammas is empty; write"),
    ],
)
def test_errors_say_what_to_write(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
