"""Neural collapse, measured: within-class spread, the means' geometry, self-duality, nearest mean.

`collapse` measures features held in memory, `CollapseStatistics` features that come in batches.  Both
centre first and reduce in float64, so that a collapse of 10⁻¹² is read as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .formulas import Geometry, duality, spread, squared_distances
from .inputs import Array, Classifier, checked
from .least_squares import Regression, Sample, krylov_mse_split, mse_split
from .scatter import CentredRows
from .statistics import CollapseStatistics
from .views import SimplexView, simplex_view

__all__ = ["CollapseStatistics", "SimplexView", "collapse", "simplex_view"]

# Class means further apart or closer than this are measured in float64: in float32 the square of a
# centred feature could overflow, or vanish where the collapse is deep.
_FLOAT32_SPREAD = (1e-9, 1e12)


@torch.no_grad()
def collapse(
    features: Array, labels: Array, weight: Array | None = None, bias: Array | None = None
) -> dict[str, float]:
    r"""Every neural-collapse metric that the arguments allow.

    With class means μ_c, μ_G the mean of the μ_c, M̄ (K×d) with rows μ_c − μ_G, Frobenius norms,
    Σ_W = 1/N Σ(h − μ_y)(h − μ_y)ᵀ, Σ_B = M̄ᵀM̄/K and v_c the mean of ‖h − μ_c‖² over class c:

    ================  =============================================================================
    ``nc1``           tr(Σ_W Σ_B⁺)/K (Zhu et al.; Han et al. report K times this)
    ``nc1_quotient``  tr Σ_W / tr Σ_B (Tirer and Bruna)
    ``cdnv``          mean over pairs of (v_c + v_c′)/(2‖μ_c − μ_c′‖²) (Galanti et al.)
    ``nc2_norm_*``    std/mean (ddof 1) of the row norms of M̄ or W (Papyan et al.)
    ``nc2_angle_*``   mean over pairs of |cos + 1/(K−1)|, rows of M̄ or W (Papyan et al.)
    ``nc2_etf_*``     ‖AAᵀ/‖AAᵀ‖ − (I − 11ᵀ/K)/√(K−1)‖, A = M̄ or row-centred W (Zhu et al.)
    ``nc3``           ‖W/‖W‖ − M̄/‖M̄‖‖² (Han et al.)
    ``nc3_etf``       as ``nc2_etf`` with WM̄ᵀ for AAᵀ (Zhu et al.)
    ``nc4``           share of rows with argmax(Wh + b) ≠ argmin_c ‖h − μ_c‖ (Han et al.)
    ``mse``           1/(2N) Σ‖Wh + b − y‖², y one-hot (Han et al., weight decay 0);
                      = ``mse_ls`` + ``mse_perp``
    ``mse_ls``        its least value over W (and b, if one is given) for these features;
                      = ``mse_ls_nc1``, ½ tr(W_LS Σ_W W_LSᵀ), + ``mse_ls_nc23``, the class means' part
    ``mse_perp``      the deviation from that least-squares classifier
    ================  =============================================================================

    The suffix is ``_means`` (M̄) or ``_weights`` (W).  Without ``weight`` the keys are ``nc1``,
    ``nc1_quotient``, ``cdnv`` and ``nc2_*_means``.

    Parameters
    ----------
    features : Tensor or array, shape (N, d)
        Last-layer features h of the network in evaluation mode; any floating type, CPU or GPU.
    labels : Tensor or array of integers, shape (N,)
        Classes 0..K-1, every one present, K ≥ 2.
    weight : Tensor or array, shape (K, d), optional
        Last-layer weight W.  A network with one output f = wᵀh for two classes coded ±1 is the
        one-hot classifier W = cat([w, -w])/2 with b = (1/2, 1/2).
    bias : Tensor or array, shape (K,), optional
        Last-layer bias b.  Without it the least-squares classifier has none either.

    Returns
    -------
    dict of str to float
        In the order of the table.  All are ≥ 0, and 0 for a simplex ETF (``mse`` and its parts: for
        one scaled to the targets).  Where a denominator is zero (all class means equal, a row of zeros
        in W) the ratio is nan or inf.

    Raises
    ------
    TypeError
        Features that are not floating point, labels that are not integers.
    ValueError
        Shapes that do not fit, nan or infinity, fewer than two classes, labels that are not 0..K-1
        with every class present.

    Notes
    -----
    *Unequal classes.*  μ_G and Σ_B, and with them all of NC2 and NC3, weigh the classes equally however
    many rows they have; ``cdnv`` weighs the pairs equally; Σ_W, ``nc4`` and the ``mse`` keys weigh the
    rows equally.

    *How.*  Σ_B has rank ≤ min(K−1, d), so NC1 needs the centred rows along M̄'s singular vectors only,
    and nothing of size d×d.  The ``mse`` keys depend on all of Σ_W.  It is formed in float64, unless the
    features are many, wide and single precision or less, and Σ_W is well-conditioned: then a few passes
    of a Krylov method take its place, right to 1% by a proved bound, in practice to 10⁻⁴
    (`nclib.collapse.least_squares`, where the split is derived).  Memory: a few MiB, and three d×d matrices.

    References
    ----------
    Papyan, Han and Donoho (2020); Zhu et al. (2021); Han, Papyan and Donoho (2022); Tirer and Bruna
    (2022); Galanti, György and Hutter (2022).  The chapter on neural collapse.

    Examples
    --------
    >>> import torch
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> found = collapse(features, torch.tensor([0, 0, 1, 1]))
    >>> {key: round(value, 3) for key, value in found.items() if "nc2" not in key}
    {'nc1': 0.0, 'nc1_quotient': 0.01, 'cdnv': 0.003}
    """
    given = checked(features, labels, weight, bias)
    rows, numbers, counts, means, classifier = given.rows, given.labels, given.counts, given.means, given.classifier

    scale = float((means - means.mean(0)).square().mean().sqrt())
    if rows.dtype != torch.float64 and not rows.is_cuda and _FLOAT32_SPREAD[0] < scale < _FLOAT32_SPREAD[1]:
        found = _measured(CentredRows(rows, numbers, counts, means, torch.float32), classifier)
        if math.isfinite(found["nc1_quotient"]):
            return found
    return _measured(CentredRows(rows, numbers, counts, means, torch.float64), classifier)


def _measured(rows: CentredRows, classifier: Classifier | None) -> dict[str, float]:
    """All metrics from one pass over the centred rows, and what more the least-squares part takes."""
    geometry = Geometry.of(rows.means)
    squares = torch.zeros_like(rows.counts)

    def add_squares(labels: Tensor, centred: Tensor) -> None:
        squares.index_add_(0, labels, torch.linalg.vector_norm(centred, dim=1).double().square())

    if classifier is None:
        gram, _ = rows.project(geometry.axes, lambda _, x, y: add_squares(y, x), product=False)
        return spread(geometry, rows.counts, rows.variances(squares), gram.diagonal())

    problem = Regression.of(rows.means, rows.counts, classifier)
    sample = Sample.of(rows)
    # Orthonormal rows that span the class means and the classifier; the first are the axes up to sign.
    directions = [geometry.axes, classifier.weight, rows.means.mean(0, keepdim=True)]
    if sample is not None:
        directions.append(sample.start(problem.signal))
    basis = torch.linalg.qr(torch.cat(directions).T).Q.T.contiguous()
    vote = _Vote.of(rows, classifier, geometry, basis)
    disagreements = squares.new_zeros((), dtype=torch.int64)

    def visit(projected: Tensor, centred: Tensor, labels: Tensor) -> None:
        add_squares(labels, centred)
        disagreements.add_(vote.disagreements(projected, labels))

    gram, product = rows.project(basis, visit, product=sample is not None)
    along = gram.diagonal()[: len(geometry.strength)]
    found = spread(geometry, rows.counts, rows.variances(squares), along)
    found |= duality(geometry, classifier.weight)
    found["nc4"] = float(disagreements) / len(rows.labels)
    if sample is not None:
        parts = krylov_mse_split(sample, rows, problem, basis, gram, product)
        if parts is not None:
            return found | parts
    return found | mse_split(problem, rows.wide().scatter())


@dataclass(frozen=True)
class _Vote:
    """Both decisions of NC4 from a centred row's coordinates x in a basis and its label y.

    W h + b = Wx + (Wμ_y + b), and ‖h − μ_c‖² = ‖μ_y − μ_c‖² − 2(μ_c − μ_y)·x + ‖x‖²: each is a table's
    column plus a product that is small when the collapse is deep.
    """

    weight: Tensor
    logits: Tensor
    pull: Tensor
    distances: Tensor

    @staticmethod
    def of(rows: CentredRows, classifier: Classifier, geometry: Geometry, basis: Tensor) -> _Vote:
        tables = (
            classifier.weight @ basis.T,
            classifier.at(rows.means),
            2 * geometry.centred @ basis.T,
            squared_distances(geometry.centred),
        )
        return _Vote(*(table.to(rows.dtype) for table in tables))

    def disagreements(self, projected: Tensor, labels: Tensor) -> Tensor:
        """How many of the rows with coordinates ``projected`` (k, n) get two different answers."""
        # max and min return the first best index, as argmax and argmin do, in a tenth of their time here.
        chosen = (self.weight @ projected + self.logits.index_select(1, labels)).max(0).indices
        nearest = (self.distances.index_select(1, labels) - self.pull @ projected).min(0).indices
        return (chosen != nearest).sum()
