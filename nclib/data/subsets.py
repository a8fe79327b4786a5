"""Which points of a data set are used: classes, balanced random subsets, a split, label noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .raw import NOISE, SPLIT, Ints, Raw, check_at_most, check_classes, check_count, relabel, rng

TRAIN_SHARE = 0.8  # of a set without an official split, where `n` is not given


def choose(name: str, raw: Raw, classes: Any, n: int | None, n_test: int | None, seed: int) -> Raw:
    """Keep some classes, labelled 0..K-1 in the order given, and draw `n` and `n_test` points of them.

    A smaller `n` gives a subset of a larger one.  A set without official test points (digits) is split:
    its test points come from the far end of each class, so they stay put while n grows.
    """
    keep = check_classes(name, raw.classes if classes is None else classes, raw.classes)
    names = tuple(raw.classes[k] for k in keep)
    labels, labels_test = relabel(raw.labels, keep), relabel(raw.labels_test, keep)
    what = f"{name} with classes {names} has"
    queues = _queues(labels, len(keep), seed, 0)
    total = sum(map(len, queues))
    pooled = len(raw.x_test) == 0
    if n is None:
        n = round(TRAIN_SHARE * total) if pooled else total
    n = check_at_most("n", check_count("n", n, len(keep)), total, f"{what} {total} training points")
    rows, rest = _take(queues, n)
    x_test = raw.x_test
    if pooled:
        x_test, labels_test, rest = raw.x, labels, [queue[::-1] for queue in rest]
    else:
        rest = _queues(labels_test, len(keep), seed, 1)
    total = sum(map(len, rest))
    n_test = total if n_test is None else check_count("n_test", n_test, 0)
    check_at_most("n_test", n_test, total, f"{what} {total} points for the test set")
    rows_test, _ = _take(rest, n_test)
    return replace(
        raw,
        classes=names,
        x=raw.x[rows],
        labels=labels[rows],
        x_test=x_test[rows_test],
        labels_test=labels_test[rows_test],
    )


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
