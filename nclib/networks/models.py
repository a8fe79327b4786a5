"""Bias-free networks with exact initial norms: MLP, the four-convolution net, ResNet-18.

An architecture is a frozen dataclass (equal fields, equal network), made by `mlp`, `convnet` or
`resnet18`; its method `build` returns a `Net`.  `Net.forward` has no side effect and no control flow that
depends on data, so it can be used with `torch.func.functional_call` and `torch.func.vmap`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import inputs

Norm = Literal["none", "bn", "wn", "lm"]


class LayerShape(NamedTuple):
    """Shape of one layer's weight; `stride` 0 marks a map of the flattened input (no convolution)."""

    weight: tuple[int, ...]
    stride: int = 0

    @property
    def out(self) -> int:
        return self.weight[0]


class Layer(nn.Module):
    """One weight-carrying layer, $h \\mapsto W_k h$, linear or convolution (padding (kernel − 1)/2).

    `weight` is always the *effective* weight $W_k$ ($V_k$ under `norm="lm"`): a parameter here, a
    function of the parameters in `WeightNormLayer`.  Only folding BN makes a layer with a `bias`.
    """

    def __init__(self, shape: LayerShape, *, bias: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape.out)) if bias else None)
        self._make_weight()

    def _make_weight(self) -> None:
        self.weight = nn.Parameter(torch.empty(self.shape.weight))

    def set_weight(self, weight: inputs.Arrays) -> None:
        """Copy `weight`, of the layer's shape, into its parameters."""
        with torch.no_grad():
            self.weight.copy_(self._given(weight))

    def _given(self, weight: inputs.Arrays) -> Tensor:
        like = weight if isinstance(weight, Tensor) and weight.is_floating_point() else None
        found = inputs.tensor("weight", weight, like=like)
        if found.shape != self.shape.weight:
            raise ValueError(f"weight: shape {tuple(found.shape)}; this layer's is {self.shape.weight}")
        return found

    @property
    def matrix(self) -> Tensor:
        """The effective weight as a matrix (out, everything else)."""
        weight: Tensor = self.weight
        return weight if weight.ndim == 2 else weight.flatten(1)

    def forward(self, h: Tensor) -> Tensor:
        if self.shape.stride == 0:
            return F.linear(torch.flatten(h, 1), self.matrix, self.bias)
        padding = (self.shape.weight[-1] - 1) // 2
        return F.conv2d(h, self.weight, self.bias, stride=self.shape.stride, padding=padding)

    def extra_repr(self) -> str:
        return f"{self.shape.weight}, stride={self.shape.stride}, bias={self.bias is not None}"


class WeightNormLayer(Layer):
    """$W_k = g\\,v/‖v‖_F$ with one gain $g$ for the layer (it starts at $‖v‖ = 1$, $g$ = `init_norm`).

    Salimans and Kingma (2016) use one gain per row; the theory (Chapter 1) normalises the whole
    layer, so that $g$ is $ρ_k$ up to its sign.
    """

    def _make_weight(self) -> None:
        self.direction = nn.Parameter(torch.empty(self.shape.weight))
        self.gain = nn.Parameter(torch.empty(()))

    def set_weight(self, weight: inputs.Arrays) -> None:
        with torch.no_grad():
            weight = self._given(weight)
            norm = torch.linalg.vector_norm(weight)
            if norm == 0:
                raise ValueError("weight: all zeros, which under norm='wn' has no direction")
            self.gain.copy_(norm)
            self.direction.copy_(weight / norm)

    # mypy: the base class stores a parameter under this name, this class computes it.
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        length: Tensor = torch.linalg.vector_norm(self.direction)
        return self.direction * (self.gain / length)


