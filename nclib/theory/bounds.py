"""Margin bounds on the test error of bias-free ReLU networks, with every constant, and how loose they are.

The class behind everything here: functions f_V(x) = V_L σ(V_{L-1} … σ(V_1 x)) with one output, ReLU σ,
‖V_k‖_F ≤ 1 and any widths. A trained network belongs to it once its outputs are divided by ρ = Π ‖W_k‖_F.
Biases, which folded batch normalisation leaves behind, take a network out of the class.
The depth, and the architecture of a convolutional network, must be chosen before seeing the data; the norms
need not be, they are what the margin measures. Chapters 4 and 5, and Chapter 17 for more than two classes, which
have an output each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from .. import inputs as given
from ..inputs import Array, Arrays, array, count, each, number, positive, tensor
from .closed_forms import MOST_CLASSES, MOST_LAYERS, held
from .relu import arcs, circle

if TYPE_CHECKING:
    from ..networks.models import Architecture

#: Candidates for γ, twenty to a decade from 0.001 to 10. They depend on nothing, so on no data either.
GAMMAS: tuple[float, ...] = tuple(10 ** (step / 20) for step in range(-60, 21))


class MarginBound(NamedTuple):
    """A bound on P[y f(x) ≤ 0], `total` = `ramp_loss` + `complexity` + `confidence`, not cut at 1.

    The terms are the mean over the training points of min(1, max(0, 1 − mₙ/γ)); (2/γ) R_N, or (4/γ) R_N where
    each of several classes has its output; and 3 √(ln(2/δ) / 2N), with δ shared out where γ was chosen from a grid.
    It is computed at the margin `gamma`, γ, and `vacuous` where `total` ≥ 1, so that nothing is claimed.
    """

    total: float
    ramp_loss: float
    complexity: float
    confidence: float
    gamma: float
    vacuous: bool


def rademacher_bound(
    n: int, depth: int, radius: float = 1.0, patches: Sequence[int] | None = None, classes: int = 2
) -> float:
    """Bound on the empirical Rademacher complexity of networks whose layers have unit Frobenius norms (Chapter 5).

    R_N = E_ε sup_V (1/N) Σₙ εₙ f_V(xₙ) ≤ (√(2 L ln 2) + 1) · radius / √N, and for convolutions

        R_N ≤ (√(2 (L ln 2 + Σₖ ln cₖ)) + 1) · √(Πₖ cₖ) · radius / √N,  products and sums over k = 2..L.

    With K ≥ 3 classes and an output for each, R_N = E_ε sup_V (1/N) Σₙₖ εₙₖ f_V(xₙ)ₖ, and K counts as one more cₖ.

    Parameters
    ----------
    n
        N ≥ 1, training points.
    depth
        L ≥ 1, layers that carry weights.
    radius
        Dense layers: max ‖xₙ‖ or more (1 for inputs scaled to unit norm). With `patches`: the root mean
        square norm of the input patch where it is largest (`patch_radius`), or more.
    patches
        For a convolutional network, (c₂, …, c_L): at how many positions of the layer before a unit of layer k
        reads. k×k kernels read k², a layer on the whole map reads its height × width, and a dense layer
        that follows a dense one reads 1. A kernel's norm then counts once, however often it is applied.
    classes
        K ≥ 2. Two classes share one output.

    Examples
    --------
    >>> round(rademacher_bound(10_000, depth=4, radius=0.1, patches=(9, 9, 16)), 3)
    0.197
    >>> round(rademacher_bound(10_000, depth=2, classes=10), 4)  # √10 (√(2 (2 ln 2 + ln 10)) + 1) / √10000
    0.1175

    Notes
    -----
    *Dense:* Theorem 1 of Golowich, Rakhlin & Shamir (2018) as published, with L ln 2 where the proof, in Chapter 5,
    gives (L − 1) ln 2. *Convolutional:* by the same peeling, position by position, an idea of Galanti, Xu, Galanti
    & Poggio (2023); the constants are derived in Chapter 5. Weights may but need not be shared, and patches may
    overlap; average pooling and residual connections are not covered. *Several outputs:* the last layer is read by
    K rows instead of one, each with its own signs; derived in Chapter 17.
    """
    n, depth = count("n", n, 1, 2**63), count("depth", depth, 1, MOST_LAYERS)
    radius = number("radius", radius, "the largest norm of an input, a number >= 0", lambda v: v >= 0)
    reads = [] if patches is None else each("patches", patches, count, 1, 2**31, least=0)
    if patches is not None and len(reads) != depth - 1:
        raise ValueError(f"patches={tuple(reads)}: layers 2 to {depth} read; write {depth - 1} whole numbers ≥ 1")
    classes = count("classes", classes, 2, MOST_CLASSES)
    if classes > 2:
        reads = [*reads, classes]
    logarithms = depth * math.log(2) + sum(math.log(positions) for positions in reads)
    product = math.prod(reads)
    if product > 1e300:
        raise ValueError(f"patches: their product is {len(str(product))} digits long, and the bound claims nothing")
    return (math.sqrt(2 * logarithms) + 1) * math.sqrt(product) * radius / math.sqrt(n)


def rademacher_exact(x: Arrays, signs: Arrays, depth: int) -> Array:
    r"""Best correlation of a network of unit norms with each row of signs, exactly, for one layer or two: (draws,).

    One layer: $\frac1N\lVert\sum_nε_nx_n\rVert$. Two layers, whatever the width: that of the best single unit,
    $\frac1N\max_{\lVert w\rVert=1}|\sum_nε_n\,\mathrm{relu}(w\cdot x_n)|$, for inputs in the plane. Between two
    directions w in which a point switches on or off, the sum is linear in w, so that its extremes over an arc
    lie in the direction of the arc's gradient or at the arc's ends; all of them are tried. That one unit carries
    the supremum is the first step of Golowich, Rakhlin & Shamir (2018).

    Parameters
    ----------
    x
        Inputs, none of them 0, (N, d); d = 2 for two layers.
    signs
        Rows of ±1, (draws, N). With all 2^N of them the mean of the result is $\mathcal R_N$ itself.
    depth
        1 or 2.

    Examples
    --------
    >>> rademacher_exact([[1.0, 0.0], [-1.0, 0.0]], [[1, -1]], depth=2)
    array([0.5])
    """
    depth, (x, signs, scale) = count("depth", depth, 1), _points_and_signs(x, signs)
    if x.ndim != 2 or depth not in (1, 2) or (depth == 2 and x.shape[1] != 2):
        known = "known is depth=1, and depth=2 in the plane; write x of shape (N, 2), or use rademacher_ascent"
        raise ValueError(f"depth={depth} with x of shape {x.shape}: {known}")
    if depth == 1:
        return held(np.ldexp(np.linalg.norm(signs @ x, axis=1) / len(x), scale), "x")
    ends, widths = arcs(x)
    active = circle(ends + widths / 2) @ x.T > 0  # (arcs, N)
    slopes = np.stack([(signs * x[:, axis]) @ active.T for axis in (0, 1)], axis=-1)  # gradients, (draws, arcs, 2)
    best = np.abs((slopes * circle(ends)).sum(-1)).max(1)
    for sign in (1, -1):
        ahead = np.mod(np.arctan2(sign * slopes[..., 1], sign * slopes[..., 0]) - ends, 2 * np.pi)
        inside = np.where(ahead <= widths, np.linalg.norm(slopes, axis=-1), 0)  # the top of the arc is no end
        best = np.maximum(best, inside.max(1))
    return held(np.ldexp(best / len(x), scale), "x")


def rademacher_ascent(
    x: Arrays, signs: Arrays, arch: Architecture, *, restarts: int = 4, steps: int = 100, seed: int = 0
) -> Array:
    r"""Best correlation of an architecture of unit norms with each row of signs that ascent finds: (draws,).

    From random directions every step moves each $V_k$ half-way to $G_k/\lVert G_k\rVert$, with $G_k$ the gradient
    of $\frac1N\sum_nε_nf_V(x_n)$, and puts it back on its sphere. The largest value met is returned; since it is
    attained by a network of the class, the mean over signs cannot exceed $\mathcal R_N$ but for chance.

    Parameters
    ----------
    x
        Inputs (N, …), none of them 0: vectors for `mlp`, images for `convnet`.
    signs
        Rows of ±1, (draws, N).
    arch
        From `mlp` or `convnet`, without normalisation and biases.
    restarts
        Random starts for each row of signs, the best of which counts; with more of them, and with more width, more
        is found, as local maxima are the rule.
    steps, seed
        Steps from each start, and the seed of the starts.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> rademacher_ascent(np.eye(4), [[1, -1, 1, 1]], mlp(widths=())).round(6)
    array([0.5])
    """
    if not getattr(arch, "homogeneous", False) or arch.norm != "none":
        raise ValueError(f"arch={arch!r}: only networks f_V without normalisation and biases; write mlp or convnet")
    restarts, steps = count("restarts", restarts, 1, 10**4), count("steps", steps, 1, 10**6)
    points, signs, scale = _points_and_signs(x, signs)
    inputs = torch.from_numpy(points)
    weighted = torch.from_numpy(signs).repeat_interleave(restarts, 0) / len(inputs)
    try:
        net = arch.build(tuple(inputs.shape[1:]), 1, dtype=torch.float64)
    except ValueError as error:
        raise ValueError(f"x: {error}") from None
    generator = torch.Generator().manual_seed(given.seed("seed", seed))
    names = [name for name, _ in net.named_parameters()]
    shapes = [(len(weighted), *p.shape) for p in net.parameters()]
    V = [_on_sphere(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]

    def outputs(*weights: Tensor) -> Tensor:
        value: Tensor = functional_call(net, dict(zip(names, weights, strict=True)), (inputs,))
        return value

    best = torch.zeros(len(weighted), dtype=torch.float64)
    for _ in range(steps):
        V = [v.requires_grad_() for v in V]
        correlation = (vmap(outputs)(*V) * weighted).sum(1)
        best = torch.maximum(best, correlation.detach().abs())
        slopes = torch.autograd.grad(correlation.sum(), V)
        V = [_on_sphere(v.detach() + _on_sphere(slope)) for v, slope in zip(V, slopes, strict=True)]
    return held(np.ldexp(best.view(-1, restarts).amax(1).numpy(), scale), "x")


def patch_radius(images: Arrays, kernel: int, stride: int = 1, padding: int = 0) -> float:
    """Norm of the input patches that a first convolution reads, where they are largest.

    max_p √(⟨‖z_p(xₙ)‖²⟩), the maximum over positions of the root mean square over the N images: the `radius` of
    `rademacher_bound` for a convolutional network.

    Parameters
    ----------
    images
        The training images, (N, C, H, W): a bound by the *empirical* complexity may measure it there.
    kernel, stride, padding
        Of the first layer. Padding is with zeros, which add nothing to a norm.

    Examples
    --------
    >>> round(patch_radius(torch.ones(5, 1, 4, 4) / 4, kernel=2), 4)
    0.5
    """
    pixels = tensor("images", images)
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise ValueError(f"images has shape {tuple(pixels.shape)}; write images of shape (N, C, H, W), N ≥ 1")
    stride, padding = count("stride", stride, 1, 2**31), count("padding", padding, 0, 10**4)
    kernel = count("kernel", kernel, 1, min(pixels.shape[2:]) + 2 * padding)
    energy = pixels.square().sum(1).mean(0)
    if not bool(energy.isfinite().all()) or (not energy.any() and pixels.any()):
        raise ValueError("images holds numbers whose squares leave floating point; rescale them")
    window = torch.ones(1, 1, kernel, kernel, dtype=energy.dtype, device=energy.device)
    sums = torch.nn.functional.conv2d(energy[None, None], window, stride=stride, padding=padding)
    return math.sqrt(float(sums.max()))


def margin_bound(
    margins: Arrays,
    gamma: float,
    depth: int,
    radius: float = 1.0,
    delta: float = 0.05,
    patches: Sequence[int] | None = None,
    classes: int = 2,
) -> MarginBound:
    """Bound on the error of a network from its margins, for one γ fixed in advance: a `MarginBound`.

    With probability 1 − δ over the draw of the training set, for all networks of the class at once,

        P[y f ≤ 0] ≤ (1/N) Σₙ min(1, max(0, 1 − mₙ/γ)) + (2/γ) R_N + 3 √(ln(2/δ) / 2N).

    With γ = 1/ρ, the margin of every point of an interpolating network, the second term is 2 ρ R_N.
    With K ≥ 3 classes and an output for each it is (4/γ) R_N, and the error is P[f_y ≤ max_{j≠y} f_j].

    Parameters
    ----------
    margins
        Normalised margins of the training points, (N,): mₙ = yₙ f(xₙ)/ρ, |mₙ| ≤ radius for dense layers; for more
        than two classes (f_y − max_{j≠y} f_j)/ρ, at most √2 radius. `nclib.margins` gives both.
    gamma
        γ > 0, fixed before seeing the data (`margin_bound_over_grid` chooses it afterwards, at a price).
    depth, radius, patches, classes
        As in `rademacher_bound`.
    delta
        δ, the probability with which the bound may fail, 0 < δ < 1.

    Examples
    --------
    >>> bound = margin_bound(np.full(12_000, 0.1), gamma=0.1, depth=2)
    >>> print(f"{bound.ramp_loss:.2f} + {bound.complexity:.3f} + {bound.confidence:.3f} = {bound.total:.3f}")
    0.00 + 0.487 + 0.037 = 0.524
    >>> margin_bound(np.full(12_000, 0.1), gamma=0.1, depth=2, classes=10).vacuous
    True

    Notes
    -----
    The bound of Koltchinskii & Panchenko (2002) and Bartlett & Mendelson (2002), by symmetrisation, McDiarmid's
    inequality twice, δ/2 each, and contraction without absolute values; Chapter 5 proves it, and Chapter 17 for
    several outputs: their margin is √2-Lipschitz, and contraction for vectors costs another √2. Were the bound on
    R_N known before seeing the data, √(ln(1/δ) / 2N) could stand for the last term; as it is, `radius` may be
    measured on the training set.
    """
    values, gamma, delta = array("margins", margins), positive("gamma", gamma), _probability(delta)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"margins has shape {values.shape}; write one margin per training point, shape (N,)")
    richness = rademacher_bound(len(values), depth, radius, patches, classes)
    # |f_V(x)| ≤ ‖x‖ for dense layers, and the difference of two outputs is at most √2 times that; the tolerance is
    # for float32 outputs.
    several = classes > 2
    complexity, most = (4 if several else 2) / gamma * richness, radius * (math.sqrt(2) if several else 1)
    if patches is None and np.abs(values).max() > most * (1 + 1e-4):
        limit = f"√2 radius={most:.3g}" if several else f"radius={radius:.3g}"
        raise ValueError(
            f"margins reach {np.abs(values).max():.3g}, but unit norms cannot exceed {limit}; divide "
            "outputs by rho, or write the largest norm of an input as radius"
        )
    with np.errstate(over="ignore"):  # margins beyond any γ count as 0 or 1
        ramp_loss = float(np.clip(1 - values / gamma, 0, 1).mean())
    confidence = 3 * math.sqrt(math.log(2 / delta) / (2 * len(values)))
    total = ramp_loss + complexity + confidence
    if not math.isfinite(total):
        raise ValueError(f"gamma={gamma}: too small beside radius={radius} for a number; write a larger one")
    return MarginBound(total, ramp_loss, complexity, confidence, gamma, total >= 1)


def margin_bound_over_grid(
    margins: Arrays,
    depth: int,
    radius: float = 1.0,
    delta: float = 0.05,
    gammas: Iterable[float] = GAMMAS,
    patches: Sequence[int] | None = None,
    classes: int = 2,
) -> MarginBound:
    """Best margin bound over a grid of γ, valid although γ is chosen after seeing the margins.

    Each of the G values gets δ/G, so that with probability 1 − δ all G bounds hold, and so the least of them.
    The price, which `confidence` pays, is small: 3 √(ln(2G/δ) / 2N) in place of 3 √(ln(2/δ) / 2N).

    Parameters
    ----------
    margins, depth, radius, patches, classes
        As in `margin_bound`.
    delta
        δ for the whole grid, 0 < δ < 1.
    gammas
        The grid. It must not depend on the data; `GAMMAS`, 81 values from 0.001 to 10, does not.

    Examples
    --------
    >>> bound = margin_bound_over_grid(np.full(12_000, 0.1), depth=2)
    >>> print(round(bound.gamma, 3), round(bound.total, 3), bound.vacuous)
    0.1 0.542 False
    """
    gammas = list(gammas) if isinstance(gammas, Iterator) else gammas
    grid = each("gammas", gammas, positive)
    values, delta = array("margins", margins), _probability(delta)
    bounds = (margin_bound(values, gamma, depth, radius, delta / len(grid), patches, classes) for gamma in grid)
    return min(bounds, key=lambda bound: bound.total)


def _probability(delta: float) -> float:
    return number("delta", delta, "a probability of failure, 0 < delta < 1, e.g. 0.05", lambda v: 0 < v < 1)


def _points_and_signs(x: Arrays, signs: Arrays) -> tuple[Array, Array, int]:
    """The inputs over a power of two, so that their squares stay in floating point, the signs, and its exponent."""
    x, signs = array("x", x), array("signs", signs)
    if x.ndim < 2 or 0 in x.shape or not x.reshape(len(x), -1).any(1).all():
        raise ValueError(f"x has shape {x.shape}; write one finite input a row, (N, …), none of them 0")
    if signs.ndim != 2 or signs.shape[1] != len(x) or not (np.abs(signs) == 1).all():
        raise ValueError(f"signs has shape {signs.shape}; write rows of ±1, a sign for each of the {len(x)} inputs")
    scale = int(np.frexp(np.abs(x).max())[1])
    return np.ldexp(x, -scale), signs, scale


def _on_sphere(layer: Tensor) -> Tensor:
    """Each member's weights (B, …) divided by their norm; a layer of zeros stays one."""
    sizes = layer.flatten(1).norm(dim=1).clamp_min(torch.finfo(layer.dtype).tiny)
    unit: Tensor = layer / sizes.view(-1, *[1] * (layer.ndim - 1))
    return unit
