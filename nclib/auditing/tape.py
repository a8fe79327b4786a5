"""What anybody's PyTorch model does to its input, and its batch normalisation folded away.

A forward pass is recorded function by function as PyTorch calls them, whatever the Python around: functional code,
parametrisations, and models that no tracer takes.  In another pass some calls get other weights and some are left
out (`Replay`).  So a model is folded, scaled and looked into, and stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Weights = tuple[Tensor, Tensor | None]  # weight and bias

LAYERS = {"linear", *(f"conv{n}d" for n in "123"), *(f"conv_transpose{n}d" for n in "123")}
_NORM = "batch_norm"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: What commutes with a positive factor, and so leaves a network homogeneous.
_HOMOGENEOUS = _words("""
    relu relu_ leaky_relu leaky_relu_ prelu rrelu dropout dropout1d dropout2d dropout3d alpha_dropout
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d boolean_dispatch
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum amax max
    pad flatten unflatten view view_as reshape permute transpose t contiguous squeeze unsqueeze abs neg __neg__
    __getitem__ chunk split unbind expand expand_as repeat clone detach to float double half bfloat16 type cpu cuda
    pixel_shuffle channel_shuffle interpolate roll flip movedim narrow select stack
""")
_ADDS = _words("add __add__ __radd__ add_ __iadd__ sub __sub__ __rsub__ sub_ __isub__")
_JOINS = _ADDS | _words("cat concat concatenate stack")
_PRODUCTS = _words("""
    mul __mul__ __rmul__ mul_ __imul__ multiply div __truediv__ div_ matmul __matmul__ __rmatmul__ mm bmm einsum
""")
#: What asks something of a tensor and computes nothing.
_QUESTIONS = _words("""
    __get__ size dim numel is_floating_point is_complex get_device __len__ stride is_contiguous item __bool__
    __format__ __repr__ data_ptr element_size requires_grad_ __int__ __float__ tolist numpy __hash__ __index__
