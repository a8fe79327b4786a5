"""Margin bounds on the test error of bias-free ReLU networks, with every constant.

The class behind every bound here: functions f_V(x) = V_L σ(V_{L-1} … σ(V_1 x)) with one output, ReLU σ,
‖V_k‖_F ≤ 1 and any widths. A trained network belongs to it once its outputs are divided by ρ = Π ‖W_k‖_F.
Biases, which folded batch normalisation leaves behind, take a network out of the class.
The depth, and the architecture of a convolutional network, must be chosen before seeing the data; the norms
need not be, they are what the margin measures. Chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

#: Candidates for γ, twenty to a decade from 0.001 to 10. They depend on nothing, so on no data either.
GAMMAS: tuple[float, ...] = tuple(10 ** (step / 20) for step in range(-60, 21))


class MarginBound(NamedTuple):
    """A bound on P[y f(x) ≤ 0] and the three terms it is the sum of."""

    total: float
    """The bound: `ramp_loss` + `complexity` + `confidence`; not cut at 1."""
    ramp_loss: float
    """Mean over the training points of min(1, max(0, 1 − mₙ/γ))."""
    complexity: float
    """(2/γ) R_N."""
    confidence: float
    """3 √(ln(2/δ) / 2N), with δ shared out where γ was chosen from a grid."""
    gamma: float
    """The margin γ it is computed at."""
    vacuous: bool
    """Whether `total` ≥ 1, so that nothing is claimed."""


def rademacher_bound(n: int, depth: int, radius: float = 1.0, patches: Sequence[int] | None = None) -> float:
    """Bound on the empirical Rademacher complexity of networks whose layers have unit Frobenius norms.

    R_N = E_ε sup_V (1/N) Σₙ εₙ f_V(xₙ) ≤ (√(2 L ln 2) + 1) · radius / √N, and for convolutions

        R_N ≤ (√(2 (L ln 2 + Σₖ ln cₖ)) + 1) · √(Πₖ cₖ) · radius / √N,  products and sums over k = 2..L.

    Parameters
    ----------
    n : int
        N ≥ 1, training points.
    depth : int
        L ≥ 1, layers that carry weights.
    radius : float
        Dense layers: max ‖xₙ‖ or more (1 for inputs scaled to unit norm). With `patches`: the root mean
        square norm of the input patch where it is largest (`patch_radius`), or more.
    patches : sequence of int, optional
        For a convolutional network, (c₂, …, c_L): at how many positions of the layer before a unit of layer k
        reads. k×k kernels read k², a layer on the whole map reads its height × width, and a dense layer
        that follows a dense one reads 1. A kernel's norm then counts once, however often it is applied.

    Returns
    -------
    float
        The bound on R_N, not below 0.

    Raises
    ------
    ValueError
        If a size is not positive or `patches` has not L − 1 entries.

    Examples
    --------
    >>> round(rademacher_bound(12_000, depth=2), 4)
    0.0243
    >>> round(rademacher_bound(10_000, depth=4, radius=0.1, patches=(9, 9, 16)), 3)
    0.197

    Notes
    -----
    *Dense: Theorem 1 of Golowich, Rakhlin & Shamir (2018).* For λ > 0, Jensen's inequality gives
    N R_N ≤ (1/λ) ln E sup exp(λ ‖Σ εₙ hₙ‖), h the last hidden layer. Homogeneity lets a single unit carry
    the supremum over a layer; dropping the absolute value costs a factor 2 and the contraction principle
    removes its ReLU: one factor 2 per hidden layer, at most 2^L in all. What is left, Z = ‖Σ εₙ xₙ‖, has
    mean at most S = √(Σ ‖xₙ‖²) and, by bounded differences, ln E exp(λ(Z − E Z)) ≤ λ² S²/2; the best λ
    yields S (√(2 L ln 2) + 1).

    *Convolutional: derived here by the same peeling, position by position, an idea of Galanti, Xu, Galanti
    & Poggio (2023); the constants are those of this derivation.* A unit of layer k at one position reads the
    concatenation z of c_k vectors h_q, and ‖Σ εₙ zₙ‖² = Σ_q ‖Σ εₙ h_q(xₙ)‖² ≤ c_k max_q ‖Σ εₙ h_q(xₙ)‖²:
    a factor √c_k. The maximum over q leaves the exponential as a sum of c_k terms: ln c_k beside the ln 2.
    Each term is a single position, where the convolution is a dense layer with the kernel for its matrix.
    At the bottom stands one patch of the input, S² = max_p Σₙ ‖z_p(xₙ)‖². Weights may but need not be
    shared, and patches may overlap; average pooling and residual connections are not covered.
    """
    for name, value in (("n", n), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{name}={value}: too small; write a whole number ≥ 1")
    if not radius >= 0:
        raise ValueError(f"radius={radius}: a norm cannot be negative; write the largest norm of an input")
    reads = [1] * (depth - 1) if patches is None else list(patches)
    if len(reads) != depth - 1 or any(count < 1 for count in reads):
        raise ValueError(
            f"patches={tuple(reads)}: layers 2 to {depth} are meant; write {depth - 1} whole numbers ≥ 1"
        )
    logarithms = depth * math.log(2) + sum(math.log(count) for count in reads)
    return (math.sqrt(2 * logarithms) + 1) * math.sqrt(math.prod(reads)) * radius / math.sqrt(n)


def patch_radius(images: torch.Tensor, kernel: int, stride: int = 1, padding: int = 0) -> float:
    """Norm of the input patches that a first convolution reads, where they are largest.

    max_p √(⟨‖z_p(xₙ)‖²⟩), the maximum over positions of the root mean square over the N images.

    Parameters
    ----------
    images : (N, C, H, W)
        The training images.
    kernel, stride, padding : int
        Of the first layer. Padding is with zeros, which add nothing to a norm.

    Returns
    -------
    float
        The `radius` of `rademacher_bound` for a convolutional network.

    Raises
    ------
    ValueError
        If the images are not four-dimensional or the kernel does not fit.

    Examples
    --------
    >>> round(patch_radius(torch.ones(5, 1, 4, 4) / 4, kernel=2), 4)
    0.5

    Notes
    -----
    It is measured on the training set, which a bound by the *empirical* complexity allows. Chapter 3.
    """
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; write images of shape (N, C, H, W), N ≥ 1")
    if not 1 <= kernel <= min(images.shape[2:]) + 2 * padding:
        raise ValueError(
            f"kernel={kernel}: does not fit images of shape {tuple(images.shape)}; write a smaller one"
        )
    energy = images.double().square().sum(1).mean(0)
    window = torch.ones(1, 1, kernel, kernel, dtype=energy.dtype, device=energy.device)
    sums = torch.nn.functional.conv2d(energy[None, None], window, stride=stride, padding=padding)
    return math.sqrt(float(sums.max()))


def margin_bound(
    margins: ArrayLike | torch.Tensor,
    gamma: float,
    depth: int,
    radius: float = 1.0,
    delta: float = 0.05,
    patches: Sequence[int] | None = None,
) -> MarginBound:
    """Bound on the error of a two-class network from its margins, for one γ fixed in advance.

    With probability 1 − δ over the draw of the training set, for all networks of the class at once,

        P[y f ≤ 0] ≤ (1/N) Σₙ min(1, max(0, 1 − mₙ/γ)) + (2/γ) R_N + 3 √(ln(2/δ) / 2N).

    With γ = 1/ρ, the margin of every point of an interpolating network, the second term is 2 ρ R_N.

    Parameters
    ----------
    margins : (N,)
        Normalised margins mₙ = yₙ f(xₙ)/ρ of the training points.
    gamma : float
        γ > 0, fixed before seeing the data (`margin_bound_over_grid` chooses it afterwards, at a price).
    depth, radius, patches
        As in `rademacher_bound`.
    delta : float
        δ, the probability with which the bound may fail, 0 < δ < 1.

    Returns
    -------
    MarginBound
        Named tuple ``(total, ramp_loss, complexity, confidence, gamma, vacuous)``.

    Raises
    ------
    ValueError
        If γ or δ is out of range, a margin is not finite, or margins are larger than unit norms allow.

    Examples
    --------
    >>> bound = margin_bound(np.full(12_000, 0.1), gamma=0.1, depth=2)
    >>> print(f"{bound.ramp_loss:.2f} + {bound.complexity:.3f} + {bound.confidence:.3f} = {bound.total:.3f}")
    0.00 + 0.487 + 0.037 = 0.524

    Notes
    -----
    1. The ramp φ(m) = min(1, max(0, 1 − m/γ)) is at least 1 where m ≤ 0, so P[y f ≤ 0] ≤ E φ(y f).
    2. φ has values in [0, 1]: by McDiarmid's inequality (twice, for the deviation and for the empirical
       complexity, δ/2 each) and symmetrisation, E φ ≤ mean φ + 2 R_N(φ∘(y f)) + 3 √(ln(2/δ) / 2N);
       Bartlett & Mendelson (2002), Theorem 3.3 of Mohri, Rostamizadeh & Talwalkar (2018).
    3. φ is 1/γ-Lipschitz: by Talagrand's contraction lemma, in the form without absolute values, which has
       no further factor 2, R_N(φ∘(y f)) ≤ R_N(y f)/γ; and R_N(y f) = R_N(f), as εₙyₙ is distributed as εₙ.
       This is the margin bound of Koltchinskii & Panchenko (2002). Chapter 3.

    Were the bound on R_N known before seeing the data, √(ln(1/δ) / 2N) could stand for the last term; as it
    is, `radius` may be measured on the training set.
    """
    values = _margins(margins)
    if not (gamma > 0 and math.isfinite(gamma)):
        raise ValueError(f"gamma={gamma}: not a margin; write a positive number")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: not a probability of failure; write 0 < delta < 1, e.g. delta=0.05")
    complexity = 2 / gamma * rademacher_bound(len(values), depth, radius, patches)
    # |f_V(x)| ≤ ‖x‖ for dense layers; the tolerance is for float32 outputs.
    if patches is None and np.abs(values).max() > radius * (1 + 1e-4):
        raise ValueError(
            f"margins reach {np.abs(values).max():.3g}, but unit norms cannot exceed radius={radius:.3g}; "
            "divide outputs by rho, or write the largest norm of an input as radius"
        )
    ramp_loss = float(np.clip(1 - values / gamma, 0, 1).mean())
    confidence = 3 * math.sqrt(math.log(2 / delta) / (2 * len(values)))
    total = ramp_loss + complexity + confidence
    return MarginBound(total, ramp_loss, complexity, confidence, float(gamma), total >= 1)


def margin_bound_over_grid(
    margins: ArrayLike | torch.Tensor,
    depth: int,
    radius: float = 1.0,
    delta: float = 0.05,
    gammas: Iterable[float] = GAMMAS,
    patches: Sequence[int] | None = None,
) -> MarginBound:
    """Best margin bound over a grid of γ, valid although γ is chosen after seeing the margins.

    Each of the G values gets δ/G, so that with probability 1 − δ all G bounds hold, and so the least of them.

    Parameters
    ----------
    margins : (N,)
        Normalised margins mₙ = yₙ f(xₙ)/ρ of the training points.
    depth, radius, patches
        As in `rademacher_bound`.
    delta : float
        δ for the whole grid, 0 < δ < 1.
    gammas : iterable of float
        The grid. It must not depend on the data; `GAMMAS`, 81 values from 0.001 to 10, does not.

    Returns
    -------
    MarginBound
        At the γ that makes it least; its `confidence` has paid for the choice.

    Raises
    ------
    ValueError
        If the grid is empty, or as `margin_bound`.

    Examples
    --------
    >>> bound = margin_bound_over_grid(np.full(12_000, 0.1), depth=2)
    >>> print(round(bound.gamma, 3), round(bound.total, 3), bound.vacuous)
    0.1 0.542 False

    Notes
    -----
    The price is small: 3 √(ln(2G/δ) / 2N) in place of 3 √(ln(2/δ) / 2N). Chapter 3.
    """
    grid = list(gammas)
    if not grid:
        raise ValueError("gammas is empty; write the values to choose from, fixed before seeing the data")
    values = _margins(margins)
    bounds = (margin_bound(values, gamma, depth, radius, delta / len(grid), patches) for gamma in grid)
    return min(bounds, key=lambda bound: bound.total)


def _margins(margins: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    """The margins as a float64 vector, or an error."""
    if isinstance(margins, torch.Tensor):
        margins = margins.detach().cpu().numpy()
    values = np.asarray(margins, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"margins has shape {values.shape}; write one margin per training point, shape (N,)")
    if not np.isfinite(values).all():
        raise ValueError("margins holds NaN or infinity; write the margins of a network that did not diverge")
    return values
