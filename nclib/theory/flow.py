"""Gradient flow of the square loss, exactly enough to check theorems with: float64, many members at once.

Two models of one network (Chapter 1, "The flow"). In the *normalised* model the scale ρ and the directions V_k,
kept on the unit sphere by a Lagrange multiplier, follow

    ρ̇   = 2 [μ − ρ (M + λ)],
    V̇_k = 2 ρ ⟨(y_n − ρ f_n) (∂f_n/∂V_k − f_n V_k)⟩,

the flow of ⟨(ρ f_n − y_n)²⟩ + λ ρ². In the *plain* model the weights W_k follow the flow of
⟨(f_W(x_n) − y_n)²⟩ + λ Σ_k ‖W_k‖².

Minimum-norm solutions put kinks of the ReLUs exactly on training points, and the flow ends by sliding along them.
Adaptive solvers stall there without end; `flow` takes small explicit steps, whose error is O(dt) and is measured by
halving dt. `exact_flow` is an adaptive solver for the phases in which no kink is met.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Data
from .relu import Array, Layers, forward, gradients, norms, random_directions

if TYPE_CHECKING:
    import pandas as pd

Problem = Data | Callable[[int], Data]
COOLING_STEPS = 1500  # of each cooling phase; long enough for ρ to settle, short beside the flow itself
SMALLEST_STEP = 1e-9  # only weights that grow without bound need a smaller one
MODELS = ("normalised", "plain")


@dataclass(frozen=True)
class Flow:
    """Where a flow went, and where it ended, for B members of L layers.

    Attributes
    ----------
    history : DataFrame
        A row per member and recorded time: member, seed, weight_decay, rho0, t, rho, rho_1 … rho_L (plain model),
        rho_eq = μ/(M+λ), mu, M, sigma, mse = ⟨(f_W − y)²⟩, loss (with weight decay), margin_min,
        sphere_error = max_k |‖V_k‖² − 1|.
    V : list of L arrays (B, d_k, d_{k-1})
        Final directions.
    W, W0 : lists of L arrays (B, d_k, d_{k-1})
        Final and initial weights; in the normalised model ρ is shared out evenly, W_k = |ρ|^(1/L) V_k.
    rho : (B,)
        Final ρ ≥ 0 (the sign of a negative one is moved into V_L).
    f : (B, N)
        Final normalised outputs f_V(x_n); for a network with biases, its outputs over ρ.
    biases : list of L arrays (B, d_k, 1), or None
    x, y : (B, N, d) and (B, N)
        The data of each member.
    """

    history: pd.DataFrame
    V: Layers
    W: Layers
    W0: Layers
    rho: Array
    f: Array
    biases: Layers | None
    x: Array
    y: Array

    @property
    def final(self) -> pd.DataFrame:
        """The last row of each member, in order."""
        return self.history.groupby("member").tail(1).sort_values("member", ignore_index=True)


def flow(
    problem: Problem,
    widths: Sequence[int],
    *,
    weight_decay: float | Sequence[float],
    time: float,
    rho0: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    model: str = "normalised",
    layer_norms: Sequence[float] | None = None,
    biases: bool = False,
    leak: float = 0.0,
    paired: bool = False,
    dt: float = 0.05,
    cooling: int = 3,
    records: int | Sequence[float] = 40,
    start: Flow | None = None,
) -> Flow:
    """Follow the gradient flow of many networks at once by small explicit steps.

    A member is one combination of seed × weight_decay × rho0 (the last varies fastest). A step is ``dt``, or
    2/Σ_k(ρ/ρ_k)² where that is smaller (2/(Lρ²) in the normalised model). With unit-norm inputs that sum bounds the
    largest eigenvalue of ρ²K, K the tangent kernel, and explicit steps are stable below its inverse: the rule holds
    while K's largest eigenvalue is below half of its bound, which leaves room in practice. In the normalised model
    each step ends with the retraction V ← V/‖V‖; in the plain model it is a step of gradient descent. At the end
    the flow *cools*: ``cooling`` phases of 1,500 steps, each with a quarter of the last one's step, still the
    chatter around kinks.

    Parameters
    ----------
    problem
        A data set of two classes, or a function that makes one from a seed (all of one shape).
    widths
        Hidden widths (d_1, …, d_{L-1}); ``()`` is a linear network.
    weight_decay
        λ ≥ 0, one or several.
    time
        End time > 0, before cooling.
    rho0
        Initial ρ > 0, one or several; in the plain model every layer starts at norm ρ₀^(1/L).
    seed
        One or several. A seed makes a member's initial direction, and its data where `problem` is a function.
    model
        ``"normalised"`` or ``"plain"``.
    layer_norms
        Initial norms (ρ_1, …, ρ_L) in the plain model, instead of `rho0`.
    biases
        Give every layer a bias, without weight decay, starting at 0 (plain model only). This breaks homogeneity.
    leak
        Slope of the activation on negative inputs, in [0, 1]: 0 is the ReLU; 1 leaves it out, which makes a deep
        linear network, whose flow has no kinks.
    paired
        Start with f = 0: the units of the last hidden layer come in pairs with equal weights before and opposite
        weights after them.
    dt
        Largest step > 0.
    cooling
        Number of cooling phases ≥ 0.
    records
        How many times to record, geometrically spaced, or the times themselves, the last of them `time`; besides
        t = 0 and the end of cooling.
    start
        Go on from the end of another flow of as many members (whose time starts again at 0).

    Returns
    -------
    Flow

    Raises
    ------
    ValueError
        On a negative weight decay, a data set that is not of two classes, and the like.
    FloatingPointError
        If a member grows without bound; it is named.

    References
    ----------
    Poggio and Liao (2020); Chapters 1 and 2 of this book.

    Examples
    --------
    >>> from nclib.data import data
    >>> end = flow(data("teacher", n=6, d=20), (16,), weight_decay=0.1, time=50).final
    >>> bool(abs(end.rho / end.rho_eq - 1).max() < 1e-3)
    True
    """
    members, x, y = _members(problem, seed, weight_decay, rho0)
    state = _start(members, x, widths, model, layer_norms, biases, paired, start)
    _positive(time=time, dt=dt)
    _slope(leak)
    depth = len(widths) + 1
    W0 = _weights(model, depth, state)
    euler = _euler(model, depth, x, y, members["weight_decay"].to_numpy(), leak)
    rows = [_measure(members, model, depth, state, x, y, 0.0, leak)]
    now = np.zeros(len(x))

    def advance(until: float, largest: float) -> None:
        while (left := until - now).max() > 0:
            stable = _stable_step(model, depth, state)
            if not stable.min() > SMALLEST_STEP:  # also when it is NaN
                raise _not_finite(members, ~(stable > SMALLEST_STEP), now.max())
            h = np.minimum(np.minimum(left, largest), stable)
            euler(state, h)
            now[:] = np.where(h >= left, until, now + h)

    for until in _times(records, min(dt, time / 2), time):
        advance(until, dt)
        rows.append(_measure(members, model, depth, state, x, y, until, leak))
    for phase in range(1, cooling + 1):
        until = now[0] + COOLING_STEPS * dt / 4**phase
        advance(until, dt / 4**phase)
    if cooling:
        rows.append(_measure(members, model, depth, state, x, y, now[0], leak))
    return _finish(members, rows, model, depth, state, W0, x, y, leak)


def exact_flow(
    problem: Problem,
    widths: Sequence[int],
    *,
    weight_decay: float | Sequence[float],
    time: float,
    rho0: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    model: str = "normalised",
    layer_norms: Sequence[float] | None = None,
    leak: float = 0.0,
    paired: bool = False,
    rtol: float = 1e-10,
    records: int | Sequence[float] = 40,
    max_evaluations: int = 20_000,
) -> Flow:
    """Follow the same flow as `flow` by an adaptive Runge–Kutta solver of order 8 (SciPy's DOP853).

    Right, and exact to about `rtol`, as long as no training point crosses a kink for good: early phases, conserved
    quantities, growth laws, linear networks. Where the flow slides along kinks the solver would stall; this
    function then stops with an error instead.

    Parameters
    ----------
    problem, widths, weight_decay, time, rho0, seed, model, layer_norms, leak, paired, records
        As in `flow`.
    rtol
        Relative tolerance of the solver (absolute: a hundredth of it, times the smallest layer norm at the start
        if that is below 1).
    max_evaluations
        Give up a member after so many evaluations of the velocity.

    Returns
    -------
    Flow

    Raises
    ------
    ValueError
        As `flow`.
    RuntimeError
        If a member needs too many evaluations: it has most likely reached a kink; use `flow`.

    Examples
    --------
    >>> from nclib.data import data
    >>> problem = data("teacher", n=6, d=20)
    >>> a = exact_flow(problem, (), weight_decay=0.1, time=1.0).final
    >>> b = flow(problem, (), weight_decay=0.1, time=1.0, dt=1e-3, cooling=0).final
    >>> bool(abs(a.rho - b.rho).max() < 1e-3)
    True
    """
    from scipy.integrate import solve_ivp

    members, x, y = _members(problem, seed, weight_decay, rho0)
    state = _start(members, x, widths, model, layer_norms, False, paired, None)
    _positive(time=time, rtol=rtol)
    _slope(leak)
    depth = len(widths) + 1
    W0 = _weights(model, depth, state)
    lam = members["weight_decay"].to_numpy()
    times = np.concatenate([[0.0], _times(records, time / 1000, time)])
    paths = []
    for b in range(len(x)):
        shapes = [part[b : b + 1].shape for part in state]
        velocity = _velocity(model, depth, x[b : b + 1], y[b : b + 1], lam[b : b + 1], leak)
        count = itertools.count(1)

        def speed(t: float, flat: Array, member: int = b) -> Array:
            if next(count) > max_evaluations:  # noqa: B023 (called within this turn of the loop only)
                raise RuntimeError(
                    f"member {member} needs over max_evaluations={max_evaluations} at t={t:.4g}: it has most "
                    "likely reached a kink; end at an earlier time, or use flow()"
                )
            return _flat(velocity(_unflat(flat, shapes)))  # noqa: B023

        begin = _flat([part[b : b + 1] for part in state])
        atol = rtol / 100 * min(1.0, *(float(norms(part)[0]) for part in (w[b : b + 1] for w in W0)))
        with np.errstate(over="ignore", invalid="ignore"):  # a trial step that is too long is rejected
            solved = solve_ivp(speed, (0, time), begin, "DOP853", times, rtol=rtol, atol=atol)
        paths.append([_unflat(column, shapes) for column in solved.y.T])
    rows = []
    for i, t in enumerate(times):
        state = [np.concatenate([path[i][j] for path in paths]) for j in range(len(state))]
        rows.append(_measure(members, model, depth, state, x, y, t, leak))
    if model == "normalised":  # the solver's drift is in sphere_error; the result itself is on the sphere
        state = [*(v / norms(v)[:, None, None] for v in state[:-1]), state[-1]]
    return _finish(members, rows, model, depth, state, W0, x, y, leak)


def _members(
    problem: Problem,
    seed: int | Sequence[int],
    weight_decay: float | Sequence[float],
    rho0: float | Sequence[float],
) -> tuple[pd.DataFrame, Array, Array]:
    """The grid of members, and their data (B, N, d) and (B, N)."""
    import pandas as pd

    grid = itertools.product(*map(np.atleast_1d, (seed, weight_decay, rho0)))
    members = pd.DataFrame(list(grid), columns=["seed", "weight_decay", "rho0"])
    members = members.astype({"seed": "int64", "weight_decay": float, "rho0": float})
    if not (members["weight_decay"] >= 0).all():
        raise ValueError(f"weight_decay={weight_decay}: a decay cannot be negative; write a number >= 0, e.g. 1e-3")
    if not ((members["rho0"] > 0) & np.isfinite(members["rho0"])).all():
        raise ValueError(f"rho0={rho0}: a norm must be positive; write a number > 0, e.g. 1.0")
    sets = {s: problem(int(s)) if callable(problem) else problem for s in members["seed"].unique()}
    for one in sets.values():
        if len(one.classes) != 2:
            raise ValueError(f"problem has {len(one.classes)} classes; the flow is of two, e.g. classes=(3, 8)")
    x = np.stack([sets[s].x.double().flatten(1).numpy(force=True) for s in members["seed"]])
    y = np.stack([sets[s].y.double().numpy(force=True) for s in members["seed"]])
    if not np.isfinite(x).all():
        raise ValueError("problem has NaN or infinite inputs; remove them before training")
    return members, x, y


def _start(
    members: pd.DataFrame,
    x: Array,
    widths: Sequence[int],
    model: str,
    layer_norms: Sequence[float] | None,
    biases: bool,
    paired: bool,
    start: Flow | None,
) -> Layers:
    """Initial state: V_1 … V_L, ρ (normalised), or W_1 … W_L and perhaps b_1 … b_L (plain)."""
    if model not in MODELS:
        raise ValueError(f"model={model!r}: write 'normalised' or 'plain'")
    if any(int(w) != w or w < 1 for w in widths):
        raise ValueError(f"widths={tuple(widths)}: hidden widths are whole numbers >= 1, e.g. (64,)")
    if model == "normalised" and (biases or layer_norms is not None):
        raise ValueError("biases and layer_norms belong to the plain model; write model='plain'")
    depth = len(widths) + 1
    if layer_norms is not None and (len(layer_norms) != depth or min(layer_norms) <= 0):
        raise ValueError(f"layer_norms={tuple(layer_norms)}: give {depth} positive numbers, one a layer")
    if paired and (depth < 2 or widths[-1] % 2 or start is not None):
        raise ValueError(f"paired=True needs an even last hidden width and a fresh start; widths={tuple(widths)}")
    if start is not None:
        if start.rho.shape != (len(x),):
            raise ValueError(f"start has {len(start.rho)} members and this flow {len(x)}; give it the same members")
        V, rho = [v.copy() for v in start.V], start.rho.copy()
    else:
        V = random_directions((x.shape[2], *widths, 1), members["seed"].tolist())
        rho = members["rho0"].to_numpy(copy=True)
        if paired:
            half = widths[-1] // 2
            V[-2][:, half:], V[-1][:, :, half:] = V[-2][:, :half], -V[-1][:, :, :half]
            V[-2:] = [v / norms(v)[:, None, None] for v in V[-2:]]
    if model == "normalised":
        return [*V, rho]
    each = [np.full(len(x), r) for r in layer_norms] if layer_norms is not None else [rho ** (1 / depth)] * depth
    if start is not None:
        last = start.final
        each = [last[f"rho_{k + 1}"].to_numpy() for k in range(depth)]
    W = [v * r[:, None, None] for v, r in zip(V, each, strict=True)]
    if not biases:
        return W
    return [*W, *(np.zeros((len(x), w.shape[1], 1)) for w in W)]


def _velocity(
    model: str, depth: int, x: Array, y: Array, lam: Array, leak: float = 0.0
) -> Callable[[Layers], Layers]:
    """Right-hand side of the flow, from the state and of its shapes."""
    n = x.shape[1]
    decay = lam[:, None, None]

    def normalised(state: Layers) -> Layers:
        V, rho = state[:-1], state[-1]
        f, hidden = forward(V, x, leak=leak)
        r = (y - rho[:, None] * f) / n
        pull = np.einsum("bn,bn->b", r, f)  # ⟨(y − ρ f) f⟩ = μ − ρ M
        toward = gradients(V, hidden, 2 * rho[:, None] * r, leak=leak)
        inward = (2 * rho * pull)[:, None, None]
        return [*(g - inward * v for g, v in zip(toward, V, strict=True)), 2 * (pull - lam * rho)]

    def plain(state: Layers) -> Layers:
        W, b = state[:depth], state[depth:] or None
        f, hidden = forward(W, x, b, leak=leak)
        toward = gradients(W, hidden, 2 * (y - f) / n, biases=b is not None, leak=leak)
        return [g - 2 * decay * w for g, w in zip(toward, W, strict=False)] + toward[depth:]

    return normalised if model == "normalised" else plain


def _euler(model: str, depth: int, x: Array, y: Array, lam: Array, leak: float) -> Callable[[Layers, Array], None]:
    """One explicit step of lengths h (B,), in place: the same right-hand side, in as few passes as possible."""
    n = x.shape[1]

    def normalised(state: Layers, h: Array) -> None:
        V, rho = state[:-1], state[-1]
        f, hidden = forward(V, x, leak=leak)
        r = (y - rho[:, None] * f) / n
        pull = np.einsum("bn,bn->b", r, f)
        far = 2 * h * rho
        keep = (1 - far * pull)[:, None, None]
        for v, g in zip(V, gradients(V, hidden, far[:, None] * r, leak=leak), strict=True):
            v *= keep
            v += g
            v /= norms(v)[:, None, None]  # back to the sphere
        rho += 2 * h * (pull - lam * rho)

    def plain(state: Layers, h: Array) -> None:
        W, b = state[:depth], state[depth:] or None
        f, hidden = forward(W, x, b, leak=leak)
        keep = (1 - 2 * h * lam)[:, None, None]
        moves = gradients(W, hidden, (2 * h / n)[:, None] * (y - f), biases=b is not None, leak=leak)
        for w in W:
            w *= keep
        for part, move in zip(state, moves, strict=True):
            part += move

    return normalised if model == "normalised" else plain


def _stable_step(model: str, depth: int, state: Layers) -> Array:
    """2/Σ_k(ρ/ρ_k)², see `flow`."""
    if model == "normalised":
        bound = depth * state[-1] ** 2
    else:
        squares = np.stack([norms(w) ** 2 for w in state[:depth]])
        bound = squares.prod(0) * (1 / np.maximum(squares, 1e-300)).sum(0)
    return np.asarray(2 / np.maximum(bound, 1e-300))


def _measure(
    members: pd.DataFrame, model: str, depth: int, state: Layers, x: Array, y: Array, t: float, leak: float
) -> dict[str, Any]:
    """The columns of `Flow.history` at one time, (B,) each."""
    lam = members["weight_decay"].to_numpy()
    rho, V, f, each = _normalise(model, depth, state, x, leak)
    finite = np.isfinite(rho) & np.isfinite(f).all(1)
    if not finite.all():
        raise _not_finite(members, ~finite, t)
    margin = y * f
    mu, M = margin.mean(1), (f * f).mean(1)
    mse = ((rho[:, None] * f - y) ** 2).mean(1)
    penalty = rho**2 if model == "normalised" else sum(r**2 for r in each)
    return dict(
        t=np.full(len(x), t),
        rho=rho,
        **{f"rho_{k + 1}": r for k, r in enumerate(each)},
        rho_eq=mu / np.maximum(M + lam, 1e-300),
        mu=mu,
        M=M,
        sigma=margin.std(1),  # centred first: M − μ² would cancel
        mse=mse,
        loss=mse + lam * penalty,
        margin_min=margin.min(1),
        sphere_error=np.max([np.abs(norms(v) ** 2 - 1) for v in V], 0),
    )


def _normalise(model: str, depth: int, state: Layers, x: Array, leak: float) -> tuple[Array, Layers, Array, Layers]:
    """ρ ≥ 0, directions, normalised outputs, and the layers' norms (plain model)."""
    if model == "normalised":
        sign = np.where(state[-1] < 0, -1.0, 1.0)
        V = [*state[:-2], state[-2] * sign[:, None, None]]
        return np.abs(state[-1]), V, forward(V, x, leak=leak)[0], []
    W, b = state[:depth], state[depth:] or None
    each = [norms(w) for w in W]
    rho = np.prod(each, 0)
    safe = [np.maximum(r, 1e-300)[:, None, None] for r in each]
    f = forward(W, x, b, leak=leak)[0] / np.maximum(rho, 1e-300)[:, None]
    return rho, [w / r for w, r in zip(W, safe, strict=True)], f, each


def _not_finite(members: pd.DataFrame, lost: Any, t: float) -> FloatingPointError:
    first = members[lost].iloc[0].to_dict()
    return FloatingPointError(
        f"the flow of member {first} grows without bound by t={t:.4g}; take a smaller dt, and inputs of norm <= 1"
    )


def _weights(model: str, depth: int, state: Layers) -> Layers:
    """Copies of W_1 … W_L; in the normalised model ρ is shared out evenly, its sign going to the last layer."""
    if model == "plain":
        return [w.copy() for w in state[:depth]]
    share = (np.abs(state[-1]) ** (1 / depth))[:, None, None]
    sign = np.where(state[-1] < 0, -1.0, 1.0)[:, None, None]
    return [*(share * v for v in state[:-2]), sign * share * state[-2]]


def _times(records: int | Sequence[float], first: float, last: float) -> Array:
    """When to record: so many times, geometrically spaced, or just those given."""
    if isinstance(records, int):
        return np.geomspace(first, last, records) if records > 1 else np.array([last])
    times = np.asarray(records, dtype=float)
    if times.ndim != 1 or len(times) == 0 or times[0] <= 0 or (np.diff(times) <= 0).any() or times[-1] != last:
        raise ValueError(f"records: write a number, or times that rise from above 0 to time={last:g}")
    return times


def _finish(
    members: pd.DataFrame,
    rows: list[dict[str, Any]],
    model: str,
    depth: int,
    state: Layers,
    W0: Layers,
    x: Array,
    y: Array,
    leak: float,
) -> Flow:
    import pandas as pd

    rho, V, f, _ = _normalise(model, depth, state, x, leak)
    biases = None if model == "normalised" else state[depth:] or None
    fixed = members.assign(member=range(len(members)))
    fixed = pd.concat([fixed] * len(rows), ignore_index=True)
    history = fixed.assign(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    return Flow(history, V, _weights(model, depth, state), W0, rho, f, biases, x, y)


def _slope(leak: float) -> None:
    if not 0 <= leak <= 1:
        raise ValueError(f"leak={leak}: a slope between 0 (the ReLU) and 1 (a linear network); write e.g. leak=1.0")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and np.isfinite(value)):
            raise ValueError(f"{name}={value}: write a positive number")


def _flat(parts: Layers) -> Array:
    return np.concatenate([part.ravel() for part in parts])


def _unflat(flat: Array, shapes: list[tuple[int, ...]]) -> Layers:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
