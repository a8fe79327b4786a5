"""Synthetic data sets whose truth is known: a random teacher network, and Gaussian classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import inputs
from .raw import TEST, TRAIN, TRUTH, Floats, Ints, Raw, rng

TEACHER_TRIES = 1000


def teacher(n: int, n_test: int, *, seed: int, classes: Any = None, d: int = 20, width: int = 4) -> Raw:
    r"""Directions labelled by the sign of a random bias-free two-layer ReLU network, `nclib.data`'s ``"teacher"``.

    :math:`\lVert w_j\rVert = 1` and :math:`\lVert a\rVert = 1`, all directions random but for two conditions.
    :math:`\sum_j a_j = 0`, so that :math:`\mathbb E f = 0` over every rotation-invariant distribution of x: without
    a bias no threshold can balance the classes, but the output weights can.  And the :math:`w_j` come in pairs
    :math:`\pm w`, of which one is always active: else a share :math:`2^{-\text{width}}` of the points would
    find every neuron silent and have no sign.  (One pair is a linear teacher.)
    """
    d, width = inputs.count("d", d, 1), inputs.count("width", width, 2)
    if classes is not None:
        raise ValueError(f"classes={classes!r}: 'teacher' always has two classes; leave `classes` out")
    if n < 2:
        raise ValueError(f"n={n}: 'teacher' needs a point of each of its two classes; write n=2 or more")
    if width % 2:
        mend = f"write an even width, e.g. width={width + 1}"
        raise ValueError(f"width={width}: the teacher's neurons come in pairs; {mend}")
    for attempt in range(TEACHER_TRIES):
        generator = rng(seed, TRUTH, attempt)
        half = generator.standard_normal((width // 2, d))
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        first = np.concatenate([half, -half])
        second = generator.standard_normal(width)
        second -= second.mean()
        second /= np.linalg.norm(second)
        x = rng(seed, TRAIN, attempt).standard_normal((n, d))
        labels = _signs(x, first, second)
        if 0 < labels.sum() < n:
            x_test = rng(seed, TEST, attempt).standard_normal((n_test, d))
            labels_test = _signs(x_test, first, second)
            truth = (first, second[None, :])
            return Raw(("+1", "-1"), x, labels, x_test, labels_test, truth=truth, bayes_error=0.0)
    what = f"{TEACHER_TRIES} teachers in a row gave one class only"
    raise ValueError(f"n={n}, d={d}, width={width}: {what}; write a larger n, d or width")


def _signs(x: Floats, first: Floats, second: Floats) -> Ints:
    return np.asarray(np.maximum(x @ first.T, 0) @ second <= 0, dtype=np.int64)


def gaussians(n: int, n_test: int, *, seed: int, classes: Any = None, d: int = 20, separation: Any = 3.0) -> Raw:
    r"""Gaussian classes around the corners of a randomly turned simplex, `nclib.data`'s ``"gaussians"``.

    All means are equally long, so the Bayes rule :math:`\arg\max_k\langle m_k, x\rangle` needs no bias.
    """
    if classes is not None and (isinstance(classes, bool) or not hasattr(classes, "__index__")):
        raise ValueError(f"classes={classes!r}: 'gaussians' takes the number of classes; write e.g. classes=3")
    d, k = inputs.count("d", d, 1), 2 if classes is None else inputs.count("classes", classes, 2)
    edge = inputs.number(
        "separation", separation, "a distance, 0 to 1e30, e.g. separation=3.0", lambda s: 0 <= s <= 1e30
    )
    if d < k - 1:
        raise ValueError(f"d={d}: {k} class means at equal distances need d >= {k - 1}; write d={k - 1}")
    means = simplex(k, d, edge, rng(seed, TRUTH))

    def draw(count: int, stream: int) -> tuple[NDArray[Any], Ints]:
        labels = rng(seed, stream, 1).integers(0, k, count)
        return means[labels] + rng(seed, stream, 0).standard_normal((count, d)), labels

    truth = (means if k > 2 else means[:1] - means[1:],)
    names, error = tuple(map(str, range(k))), gaussians_error(k, edge)
    return Raw(names, *draw(n, TRAIN), *draw(n_test, TEST), truth=truth, bayes_error=error)


def simplex(k: int, d: int, edge: float, generator: np.random.Generator) -> Floats:
    """Corners (k, d) of a regular simplex of the given edge, centred at 0, in a random position."""
    # Helmert's rows: an orthonormal basis of the sum-zero vectors. Written out, not from an SVD, because a
    # degenerate singular space has no preferred basis and would differ between machines.
    basis = np.array([[1.0] * j + [-j] + [0.0] * (k - 1 - j) for j in range(1, k)])
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    frame, triangle = np.linalg.qr(generator.standard_normal((d, k - 1)))
    frame *= np.sign(np.diag(triangle))  # uniformly distributed, whatever signs LAPACK prefers
    return np.asarray(edge / math.sqrt(2) * basis.T @ frame.T)


def gaussians_error(k: int, separation: float) -> float:
    r"""Bayes error :math:`1-\int\varphi(t-s/\sqrt2)\,\Phi(t)^{K-1}dt` of `gaussians`.

    The K scores behave as K independent normal variables, the right one ahead by :math:`s/\sqrt2`.
    For K = 2 this is :math:`\Phi(-s/2)`.
    """
    if k == 2:
        return 0.5 * math.erfc(separation / (2 * math.sqrt(2)))
    from scipy.integrate import quad
    from scipy.special import log_ndtr

    ahead = separation / math.sqrt(2)

    def wrong(t: float) -> float:  # the complement is integrated: no cancellation when the error is tiny
        return -math.exp(-t * t / 2) / math.sqrt(2 * math.pi) * math.expm1((k - 1) * log_ndtr(t + ahead))

    # Both factors change over a unit of t; beyond 12 the density has no weight, but the error itself may be
    # as small, so the interval reaches down to where the two meet.
    middle = -ahead / 2
    low, high = min(middle, 0.0) - 12, max(middle, 0.0) + 12
    return float(quad(wrong, low, high, points=sorted({middle, 0.0}), epsabs=0, epsrel=1e-10, limit=500)[0])
