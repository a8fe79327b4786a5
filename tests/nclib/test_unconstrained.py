"""The optimiser of the unconstrained-features model finds what the closed form says, and says when it does not."""

from __future__ import annotations

import numpy as np
import pytest

from nclib import collapse, ufm_descent, ufm_minimiser


@pytest.mark.parametrize(
    ("classes", "per_class", "decay_w", "decay_h", "bias", "dim"),
    [
        (4, 10, 5e-3, 5e-3, True, 6),
        (2, 4, 1e-2, 4e-2, True, 2),
        (3, [7, 4, 1], 0.02, 0.01, True, 3),
        (3, [7, 4, 1], 0.02, 0.01, False, 5),
        (3, 4, 0.5, 0.5, True, 3),
    ],
)
def test_descent_and_closed_form_agree(classes, per_class, decay_w, decay_h, bias, dim):
    found = ufm_descent(classes, per_class, decay_w, decay_h, bias=bias, dim=dim, seed=3)
    best = ufm_minimiser(classes, per_class, decay_w, decay_h, bias=bias, dim=dim, seed=3)
    assert found.loss == pytest.approx(best.loss, rel=1e-12)
    np.testing.assert_allclose(found.singular_values, best.singular_values, atol=1e-6)
    np.testing.assert_allclose(found.mean_norms, best.mean_norms, atol=1e-6)
    np.testing.assert_allclose(found.features @ found.weight.T, best.features @ best.weight.T, atol=1e-6)
    np.testing.assert_allclose(found.bias, best.bias, atol=1e-6)
    assert found.labels.tolist() == best.labels.tolist()
    if not bias:
        assert not found.bias.any()


def test_the_seed_and_the_size_of_the_start_are_used():
    one, same, other = (ufm_descent(3, 2, 0.0, 0.0, seed=seed, init=0.3) for seed in (1, 1, 2))
    assert np.array_equal(one.weight, same.weight)
    assert not np.allclose(one.weight, other.weight)
    assert np.linalg.norm(ufm_descent(3, 2, 0.0, 0.0, seed=1, init=0.6).features) > np.linalg.norm(one.features)


def test_features_behind_a_relu_are_not_negative_and_collapse_onto_a_frame():
    found = min(
        (ufm_descent(3, 5, 0.02, 0.02, bias=False, relu=True, dim=6, seed=s) for s in range(3)),
        key=lambda e: e.loss,
    )
    assert found.features.min() >= 0
    assert found.loss == pytest.approx(ufm_minimiser(3, 5, 0.02, 0.02, bias=False).loss, rel=1e-6)
    read = collapse(found.features, found.labels, found.weight)
    assert read["nc1_quotient"] < 1e-4
    assert read["nc3"] == pytest.approx(2 - 2 * np.sqrt(2 / 3), abs=1e-2)


def test_singular_values_are_as_many_as_the_model_has():
    assert ufm_descent(4, 3, 0.01, 0.01, dim=2).singular_values.shape == (3,)
    assert ufm_descent(4, 3, 0.01, 0.01, dim=2).singular_values[2] < 1e-12
    assert ufm_descent(4, 3, 0.01, 0.01, bias=False, dim=4).singular_values.shape == (4,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ufm_descent(1, 5, 0.1, 0.1), "classes=1, per_class=5: write"),
        (lambda: ufm_descent(3, [2, 2], 0.1, 0.1), r"per_class=\[2, 2\]: write"),
        (lambda: ufm_descent(3, 5, -0.1, 0.1), "weight_decay_w=-0.1.*write a number ≥ 0"),
        (lambda: ufm_descent(3, 5, 0.1, float("nan")), "weight_decay_h=nan.*write a number ≥ 0"),
        (lambda: ufm_descent(3, 5, 0.1, 0.1, dim=0), "dim=0.*write dim ≥ 1"),
    ],
)
def test_errors_say_what_to_write(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_optimiser_that_gives_up_is_an_error(monkeypatch):
    monkeypatch.setattr("nclib.theory.unconstrained._ITERATIONS", 2)
    monkeypatch.setattr("nclib.theory.unconstrained._RESTARTS", 1)
    with pytest.raises(RuntimeError, match=r"gradient is still .*; try another seed or a smaller init") as caught:
        ufm_descent(4, 10, 5e-3, 5e-3)
    assert "\n" not in str(caught.value)
