"""The view of features in the space of their class means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nclib import simplex_etf, simplex_view

LABELS = np.repeat(np.arange(3), [5, 3, 4])


def cloud(seed=0, d=6):
    rng = np.random.default_rng(seed)
    return 2 * simplex_etf(3, d, seed=seed)[LABELS] + 0.3 * rng.normal(size=(len(LABELS), d)) + rng.normal(size=d)


def test_view_is_an_orthogonal_projection_onto_the_space_of_the_means():
    h = cloud()
    view = simplex_view(h, LABELS)
    means = np.stack([h[c == LABELS].mean(0) for c in range(3)])
    centred = means - means.mean(0)
    size = np.sqrt((centred**2).sum(1).mean())
    # Lengths and angles of the means are kept, and every point has its distance within their plane.
    np.testing.assert_allclose(view.means @ view.means.T, centred @ centred.T / size**2, atol=1e-12)
    plane = np.linalg.svd(centred)[2][:2]
    inside = (h - means.mean(0)) @ plane.T @ plane / size
    np.testing.assert_allclose(np.linalg.norm(view.points, axis=1), np.linalg.norm(inside, axis=1), atol=1e-12)
    np.testing.assert_allclose(view.points @ view.means.T, inside @ centred.T / size, atol=1e-12)
    assert view.rows is None


def test_view_does_not_change_when_the_features_are_turned_moved_or_scaled():
    h, W = cloud(1), np.random.default_rng(2).normal(size=(3, 6))
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    before = simplex_view(h, LABELS, W)
    after = simplex_view(5 * h @ turn + 7, LABELS, 0.1 * W @ turn)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_view_is_turned_towards_the_same_simplex():
    """No rotation brings the means nearer to the reference than the one that was chosen."""
    means = simplex_view(cloud(4), LABELS).means
    reference = simplex_view(simplex_etf(3, 2)[LABELS], LABELS).means
    assert np.trace(means.T @ reference) > 0
    for angle in np.linspace(0.1, 6.2, 20):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        assert np.linalg.norm(means @ turn - reference) >= np.linalg.norm(means - reference)


def test_a_full_collapse_is_a_simplex_of_radius_one():
    frame = simplex_etf(5, 9, seed=1)
    view = simplex_view(torch.tensor(3 * frame).repeat(2, 1), torch.arange(5).repeat(2), torch.tensor(frame))
    np.testing.assert_allclose(np.linalg.norm(view.means, axis=1), 1)
    np.testing.assert_allclose(view.points, np.concatenate([view.means, view.means]), atol=1e-12)
    np.testing.assert_allclose(view.rows, view.means, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simplex_view(np.ones((4, 1)), [0, 1, 2, 2]), "features has 1 columns: 3 classes need 2 or more"),
        (lambda: simplex_view(np.ones((4, 3)), [0, 0, 1, 1]), "features: all class means are equal"),
        (lambda: simplex_view(np.ones((4, 3)), [0, 0, 2, 2]), "labels has no row of class 1"),
        (lambda: simplex_view(np.eye(4), [0, 0, 1, 1], np.ones((2, 3))), r"weight has shape \(2, 3\): expected"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
