"""Answers that need no training: what the theorems predict, in closed form.

Everything here is float64 NumPy, from whatever `nclib.inputs` takes: tensors too, so that a prediction can be made
straight from a network's outputs. A wrong argument is a ValueError that names it; so is an answer that floating
point can't hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import inputs
from ..inputs import Array, Arrays, array, count, each, number, positive

MOST_LAYERS = 10**6
MOST_CLASSES = 10**4
MOST_NUMBERS = 10**8  # in one array of features, 800 MB


def equilibrium_norm(f: Arrays, y: Arrays, weight_decay: Arrays) -> Any:
    """Norm at which the scale of a normalised network comes to rest, ρ_eq = μ / (M + λ), with μ = ⟨y f⟩, M = ⟨f²⟩.

    It solves ρ̇ = 2 [μ − ρ (M + λ)] = 0, the flow of ⟨(ρ fₙ − yₙ)²⟩ + λ ρ² in ρ, and is the minimum of that loss
    over ρ for the given direction V (Chapter 2). It is negative if μ is. Poggio & Liao (2020) sum over n where this
    averages: their λ is N times this one.

    Parameters
    ----------
    f
        Normalised outputs f_V(xₙ), that is the network's outputs divided by ρ, (..., N); leading axes are a batch.
    y
        Labels ±1, (N,) or (..., N).
    weight_decay
        λ ≥ 0, one for all or one per member of the batch; > 0 if all outputs are 0 (else every ρ is at rest).

    Examples
    --------
    >>> print(round(float(equilibrium_norm([0.3, -0.1], [1, -1], weight_decay=0.05)), 12))
    2.0
    """
    mu, sigma, lam = _moments(f, y, weight_decay)
    return mu / (mu**2 + sigma**2 + lam)


def equilibrium_loss(f: Arrays, y: Arrays, weight_decay: Arrays) -> Any:
    """Regularised loss at the norm of `equilibrium_norm`, 1 − μ²/(M + λ) = (λ + σ²)/(λ + σ² + μ²), σ² = M − μ².

    The loss is ⟨(ρ fₙ − yₙ)²⟩ + λ ρ², and the arguments are those of `equilibrium_norm`. It is between 0 and 1, and
    what the direction V still minimises once ρ follows it: the smaller it is, the larger the signal-to-noise ratio
    μ²/(λ + σ²) of the margins (Chapter 2).

    Examples
    --------
    >>> print(round(float(equilibrium_loss([0.3, -0.1], [1, -1], weight_decay=0.05)), 12))
    0.6
    """
    mu, sigma, lam = _moments(f, y, weight_decay)
    return (lam + sigma**2) / (lam + sigma**2 + mu**2)


def minimum_norm(x: Arrays, y: Arrays) -> Array:
    """Smallest w among those that minimise ‖X w − y‖, that is X⁺ y: the limit λ → 0 of `ridge` (Chapter 3).

    Gradient descent on the square loss ends there when it starts at zero. Singular values of X below
    max(N, d) · 2.2e-16 · the largest count as zero.

    Parameters
    ----------
    x
        Inputs, one row a point, (N, d).
    y
        Targets, (N,) or (N, K).

    Examples
    --------
    >>> minimum_norm([[1.0, 1.0]], [1.0]).round(12).tolist()
    [0.5, 0.5]
    """
    return ridge(x, y, 0.0)


def ridge(x: Arrays, y: Arrays, weight_decay: float) -> Array:
    """Minimiser of (1/N) ‖X w − y‖² + λ ‖w‖², w_λ = (XᵀX + N λ I)⁻¹ Xᵀ y, (d,) or (d, K) (Chapter 3).

    Computed from the singular values s of X as V [s/(s² + N λ)] Uᵀ y, which, unlike the normal equations, keeps its
    accuracy as λ → 0.

    Parameters
    ----------
    x, y
        As in `minimum_norm`.
    weight_decay
        λ ≥ 0. At 0 the minimiser need not be unique; the limit λ → 0 is returned, X⁺ y.

    Examples
    --------
    >>> ridge([[1.0, 1.0]], [1.0], weight_decay=2.0).round(12).tolist()
    [0.25, 0.25]
    """
    x, y = _points(x, y)
    lam = decay("weight_decay", weight_decay)
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    kept = singular > max(x.shape) * np.finfo(float).eps * singular.max(initial=0.0)
    gain = np.zeros_like(singular)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        s = singular[kept]
        below = s**2 + len(x) * lam
        # The same without s², which leaves floating point sooner than its inverse does.
        gain[kept] = np.where((s > 1e-140) & (below < np.inf), s / below, 1 / (s + len(x) * (lam / s)))
        return held((right.T * gain) @ (left.T @ y), "x and y")


def interpolant_from(x: Arrays, y: Arrays, w0: Arrays, depth: int = 1) -> Array:
    """Where the gradient flow of ‖X w − y‖² ends when it starts at w₀, in a linear network of any depth.

    For L = 1 it is X⁺ y + (I − X⁺X) w₀, the least-squares solution nearest to w₀: the part of w₀ that the data
    cannot see, z = (I − X⁺X) w₀, stays for ever. For L > 1 and a balanced start with the product w₀ = W_L ⋯ W_1
    that part changes in length only: the flow ends at

        X⁺ y + z (s/‖w₀‖)^(1−1/L),   where s > 0 solves s² = ‖X⁺ y‖² + ‖z‖² (s/‖w₀‖)^(2−2/L)

    (Chapters 3 and 9).

    Parameters
    ----------
    x
        Inputs, one row a point, (N, d).
    y
        Targets, (N,), or (N, K) for depth 1.
    w0
        The start, (d,), or (d, K) for depth 1; not zero for depth > 1, where zero is a saddle.
    depth
        L ≥ 1, the number of layers.

    Examples
    --------
    >>> interpolant_from([[1.0, 1.0]], [1.0], [3.0, 0.0]).round(12).tolist()
    [2.0, -1.0]
    >>> interpolant_from([[1.0, 0.0]], [1.0], [0.01, 0.01], depth=2).round(4).tolist()  # 1, √0.01·√s/√2^½
    [1.0, 0.0842]
    """
    x, y = _points(x, y)
    w0, depth = array("w0", w0), count("depth", depth, 1, MOST_LAYERS)
    expected = x.shape[1:] + y.shape[1:]
    if w0.shape != expected:
        raise ValueError(f"w0 has shape {w0.shape}; x and y ask for {expected}; write a start so")
    if depth > 1 and w0.ndim != 1:
        raise ValueError(f"depth={depth} with w0 of shape {w0.shape}; write one output where depth > 1")
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = held(w0 + minimum_norm(x, held(y - x @ w0, "x and w0")), "x, y and w0")
    if depth == 1:
        return fitted
    from scipy.optimize import brentq

    if not w0.any():
        raise ValueError(f"w0 is zero, where a network of depth={depth} stays for ever; write a start that is not")
    best = minimum_norm(x, y)
    scale = max(np.frexp(np.abs(part).max())[1] for part in (w0, best))
    w0, best, fitted = (np.ldexp(part, -scale) for part in (w0, best, fitted))
    size = float(np.linalg.norm(w0))
    if size < 1e-100 or 0 < np.abs(best).max() < 1e-100:
        raise ValueError("w0 and X⁺ y differ in size by more than 10¹⁰⁰; write a start nearer to the size of X⁺ y")
    unseen = fitted - best

    def excess(s: float) -> float:
        return float(s**2 - best @ best - unseen @ unseen * (s / size) ** (2 - 2 / depth))

    # s² outgrows the other side at last, and is below it where s² = ‖z‖²(s/‖w₀‖)^(2−2/L) or s = ‖X⁺y‖.
    low = max(float(np.linalg.norm(best)), size * (float(np.linalg.norm(unseen)) / size) ** depth)
    high = 2 * low
    while excess(high) < 0:
        high *= 2
    s = brentq(excess, low, high, xtol=1e-15 * low, rtol=4 * np.finfo(float).eps) if excess(low) < 0 else low
    with np.errstate(over="ignore"):
        return held(np.ldexp(best + unseen * (s / size) ** (1 - 1 / depth), scale), "x, y and w0")


def growth_clock(rho: Arrays, depth: int) -> Any:
    """The function q of the norm whose rate along a balanced flow is 2L (μ − ρM), whatever the norm (Chapter 8).

    q = ∫ ρ^(2/L−2) dρ: ρ for L = 1, ln ρ for L = 2, and −ρ^(−(1−2/L))/(1 − 2/L) for L > 2. Time to grow from
    ρ_a to ρ_b where μ − ρM is constant: [q(ρ_b) − q(ρ_a)]/(2L (μ − ρM)).

    Parameters
    ----------
    rho
        ρ > 0, a number or an array.
    depth
        L ≥ 1, the number of layers.

    Examples
    --------
    >>> print(growth_clock(1.0, depth=2), growth_clock(16.0, depth=4))
    0.0 -0.5
    """
    rho, depth = array("rho", rho), count("depth", depth, 1, MOST_LAYERS)
    if not np.all(rho > 0):
        raise ValueError("rho is not positive; write norms > 0, which a balanced flow never leaves")
    if depth == 2:
        return np.log(rho)
    power = 2 / depth - 1
    with np.errstate(over="ignore"):
        return held(rho**power / power, "rho")


def linear_escape_time(rho0: float, level: float, depth: int, size: float, angle: float) -> float:
    """Time that a deep linear network needs to grow from the norm ρ₀ to a level ρ₀ < r ≪ 1 (Chapter 9).

    For an exactly balanced start w of norm ρ₀ at the angle φ₀ to β = ⟨y x⟩, up to a relative error of order r and
    in the units of the flow of ⟨(f − y)²⟩,

        T = ρ₀^(−(1−2/L)) / (2 ‖β‖ sin^(L−2) φ₀) · ∫_{φ_r}^{φ₀} sin^(L−3) φ dφ,   sin φ_r = (ρ₀/r)^(1/L) sin φ₀.

    ρ sin^L φ is constant on the way, so the norm first shrinks where φ₀ is obtuse.

    Parameters
    ----------
    rho0, level
        ρ₀ and r, 0 < ρ₀ < r.
    depth
        L ≥ 1, the number of layers.
    size, angle
        ‖β‖ > 0, and φ₀ in radians, 0 < φ₀ < π.

    Examples
    --------
    >>> print(round(linear_escape_time(1e-8, 1e-2, depth=2, size=0.5, angle=1e-6), 4))  # ln(10⁶)/(4 · 0.5)
    6.9078
    """
    level = positive("level", level)
    rho0 = number("rho0", rho0, f"a norm > 0 and < level={level:g}", lambda v: 0 < v < level)
    depth, size = count("depth", depth, 1, MOST_LAYERS), positive("size", size)
    angle = number("angle", angle, "an angle in radians, 0 < angle < π", lambda v: 0 < v < np.pi)
    from scipy.integrate import quad

    with np.errstate(all="ignore"):
        last = np.arcsin((rho0 / level) ** (1 / depth) * np.sin(angle))
        # By φ = e^u the integrand is smooth also where both ends are tiny.
        integral, _, _, *trouble = quad(
            lambda u: np.exp(u) * np.sin(np.exp(u)) ** (depth - 3), np.log(last), np.log(angle), full_output=1
        )
        time = np.float64(rho0) ** (2 / depth - 1) * integral / (2 * size * np.sin(angle) ** (depth - 2))
    if trouble or not 0 < time < np.inf:
        values = f"rho0={rho0:g}, depth={depth}, size={size:g}, angle={angle:g}"
        raise ValueError(f"{values}: beyond floating point; write a larger rho0 or angle, or fewer layers")
    return float(time)


def simplex_etf(classes: int, dim: int | None = None, seed: int = 0) -> Array:
    """K unit vectors at equal angles, as far apart as K vectors can be: a simplex equiangular tight frame.

    One vector a row, (K, dim): the rows sum to zero, have norm 1, and any two of them have cosine −1/(K − 1).
    The geometry of neural collapse: Papyan, Han & Donoho (2020), Chapter 10.

    Parameters
    ----------
    classes
        K ≥ 2, the number of vectors.
    dim
        Dimension of the space they stand in, at least K − 1; K when left out.
    seed
        Chooses the orientation, uniformly among all.

    Examples
    --------
    >>> frame = simplex_etf(3, dim=5)
    >>> (frame @ frame.T).round(12).tolist()
    [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]
    """
    classes = count("classes", classes, 2, MOST_CLASSES)
    dim = classes if dim is None else count("dim", dim, classes - 1, MOST_NUMBERS // classes)
    from scipy.linalg import helmert

    frame: Array = np.sqrt(classes / (classes - 1)) * helmert(classes).T @ _directions(classes - 1, dim, seed)
    return frame


class UFMinimiser(NamedTuple):
    """A point of the unconstrained-features model.

    `weight` is the classifier W, (K, dim), `bias` is b, (K,), zeros without one, and `features`, H, (N, dim), has a
    row for each training point, ordered by class; `labels`, (N,), are their classes. `singular_values` are those of
    the product W H, largest first: K − 1 of them with a bias, K without. `mean_norms`, (K,), are the norms of the
    class means, and `loss` is the value of the objective.
    """

    singular_values: Array
    weight: Array
    features: Array
    bias: Array
    labels: NDArray[np.int64]
    mean_norms: Array
    loss: float

    @property
    def singular_value(self) -> float:
        """The largest singular value; with equal class sizes they are all equal."""
        return float(self.singular_values[0])

    @property
    def mean_norm(self) -> float:
        """The largest norm of a class mean; with equal class sizes they are all equal."""
        return float(self.mean_norms.max())


def ufm_minimiser(
    classes: int,
    per_class: int | Sequence[int],
    weight_decay_w: float,
    weight_decay_h: float,
    *,
    bias: bool = True,
    dim: int | None = None,
    seed: int = 0,
) -> UFMinimiser:
    """Global minimiser of the unconstrained-features model (square loss, classes of any sizes): a `UFMinimiser`.

    With features as rows hₙ, one-hot Y and N points in all it minimises

        (1/2N) ‖H Wᵀ + 1 bᵀ − Y‖² + (λ_W/2) ‖W‖² + (λ_H/2) ‖H‖².

    Parameters
    ----------
    classes
        K ≥ 2.
    per_class
        n ≥ 1, points per class: one number for all classes, or K of them.
    weight_decay_w, weight_decay_h
        λ_W, λ_H > 0. (At 0 no minimiser exists or the norms of W and H are not determined.)
    bias
        Whether there is a bias b.
    dim
        Dimension of the features, at least K − 1 with a bias and K without; K when left out.
    seed
        The minimiser is unique up to a rotation of feature space (and, where singular values coincide, of
        their singular vectors, which leaves the product W H alone); the seed chooses one.

    Examples
    --------
    >>> best = ufm_minimiser(4, 10, 5e-3, 5e-3)
    >>> print(round(best.singular_value, 6), best.bias.round(6).tolist())
    2.962278 [0.25, 0.25, 0.25, 0.25]

    Notes
    -----
    For a given product Z of classifier and features the cheapest factors cost √(λ_W λ_H) ‖Z‖₊ (nuclear norm),
    with ‖W‖² λ_W = ‖H‖² λ_H. The best bias removes the mean of every row of Z − Y, and a centred Z is the cheaper
    one, so b holds the share of each class. What remains is soft thresholding of Y, centred if there is a bias:
    each of its singular values σ becomes s = max(0, σ − N √(λ_W λ_H)). With u, v its singular vectors and r
    orthonormal directions of feature space, W = (λ_H/λ_W)^¼ Σ √s u rᵀ and Hᵀ = (λ_W/λ_H)^¼ Σ √s r vᵀ.

    *Equal sizes, bias:* K − 1 singular values √n, class means in a simplex ETF of squared norms
    s √(λ_W/λ_H) (K − 1)/(K n). *No bias:* the singular values are √n_c, and the class means are orthogonal, of
    squared norms s_c √(λ_W/λ_H)/n_c. Compare Zhou et al. (2022), *On the optimization landscape of neural collapse
    under MSE loss*, and Dang et al. (2023). Chapter 10.
    """
    sizes, bias = class_sizes(classes, per_class), inputs.flag("bias", bias)
    classes, points = len(sizes), int(sizes.sum())
    lam_w, lam_h = positive("weight_decay_w", weight_decay_w), positive("weight_decay_h", weight_decay_h)
    share = np.float64(lam_h / lam_w) ** 0.25
    if not 0 < share < np.inf:
        raise ValueError(f"weight_decay_w={lam_w:g} and weight_decay_h={lam_h:g}: too far apart")
    rank = classes - 1 if bias else classes
    dim = features_dim(dim, sizes, rank)
    # Y as a K×K matrix: the n_c equal columns of class c count as one of √n_c times the length.
    targets = np.diag(np.sqrt(sizes))
    if bias:
        targets -= np.outer(sizes / points, np.sqrt(sizes))
    left, sigma, right = np.linalg.svd(targets)
    left, sigma, right = left[:, :rank], sigma[:rank], right[:rank].T
    price = float(np.sqrt(lam_w * lam_h))
    s = np.maximum(0.0, sigma - points * price)
    frame = np.sqrt(s)[:, None] * _directions(rank, dim, seed)
    means = right / np.sqrt(sizes)[:, None] @ frame / share
    loss = float((np.minimum(sigma, points * price) ** 2).sum() / (2 * points) + price * s.sum())
    labels = np.repeat(np.arange(classes, dtype=np.int64), sizes)
    shift = sizes / points if bias else np.zeros(classes)
    return UFMinimiser(s, share * left @ frame, means[labels], shift, labels, np.linalg.norm(means, axis=1), loss)


def class_sizes(classes: int, per_class: int | Sequence[int]) -> NDArray[np.int64]:
    """Points in each class, (K,), from one number for all or one for each."""
    classes = count("classes", classes, 2, MOST_CLASSES)
    sizes = each("per_class", per_class, count, 1, MOST_NUMBERS) * (classes if np.ndim(per_class) == 0 else 1)
    if len(sizes) != classes:
        raise ValueError(f"per_class={per_class}: write one number for all classes, or {classes}, one for each")
    return np.array(sizes, dtype=np.int64)


def features_dim(dim: int | None, sizes: NDArray[np.int64], least: int) -> int:
    """Dimension of the features of so many points, K when left out."""
    found = len(sizes) if dim is None else count("dim", dim, least)
    if found * int(sizes.sum()) > MOST_NUMBERS:
        raise ValueError(f"per_class and dim: {sizes.sum()} × {found} numbers; write at most {MOST_NUMBERS:,}")
    return found


def decay(name: str, value: Any) -> float:
    """A weight decay λ ≥ 0."""
    return number(name, value, "a weight decay, a finite number >= 0, e.g. 1e-3", lambda v: v >= 0)


def slope(name: str, value: Any) -> float:
    """Of the activation on negative inputs."""
    return number(name, value, "a slope from 0 (the ReLU) to 1 (a linear network)", lambda v: 0 <= v <= 1)


def moderate(name: str, sizes: Array) -> None:
    """An error where numbers of these sizes have squares that leave floating point."""
    if not np.all((sizes == 0) | (sizes > 1e-100) & (sizes < 1e100)):
        raise ValueError(f"{name} is so large or small that its square leaves floating point; change the unit")


def held(found: Array, names: str) -> Array:
    """What was found, if floating point could hold it on the way."""
    if not np.isfinite(found).all():
        raise ValueError(f"{names} are of such sizes that floating point can't hold the result; change the unit")
    return found


def _directions(rows: int, dim: int, seed: int) -> Array:
    """Random orthonormal rows (rows, dim), uniform among all."""
    rng = np.random.default_rng(inputs.seed("seed", seed))
    frame, triangle = np.linalg.qr(rng.standard_normal((dim, rows)))
    # QR alone favours some orientations; with the signs of the diagonal moved over it is uniform.
    oriented: Array = frame * np.sign(np.diag(triangle))
    return oriented.T


def _moments(f: Arrays, y: Arrays, weight_decay: Arrays) -> tuple[Array, Array, Array]:
    """Mean μ and standard deviation σ of the normalised margins over the last axis, and λ."""
    f, y, lam = array("f", f), array("y", y), array("weight_decay", weight_decay)
    if not np.all(lam >= 0):
        raise ValueError("weight_decay is negative; write numbers >= 0, e.g. 1e-3")
    try:
        np.broadcast_shapes(f.shape, y.shape, (*lam.shape, 1))
        fits = f.ndim > 0 and y.shape[-1:] == f.shape[-1:] != (0,)
    except ValueError:
        fits = False
    if not fits:
        shapes = f"f has shape {f.shape}, y {y.shape} and weight_decay {lam.shape}"
        raise ValueError(
            f"{shapes}; write f of shape (..., N), y of shape (N,), N ≥ 1, and one weight_decay, or (...)"
        )
    if not np.all(np.abs(y) == 1):
        raise ValueError("y holds values other than ±1; write labels of two classes as ±1, e.g. 1 - 2 * labels")
    moderate("f", np.abs(f).max(-1))
    margin = y * f
    mu, sigma = margin.mean(-1), margin.std(-1)  # centred first: M − μ² would lose every digit near collapse
    if np.any((mu == 0) & (sigma == 0) & (lam == 0)):
        raise ValueError("f is zero everywhere, so every norm is an equilibrium; write weight_decay > 0")
    return mu, sigma, lam


def _points(x: Arrays, y: Arrays) -> tuple[Array, Array]:
    x, y = array("x", x), array("y", y)
    if x.ndim != 2 or y.ndim not in (1, 2) or len(x) != len(y) or len(x) == 0:
        shapes = f"x has shape {x.shape} and y {y.shape}"
        raise ValueError(f"{shapes}; write x of shape (N, d), flattened, and y of shape (N,) or (N, K), N ≥ 1")
    return x, y
