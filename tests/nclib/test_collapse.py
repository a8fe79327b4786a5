"""Neural-collapse metrics against a plain reference, analytic anchors, and the traps of published code."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nclib.collapse import CollapseStatistics, collapse, simplex_view
from nclib.collapse.split import mse_split

BETWEEN_ROWS = ["nc1", "nc1_quotient", "cdnv", "nc2_norm_means", "nc2_angle_means", "nc2_etf_means"]
OF_WEIGHTS = ["nc2_norm_weights", "nc2_angle_weights", "nc2_etf_weights", "nc3", "nc3_etf", "nc4"]
OF_LOSS = ["mse", "mse_ls", "mse_ls_nc1", "mse_ls_nc23", "mse_perp"]

properties = settings(deadline=None, max_examples=25, derandomize=True)


def sample(
    *,
    n: int = 200,
    d: int = 12,
    classes: int = 4,
    noise: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gaussian classes of unequal size and a random classifier."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(0, classes, (n - classes,), generator=random)])
    labels = torch.where(labels < classes // 2, labels, labels[torch.randperm(n, generator=random)])
    labels[:classes] = torch.arange(classes)
    means = torch.randn(classes, d, generator=random, dtype=torch.float64)
    features = means[labels] + noise * torch.randn(n, d, generator=random, dtype=torch.float64)
    weight = torch.randn(classes, d, generator=random, dtype=torch.float64)
    bias = torch.randn(classes, generator=random, dtype=torch.float64)
    return features.to(dtype), labels, weight, bias


def simplex(classes: int, d: int, *, seed: int = 0) -> Tensor:
    """A simplex ETF: K unit rows in R^d, d ≥ K, at equal angles, summing to zero."""
    random = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(d, classes, generator=random, dtype=torch.float64)).Q
    rows = (torch.eye(classes, dtype=torch.float64) - 1 / classes) @ frame.T
    return rows * (classes / (classes - 1)) ** 0.5


def etf_distance(gram: np.ndarray[Any, Any]) -> float:
    classes = len(gram)
    target = (np.eye(classes) - np.ones((classes, classes)) / classes) / np.sqrt(classes - 1)
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - target))


def reference(
    features: Tensor, labels: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> dict[str, float]:
    """Every formula as it is written, in float64, with class loops, d×d matrices and pseudo-inverses."""
    h, y = features.double().numpy(), labels.numpy()
    n, d = h.shape
    classes = int(y.max()) + 1
    mu = np.stack([h[y == c].mean(0) for c in range(classes)])
    centred = mu - mu.mean(0)
    within, between = np.zeros((d, d)), np.zeros((d, d))
    variance = np.zeros(classes)
    for c in range(classes):
        z = h[y == c] - mu[c]
        within += z.T @ z / n
        variance[c] = (z**2).sum(1).mean()
        between += np.outer(centred[c], centred[c]) / classes
    pairs = [(i, j) for i in range(classes) for j in range(classes) if i != j]

    def angles(rows: np.ndarray[Any, Any]) -> float:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return float(np.mean([abs(unit[i] @ unit[j] + 1 / (classes - 1)) for i, j in pairs]))

    def norms(rows: np.ndarray[Any, Any]) -> float:
        lengths = np.linalg.norm(rows, axis=1)
        return float(lengths.std(ddof=1) / lengths.mean())

    found = {
        "nc1": float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10))) / classes,
        "nc1_quotient": float(np.trace(within) / np.trace(between)),
        "cdnv": float(np.mean([(variance[i] + variance[j]) / 2 / np.sum((mu[i] - mu[j]) ** 2) for i, j in pairs])),
        "nc2_norm_means": norms(centred),
        "nc2_angle_means": angles(centred),
        "nc2_etf_means": etf_distance(centred @ centred.T),
    }
    if weight is None:
        return found
    w = weight.double().numpy()
    w_centred = w - w.mean(0)
    b = np.zeros(classes) if bias is None else bias.double().numpy()
    distances = np.linalg.norm(h[:, None] - mu[None], axis=2)
    found |= {
        "nc2_norm_weights": norms(w),
        "nc2_angle_weights": angles(w),
        "nc2_etf_weights": etf_distance(w_centred @ w_centred.T),
        "nc3": float(np.sum((w / np.linalg.norm(w) - centred / np.linalg.norm(centred)) ** 2)),
        "nc3_etf": etf_distance(w @ centred.T),
        "nc4": float(np.mean(np.argmax(h @ w.T + b, axis=1) != np.argmin(distances, axis=1))),
    }
    return found | reference_split(features, labels, weight, bias)


def reference_split(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None
) -> dict[str, float]:
    h, y, w = features.double().numpy(), labels.numpy(), weight.double().numpy()
    n, classes = len(h), len(w)
    b = np.zeros(classes) if bias is None else bias.double().numpy()
    inputs = h if bias is None else np.hstack([h, np.ones((n, 1))])
    one_hot = np.eye(classes)[y]
    best = inputs @ np.linalg.lstsq(inputs, one_hot, rcond=None)[0]
    best_means = np.stack([best[y == c].mean(0) for c in range(classes)])
    given = h @ w.T + b
    return {
        "mse": float(np.sum((given - one_hot) ** 2)) / (2 * n),
        "mse_ls": float(np.sum((best - one_hot) ** 2)) / (2 * n),
        "mse_ls_nc1": float(np.sum((best - best_means[y]) ** 2)) / (2 * n),
        "mse_ls_nc23": float(np.sum((best_means[y] - one_hot) ** 2)) / (2 * n),
        "mse_perp": float(np.sum((given - best) ** 2)) / (2 * n),
    }


def everything(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, float]:
    return collapse(features, labels, weight, bias) | mse_split(features, labels, weight, bias)


# --- the definitions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("n", "d", "classes"), [(200, 12, 4), (90, 30, 2), (400, 5, 8), (60, 3, 7), (300, 40, 10)])
def test_every_key_agrees_with_the_reference(n: int, d: int, classes: int, with_bias: bool) -> None:
    features, labels, weight, bias = sample(n=n, d=d, classes=classes, seed=n)
    arguments = (weight, bias) if with_bias else (weight,)
    found = everything(features, labels, *arguments)
    assert found == pytest.approx(reference(features, labels, *arguments), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [300, 5000])
def test_narrow_types_agree_with_the_reference_on_the_same_numbers(dtype: torch.dtype, n: int) -> None:
    features, labels, weight, bias = sample(n=n, d=20, classes=5, dtype=dtype)
    expected = reference(features, labels, weight, bias)
    assert everything(features, labels, weight.float(), bias.float()) == pytest.approx(expected, rel=1e-6)


def test_keys_are_those_that_the_arguments_allow() -> None:
    features, labels, weight, bias = sample()
    assert list(collapse(features, labels)) == BETWEEN_ROWS
    assert list(collapse(features, labels, weight)) == BETWEEN_ROWS + OF_WEIGHTS
    assert list(collapse(features, labels, weight, bias)) == BETWEEN_ROWS + OF_WEIGHTS
    assert list(mse_split(features, labels, weight)) == list(mse_split(features, labels, weight, bias)) == OF_LOSS
    assert all(type(value) is float for value in everything(features, labels, weight, bias).values())


def test_unequal_classes_by_hand() -> None:
    # Class 0: -1, 1 (mean 0, variance 1).  Class 1: eight rows at 4 (variance 0).  μ_G = 2, not 3.2;
    # tr Σ_B = (4 + 4)/2 = 4; Σ_W = (1 + 1)/10 = 0.2; NC1 = (0.2/4)/2; CDNV = (1 + 0)/(2·16).
    features = torch.tensor([[-1.0], [1.0], *[[4.0]] * 8], dtype=torch.float64)
    labels = torch.tensor([0, 0, *[1] * 8])
    found = collapse(features, labels)
    assert found["nc1_quotient"] == pytest.approx(0.2 / 4, rel=1e-14)
    assert found["nc1"] == pytest.approx(0.2 / 4 / 2, rel=1e-14)
    assert found["cdnv"] == pytest.approx(1 / 32, rel=1e-14)
    assert found["nc2_norm_means"] == pytest.approx(0, abs=1e-15)


def test_mse_keys_weigh_rows_equally_by_hand() -> None:
    # Wh = (h, -h): rows -1, 1 of class 0 and eight rows 0 of class 1, targets (1, 0) and (0, 1).
    features = torch.tensor([[-1.0], [1.0], *[[0.0]] * 8], dtype=torch.float64)
    labels = torch.tensor([0, 0, *[1] * 8])
    weight = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found = mse_split(features, labels, weight)
    assert found["mse"] == pytest.approx(((4 + 1) + (0 + 1) + 8) / 20, rel=1e-14)
    # Without a bias and with Σ h y = 0 the best W is 0: all error sits in the class means.
    assert found["mse_ls"] == pytest.approx(10 / 20, rel=1e-12)
    assert found["mse_ls_nc1"] == pytest.approx(0, abs=1e-14)
    assert found["mse_perp"] == pytest.approx(4 / 20, rel=1e-12)


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("with_bias", [True, False])
def test_parts_of_the_mse_add_up(noise: float, with_bias: bool) -> None:
    features, labels, weight, bias = sample(noise=noise, n=300)
    found = mse_split(features, labels, weight, bias if with_bias else None)
    assert found["mse_ls"] == pytest.approx(found["mse_ls_nc1"] + found["mse_ls_nc23"], rel=1e-14)
    assert found["mse"] == pytest.approx(found["mse_ls"] + found["mse_perp"], rel=1e-11)


def test_mse_perp_is_zero_for_the_least_squares_classifier() -> None:
    features, labels, _, _ = sample(n=300)
    inputs = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(inputs, torch.nn.functional.one_hot(labels).double()).solution.T
    found = mse_split(features, labels, best[:, :-1], best[:, -1])
    assert found["mse_perp"] <= 1e-25
    assert found["mse"] == pytest.approx(found["mse_ls"], rel=1e-12)


def test_more_features_than_rows_can_be_fitted_exactly() -> None:
    features, labels, weight, bias = sample(n=30, d=60, classes=3)
    found = mse_split(features, labels, weight, bias)
    assert found["mse_ls"] <= 1e-10
    assert found["mse_perp"] == pytest.approx(found["mse"], rel=1e-6)


def test_dead_features_change_nothing() -> None:
    features, labels, weight, bias = sample(n=300)
    dead = torch.zeros(len(features), 5, dtype=torch.float64)
    expected = everything(features, labels, weight, bias)
    found = everything(torch.cat([features, dead], 1), labels, torch.cat([weight, dead[:4]], 1), bias)
    assert found == pytest.approx(expected, rel=1e-9)


def test_repeated_features_change_nothing() -> None:
    features, labels, weight, bias = sample(n=300)
    expected = mse_split(features, labels, weight, bias)
    again = torch.cat([features, features[:, :5]], 1)
    found = mse_split(again, labels, torch.cat([weight, torch.zeros(4, 5)], 1), bias)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mse_split_does_not_mind_features_of_different_units(dtype: torch.dtype) -> None:
    features, labels, weight, bias = sample(n=300)
    units = 10.0 ** torch.arange(-6, 6, dtype=torch.float64)
    found = mse_split((features * units).to(dtype), labels, weight / units, bias)
    expected = mse_split(features, labels, weight, bias)
    assert found == pytest.approx(expected, rel=1e-9 if dtype == torch.float64 else 1e-4)


def test_a_constant_feature_beside_a_bias_adds_nothing() -> None:
    # All that the bias, or the feature in its place, can do is guess the shares 3/4 and 1/4: 1/2 (3/4 · 1/4) · 2.
    features, labels = torch.full((4, 1), 0.1), torch.tensor([0, 0, 0, 1])
    found = mse_split(features, labels, torch.zeros(2, 1), torch.zeros(2))
    assert found["mse_ls"] == found["mse_ls_nc23"] == pytest.approx(0.1875, rel=1e-12)
    assert found["mse_ls_nc1"] == pytest.approx(0, abs=1e-14)


@settings(properties, max_examples=300)
@given(seed=st.integers(0, 10**6))
def test_the_split_is_that_of_numpys_least_squares_on_any_columns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d, classes = int(rng.integers(5, 60)), int(rng.integers(1, 12)), int(rng.integers(2, 5))
    # Whole numbers, so that a column that is a sum of others is so exactly, and the rank is beyond doubt.
    h = (rng.integers(-50, 51, (n, d)) + rng.choice([0, 1, 100]) * rng.integers(-9, 10, d)).astype(float)
    for column in range(d):  # some constant, dead, or a sum of others with or without a constant
        kind = rng.integers(8)
        if kind < 2:
            h[:, column] = (0.1, 0)[kind]
        elif kind < 4:
            h[:, column] = h[:, :column].round() @ rng.integers(-1, 2, column) + 7 * (kind == 3)
    features = torch.from_numpy(h).to((torch.float64, torch.float32)[seed % 2])
    labels = torch.from_numpy(rng.permutation(np.arange(n) % classes))
    weight, bias = torch.from_numpy(rng.normal(size=(classes, d))), torch.from_numpy(rng.normal(size=classes))
    arguments = (weight, bias) if rng.integers(2) else (weight,)
    expected = reference_split(features, labels, *arguments)
    assert mse_split(features, labels, *arguments) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# --- analytic anchors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 100])
def test_a_perfect_simplex_reads_zero(classes: int) -> None:
    means = simplex(classes, classes + 5)
    labels = torch.arange(classes).repeat(6)
    offset = torch.linspace(-1, 1, classes + 5, dtype=torch.float64)
    # W is parallel to the centred means and fits the targets with b = 1/K.
    weight = means * ((classes - 1) / classes)
    bias = 1 / classes - weight @ offset
    found = everything(means[labels] + offset, labels, weight, bias)
    assert set(found) == {*BETWEEN_ROWS, *OF_WEIGHTS, *OF_LOSS}
    assert {key: value for key, value in found.items() if not value <= 1e-12} == {}


def test_a_perfect_simplex_reads_zero_in_float32() -> None:
    # Rows of a Hadamard matrix without its constant column: a simplex that float32 holds exactly.
    means = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.1
    labels = torch.arange(4).repeat(1000)
    found = collapse(means[labels], labels, means)
    assert {key: found[key] for key in BETWEEN_ROWS + OF_WEIGHTS if not found[key] <= 1e-12} == {}


def rotation(d: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=random, dtype=torch.float64)).Q


@properties
@given(seed=st.integers(0, 10**6))
def test_rotating_features_and_classifier_changes_nothing(seed: int) -> None:
    features, labels, weight, bias = sample(seed=seed)
    turn = rotation(12, seed)
    found = everything(features @ turn, labels, weight @ turn, bias)
    assert found == pytest.approx(everything(features, labels, weight, bias), rel=1e-9)


@properties
@given(seed=st.integers(0, 10**6), exponent=st.floats(-12, 12))
def test_scaling_features_against_the_classifier_changes_nothing(seed: int, exponent: float) -> None:
    features, labels, weight, bias = sample(seed=seed)
    scale = 10.0**exponent
    found = everything(features * scale, labels, weight / scale, bias)
    assert found == pytest.approx(everything(features, labels, weight, bias), rel=1e-9)


@properties
@given(seed=st.integers(0, 10**6), exponent=st.integers(-120, 100))
def test_scaling_float32_features_changes_nothing(seed: int, exponent: int) -> None:
    features, labels, _, _ = sample(seed=seed, dtype=torch.float32)
    found = collapse(features * 2.0**exponent, labels)
    assert found == pytest.approx(collapse(features, labels), rel=1e-5)


@properties
@given(seed=st.integers(0, 10**6), exponent=st.floats(-2, 4))
def test_translating_features_changes_nothing(seed: int, exponent: float) -> None:
    features, labels, weight, bias = sample(seed=seed)
    offset = 10.0**exponent * torch.linspace(-1, 1, 12, dtype=torch.float64)
    found = everything(features + offset, labels, weight, bias - weight @ offset)
    assert found == pytest.approx(everything(features, labels, weight, bias), rel=1e-8)


@properties
@given(seed=st.integers(0, 10**6))
def test_the_order_of_rows_and_the_names_of_classes_do_not_matter(seed: int) -> None:
    features, labels, weight, bias = sample(seed=seed)
    random = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(features), generator=random)
    name = torch.randperm(4, generator=random)
    old = torch.argsort(name)
    found = everything(features[rows], name[labels[rows]], weight[old], bias[old])
    assert found == pytest.approx(everything(features, labels, weight, bias), rel=1e-10)


# --- traps seen in published code ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_trap_cancellation_a_collapse_of_5e_minus_12_is_right_to_one_per_cent(
    dtype: torch.dtype, offset: float
) -> None:
    random = torch.Generator().manual_seed(0)
    n, d, classes = 20_000, 64, 10
    labels = torch.arange(n) % classes
    means = simplex(classes, d) * 8 + offset
    features = means[labels] + torch.randn(n, d, generator=random, dtype=torch.float64) * 6.4e-6
    features = features.to(dtype)
    expected = reference(features, labels)
    assert expected["nc1"] == pytest.approx(5e-12, rel=0.2, abs=0)
    found = collapse(features, labels)
    assert found["nc1"] == pytest.approx(expected["nc1"], rel=1e-3, abs=0)
    assert found["nc1_quotient"] == pytest.approx(expected["nc1_quotient"], rel=1e-3, abs=0)
    assert found["cdnv"] == pytest.approx(expected["cdnv"], rel=1e-3, abs=0)
    if dtype == torch.float32:  # the formula that cancels is off by orders of magnitude
        group = features[labels == 0]
        cancelling = group.square().sum(1).mean() - group.mean(0).square().sum()
        truth = (group.double() - group.double().mean(0)).square().sum(1).mean()
        assert abs(float(cancelling) / float(truth) - 1) > 10


def test_trap_cancellation_in_the_mse_of_a_deep_collapse() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 10
    features = simplex(10, 64)[labels] + torch.randn(4000, 64, generator=random, dtype=torch.float64) * 1e-6
    weight = simplex(10, 64) * 0.9
    found = mse_split(features.float(), labels, weight, torch.full((10,), 0.1))
    # For a simplex with isotropic noise G has K − 1 equal eigenvalues g and mse_ls = (1 − 1/K)/(1 + g)/2.
    g = 1 / (9 * 1e-12)
    assert found["mse_ls"] == pytest.approx(0.45 / g, rel=0.05, abs=0)
    assert found["mse_ls_nc23"] == pytest.approx(0.45 / g**2, rel=0.1, abs=0)
    assert found["mse"] == pytest.approx(found["mse_ls"] + found["mse_perp"], rel=1e-6)


def test_trap_pseudo_inverse_rank_is_at_most_k_minus_one() -> None:
    # Noise outside the span of the means must not enter NC1, at any scale of the data.
    features, labels, _, _ = sample(d=40, classes=3, noise=1e-3, n=600)
    axes = torch.linalg.svd(torch.stack([features[labels == c].mean(0) for c in range(3)]).diff(dim=0)).Vh[2:]
    loud = features + 100 * torch.randn(600, 38, dtype=torch.float64, generator=torch.Generator()) @ axes
    means = torch.stack([(loud - features)[labels == c].mean(0) for c in range(3)])
    loud = loud - means[labels]
    expected = collapse(features, labels)["nc1"]
    for scale in (1e-8, 1.0, 1e8):
        assert collapse(loud * scale, labels)["nc1"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("classes", "d"), [(12, 3), (12, 11), (12, 12), (40, 8)])
def test_trap_more_classes_than_features(classes: int, d: int) -> None:
    features, labels, weight, bias = sample(n=500, d=d, classes=classes)
    expected = reference(features, labels, weight, bias)
    assert everything(features, labels, weight, bias) == pytest.approx(expected, rel=1e-8)


def test_trap_many_classes_and_wide_features() -> None:
    random = torch.Generator().manual_seed(0)
    classes, d = 1000, 8192
    labels = torch.arange(2 * classes) % classes
    means = torch.randn(classes, d, generator=random)
    features = means[labels]
    features[:classes] += 0.1 * means.roll(1, 0)
    features[classes:] -= 0.1 * means.roll(1, 0)
    found = collapse(features, labels)
    assert list(found) == BETWEEN_ROWS
    # Independent Gaussian means: Σ_W is a hundredth of Σ_B.
    assert found["nc1_quotient"] == pytest.approx(0.01, rel=0.01)
    assert found["nc1"] == pytest.approx(0.01, rel=0.01)
    assert found["cdnv"] == pytest.approx(0.005, rel=0.01)


def test_trap_total_scatter_in_place_of_between_class_scatter() -> None:
    features, labels, _, _ = sample(noise=3.0)
    found = collapse(features, labels)
    h = features - features.mean(0)
    total = h.T @ h / len(h)
    means = torch.stack([features[labels == c].mean(0) for c in range(4)])
    z = features - means[labels]
    mistaken = float(torch.trace(z.T @ z / len(h)) / torch.trace(total))
    assert mistaken < 1 < found["nc1_quotient"]


def test_trap_the_bias_of_the_classifier_counts_in_nc4() -> None:
    features = torch.tensor([[0.9], [1.1], [2.9], [3.1]])
    labels = torch.tensor([0, 0, 1, 1])
    weight, bias = torch.tensor([[-1.0], [1.0]]), torch.tensor([2.0, -2.0])
    assert collapse(features, labels, weight, bias)["nc4"] == 0.0
    assert collapse(features, labels, weight)["nc4"] == 0.5


def test_trap_nc3_centres_the_means() -> None:
    means, labels = simplex(10, 16), torch.arange(10).repeat(3)
    offset = torch.full((16,), 0.25, dtype=torch.float64)
    features = means[labels] + offset
    uncentred = means + offset
    mistaken = (means / means.norm() - uncentred / uncentred.norm()).square().sum()
    assert float(mistaken) > 0.5
    assert collapse(features, labels, means)["nc3"] <= 1e-12


@pytest.mark.parametrize("classes", [2, 3, 23])
def test_trap_the_number_of_classes_is_read_from_the_labels(classes: int) -> None:
    features, labels, weight, bias = sample(n=200, d=30, classes=classes)
    expected = reference(features, labels, weight, bias)
    assert everything(features, labels, weight, bias) == pytest.approx(expected, rel=1e-8)


def test_trap_unequal_classes_weigh_equally_in_the_between_class_part() -> None:
    features, labels, _, _ = sample()
    again = torch.cat([torch.arange(200), torch.nonzero(labels == 1).flatten().repeat(9)])
    found, before = collapse(features[again], labels[again]), collapse(features, labels)
    for key in ("cdnv", "nc2_norm_means", "nc2_angle_means", "nc2_etf_means"):
        assert found[key] == pytest.approx(before[key], rel=1e-12)
    assert found["nc1_quotient"] != pytest.approx(before["nc1_quotient"], rel=1e-3)


def test_trap_a_collapsed_classifier_with_one_hot_targets_has_logits_at_the_mean_of_one_over_k() -> None:
    # ‖Wμ_G + b‖ is 1/√K at the optimum, so it is no measure of collapse, and no key here.
    classes = 5
    means, labels = simplex(classes, 8), torch.arange(classes).repeat(4)
    weight, bias = means * (classes - 1) / classes, torch.full((classes,), 1 / classes)
    logits_at_mean = weight @ means.mean(0) + bias
    found = everything(means[labels], labels, weight, bias)
    assert float(logits_at_mean.norm()) == pytest.approx(1 / classes**0.5)
    assert max(found.values()) <= 1e-12


# --- batches ---------------------------------------------------------------------------------------------


def in_batches(features: Tensor, labels: Tensor, cuts: list[int], *layer: Tensor) -> dict[str, float]:
    statistics = CollapseStatistics(int(labels.max()) + 1, *layer)
    for read in (statistics.first_pass, statistics.second_pass):
        for x, y in zip(features.tensor_split(cuts), labels.tensor_split(cuts), strict=True):
            if len(y):
                read(x, y)
    return statistics.result()


@properties
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 200), max_size=6).map(sorted))
def test_batches_give_what_the_whole_gives_however_it_is_split(seed: int, cuts: list[int]) -> None:
    features, labels, weight, bias = sample(seed=seed)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
    found = in_batches(features[order], labels[order], cuts, weight, bias)
    assert found == pytest.approx(collapse(features, labels, weight, bias), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_keep_a_deep_collapse(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (5000,), generator=random)
    features = (3 + simplex(10, 32))[labels] + 4e-6 * torch.randn(5000, 32, generator=random).double()
    features = features.float()
    found = in_batches(features.to(dtype), labels, list(range(64, 5000, 64)))
    assert found["nc1"] < 1e-9
    assert found == pytest.approx(collapse(features.double(), labels), rel=1e-6)


def test_batches_of_different_types_are_measured_in_the_wider_one() -> None:
    features, labels, _, _ = sample()
    features[100:] = features[100:].float().double()
    statistics = CollapseStatistics(4)
    for read in (statistics.first_pass, statistics.second_pass):
        read(features[:100], labels[:100])
        read(features[100:].float(), labels[100:])
    assert statistics.result() == pytest.approx(collapse(features, labels), rel=1e-12)


# --- what goes in ----------------------------------------------------------------------------------------


def test_arrays_views_and_parameters_are_accepted_and_left_alone() -> None:
    features, labels, weight, bias = sample()
    expected = everything(features, labels, weight, bias)
    read_only = features.numpy().copy()
    read_only.flags.writeable = False
    assert everything(read_only, labels.numpy().astype(np.uint8), weight.numpy(), bias.numpy()) == expected
    transposed = features.T.contiguous().T
    parameter = torch.nn.Parameter(weight)
    found = everything(transposed.requires_grad_(), labels.int(), parameter, bias)
    assert found == pytest.approx(expected, rel=1e-12)
    strided = torch.zeros(400, 24, dtype=torch.float64)
    strided[::2, ::2] = features
    assert everything(strided[::2, ::2], labels, weight, bias) == pytest.approx(expected, rel=1e-12)


def test_a_single_output_as_a_classifier_of_two_classes() -> None:
    features, labels, weight, _ = sample(classes=2)
    w = weight[:1]
    found = mse_split(features, labels, torch.cat([w, -w]) / 2, torch.tensor([0.5, 0.5]))
    sign = 1.0 - 2 * labels
    assert found["mse"] == pytest.approx(float(((features @ w[0] - sign) ** 2).mean() / 4), rel=1e-12)


def test_equal_class_means_give_nan_not_a_perfect_collapse() -> None:
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = everything(features, torch.tensor([0, 0, 1, 1]), torch.eye(2))
    assert np.isnan(found["nc1"])
    assert found["cdnv"] == found["nc1_quotient"] == float("inf")
    assert found["mse"] == pytest.approx(found["mse_ls"] + found["mse_perp"])


def test_dead_network_gives_nan_without_an_error() -> None:
    found = everything(torch.zeros(6, 3), torch.tensor([0, 1, 2] * 2), torch.zeros(3, 3), torch.zeros(3))
    assert np.isnan([found[key] for key in ("nc1", "nc1_quotient", "cdnv", "nc2_norm_means", "nc3")]).all()
    assert found["mse"] == pytest.approx(0.5)
    assert found["mse_ls"] == pytest.approx((1 - 1 / 3) / 2)


def test_huge_float32_outliers_do_not_overflow() -> None:
    features, labels, _, _ = sample(dtype=torch.float32)
    features[3, 0] = 1e25
    expected = reference(features, labels)
    assert collapse(features, labels)["nc1_quotient"] == pytest.approx(expected["nc1_quotient"], rel=1e-6)


def test_huge_float32_outliers_that_cancel_in_the_mean_do_not_overflow() -> None:
    features, labels, weight, bias = sample(dtype=torch.float32)
    first, second = torch.nonzero(labels == 2).flatten()[:2]
    features[first, 0], features[second, 0] = 1e25, -1e25
    expected = reference(features, labels, weight, bias)
    for found in (collapse(features, labels, weight, bias), in_batches(features, labels, [70], weight, bias)):
        for key in ("nc1_quotient", "cdnv", "nc4"):
            assert found[key] == pytest.approx(expected[key], rel=1e-6)


def test_class_means_that_differ_by_rounding_alone_count_as_equal() -> None:
    labels = torch.tensor([0] * 7 + [1] * 3 + [2] * 5)
    features = torch.full((15, 5), 0.1, dtype=torch.float64)
    features[labels == 2] += 1e-3
    features[-1] += 1e-5
    assert collapse(features, labels)["cdnv"] == float("inf")


ERRORS = {
    "not two axes": (dict(features=torch.zeros(4, 2, 2)), ValueError, r"features has shape \(4, 2, 2\)"),
    "no rows": (dict(features=torch.zeros(0, 2)), ValueError, r"features has shape \(0, 2\)"),
    "whole numbers": (dict(features=torch.zeros(4, 2).long()), TypeError, "features holds torch.int64"),
    "nan": (dict(features=torch.tensor([[0.0], [1], [2], [torch.nan]])), ValueError, "features holds nan"),
    "infinity": (
        dict(features=torch.tensor([[0.0], [1], [2], [torch.inf]])),
        ValueError,
        "features holds nan",
    ),
    "labels too few": (
        dict(labels=torch.tensor([0, 1])),
        ValueError,
        r"labels has shape \(2,\): expected \(4,\)",
    ),
    "labels one-hot": (dict(labels=torch.eye(4).long()), ValueError, r"labels has shape \(4, 4\)"),
    "labels real": (dict(labels=torch.tensor([0.0, 0, 1, 1])), TypeError, "labels holds torch.float32"),
    "labels true": (dict(labels=torch.tensor([True, False] * 2)), TypeError, "labels holds torch.bool"),
    "labels negative": (dict(labels=torch.tensor([-1, 1, 1, -1])), ValueError, "labels reaches from -1 to 1"),
    "one class": (dict(labels=torch.zeros(4).long()), ValueError, "labels has one class"),
    "empty class": (dict(labels=torch.tensor([0, 0, 2, 2])), ValueError, "labels has no row of class 1"),
    "class beyond weight": (
        dict(labels=torch.tensor([0, 1, 2, 2]), weight=torch.ones(2, 2)),
        ValueError,
        r"labels reaches from 0 to 2: expected 0\.\.1 for 2 classes",
    ),
    "class missing": (dict(weight=torch.ones(3, 2)), ValueError, "labels has no row of class 2"),
    "weight shape": (
        dict(weight=torch.ones(2, 3)),
        ValueError,
        r"weight has shape \(2, 3\): expected \(2, 2\)",
    ),
    "weight nan": (dict(weight=torch.full((2, 2), torch.nan)), ValueError, "weight holds nan"),
    "bias shape": (dict(weight=torch.ones(2, 2), bias=torch.ones(1)), ValueError, r"bias has shape \(1,\)"),
    "bias nan": (
        dict(weight=torch.ones(2, 2), bias=torch.tensor([0, torch.inf])),
        ValueError,
        "bias holds nan",
    ),
    "bias alone": (dict(bias=torch.ones(2)), ValueError, "bias was given without weight"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_named(case: str) -> None:
    changed, error, message = ERRORS[case]
    arguments: dict[str, Any] = dict(
        features=torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), labels=torch.tensor([0, 0, 1, 1])
    )
    with pytest.raises(error, match=message):
        collapse(**(arguments | changed))


def test_single_output_weight_is_told_how_to_become_two_rows() -> None:
    features, labels, weight, _ = sample(classes=2)
    with pytest.raises(ValueError, match=r"weight has shape \(1, 12\).*cat\(\[w, -w\]\) / 2"):
        collapse(features, labels, weight[:1])


def test_statistics_name_bad_input_and_keep_their_state() -> None:
    features, labels, weight, bias = sample()
    with pytest.raises(ValueError, match="classes=1"):
        CollapseStatistics(1)
    with pytest.raises(ValueError, match=r"weight has shape \(4, 5\): expected \(4, 12\)"):
        CollapseStatistics(4, weight[:, :5]).first_pass(features, labels)
    statistics = CollapseStatistics(4, weight, bias)
    with pytest.raises(ValueError, match="second_pass has seen 0 rows"):
        statistics.result()
    with pytest.raises(ValueError, match="labels has no row of class 0"):
        statistics.second_pass(features, labels)
    statistics.first_pass(features[:150], labels[:150])
    for read in (statistics.first_pass, statistics.second_pass):
        read(features[150:], labels[150:])
        with pytest.raises(ValueError, match="features has 5 columns: expected 12"):
            read(features[:, :5], labels)
        with pytest.raises(ValueError, match=r"labels reaches from 4 to 4: expected 0\.\.3 for 4 classes"):
            read(features[:1], torch.tensor([4]))
    with pytest.raises(ValueError, match="first_pass after second_pass: expected all batches before"):
        statistics.first_pass(features, labels)
    with pytest.raises(ValueError, match="second_pass has seen 50 rows: expected the same 200"):
        statistics.result()
    statistics.second_pass(features[:150], labels[:150])
    assert statistics.result() == pytest.approx(collapse(features, labels, weight, bias), rel=1e-12)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_batch_with_nan_or_infinity_leaves_no_trace(broken: float) -> None:
    features, labels, _, _ = sample()
    statistics = CollapseStatistics(4)
    for read in (statistics.first_pass, statistics.second_pass):
        read(features, labels)
        with pytest.raises(ValueError, match="features holds nan"):
            read(features[:1] * broken, labels[:1])
    assert statistics.result() == collapse(features, labels)


# --- memory ----------------------------------------------------------------------------------------------

MEMORY = """
import torch
from nclib.collapse import collapse

