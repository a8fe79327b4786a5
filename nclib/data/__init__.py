"""Data sets as a handful of resident tensors: real images and synthetic sets with a known truth.

``data("digits", classes=(3, 8))`` returns a `Data`; ``from_arrays`` puts your own arrays
through the same checks.  Every random choice derives from ``seed``; no global generator is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import inputs
from .raw import Floats, Raw, check_classes, choose, redraw, relabel

SYNTHETIC = ("teacher", "gaussians")
IMAGES = ("mnist", "fashion-mnist", "cifar10")
NAMES = ("digits", *SYNTHETIC, *IMAGES)
"""Every name that `data` knows."""

_OWNERS = {"d": SYNTHETIC, "width": ("teacher",), "separation": ("gaussians",), "verify": IMAGES}


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A labelled training set and test set, each one tensor on one device.

    Attributes
    ----------
    name
        Name of the data set.
    classes
        Names of the K classes in label order.
    x, x_test
        Inputs (N, ...) and (N_test, ...), floating point; ``N_test`` may be 0.
    labels, labels_test
        int64 (N,) and (N_test,), in 0..K-1.
    truth
        Synthetic sets only: weight matrices ``W_1, ..., W_L`` of a bias-free ReLU network whose decision
        is the Bayes rule (with two classes one output, positive for the first class); dtype and device of x.
    bayes_error
        Synthetic sets only: the exact error of that rule on clean labels.

    Examples
    --------
    >>> from nclib.data import data
    >>> digits = data("digits", classes=(3, 8), n=100)
    >>> digits
    Data('digits', classes=('3', '8'), x=(100, 64), x_test=(257, 64), float32, cpu)
    >>> digits.y[:4].tolist()
    [1.0, -1.0, 1.0, -1.0]
    """

    name: str
    classes: tuple[str, ...]
    x: Tensor
    labels: Tensor
    x_test: Tensor
    labels_test: Tensor
    truth: tuple[Tensor, ...] = ()
    bayes_error: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.x, Tensor) and self.x.is_meta:  # which has no numbers
            return
        inputs.text("name", self.name)
        expected = "names of two or more classes, e.g. ('a', 'b')"
        classes = tuple(inputs.entries("classes", self.classes, expected))
        if len(classes) < 2 or not all(isinstance(one, str) for one in classes):
            raise ValueError(f"classes={classes!r}: expected {expected}")
        found: dict[str, Any] = {"classes": classes}
        like = self.x if isinstance(self.x, Tensor) and self.x.is_floating_point() else None
        for word in ("", "_test"):
            x = like = inputs.tensor(f"x{word}", getattr(self, f"x{word}"), "one input a row", like=like)
            shape = found["x"].shape if word else x.shape
            if x.ndim < 2 or 0 in shape[1:] or x.shape[1:] != shape[1:]:
                raise ValueError(f"x{word}: shape {tuple(x.shape)}; expected {('N', *shape[1:])}, one input a row")
            labels = inputs.labels(f"labels{word}", getattr(self, f"labels{word}"), len(x))
            if labels.dtype.kind == "U" or not ((labels >= 0) & (labels < len(classes))).all():
                raise ValueError(f"labels{word}: expected 0..{len(classes) - 1}; nclib.from_arrays takes any")
            found |= {f"x{word}": x, f"labels{word}": torch.from_numpy(labels).to(x.device)}
        inputs.dtype("dtype of x", x.dtype)
        truth = inputs.entries("truth", self.truth, "a tuple of weight matrices")
        found["truth"] = tuple(inputs.tensor("truth", weight, like=x) for weight in truth)
        if self.bayes_error is not None:
            found["bayes_error"] = inputs.number("bayes_error", self.bayes_error, "a share", lambda e: 0 <= e <= 1)
        for name, value in found.items():  # a frozen class is set so
            object.__setattr__(self, name, value)

    @property
    def y(self) -> Tensor:
        """Training targets: of two classes (N,), +1 for the first and -1 for the second; of more one-hot (N, K)."""
        return self._targets(self.labels)

    @property
    def y_test(self) -> Tensor:
        """Test targets, coded like `y`."""
        return self._targets(self.labels_test)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, what ``arch.build(input_shape=...)`` takes."""
        return tuple(self.x.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of network outputs that fit `y`: 1 for two classes, else K."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def to(self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None) -> Data:
        """Return the same data on another device or in another floating-point type (labels stay int64).

        ValueError where that type is none, or cannot hold the inputs.
        """
        if isinstance(device, torch.dtype):  # as tensors take it
            device, dtype = None, device
        device = inputs.device("device", device)
        dtype = self.x.dtype if dtype is None else inputs.dtype("dtype", dtype)
        x, x_test = (_cast(word, getattr(self, word), dtype, device) for word in ("x", "x_test"))
        labels, labels_test = (part.to(device=device) for part in (self.labels, self.labels_test))
        truth = tuple(_cast("truth", weight, dtype, device) for weight in self.truth)
        return Data(self.name, self.classes, x, labels, x_test, labels_test, truth, self.bayes_error)

    def _targets(self, labels: Tensor) -> Tensor:
        if len(self.classes) == 2:
            return (1 - 2 * labels).to(self.x.dtype)
        return torch.nn.functional.one_hot(labels, len(self.classes)).to(self.x.dtype)

    def __repr__(self) -> str:
        kind = str(self.x.dtype).removeprefix("torch.")
        return (
            f"Data({self.name!r}, classes={self.classes}, x={tuple(self.x.shape)}, "
            f"x_test={tuple(self.x_test.shape)}, {kind}, {self.x.device})"
        )


def data(
    name: str,
    *,
    classes: int | Sequence[int | str] | None = None,
    n: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    unit_norm: bool = True,
    standardise: bool = False,
    flat: bool | None = None,
    noise: float = 0.0,
    d: int | None = None,
    width: int | None = None,
    separation: float | None = None,
    verify: bool | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Data:
    r"""Load a data set by name.

    ``"digits"``
        1,797 real 8×8 images of ten digits, embedded in scikit-learn.
    ``"teacher"``
        Gaussian directions labelled by the sign of a random bias-free two-layer ReLU network
        :math:`f(x) = \sum_j a_j \max(0, \langle w_j, x\rangle)` with :math:`\sum_j a_j = 0`, which makes
        :math:`\mathbb E f = 0`, and neurons in pairs :math:`\pm w_j`, so that f vanishes almost nowhere.
    ``"gaussians"``
        K equally likely classes :math:`x = m_k + z`, :math:`z \sim \mathcal N(0, I_d)`, whose means are
        the corners of a regular simplex around the origin with edge `separation`.
    ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"``
        The official images, downloaded once, or read where the variable ``NCLIB_DATA`` points.

    Parameters
    ----------
    name
        One of the names above.
    classes
        The classes to keep, by index or name, in label order: of two, the first has y = +1.
        For ``"gaussians"`` the number K ≥ 2 of classes (default 2); not for ``"teacher"``.
    n
        Training points in all, drawn evenly over the classes as far as possible (synthetic sets: drawn
        independently).  Default: 80% of digits, 12 synthetic points, the whole official training set.
        A smaller `n` with the same seed is a subset of a larger one.
    n_test
        Test points in all.  Default: what is left of digits, 1,000 synthetic points, the official test set.
    seed
        Fixes the split, the synthetic truth and sample, and the label noise.
    unit_norm
        Divide every input by its own Euclidean norm.
    standardise
        First subtract the mean and divide by the standard deviation of the chosen training images,
        channel by channel.  Not for synthetic sets, whose truth it would change.
    flat
        Inputs as vectors rather than (C, H, W) images.  Default: vectors for digits only.
    noise
        Share, 0 to 1, of the training labels that is redrawn uniformly over all K classes, so that a share
        ``noise * (1 - 1/K)`` is wrong on average.  Test labels stay clean.
    d, width, separation
        Synthetic sets: input dimension (default 20); even hidden width of the teacher (default 4); distance
        of two class means in units of the noise (default 3).
    verify
        Official sets: compare checksums (default True); False goes on with files that differ.
    dtype, device
        Of the inputs.

    Notes
    -----
    Dividing by the norm keeps the sign of every bias-free network, hence the truth of both synthetic sets.
    For ``"gaussians"`` the Bayes rule is :math:`\arg\max_k\langle m_k, x\rangle` on the sphere as in space,
    with error :math:`1-\int\varphi(t-s/\sqrt2)\,\Phi(t)^{K-1}dt`, which is :math:`\Phi(-s/2)` for K = 2.
    If all n labels of a teacher agree, teacher and inputs are drawn again.
    The label noise is that of Zhang et al., "Understanding deep learning requires rethinking
    generalization" (2017).  Used from Chapter 2 on.

    Examples
    --------
    >>> data("teacher", n=12, d=20, seed=1).x.shape
    torch.Size([12, 20])
    >>> round(data("gaussians", separation=2.0).bayes_error, 4)
    0.1587
    """
    inputs.choice("name", name, NAMES)
    given: dict[str, Any] = {"d": d, "width": width, "separation": separation, "verify": verify}
    options = {option: value for option, value in given.items() if value is not None}
    for option, value in options.items():
        if name not in _OWNERS[option]:
            names = ", ".join(map(repr, _OWNERS[option]))
            raise ValueError(f"{option}={value!r}: no option of {name!r}, only of {names}; leave it out")
    seed = inputs.seed("seed", seed)
    if name in SYNTHETIC:
        from . import synthetic

        if standardise:
            raise ValueError(f"standardise=True: it would change the known truth of {name!r}; leave it out")
        draw = synthetic.teacher if name == "teacher" else synthetic.gaussians
        n = 12 if n is None else inputs.count("n", n, 1)
        n_test = 1000 if n_test is None else inputs.count("n_test", n_test, 0)
        raw = draw(n, n_test, classes=classes, seed=seed, **options)
    else:
        from . import images

        raw = choose(name, images.load(name, **options), classes, n, n_test, seed)
    how = {"unit_norm": unit_norm, "standardise": standardise, "flat": name == "digits" if flat is None else flat}
    return _finish(name, raw, how, noise, seed, dtype, device)


def from_arrays(
    x: Any,
    labels: Any,
    x_test: Any = None,
    labels_test: Any = None,
    *,
    name: str = "arrays",
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
    unit_norm: bool = True,
    standardise: bool = False,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Data:
    """Make a `Data` from your own arrays, tensors, lists or data frames, with the checks of `data`.

    Parameters
    ----------
    x, x_test
        Real inputs, vectors (N, d) or images (N, C, H, W), finite (in `dtype` too) and unmasked.
    labels, labels_test
        Integers or strings (N,).
    name
        What to call the set.
    classes
        The label values to keep, two or more, in label order.  Default: all values of `labels`, sorted, except that
        labels -1 and +1 are taken in the order (+1, -1), so that ``y`` equals the labels given.
    seed, unit_norm, standardise, noise, dtype, device
        As in `data`; `standardise` works channel by channel on images, entry by entry on vectors.

    Examples
    --------
    >>> own = from_arrays([[3.0, 4.0], [0.0, 2.0]], [1, -1])
    >>> own.x.tolist(), own.y.tolist()
    ([[0.6000000238418579, 0.800000011920929], [0.0, 1.0]], [1.0, -1.0])
    """
    seed = inputs.seed("seed", seed)
    train = _rows("x", x)
    values = inputs.labels("labels", labels, len(train))
    if (x_test is None) != (labels_test is None):
        missing = "x_test" if x_test is None else "labels_test"
        raise ValueError(f"{missing}=None: a test set needs x_test and labels_test; give both or neither")
    test = train[:0] if x_test is None else _rows("x_test", x_test)
    if test.shape[1:] != train.shape[1:]:
        raise ValueError(f"x_test: shape {test.shape}; expected {('N', *train.shape[1:])}, as of x")
    values_test = values[:0] if labels_test is None else inputs.labels("labels_test", labels_test, len(test))
    present = sorted(set(values.tolist()))
    if present == [-1, 1]:
        present = [1, -1]
    unknown = sorted(set(values_test.tolist()) - set(present), key=str)
    if unknown and classes is None:
        mend = "leave those rows out, or list the classes to keep in `classes`"
        raise ValueError(f"labels_test: value {unknown[0]!r} is not among the training labels; {mend}")
    keep = [present[k] for k in check_classes(name, present if classes is None else classes, present)]
    marks, marks_test = relabel(values, keep), relabel(values_test, keep)
    kept, kept_test = marks >= 0, marks_test >= 0
    names = tuple(map(str, keep))
    raw = Raw(names, train[kept], marks[kept], test[kept_test], marks_test[kept_test])
    how = {"unit_norm": unit_norm, "standardise": standardise}
    return _finish(name, raw, how, noise, seed, dtype, device)


def _finish(name: str, raw: Raw, how: dict[str, bool], noise: float, seed: int, dtype: Any, device: Any) -> Data:
    dtype, device = inputs.dtype("dtype", dtype), inputs.device("device", device)
    noise = inputs.number("noise", noise, "a share of labels to redraw, e.g. noise=0.2", lambda s: 0 <= s <= 1)
    how = {option: inputs.flag(option, value) for option, value in how.items()}
    x, x_test = (_tensor(part, raw.divisor, dtype, device) for part in (raw.x, raw.x_test))
    if how["standardise"]:
        axes = (0,) if x.ndim == 2 else (0, *range(2, x.ndim))
        std, mean = torch.std_mean(x, dim=axes, correction=0, keepdim=True)
        least = x.amin(axes, keepdim=True)
        constant = least == x.amax(axes, keepdim=True)  # such a channel is only centred
        std[constant], mean = 1, torch.where(constant, least, mean)
        if not bool((std.isfinite() & (std > 0)).all()):
            raise ValueError("standardise=True: the spread of x is beyond float64; divide x by abs(x).max() first")
        x, x_test = x.sub_(mean).div_(std), x_test.sub_(mean).div_(std)
    if how["unit_norm"]:
        _normalise("x", x)
        _normalise("x_test", x_test)
    if how.get("flat"):
        x, x_test = x.flatten(1), x_test.flatten(1)
    labels = redraw(raw.labels, len(raw.classes), noise, seed)
    return Data(
        name, raw.classes, _cast("x", x, dtype, device), torch.from_numpy(labels),
        _cast("x_test", x_test, dtype, device), torch.from_numpy(raw.labels_test),
        tuple(torch.from_numpy(weight) for weight in raw.truth), raw.bayes_error,
    )  # fmt: skip


def _tensor(part: NDArray[Any], divisor: float, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """Bytes travel to the device as bytes and widen there; nothing is rounded below float32 until the end."""
    part = np.ascontiguousarray(part)
    if part.dtype == np.uint8:
        wide = torch.promote_types(dtype, torch.float32)
        return torch.from_numpy(part).to(device).to(wide).div_(divisor)
    return torch.from_numpy(part)


def _rows(name: str, value: Any) -> Floats:
    """Inputs (N, ...) in float64, which may be the caller's own memory."""
    expected = "real numbers, one input a row, e.g. shape (N, d)"
    found = inputs.array(name, value, expected)
    if found.ndim < 2 or 0 in found.shape[1:]:
        raise ValueError(f"{name}: got shape {found.shape} of {found.dtype}; expected {expected}")
    return found


