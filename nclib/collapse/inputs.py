"""What the collapse metrics accept, and the errors for what they do not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .scatter import class_means

Array = Tensor | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Classifier:
    """A last layer, argmax(Wh + b), in float64: weight (K, d), bias (K,) or None for no bias."""

    weight: Tensor
    bias: Tensor | None

    def at(self, points: Tensor) -> Tensor:
        """W p + b for the rows p of ``points``, shape (K, n)."""
        logits = self.weight @ points.T
        return logits if self.bias is None else logits + self.bias[:, None]


@dataclass(frozen=True)
class Given:
    """Features (N, d), labels (N,), sizes (K,) and means (K, d) of the classes, and a last layer or None."""

    rows: Tensor
    labels: Tensor
    counts: Tensor
    means: Tensor
    classifier: Classifier | None


def checked(features: Array, labels: Array, weight: Array | None, bias: Array | None = None) -> Given:
    """Everything checked: every class is there, and its mean is finite."""
    rows = checked_features(features)
    # Two even for a weight of one row, so that the error is about the weight.
    numbers, classes = checked_labels(labels, rows, None if weight is None else max(2, len(weight)))
    classifier = checked_classifier(weight, bias, classes, rows)
    counts = torch.bincount(numbers, minlength=classes).double()
    require_every_class(counts)
    means = class_means(rows, numbers, counts)
    require_finite(means, "features")
    return Given(rows, numbers, counts, means, classifier)


def checked_features(features: Array) -> Tensor:
    """The features as a (N, d) tensor, sharing the caller's memory."""
    rows = _tensor(features).detach()
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"features has shape {tuple(rows.shape)}: expected (N, d), a row of d numbers for each example; "
            f"features.flatten(1) makes rows of images"
        )
    if not rows.is_floating_point():
        raise TypeError(f"features holds {rows.dtype}: expected floating point; convert with features.float()")
    return rows


def checked_labels(labels: Array, features: Tensor, classes: int | None) -> tuple[Tensor, int]:
    """The labels as int64 where the features are, and K: as given, or the largest label plus one."""
    numbers = _tensor(labels).detach()
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"labels holds {numbers.dtype}: expected class numbers; convert with labels.long()")
    if numbers.shape != features.shape[:1]:
        raise ValueError(f"labels has shape {tuple(numbers.shape)}: expected ({len(features)},), one for each row")
    numbers = numbers.to(features.device, torch.int64)
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or (classes is not None and high >= classes):
        expected = "0..K-1" if classes is None else f"0..{classes - 1} for {classes} classes"
        raise ValueError(f"labels reaches from {low} to {high}: expected {expected}; renumber the classes")
    classes = high + 1 if classes is None else classes
    if classes < 2:
        raise ValueError("labels has one class: collapse compares classes; give two or more, numbered 0..K-1")
    return numbers, classes


def checked_classifier(
    weight: Array | None, bias: Array | None, classes: int, features: Tensor
) -> Classifier | None:
    """The last layer in float64 where the features are, or None if no weight was given."""
    if weight is None:
        if bias is not None:
            raise ValueError("bias was given without weight: expected both, or weight alone")
        return None
    matrix = _float64(weight, features)
    expected = (classes, features.shape[1])
    if matrix.shape != expected:
        hint = ""
        if matrix.shape == (1, expected[1]) and classes == 2:
            hint = "; a single output w is weight = cat([w, -w]) / 2 with bias = (1/2, 1/2)"
        raise ValueError(f"weight has shape {tuple(matrix.shape)}: expected {expected}, a row for each class{hint}")
    require_finite(matrix, "weight")
    if bias is None:
        return Classifier(matrix, None)
    vector = _float64(bias, features)
    if vector.shape != (classes,):
        raise ValueError(f"bias has shape {tuple(vector.shape)}: expected ({classes},), a number for each class")
    require_finite(vector, "bias")
    return Classifier(matrix, vector)


def require_every_class(counts: Tensor) -> None:
    """Raise unless every class has a row."""
    empty = [index for index, count in enumerate(counts.tolist()) if count == 0]
    if empty:
        raise ValueError(
            f"labels has no row of class {empty[0]} ({len(empty)} of {len(counts)} classes are empty): "
            f"expected every class 0..{len(counts) - 1}; renumber the classes that are there"
        )


def require_finite(values: Tensor, name: str) -> None:
    """Raise if ``values``, the argument ``name`` or a sum over it, holds nan or infinity."""
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds nan or infinity: expected finite numbers; has the network diverged?")


def _tensor(values: Array) -> Tensor:
    with warnings.catch_warnings():
        # A read-only array (a memory map) is fine: nothing is written to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(values)


def _float64(values: Array, like: Tensor) -> Tensor:
    return _tensor(values).detach().to(like.device, torch.float64)