def status(field):  # not ru_maxrss, which a process inherits from the one that started it
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
features = torch.empty(60_000, 512).uniform_(-1, 1)
labels = torch.arange(60_000) % 10
features[:, 0] += labels
weight = torch.randn(10, 512)
before = status("VmHWM")
collapse(features, labels, weight, torch.zeros(10))
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_extra_memory_is_at_most_64_mib() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 64


# --- whatever it comes in --------------------------------------------------------------------------------


def least(rows: list[list[float]], labels: list[int]) -> float:
    """Least square loss on these inputs, in rational numbers: what is left of the targets beside the columns."""
    columns: list[list[Fraction]] = []
    for column in zip(*rows, strict=True):
        left = [Fraction(float(v)) for v in column]
        for done in columns:
            share = sum(a * b for a, b in zip(left, done, strict=True)) / sum(b * b for b in done)
            left = [a - share * b for a, b in zip(left, done, strict=True)]
        if any(left):
            columns.append(left)
    total = Fraction(0)
    for c in range(max(labels) + 1):
        target = [Fraction(int(label == c)) for label in labels]
        total += sum(target)
        for done in columns:
            total -= sum(a * b for a, b in zip(target, done, strict=True)) ** 2 / sum(b * b for b in done)
    return float(total / (2 * len(rows)))


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.1, 1.0, -1e3, 1e8, 1e12, -1e15]),
    st.sampled_from([2.0**power for power in (-660, -100, 0, 100, 630)]),
    st.sampled_from(["plain", "constant", "twice", "of low rank"]),
    st.booleans(),
)
def test_the_least_squares_part_is_the_exact_minimum(seed, mean, unit, kind, bias) -> None:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(3, 8)), int(rng.integers(1, 4))
    labels = [0, 1, *rng.integers(0, 2, n - 2).tolist()]
    x = rng.normal(size=(n, d)) + (mean if bias or abs(mean) < 1e4 else 0.0)
    if kind == "of low rank":
        x = rng.integers(-3, 4, (n, 1)) @ rng.integers(-3, 4, (1, 3)).astype(float)
    x = {"constant": lambda: np.column_stack([x, np.full(n, mean)]), "twice": lambda: np.column_stack([x, x])}.get(
        kind, lambda: x
    )() * unit
    expected = least([[*row, 1.0] if bias else list(row) for row in x], labels)
    found = mse_split(x, labels, np.zeros((2, x.shape[1])), np.zeros(2) if bias else None)
    assert found["mse_ls"] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_split_says_what_it_cannot_tell() -> None:
    features, labels, weight, bias = sample()
    with pytest.raises(ValueError, match=r"features: a column.s mean is 10.* give a bias"):
        mse_split(features.double() + 1e14, labels, weight)
    with pytest.raises(ValueError, match="weight"):
        mse_split(features * 1e30, labels, weight * 1e140, bias)


