"""A data set before it becomes tensors: arrays, random streams, and which points are used."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import inputs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TRAIN_SHARE = 0.8  # of a set without an official split, where `n` is not given

# Independent random streams of one seed: a draw added to one never shifts another.
SPLIT, NOISE, TRUTH, TRAIN, TEST = range(5)


@dataclass(frozen=True)
class Raw:
    """Arrays of one data set: images (N, C, H, W) or vectors (N, d), and labels in 0..K-1."""

    classes: tuple[str, ...]
    x: NDArray[Any]
    labels: Ints
    x_test: NDArray[Any]
    labels_test: Ints
    divisor: float = 1.0  # largest value of a pixel: 255 for bytes
    truth: tuple[Floats, ...] = ()
    bayes_error: float | None = None


def rng(seed: int, *stream: int) -> np.random.Generator:
    """Generator of one stream of one seed."""
    return np.random.default_rng([seed, *stream])


def check_classes(name: str, classes: Any, known: Sequence[Any]) -> list[int]:
    """Positions in `known` of classes given by value, or by index where values are names."""
    numbered = list(map(str, known)) == list(map(str, range(len(known))))
    listed = ", ".join([*map(repr, known[:20]), *["..."][: len(known) // 21]])
    spelled = f"0..{len(known) - 1}" if numbered else listed
    pair = (known[3], known[8]) if len(known) == 10 else tuple(known[:2])
    example = tuple(int(value) if str(value).isdigit() else value for value in pair)
    mend = f"{name} has classes {spelled}; write two or more of them, e.g. classes={example!r}"
    classes = list(classes) if isinstance(classes, np.ndarray) and classes.ndim == 1 else classes
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence):
        raise ValueError(f"classes={classes!r}: expected a sequence; {mend}")
    named = all(isinstance(value, str) for value in known)
    places = {value: place for place, value in enumerate(known)}
    chosen = []
    for value in classes:
        if isinstance(value, str | int | float | np.generic) and value in places:
            chosen.append(places[value])
        elif named and isinstance(value, int | np.integer) and 0 <= operator.index(value) < len(known):
            chosen.append(operator.index(value))
        else:
            raise ValueError(f"classes={classes!r}: no class {value!r}; {mend}")
    if len(chosen) < 2:
        raise ValueError(f"classes={classes!r}: fewer than two classes; {mend}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"classes={classes!r}: a class stands twice; {mend}")
    return chosen


def relabel(labels: NDArray[Any], keep: Sequence[Any]) -> Ints:
    """Position of each label in `keep`, and -1 for a label that is not kept."""
    places = {value: place for place, value in enumerate(keep)}
    return np.array([places.get(value, -1) for value in labels.tolist()], dtype=np.int64)


def choose(name: str, raw: Raw, classes: Any, n: int | None, n_test: int | None, seed: int) -> Raw:
    """Keep some classes, labelled 0..K-1 in the order given, and draw `n` and `n_test` points of them.

    A smaller `n` gives a subset of a larger one.  A set without official test points (digits) is split:
    its test points come from the far end of each class, so they stay put while n grows.
    """
    keep = check_classes(name, raw.classes if classes is None else classes, raw.classes)
    names = tuple(raw.classes[k] for k in keep)
    labels, labels_test = relabel(raw.labels, keep), relabel(raw.labels_test, keep)
    queues = _queues(labels, len(keep), seed, 0)
    total = sum(map(len, queues))
    pooled = len(raw.x_test) == 0
    whole = round(TRAIN_SHARE * total) if pooled else total
    rows, rest = _take(queues, inputs.count("n", whole if n is None else n, len(keep), total))
    x_test = raw.x_test
    if pooled:
        x_test, labels_test, rest = raw.x, labels, [queue[::-1] for queue in rest]
    else:
        rest = _queues(labels_test, len(keep), seed, 1)
    total = sum(map(len, rest))
    n_test = total if n_test is None else inputs.count("n_test", n_test, 0, total)
    rows_test, _ = _take(rest, n_test)
    return Raw(names, raw.x[rows], labels[rows], x_test[rows_test], labels_test[rows_test], raw.divisor)


def _queues(labels: Ints, k: int, seed: int, part: int) -> list[Ints]:
    """Rows of each class in a random order that depends on nothing but the seed."""
    return [rng(seed, SPLIT, part, c).permutation(np.flatnonzero(labels == c)) for c in range(k)]


def _take(queues: list[Ints], total: int) -> tuple[Ints, list[Ints]]:
    """Take `total` rows from the heads of the queues, as evenly as their lengths allow; the rest remains."""
    counts, left = [0] * len(queues), total
    for rank, k in enumerate(sorted(range(len(queues)), key=lambda k: len(queues[k]))):
        counts[k] = min(len(queues[k]), left // (len(queues) - rank))
        left -= counts[k]
    rows = np.sort(np.concatenate([queue[:count] for queue, count in zip(queues, counts, strict=True)]))
    return rows, [queue[count:] for queue, count in zip(queues, counts, strict=True)]


def redraw(labels: Ints, k: int, noise: float, seed: int) -> Ints:
    """Replace a share of the labels; a larger share with the same seed replaces these and further ones."""
    generator = rng(seed, NOISE)
    chosen = generator.permutation(len(labels))[: round(noise * len(labels))]
    labels = labels.copy()
    labels[chosen] = generator.integers(0, k, len(labels))[chosen]
    return labels
