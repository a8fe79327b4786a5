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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import inputs
from ..data import Data
from ..inputs import Array, array, count, each, number, positive
from .closed_forms import decay, moderate, slope
from .relu import Layers, forward, gradients, norms, random_directions

if TYPE_CHECKING:
    import pandas as pd

Problem = Data | Callable[[int], Data]
COOLING_STEPS = 1500  # of each cooling phase; long enough for ρ to settle, short beside the flow itself
SMALLEST_STEP = 1e-9  # only weights that grow without bound need a smaller one
MOST_STEPS = 10**8  # hours
TINY = 1e-300  # in the place of 0 in a denominator


@dataclass(frozen=True)
class Flow:
    """Where a flow went, and where it ended, for B members of L layers.

    Attributes
    ----------
    history
        A frame with a row per member and recorded time: member, seed, weight_decay, rho0, t, rho, rho_1 … rho_L
        (plain model), rho_eq = μ/(M+λ), mu, M, sigma, mse = ⟨(f_W − y)²⟩, loss (with weight decay), margin_min,
        sphere_error = max_k |‖V_k‖² − 1|.
    V
        Final directions, L arrays (B, d_k, d_{k-1}).
    W, W0
        Final and initial weights, likewise; in the normalised model ρ is shared out evenly, W_k = |ρ|^(1/L) V_k.
    rho
        Final ρ ≥ 0, (B,) (the sign of a negative one is moved into V_L).
    f
        Final normalised outputs f_V(x_n), (B, N); for a network with biases, its outputs over ρ.
    biases
        L arrays (B, d_k, 1), or None.
    x, y, leak
        The data of each member, (B, N, d) and (B, N), and the slope of the activation on negative inputs.
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
    leak: float = 0.0

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
    """Follow the gradient flow of many networks at once by small explicit steps (Chapter 1; Poggio and Liao, 2020).

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
        End time > 0, before cooling, and at most 10⁸ steps away.
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
        Slope of the activation on negative inputs, in [0, 1]: 0 is the ReLU; 1 makes a deep linear network, whose
        flow has no kinks.
    paired
        Start with f = 0: the units of the last hidden layer come in pairs with equal weights before and opposite
        weights after them.
    dt, cooling
        Largest step > 0, and number of cooling phases, 0 to 10.
    records
        How many times to record, geometrically spaced, or the times themselves, the last of them `time`; besides
        t = 0 and the end of cooling.
    start
        Go on where another flow has ended (time starts again at 0): the same members, with their seeds and ρ₀, the
        same network, and inputs of the same dimension. Weight decay, data and the model may change.

    Raises
    ------
    FloatingPointError
        If a member grows without bound; it is named.

    Examples
    --------
    >>> from nclib.data import data
    >>> end = flow(data("teacher", n=6, d=20), (16,), weight_decay=0.1, time=50).final
    >>> bool(abs(end.rho / end.rho_eq - 1).max() < 1e-3)
    True
    """
    time, dt, cooling = positive("time", time), positive("dt", dt), count("cooling", cooling, 0, 10)
    if time / dt > MOST_STEPS:
        raise ValueError(f"time={time:g} is over {MOST_STEPS:,} steps of dt={dt:g}; shorten time, or enlarge dt")
    times = _times(records, min(dt, time / 2), time)
    members = _members(problem, widths, seed, weight_decay, rho0, model, leak)
    state = _start(members, widths, layer_norms, biases, paired, start)
    steps = itertools.count()
    W0, rows, now = members.weights(state), [members.measure(state, 0.0)], np.zeros(len(members.x))

    def advance(until: float, largest: float) -> None:
        while (left := until - now).max() > 0:
            stable = members.stable_step(state)
            if not stable.min() > SMALLEST_STEP:  # also when it is NaN
                raise members.lost(~(stable > SMALLEST_STEP), now.max())
            if next(steps) > 2 * MOST_STEPS:
                raise RuntimeError(f"the flow is at t={now.min():.4g} after {2 * MOST_STEPS:,} steps; shorten time")
            h = np.minimum(np.minimum(left, largest), stable)
            members.step(state, h)
            now[:] = np.where(h >= left, until, now + h)

    for until in times:
        advance(until, dt)
        rows.append(members.measure(state, until))
    for phase in range(1, cooling + 1):
        advance(now[0] + COOLING_STEPS * dt / 4**phase, dt / 4**phase)
    if cooling:
        rows.append(members.measure(state, now[0]))
    return members.result(rows, state, W0)


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
    quantities, growth laws, linear networks. Where the flow slides along kinks the solver would stall; this stops
    with an error instead.

    Parameters
    ----------
    problem, widths, weight_decay, time, rho0, seed, model, layer_norms, leak, paired, records
        As in `flow`.
    rtol
        Relative tolerance of the solver (absolute: a hundredth of it, times the smallest layer norm at the start
        if that is below 1).
    max_evaluations
        Give up a member after so many evaluations of the velocity.

    Raises
    ------
    RuntimeError
        If a member needs too many evaluations: it has most likely reached a kink; use `flow`.

    Examples
    --------
    >>> from nclib.data import data
    >>> end = exact_flow(data("teacher", n=6, d=20), (), weight_decay=0.1, time=50).final
    >>> bool(abs(end.rho / end.rho_eq - 1).max() < 1e-6)
    True
    """
    time, max_evaluations = positive("time", time), count("max_evaluations", max_evaluations, 1)
    rtol = number("rtol", rtol, "a relative tolerance, 2.3e-14 < rtol < 1", lambda v: 2.3e-14 < v < 1)
    times = np.concatenate([[0.0], _times(records, time / 1000, time)])
    members = _members(problem, widths, seed, weight_decay, rho0, model, leak)
    state = _start(members, widths, layer_norms, False, paired, None)
    W0 = members.weights(state)
    paths = [
        _solve(members.alone(b), [part[b : b + 1] for part in state], times, rtol, max_evaluations)
        for b in range(len(members.x))
    ]
    rows = []
    for t, parts in zip(times, zip(*paths, strict=True), strict=True):
        state = [np.concatenate(part) for part in zip(*parts, strict=True)]
        rows.append(members.measure(state, t))
    if members.normalised:  # the solver's drift is in sphere_error; the result itself is on the sphere
        state = [*(v / norms(v)[:, None, None] for v in state[:-1]), state[-1]]
    return members.result(rows, state, W0)