@pytest.mark.parametrize("unit", [1e-200, 1e160, 1e-70, 1e70])
def test_collapse_follows_the_unit_or_names_it(unit: float) -> None:
    features, labels, _, _ = sample()
    for call in (collapse, simplex_view):
        if unit in (1e-70, 1e70):
            found, expected = call(features.double() * unit, labels), call(features.double(), labels)
            one, other = (list(v.values()) if isinstance(v, dict) else v.points for v in (found, expected))
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
        else:
            with pytest.raises(ValueError, match="features"):
                call(features.double() * unit, labels)


@pytest.mark.parametrize(
    "wrong",
    ["one", None, 1j, b"a", object(), [[1.0], [1.0, 2.0]], np.array(["a", "b"] * 2), pd.Series(list("abab"))],
)
@pytest.mark.parametrize("name", ["features", "labels", "weight", "bias"])
def test_what_is_no_array_is_named(name: str, wrong: Any) -> None:
    if wrong is None and name in ("weight", "bias"):
        pytest.skip("left out")
    options = dict(features=np.eye(4)[:, :2], labels=[0, 0, 1, 1], weight=np.eye(2), bias=np.ones(2)) | {
        name: wrong
    }
    for call in (collapse, mse_split):
        with pytest.raises((ValueError, TypeError), match=name):
            call(**options)