""")


@dataclass
class Step:
    """One call of a PyTorch function on what came from the input."""

    op: str
    module: str  # of the model, in which it was called
    sources: set[int]  # the steps whose results it got; -1 is the input
    call: int = -1  # its number among the calls of layers and batch norms
    weight: Tensor | None = None
    bias: Tensor | None = None
    norm: tuple[Tensor | None, ...] | None = None  # mean, variance, gain and shift of a batch norm
    eps: float = 0.0
    groups: int = 1
    shape: tuple[int, ...] = ()  # of the result
    constant: bool = False  # something that is not from the input goes in
    depth: int = 0  # layers on the longest way to its result
    users: set[int] = field(default_factory=set)


class Replay(TorchFunctionMode):
    """A forward pass in which some calls of layers get other weights and some batch norms are left out."""

    def __init__(
        self, weights: Mapping[int, Weights], without: frozenset[int] = frozenset(), watch: int = -1
    ) -> None:
        super().__init__()
        self._weights, self._without, self._watch = weights, without, watch
        self._calls = 0
        self.watched: Tensor | None = None  # what the layer of the call `watch` was given

    def run(self, model: nn.Module, x: Any) -> Tensor:
        """The outputs of this pass."""
        self._calls, self.watched = 0, None
        with self:
            out: Tensor = model(x)
        return out

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, op = kwargs or {}, getattr(func, "__name__", "")
        if op != _NORM and op not in LAYERS:
            return func(*args, **kwargs)
        call, self._calls = self._calls, self._calls + 1
        if call in self._without:
            return args[0] if args else kwargs["input"]
        if op == _NORM or (call != self._watch and call not in self._weights):
            return func(*args, **kwargs)
        given, rest = _of_layer(args, kwargs)
        if call == self._watch:
            self.watched = given["input"]
        if call in self._weights:
            weight, bias = self._weights[call]
            if weight.shape != given["weight"].shape:
                raise ValueError("model takes another path on another batch; nothing can be folded")
            like = given["weight"]
            given |= {"weight": weight.to(like), "bias": None if bias is None else bias.to(like)}
        return func(given["input"], given["weight"], given.get("bias"), *args[3:], **rest)


class Tape(TorchFunctionMode):
    """The steps of one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.end = -1  # the step that made the output
        self._from: dict[int, int] = {}  # by the id of a tensor: the step that made it
        self._alive: list[Any] = []  # so that no id is used twice
        self._names = {id(module): name for name, module in model.named_modules()}
        self._inside = [""]
        self._calls = 0

    def run(self, model: nn.Module, x: Any) -> Tensor:
        """The outputs; the steps are then on the tape."""
        self._alive.append(x)
        self._from |= {id(one): -1 for one in _tensors(x)}
        with self._modules(), self:
            out = model(x)
        if not isinstance(out, Tensor):
            raise ValueError(
                f"model returned {type(out).__name__}; wrap it so that it returns the outputs alone, a tensor"
            )
        if id(out) not in self._from:
            raise ValueError("model: its output does not come from its input by PyTorch's functions")
        self.end = self._from[id(out)]
        self._alive.clear()
        return out

    @contextlib.contextmanager
    def _modules(self) -> Iterator[None]:
        """Which module is at work, by PyTorch's hooks on all modules; those of the model are not touched."""
        every = nn.modules.module

        def enter(module: nn.Module, _: Any) -> None:
            self._inside.append(self._names.get(id(module), type(module).__name__))

        def leave(*_: Any) -> None:
            self._inside.pop()

        hooks = (
            every.register_module_forward_pre_hook(enter),
            every.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, op = kwargs or {}, getattr(func, "__name__", str(func))
        given = [*args, *kwargs.values()]
        sources = {self._from[id(t)] for t in _tensors(given) if id(t) in self._from}
        counted = op == _NORM or op in LAYERS
        call, self._calls = self._calls, self._calls + counted
        out = func(*args, **kwargs)
        self._alive.append((given, out))
        if not sources or op in _QUESTIONS:
            return out
        before = [self.steps[s].depth for s in sources if s >= 0]
        step = Step(op, self._inside[-1], sources, depth=max(before, default=0))
        if op == _NORM:
            step.call = call
            _take_norm(step, args, kwargs)
        elif op in LAYERS:
            taken, _ = _of_layer(args, kwargs)
            step.call, step.weight, step.bias = call, taken["weight"].detach(), taken.get("bias")
            if op != "linear":
                step.groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
            step.depth += 1
        else:
            outside = any(id(t) not in self._from for t in _tensors(given))
            numbers = any(isinstance(v, int | float) and v != 0 for v in given[1:])
            step.constant = outside or (op in _ADDS and numbers)
        for source in sources - {-1}:
            self.steps[source].users.add(len(self.steps))
        for one in _tensors(out):
            step.shape = tuple(one.shape)
            self._from[id(one)] = len(self.steps)
        self.steps.append(step)
        return out


def _of_layer(args: Any, kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Input, weight and bias of a layer's call, and its other named arguments."""
    names = ("input", "weight", "bias")
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    return given, {k: v for k, v in kwargs.items() if k not in names}


def _take_norm(step: Step, args: Any, kwargs: Any) -> None:
    """What a batch norm does, whether called as `torch.nn.functional.batch_norm` or as `torch.batch_norm`."""
    if len(args) == 9:
        _, gain, shift, mean, var, training, _, eps, _ = args
    else:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        mean, var, gain, shift = (given.get(k) for k in ("running_mean", "running_var", "weight", "bias"))
        training, eps = given.get("training", False), given.get("eps", 1e-5)
    step.eps = float(eps)
    if not training and mean is not None and var is not None:
        step.norm = mean, var, gain, shift


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


@dataclass
class Layer:
    """One call of a layer, with the batch norm behind it folded in."""

    name: str
    kind: str
    call: int
    weight: Tensor  # folded, float64
    bias: Tensor | None  # folded, float64
    length: float  # norm of the weight as it is trained
    normalised: bool  # a batch norm follows it
    folded: bool
    groups: int = 1

    @property
    def norm(self) -> float:
        """‖Ŵ‖_F."""
        return float(torch.linalg.vector_norm(self.weight))


@dataclass
class Structure:
    """A model as the theory sees it."""

    layers: list[Layer]
    outputs: int
    depth: int  # layers on the longest way from input to output
    chain: bool  # one layer after another, no branches
    findings: list[str]  # what keeps it from being a homogeneous network, in words
    normalised: int  # batch norms
    unfolded: list[str]  # batch norms that could not be folded, with the reason
    departure: float  # of f(cW) from c^L f(W), relative, where c^L = 2; biases stay
    dead: int  # channels whose variance is no more than BN's ε
    last: Layer | None  # the layer that makes the outputs
    pooled: bool  # something between the layers averages or takes maxima

    @property
    def biased(self) -> bool:
        """Whether anything is added, as written or by folding."""
        return any(layer.bias is not None and bool(layer.bias.any()) for layer in self.layers)

    @property
    def homogeneous(self) -> bool:
        """Whether f_W = ρ f_V holds exactly."""
        return self.chain and not self.biased and not self.findings and not self.unfolded


@torch.no_grad()
def structure(model: nn.Module, x: Any, last_layer: str | None = None) -> Structure:
    """Record a pass over a small batch, fold what can be folded, check it by the outputs, and say what is left."""
    tape = Tape(model)
    try:
        out = tape.run(model, x)
    except (RuntimeError, IndexError, TypeError) as error:  # what a model raises of what it cannot take
        raise ValueError(f"model: it does not take inputs of shape {tuple(x.shape)} ({error})") from error
    steps = tape.steps
    on_the_way = _ancestors(steps, tape.end)
    layers, without, unfolded, dead = _folded(steps, on_the_way, model, x, out)
    norms = [n for n in on_the_way if steps[n].op == _NORM]
    depth = max(steps[tape.end].depth, 1)
    factor = 2.0 ** (1 / depth)
    larger = {layer.call: (layer.weight * factor, layer.bias) for layer in layers}
    scaled = Replay(larger, without).run(model, x).double()
    outputs = out.double()
    departure = float((scaled - 2 * outputs).norm() / (2 * outputs).norm())
    pools = any("pool" in steps[n].op or steps[n].op in ("mean", "amax", "boolean_dispatch") for n in on_the_way)
    return Structure(
        layers=layers,
        outputs=1 if out.ndim == 1 else out.shape[-1],
        depth=depth,
        chain=bool(layers) and all(len(steps[n].sources) == 1 for n in on_the_way),
        findings=_findings(steps, on_the_way),
        normalised=len(norms),
        unfolded=unfolded,
        departure=departure,
        dead=dead,
        last=_last(layers, steps, tape.end, last_layer, out),
        pooled=pools,
    )


def _ancestors(steps: list[Step], end: int) -> list[int]:
    found, waiting = set[int](), [end]
    while waiting:
        at = waiting.pop()
        if at >= 0 and at not in found:
            found.add(at)
            waiting += steps[at].sources
    return sorted(found)


def _folded(
    steps: list[Step], on_the_way: list[int], model: nn.Module, x: Any, out: Tensor
) -> tuple[list[Layer], frozenset[int], list[str], int]:
    """Layers, folded where the outputs prove it; the calls of the norms left out; other norms; dead channels."""
    layers: list[Layer] = []
    place = {}
    for n in on_the_way:
        step = steps[n]
        if step.weight is not None:
            place[n] = len(layers)
            weight, bias = step.weight.double(), None if step.bias is None else step.bias.detach().double()
            length = float(weight.norm())
            layers.append(Layer(step.module, step.op, step.call, weight, bias, length, False, False, step.groups))
    wanted, unfolded, dead = [], [], 0
    for n in on_the_way:
        step = steps[n]
        if step.op != _NORM:
            continue
        (source, *_) = step.sources
        before = steps[source] if source >= 0 else None
        if before is not None and before.weight is not None:
            layers[place[source]].normalised = True
        if reason := _unfoldable(step, before):
            unfolded.append(f"{step.module}: {reason}")
            continue
        dead += int((step.norm[1] <= step.eps).sum())  # type: ignore[index, operator, union-attr]
        wanted.append((n, place[source]))
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(out.dtype, 0.1)

    def same(chosen: list[tuple[int, int]]) -> bool:
        weights = {layers[at].call: _fold_one(layers[at], steps[n]) for n, at in chosen}
        again = Replay(weights, frozenset(steps[n].call for n, _ in chosen)).run(model, x)
        return bool((again - out).double().norm() <= tolerance * out.double().norm())

    kept = wanted if not wanted or same(wanted) else [pair for pair in wanted if same([pair])]
    unfolded += [f"{steps[n].module}: folding it changes the outputs" for n, at in wanted if (n, at) not in kept]
    for n, at in kept:
        layers[at].weight, layers[at].bias = _fold_one(layers[at], steps[n])
        layers[at].folded = True
    return layers, frozenset(steps[n].call for n, _ in kept), unfolded, dead


def _unfoldable(norm: Step, before: Step | None) -> str:
    """Why a batch norm cannot be folded, or nothing."""
    if norm.norm is None:
        return "it has no running statistics, and normalises by each batch"
    if before is None or before.weight is None:
        return "it does not follow a layer of weights"
    if len(before.users) > 1:
        return "the layer before it is used elsewhere too"
    if before.op == "linear" and len(before.shape) != 2:
        return "it normalises positions, not what the layer before it puts out"
    if "transpose" in before.op and before.groups > 1:
        return "the layer before it is a transposed convolution in groups"
    return ""


def _fold_one(layer: Layer, step: Step) -> Weights:
    """Ŵ = diag(g) W and b̂ = g (b − m) + shift, with g = gain/√(s² + ε), in float64."""
    mean, var, gain, shift = (None if part is None else part.detach().double() for part in step.norm or ())
    assert mean is not None
    assert var is not None
    factor = (var + step.eps).rsqrt() if gain is None else gain * (var + step.eps).rsqrt()
    rows = (1, -1) if "transpose" in layer.kind else (-1, 1)
    shape = *rows, *[1] * (layer.weight.ndim - 2)
    bias = (0 if layer.bias is None else layer.bias) - mean
    return layer.weight * factor.reshape(shape), bias * factor + (0 if shift is None else shift)


def _findings(steps: list[Step], on_the_way: list[int]) -> list[str]:
    """What no homogeneous chain of layers does, each kind once, with the places."""
    found: dict[str, list[str]] = {}
    for n in on_the_way:
        step = steps[n]
        if step.op in LAYERS or step.op == _NORM:
            continue
        if len(step.sources) > 1:
            kind = "branches are added or joined" if step.op in _JOINS else "branches are multiplied or mixed"
            if step.op not in _JOINS | _PRODUCTS:
                kind = f"branches meet in {step.op}"
        elif step.op in _ADDS and step.constant:
            kind = "a constant is added"
        elif step.op in _PRODUCTS:
            if not step.constant:
                continue  # by a number
            kind = "a tensor that is no layer's weight multiplies"
        elif step.op in _HOMOGENEOUS | _JOINS:
            continue
        else:
            kind = f"{step.op.strip('_')} is not homogeneous"
        found.setdefault(kind, []).append(step.module or "the model itself")
    return [f"{kind} ({_places(places)})" for kind, places in found.items()]


def _places(places: list[str]) -> str:
    names = list(dict.fromkeys(places))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more places" if len(names) > 3 else "")


def _last(layers: list[Layer], steps: list[Step], end: int, name: str | None, out: Tensor) -> Layer | None:
    """The layer whose results are the outputs, or the one named."""
    if name is not None:
        named = [layer for layer in layers if layer.name == name]
        if not named:
            known = ", ".join(layer.name or "(unnamed)" for layer in layers[-4:])
            raise ValueError(f"last_layer={name!r}: no layer of the model; the last ones are {known}")
        return named[-1]
    at = end
    while at >= 0 and steps[at].weight is None and len(steps[at].sources) == 1:
        if steps[at].op not in _HOMOGENEOUS:
            return None  # e.g. a softmax
        (at,) = steps[at].sources
    if at < 0 or steps[at].op != "linear" or len(out.shape) not in (1, 2):
        return None
    return next(layer for layer in layers if layer.call == steps[at].call)