def _cast(word: str, x: Tensor, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """The same numbers in another type, or an error where that type makes infinity or nothing of them."""
    cast = x.to(device=device, dtype=dtype)
    if cast.dtype.itemsize < x.dtype.itemsize or cast.dtype == torch.float16 != x.dtype:
        rows = x.flatten(1).any(1).to(cast.device) & ~cast.flatten(1).any(1)
        if not bool(cast.isfinite().all()) or bool(rows.any()):
            what = f"numbers as large as {x.abs().max():.3g} or as small as {x.abs()[x != 0].min():.3g}"
            mend = f"write dtype=torch.float64, or divide by abs({word}).max()"
            raise ValueError(f"{word}: {what} do not fit into {dtype}; {mend}")
    return cast


def _normalise(word: str, x: Tensor) -> None:
    # In float64, which Apple's mps lacks, and a few rows at a time, or the copy would outweigh the data.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    flat = x.flatten(1)
    norms = torch.cat([rows.to(wide).norm(dim=1) for rows in torch.split(flat, 4096)]).to(x.dtype)
    odd = (norms < 1e-140) | (norms > 1e140) if x.dtype == torch.float64 else norms == 0
    if bool(odd.any()):  # squares that leave the range of numbers
        largest = flat[odd].abs().amax(1)
        flat[odd] /= torch.where(largest > 0, largest, 1)[:, None]
        norms[odd] = flat[odd].norm(dim=1)
    zero = (norms == 0).nonzero()
    if len(zero):
        what = f"row {int(zero[0])} is all zeros, which cannot be scaled to norm 1"
        raise ValueError(f"{word}: {what}; leave it out, or write unit_norm=False")
    flat.div_(norms[:, None])