def test_a_label_costs_no_more_than_it_counts() -> None:
    with pytest.raises(ValueError, match=r"labels reaches from 0 to 1000000000: expected 0\.\.K-1, a row of each"):
        collapse(np.eye(4), [0, 0, 1, 10**9])
    for wrong in (1, 10**9, 2.5, "2", None, True):
        with pytest.raises(ValueError, match="classes="):
            CollapseStatistics(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["list", "reversed", "big", "read-only", "frame", "bfloat16", "gradient", "categorical"]
)
def test_features_and_labels_come_as_they_are(name: str) -> None:
    x, y = np.random.default_rng(0).integers(-9, 9, (12, 3)) / 4.0, np.arange(12) % 3
    expected = collapse(x, y, x[:3], x[0])
    frozen, numbers = x.copy(), y.astype(np.uint16)
    frozen.flags.writeable = False
    features, labels = {
        "list": (x.tolist(), y.tolist()),
        "reversed": (x[::-1].copy()[::-1], y[::-1].copy()[::-1]),
        "big": (x.astype(">f8"), y.astype(">i4")),
        "read-only": (frozen, numbers),
        "frame": (pd.DataFrame(x, index=range(5, 17)), pd.Series(y, index=range(5, 17))),
        "bfloat16": (torch.tensor(x, dtype=torch.bfloat16), torch.tensor(y, dtype=torch.uint8)),
        "gradient": (torch.tensor(x, requires_grad=True), torch.tensor(y)),
        "categorical": (x, pd.Categorical(y)),
    }[name]
    weight, bias = features[:3], x[0].tolist()
    assert collapse(features, labels, weight, bias) == pytest.approx(
        expected, rel=1e-4 if name == "bfloat16" else 1e-12
    )
    assert mse_split(features, labels, weight, bias)["mse"] > 0
