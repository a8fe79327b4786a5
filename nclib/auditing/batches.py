"""A person's data, in batches, and their labels in whatever coding, as the readings take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import inputs
from ..training.optim import targets

_POINTS, _NUMBERS, _NUMBERS_CUDA = 512, 2**22, 2**25  # most of a piece


class Batches:
    """Pairs of inputs and labels, read as often as asked, on the device and in the type of a model.

    However the data are cut into batches, they come in the same pieces; so no reading depends on the cut.
    """

    def __init__(self, model: nn.Module, data: Any, labels: Any) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model={inputs.shown(model)}: expected a torch.nn.Module")
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        if like is None:
            raise ValueError("model has no parameters; expected a network with weights")
        self._like, self._data, self._labels = like, data, labels
        if labels is None:
            if hasattr(data, "__next__"):
                raise ValueError("inputs is an iterator, read only once; pass the list or DataLoader itself")
            if isinstance(data, Tensor | np.ndarray) or not hasattr(data, "__iter__"):
                raise ValueError("labels is missing; give labels, or batches (x, y), e.g. a DataLoader, as inputs")
        else:
            self._data, self._labels = self._taken(data), _numbers(labels)
            if len(self._labels) != len(self._data):
                raise ValueError(f"labels: {len(self._labels)} for {len(self._data)} inputs; give one for each")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, left, seen = self._like.device, None, False
        most = _NUMBERS_CUDA if device.type == "cuda" else _NUMBERS
        for x, y in self._batches():
            if left is not None:
                x, y = torch.cat([left[0], x]), torch.cat([left[1], y])
            size = max(1, min(_POINTS, most // max(1, x[:1].numel())))
            whole = len(y) - len(y) % size
            for at in range(0, whole, size):
                seen = True
                yield x[at : at + size].to(device), y[at : at + size].to(device)
            left = x[whole:], y[whole:]
        if left is not None and len(left[1]):
            yield left[0].to(device), left[1].to(device)
        elif not seen:
            raise ValueError("inputs is empty; give at least one batch with a point")

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._labels is not None:
            yield from zip(torch.split(self._data, _POINTS), torch.split(self._labels, _POINTS), strict=True)
            return
        for batch in self._data:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise ValueError(f"inputs: a batch is {inputs.shown(type(batch).__name__)}; expected pairs (x, y)")
            x, y = self._taken(batch[0]), _numbers(batch[1])
            if len(x) != len(y):
                raise ValueError(f"inputs: a batch has {len(x)} inputs and {len(y)} labels; give one for each")
            yield x, y

    def first(self, most: int) -> Tensor:
        """Up to so many of the first inputs."""
        x, _ = next(iter(self))
        return x[:most]

    def some(self, points: int) -> tuple[Tensor, Tensor]:
        """So many points in memory, if there are: evenly spread over arrays, the first ones of batches."""
        self.first(1)  # or says that there is none
        if self._labels is not None:
            n = len(self._labels)
            chosen = torch.linspace(0, n - 1, min(points, n)).round().long()
            return self._data[chosen], self._labels[chosen]
        held, n = list[tuple[Tensor, Tensor]](), 0
        for x, y in self:
            held.append((x.cpu(), y.cpu()))
            n += len(y)
            if n >= points:
                break
        x, y = (torch.cat(parts) for parts in zip(*held, strict=True))
        return x[:points], y[:points]

    def _taken(self, x: Any) -> Tensor:
        if isinstance(x, Tensor) and x.dtype in (torch.int64, torch.int32):
            return x  # tokens
        where = x.device if isinstance(x, Tensor) else "cpu"  # a piece at a time goes to the model
        like = torch.empty(0, dtype=self._like.dtype, device=where)
        found = inputs.tensor("inputs", x, "inputs (N, ...)", like=like)
        if found.ndim < 2:
            raise ValueError(f"inputs has shape {tuple(found.shape)}; expected inputs (N, ...), one input a row")
        return found


def _numbers(labels: Any) -> Tensor:
    """Labels as whole numbers (n,): class numbers, ±1, or one-hot rows, whose class counts."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
    found = inputs.plain("labels", labels, "one label for each input")
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim == 2:
        if not (found.size and ((found == 0) | (found == 1)).all() and (found.sum(1) == 1).all()):
            raise ValueError(
                "labels: rows of a two-dimensional array must be one-hot; or write class numbers, (N,)"
            )
        found = found.argmax(1)
    numbers = inputs.labels("labels", found)
    if numbers.dtype.kind == "U":
        raise ValueError("labels are strings; write the numbers of the outputs that they mean, 0 to K − 1")
    return torch.from_numpy(numbers)


class Coding:
    """Labels as classes and as targets, for a model of so many outputs."""

    def __init__(self, outputs: int) -> None:
        self.outputs, self.classes = outputs, max(outputs, 2)
        self._seen = set[int]()

    def __call__(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Class numbers (n,), and targets (n, outputs): ±1 for one output, the class 0 being +1; else one-hot."""
        if self.outputs > 1:
            wrong = labels[(labels < 0) | (labels >= self.outputs)]
            if len(wrong):
                which = f"labels: {int(wrong[0])} is none of the classes 0 to {self.outputs - 1}"
                raise ValueError(f"{which} of a model with {self.outputs} outputs; number them from 0")
            return labels, targets(labels, self.outputs, self.classes, torch.float64)
        self._seen |= set(labels.tolist())
        if not (self._seen <= {-1, 1} or self._seen <= {0, 1}):
            some = ", ".join(map(str, sorted(self._seen)[:4]))
            raise ValueError(
                f"labels: {some}; a model with one output takes −1 and 1, or 0 and 1 (1 where it is positive)"
            )
        numbers = (labels <= 0).long()
        return numbers, targets(numbers, 1, 2, torch.float64)