@dataclass(frozen=True)
class _Members:
    """The members of a flow, their data (B, N, d) and (B, N), and their model: all that the flow does not change.

    A state is V_1 … V_L and ρ in the normalised model, W_1 … W_L and perhaps b_1 … b_L in the plain one.
    """

    table: pd.DataFrame
    x: Array
    y: Array
    lam: Array
    depth: int
    normalised: bool
    leak: float

    def alone(self, b: int) -> _Members:
        one = slice(b, b + 1)
        return replace(self, table=self.table[one], x=self.x[one], y=self.y[one], lam=self.lam[one])

    def motion(self, state: Layers, h: Array) -> tuple[Array, Layers]:
        """The flow during times h (B,): by which share layers shrink, and what each part of the state gains."""
        layers, rest, n = state[: self.depth], state[self.depth :], self.x.shape[1]
        if self.normalised:
            f, hidden = forward(layers, self.x, leak=self.leak)
            (rho,) = rest
            r = (self.y - rho[:, None] * f) / n
            pull = np.einsum("bn,bn->b", r, f)  # ⟨(y − ρ f) f⟩ = μ − ρ M
            far = 2 * h * rho
            gains = gradients(layers, hidden, far[:, None] * r, leak=self.leak)
            return far * pull, [*gains, 2 * h * (pull - self.lam * rho)]
        f, hidden = forward(layers, self.x, rest or None, leak=self.leak)
        r = (2 * h / n)[:, None] * (self.y - f)
        return 2 * h * self.lam, gradients(layers, hidden, r, biases=bool(rest), leak=self.leak)

    def velocity(self, state: Layers) -> Layers:
        """Right-hand side of the flow, of the state's shapes."""
        shrink, gains = self.motion(state, np.ones(len(self.x)))
        for gain, layer in zip(gains, state[: self.depth], strict=False):
            gain -= shrink[:, None, None] * layer
        return gains

    def step(self, state: Layers, h: Array) -> None:
        """One explicit step of lengths h (B,), in place; in the normalised model back to the sphere."""
        shrink, gains = self.motion(state, h)
        keep = (1 - shrink)[:, None, None]
        for layer in state[: self.depth]:
            layer *= keep
        for part, gain in zip(state, gains, strict=True):
            part += gain
        if self.normalised:
            for layer in state[: self.depth]:
                layer /= norms(layer)[:, None, None]

    def stable_step(self, state: Layers) -> Array:
        """2/Σ_k(ρ/ρ_k)², see `flow`."""
        if self.normalised:
            bound = self.depth * state[-1] ** 2
        else:
            squares = np.stack([norms(w) ** 2 for w in state[: self.depth]])
            bound = squares.prod(0) * (1 / np.maximum(squares, TINY)).sum(0)
        return np.asarray(2 / np.maximum(bound, TINY))

    def read(self, state: Layers) -> tuple[Array, Layers, Array, Layers]:
        """ρ ≥ 0, directions, normalised outputs, and the layers' norms (plain model)."""
        layers, rest = state[: self.depth], state[self.depth :]
        if self.normalised:
            sign = np.where(rest[0] < 0, -1.0, 1.0)
            V = [*layers[:-1], layers[-1] * sign[:, None, None]]
            return np.abs(rest[0]), V, forward(V, self.x, leak=self.leak)[0], []
        each = [norms(w) for w in layers]
        rho = np.prod(each, 0)
        V = [w / np.maximum(r, TINY)[:, None, None] for w, r in zip(layers, each, strict=True)]
        f = forward(layers, self.x, rest or None, leak=self.leak)[0]
        return rho, V, f / np.maximum(rho, TINY)[:, None], each

    def weights(self, state: Layers) -> Layers:
        """Copies of W_1 … W_L; in the normalised model ρ is shared out evenly."""
        if not self.normalised:
            return [w.copy() for w in state[: self.depth]]
        rho, V, *_ = self.read(state)
        return [(rho ** (1 / self.depth))[:, None, None] * v for v in V]

    def measure(self, state: Layers, t: float) -> dict[str, Any]:
        """The columns of `Flow.history` at one time, (B,) each."""
        rho, V, f, each = self.read(state)
        finite = np.isfinite(rho) & np.isfinite(f).all(1)
        if not finite.all():
            raise self.lost(~finite, t)
        margin = self.y * f
        mu, M = margin.mean(1), (f * f).mean(1)
        mse = ((rho[:, None] * f - self.y) ** 2).mean(1)
        return dict(
            t=np.full(len(rho), t),
            rho=rho,
            **{f"rho_{k + 1}": r for k, r in enumerate(each)},
            rho_eq=mu / np.maximum(M + self.lam, TINY),
            mu=mu,
            M=M,
            sigma=margin.std(1),  # centred first: M − μ² would cancel
            mse=mse,
            loss=mse + self.lam * (rho**2 if self.normalised else sum(r**2 for r in each)),
            margin_min=margin.min(1),
            sphere_error=np.max([np.abs(norms(v) ** 2 - 1) for v in V], 0),
        )

    def lost(self, which: Any, t: float) -> FloatingPointError:
        grown = f"the flow of member {self.table[which].iloc[0].to_dict()} grows without bound by t={t:.4g}"
        return FloatingPointError(f"{grown}; take a smaller dt, inputs of norm <= 1")

    def result(self, rows: list[dict[str, Any]], state: Layers, W0: Layers) -> Flow:
        import pandas as pd

        rho, V, f, _ = self.read(state)
        biases = None if self.normalised else state[self.depth :] or None
        table = pd.concat([self.table.assign(member=range(len(rho)))] * len(rows), ignore_index=True)
        history = table.assign(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
        return Flow(history, V, self.weights(state), W0, rho, f, biases, self.x, self.y, self.leak)


def _members(
    problem: Problem, widths: Any, seed: Any, weight_decay: Any, rho0: Any, model: str, leak: float
) -> _Members:
    """The grid of members, with their data."""
    import pandas as pd

    normalised = inputs.choice("model", model, ("normalised", "plain")) == "normalised"
    depth, leak = 1 + len(_widths(widths)), slope("leak", leak)
    sides: dict[str, list[Any]] = {
        "seed": each("seed", seed, inputs.seed),
        "weight_decay": each("weight_decay", weight_decay, decay),
        "rho0": each("rho0", rho0, positive),
    }
    table = pd.DataFrame(list(itertools.product(*sides.values())), columns=list(sides))
    table = table.astype({"seed": "int64" if max(sides["seed"]) < 2**63 else "uint64"})
    sets = {s: problem(s) if callable(problem) else problem for s in dict.fromkeys(sides["seed"])}
    for one in sets.values():
        if not isinstance(one, Data):
            raise ValueError(f"problem={inputs.shown(one)}: expected Data, or a function that makes it from a seed")
        if len(one.classes) != 2:
            raise ValueError(f"problem has {len(one.classes)} classes; the flow is of two, e.g. classes=(3, 8)")
    shapes = {tuple(one.x.shape) for one in sets.values()}
    if len(shapes) > 1:
        raise ValueError(f"problem: data of shapes {sorted(shapes)}; make one shape")
    x = np.stack([array("problem.x", sets[s].x.flatten(1)) for s in table["seed"]])
    moderate("problem.x", np.abs(x).max(initial=0.0))
    for name in ("weight_decay", "rho0"):
        moderate(name, table[name].clip(lower=1.0).to_numpy())
    y = np.stack([array("problem.y", sets[s].y) for s in table["seed"]])
    return _Members(table, x, y, table["weight_decay"].to_numpy(), depth, normalised, leak)


def _widths(widths: Any) -> tuple[int, ...]:
    return tuple(each("widths", widths, count, 1, 2**24, least=0))


def _start(members: _Members, widths: Any, layer_norms: Any, biases: bool, paired: bool, start: Any) -> Layers:
    """The initial state."""
    x, depth, widths = members.x, members.depth, _widths(widths)
    if members.normalised and (biases or layer_norms is not None):
        raise ValueError("biases and layer_norms belong to the plain model; write model='plain'")
    biases, paired = inputs.flag("biases", biases), inputs.flag("paired", paired)
    fresh = [] if layer_norms is None else each("layer_norms", layer_norms, positive)
    if layer_norms is not None and (len(fresh) != depth or start is not None):
        raise ValueError(
            f"layer_norms={layer_norms}: give a fresh start {depth} positive numbers (widths={widths})"
        )
    if paired and (depth < 2 or widths[-1] % 2 or start is not None):
        raise ValueError(f"paired=True needs an even last hidden width and a fresh start; widths={widths}")
    if start is not None:
        _continues(members, widths, start, biases)
        V, rho, W = [v.copy() for v in start.V], start.rho.copy(), [w.copy() for w in start.W]
    else:
        V = random_directions((x.shape[2], *widths, 1), members.table["seed"].tolist())
        rho = members.table["rho0"].to_numpy(copy=True)
        if paired:
            half = widths[-1] // 2
            V[-2][:, half:], V[-1][:, :, half:] = V[-2][:, :half], -V[-1][:, :, :half]
            V[-2:] = [v / norms(v)[:, None, None] for v in V[-2:]]
        sizes = [np.full(len(x), r) for r in fresh] or [rho ** (1 / depth)] * depth
        W = [v * r[:, None, None] for v, r in zip(V, sizes, strict=True)]
    if members.normalised:
        return [*V, rho]
    if not biases:
        return W
    if start is not None and start.biases is not None:
        return W + [b.copy() for b in start.biases]
    return W + [np.zeros((len(x), w.shape[1], 1)) for w in W]


def _continues(members: _Members, widths: tuple[int, ...], start: Any, biases: bool) -> None:
    """Whether the state at the end of `start` is one of these members; ValueError if not."""
    if not isinstance(start, Flow):
        raise ValueError(f"start={inputs.shown(start)}: expected what flow or exact_flow returned")
    if start.biases is not None and not biases:
        raise ValueError("start has biases; write biases=True to go on with them, in the plain model")
    sides = {
        "number of members": (len(members.x), len(start.rho)),
        "widths": (widths, tuple(v.shape[1] for v in start.V[:-1])),
        "dimension of the inputs": (members.x.shape[2], start.V[0].shape[2]),
        "leak": (members.leak, start.leak),
        **{name: (members.table[name].tolist(), start.final[name].tolist()) for name in ("seed", "rho0")},
    }
    for name, (here, there) in sides.items():
        if here != there:
            raise ValueError(f"{name}={here}, but start has {there}; give the same, since it goes on from there")


def _solve(member: _Members, begin: Layers, times: Array, rtol: float, most: int) -> list[Layers]:
    """The states of one member at the given times, by the adaptive solver."""
    from scipy.integrate import solve_ivp

    ends = np.cumsum([part.size for part in begin])[:-1]
    count = itertools.count(1)

    def flat(state: Layers) -> Array:
        return np.concatenate([part.ravel() for part in state])

    def parts(at: Array) -> Layers:
        return [part.reshape(like.shape) for part, like in zip(np.split(at, ends), begin, strict=True)]

    def speed(t: float, at: Array) -> Array:
        if next(count) > most:
            late = f"member {member.table.index[0]} needs over max_evaluations={most} at t={t:.4g}"
            raise RuntimeError(f"{late}: it has most likely reached a kink; end earlier, or use flow()")
        return flat(member.velocity(parts(at)))

    atol = rtol / 100 * min(1.0, *(float(norms(w)[0]) for w in member.weights(begin)))
    with np.errstate(over="ignore", invalid="ignore"):  # a trial step that is too long is rejected
        solved = solve_ivp(speed, (0, times[-1]), flat(begin), "DOP853", times, rtol=rtol, atol=atol)
    if not solved.success:
        raise RuntimeError(f"member {member.table.index[0]}: {solved.message} Write a smaller weight_decay or time")
    return [parts(column) for column in solved.y.T]


def _times(records: int | Sequence[float], first: float, last: float) -> Array:
    """When to record: so many times, geometrically spaced, or just those given."""
    if inputs.plain("records", records, "a number, or times").ndim == 0:
        n = count("records", records, 1, 10**6)
        return np.geomspace(first, last, n) if n > 1 else np.array([last])
    times = array("records", records)
    if times.ndim != 1 or len(times) == 0 or times[0] <= 0 or (np.diff(times) <= 0).any() or times[-1] != last:
        raise ValueError(f"records: write a number, or times that rise from above 0 to time={last:g}")
    return times