class BatchNorm(nn.Module):
    """Batch normalisation per channel without an affine part, $(a - m)/\\sqrt{s^2 + ε}$.

    In training mode $m, s^2$ are mean and *biased* variance of the batch and nothing is stored; in evaluation mode
    they are the buffers `mean` and `var`, set by `nclib.calibrate`; NaN before, so that its omission shows.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.full((channels,), math.nan))
        self.register_buffer("var", torch.full((channels,), math.nan))

    def forward(self, a: Tensor) -> Tensor:
        mean, var = (None, None) if self.training else (self.mean, self.var)
        # torch.batch_norm, not torch.nn.functional.batch_norm: the latter refuses eps = 0 in training.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(a, None, None, mean, var, self.training, 0.0, self.eps, cudnn)

    def extra_repr(self) -> str:
        return f"{self.mean.shape[0]}, eps={self.eps}"


@dataclass(frozen=True)
class Architecture:
    """What a network is, apart from its input, its outputs and its weights; see `mlp` for the fields."""

    #: Whether $f_W$, normalisation folded, is a product of its layers' norms and directions.
    homogeneous: ClassVar[bool] = True

    widths: tuple[int, ...]
    norm: Norm = "none"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        inputs.choice("norm", self.norm, get_args(Norm))
        widths = inputs.counts("widths", self.widths, "(64, 64)")
        eps = inputs.number("eps", self.eps, "a finite number >= 0, e.g. eps=1e-5", lambda e: e >= 0)
        for name, value in (("widths", widths), ("eps", eps)):  # a frozen class is set so
            object.__setattr__(self, name, value)

    def shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        """Shapes of the layers k = 1..L for this input."""
        if not (shape := inputs.counts("input_shape", input_shape, "(64,) or (3, 32, 32)")):
            raise ValueError("input_shape=(): write the shape of one input, e.g. (64,) or (3, 32, 32)")
        return self._shapes(shape, inputs.count("outputs", outputs, 1))

    def _shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        raise NotImplementedError

    def features(self, net: Net, x: Tensor) -> Tensor:
        """The body of the network: its last hidden layer, (N, d)."""
        # Functions of torch, not methods of tensors: `nclib.calibrate` passes all of its chunks at once.
        h = x
        for k in range(len(net.layers) - 1):
            h = torch.relu_(net.hidden(k, h))  # in place: memory is what a large pass waits for
        return torch.flatten(h, 1)

    def build(
        self,
        input_shape: Sequence[int],
        outputs: int = 1,
        init_norm: float | Sequence[float] = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Net:
        """Make the network, on the CPU, with Gaussian directions and $‖W_k‖_F$ = `init_norm` exactly.

        Directions are drawn in float64 from `seed` alone, so that nets that differ in `norm`,
        `init_norm` or `dtype` start in the same direction.  Under `norm="lm"` the layers start on the
        sphere and the scale at $ρ = \\prod_k$ `init_norm`.

        Parameters
        ----------
        input_shape
            Shape of one input without the sample axis: any for `mlp`, else (channels, height, width).
        outputs
            Number of outputs, at least 1.
        init_norm
            Positive; one number for all layers, or one per layer.  (He's initialisation has
            $‖W_k‖_F ≈ \\sqrt{2 d_k}$ with $d_k$ the outputs, or output channels, of layer k.)
        seed, dtype
            Seed of the directions; floating-point type of parameters and buffers.

        Examples
        --------
        >>> import torch
        >>> net = mlp(widths=(16, 8)).build(input_shape=(4,), init_norm=(0.5, 1.0, 2.0))
        >>> [round(layer.weight.norm().item(), 6) for layer in net.layers]
        [0.5, 1.0, 2.0]
        >>> net(torch.ones(3, 4)).shape
        torch.Size([3])
        """
        shape = inputs.counts("input_shape", input_shape, "(64,) or (3, 32, 32)")
        net = Net(self, shape, inputs.count("outputs", outputs, 1)).to(inputs.dtype("dtype", dtype))
        _initialise(net, init_norm, inputs.seed("seed", seed))
        return net


class MLP(Architecture):
    """Fully connected layers; see `mlp`."""

    def _shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        sizes = [math.prod(input_shape), *self.widths, outputs]
        return [LayerShape((m, n)) for n, m in pairwise(sizes)]


class ConvNet(Architecture):
    """Strided 3×3 convolutions and one to the outputs; see `convnet`."""

    def _shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        channels, *size = _image_shape("convnet", input_shape)
        shapes = []
        for width in self.widths:
            shapes.append(LayerShape((width, channels, 3, 3), stride=2))
            channels, size = width, [(s + 1) // 2 for s in size]
        return [*shapes, LayerShape((outputs, channels, *size))]


class ResNet18(Architecture):
    """Basic residual blocks, two per stage; see `resnet18`."""

    homogeneous = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ValueError("widths=(): resnet18 needs at least one stage, e.g. widths=(64, 128, 256, 512)")

    def _shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        channels, *_ = _image_shape("resnet18", input_shape)
        shapes = [LayerShape((self.widths[0], channels, 3, 3), stride=1)]
        for old, new, stride in self._blocks():
            shapes += [LayerShape((new, old, 3, 3), stride=stride), LayerShape((new, new, 3, 3), stride=1)]
            if stride != 1:
                shapes.append(LayerShape((new, old, 1, 1), stride=stride))
        return [*shapes, LayerShape((outputs, self.widths[-1]))]

    def features(self, net: Net, x: Tensor) -> Tensor:
        k = 0
        h = torch.relu_(net.hidden(k, x))
        for _, _, stride in self._blocks():
            inside = net.hidden(k + 2, torch.relu_(net.hidden(k + 1, h)))
            k += 2
            if stride != 1:
                k += 1
                h = net.hidden(k, h)
            h = torch.relu_(torch.add(inside, h))
        return torch.mean(h, dim=(2, 3))

    def _blocks(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, stride) of each block: two a stage, halving, projected, from stage 2 on."""
        stages = list(enumerate(zip((self.widths[0], *self.widths[:-1]), self.widths, strict=True)))
        return [block for i, (old, new) in stages for block in ((old, new, 1 if i == 0 else 2), (new, new, 1))]


class Net(nn.Module):
    """A network made by `Architecture.build`.

    Attributes
    ----------
    layers
        The weight-carrying layers k = 1..L in order (`Layer`; its effective weight: `.weight`).
    norms
        With `norm="bn"` one `BatchNorm` for each hidden layer, otherwise empty.
    scale
        With `norm="lm"` the scalar parameter ρ, otherwise None.
    arch, input_shape, outputs
        What it was built from.
    """

    def __init__(
        self, arch: Architecture, input_shape: tuple[int, ...], outputs: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.arch, self.input_shape, self.outputs = arch, input_shape, outputs
        shapes = arch.shapes(input_shape, outputs)
        kind = WeightNormLayer if arch.norm == "wn" else Layer
        bn = [BatchNorm(s.out, eps=arch.eps) for s in shapes[:-1] if arch.norm == "bn"]
        # A ModuleList knows its entries only as modules.
        self.layers = cast(Sequence[Layer], nn.ModuleList(kind(shape, bias=bias) for shape in shapes))
        self.norms = cast(Sequence[BatchNorm], nn.ModuleList(bn))
        self.scale: nn.Parameter | None
        self.register_parameter("scale", nn.Parameter(torch.ones(())) if arch.norm == "lm" else None)

    def hidden(self, k: int, h: Tensor) -> Tensor:
        """Pre-activation of hidden layer k (from 0), normalised if there is BN."""
        a: Tensor = self.layers[k](h)
        return self.norms[k](a) if len(self.norms) else a

    def features(self, x: Tensor) -> Tensor:
        """Last hidden layer after its ReLU, (N, d)."""
        return self.arch.features(self, x)

    def head(self, features: Tensor) -> Tensor:
        """Last layer on `features` (N, d): (N,) for one output, (N, K) for several."""
        out: Tensor = self.layers[-1](features)
        out = out if self.scale is None else out * self.scale
        return out.squeeze(1) if self.outputs == 1 else out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def mlp(widths: Sequence[int] = (64, 64), norm: Norm = "none", *, eps: float = 1e-5) -> MLP:
    """Architecture of a fully connected ReLU network, $f_W(x) = W_L\\,σ(W_{L-1} \\cdots σ(W_1 x))$.

    Parameters
    ----------
    widths
        Hidden widths; `()` is the linear model.
    norm
        "none"; "bn", batch normalisation between the linear map and the ReLU of hidden layers;
        "wn", $W_k = g_k v_k/‖v_k‖$; "lm", $f = ρ f_V$, where `nclib.train` puts every $V_k$ back on its
        sphere, $‖V_k‖ = 1$, after each step.
    eps
        BN's ε, ≥ 0.  The usual 1e-5 is *not* small against the variances of unit-norm inputs under small initial
        norms: the layer is then not scale-invariant (Chapter 6).  To test a theorem about that take eps=0, or
        one far below the smallest variance.  With eps=0 a channel that is constant over the batch gives NaN.

    Examples
    --------
    >>> mlp(widths=(32,), norm="bn")
    MLP(widths=(32,), norm='bn', eps=1e-05)
    """
    return MLP(widths, norm, eps)  # type: ignore[arg-type]


def convnet(widths: Sequence[int] = (32, 64, 128), norm: Norm = "none", *, eps: float = 1e-5) -> ConvNet:
    """Architecture of the four-convolution network of the book's full-scale experiment.

    3×3 convolutions (stride 2, padding 1) to `widths` channels, each followed by a ReLU, then one convolution
    whose kernel covers what is left to the outputs: 4×4 for 32×32 inputs and for 28×28 ones (28 → 14 → 7 → 4),
    1×1 for 8×8.  Any image size works.  Parameters are those of `mlp`.

    Examples
    --------
    >>> net = convnet().build(input_shape=(3, 32, 32))
    >>> [tuple(layer.weight.shape) for layer in net.layers]
    [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (1, 128, 4, 4)]
    """
    return ConvNet(widths, norm, eps)  # type: ignore[arg-type]


def resnet18(norm: Norm = "bn", *, widths: Sequence[int] = (64, 128, 256, 512), eps: float = 1e-5) -> ResNet18:
    """Architecture of ResNet-18 with the stem for 32×32 images (3×3, stride 1, no max-pooling).

    Bias-free; average pooling before the last layer; projections (1×1) where a block changes size.  `net.layers`
    lists, block by block, the two 3×3 convolutions and then the projection.  Skip connections make it *not*
    homogeneous in its layers, so `rho` and `margins` refuse it; its norms per layer and its collapse are defined.

    Parameters
    ----------
    widths
        Channels of the stages (two blocks each); fewer or narrower ones for quick runs.
    norm, eps
        As in `mlp`.

    Notes
    -----
    With `norm="none"` equal layer norms of 1 do not train: the signal dies on its way.  With He's norms
    (`init_norm` of `build`) and momentum 0.9 it trains at learning rates up to about 0.03, and falls
    back to the zero output at 0.1 (measured on 600 digits, a narrow network).  Under "lm" ρ starts at the
    product of all `init_norm`, so He's norms overflow there.

    Examples
    --------
    >>> net = resnet18().build(input_shape=(3, 32, 32), outputs=10)
    >>> len(net.layers), sum(p.numel() for p in net.parameters())
    (21, 11164352)
    """
    return ResNet18(widths, norm, eps)  # type: ignore[arg-type]


def _image_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(input_shape) != 3:
        needs = f"{name} needs (channels, height, width), e.g. (3, 32, 32)"
        raise ValueError(f"input_shape={input_shape}: {needs}; use mlp for flat inputs")
    return input_shape


def checked(net: Net) -> Net:
    """What has to be a network, of finite weights."""
    inputs.instance("net", net, Net, "nclib.mlp().build((64,))")
    for name, p in net.named_parameters():
        if not (p.is_floating_point() and bool(p.isfinite().all())):
            raise ValueError(f"net: {name} ({p.dtype}) holds NaN or infinity; take a network that has not diverged")
    return net


def taken(net: Net, x: inputs.Arrays, *, least: int = 1) -> Tensor:
    """Inputs (N, ...) in the type and on the device of a network, both checked."""
    found, fits = inputs.tensor("x", x, "one input a row", like=next(checked(net).parameters())), False
    with contextlib.suppress(ValueError):
        fits = net.arch.shapes(tuple(found.shape[1:]), net.outputs) == [layer.shape for layer in net.layers]
    if not fits:
        raise ValueError(f"x: shape {tuple(found.shape)}; this network takes {('N', *net.input_shape)}")
    if len(found) < least:
        raise ValueError(f"x: no samples; give at least {least}")
    return found


def init_norms(init_norm: Any) -> float | tuple[float, ...]:
    """A positive number, or a tuple of them."""
    several: tuple[Any, ...] = ()
    with contextlib.suppress(TypeError):
        several = () if isinstance(init_norm, str) else tuple(init_norm)
    expected = "a positive number, or one per layer, e.g. (1.0, 2.0)"
    found = [inputs.number("init_norm", r, expected, lambda r: r > 0) for r in several or [init_norm]]
    return tuple(found) if several else found[0]


def _initialise(net: Net, init_norm: float | Sequence[float], seed: int) -> None:
    """Draw directions in float64 and scale them (in `Net` order, from one generator)."""
    depth, own = len(net.layers), init_norms(init_norm)
    norms = own if isinstance(own, tuple) else (own,) * depth
    if len(norms) != depth:
        raise ValueError(f"init_norm={init_norm!r}: expected a positive number, or {depth} of them (one per layer)")
    generator, held = torch.Generator().manual_seed(seed), []
    for layer, norm in zip(net.layers, norms, strict=True):
        direction = torch.randn(layer.shape.weight, generator=generator, dtype=torch.float64)
        target = 1.0 if net.scale is not None else norm
        layer.set_weight(direction * (target / torch.linalg.vector_norm(direction)))
        held.append((torch.linalg.vector_norm(layer.weight.detach().double()), target))
    if net.scale is not None:
        net.scale.data.copy_(torch.tensor(math.prod(norms), dtype=torch.float64))
        held.append((net.scale.detach(), math.prod(norms)))
    for found, wanted in held:
        if not (0 < wanted < math.inf and 0.98 < found.item() / wanted < 1.02):
            what = f"a norm of {wanted:.3g} is beyond the network's type"
            raise ValueError(f"init_norm={init_norm!r}: {what}; write init_norm=1.0, or dtype=torch.float64")
