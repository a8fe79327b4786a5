"""What people have comes in whole or is refused by name: arrays of every make, at every entrance to data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nclib import inputs
from nclib.data import Data, data, from_arrays

X = np.arange(1.0, 13).reshape(4, 3)
SIGNS = [1, -1, -1, 1]
F64 = torch.float64


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.setflags(write=False)
    return x


FORMS = {
    "list": lambda x: x.tolist(),
    "list of tensors": lambda x: [torch.from_numpy(row) for row in x],
    "turned": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "columns first": np.asfortranarray,
    "big-endian": lambda x: x.astype(">f8"),
    "int": lambda x: x.astype(np.int32),
    "uint64": lambda x: x.astype(np.uint64),
    "half": lambda x: x.astype(np.float16),
    "long": lambda x: x.astype(np.longdouble),
    "read-only": read_only,
    "unmasked": np.ma.masked_array,
    "objects": lambda x: x.astype(object),
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "gradient": lambda x: torch.from_numpy(x).requires_grad_(),
    "sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "frame": lambda x: pd.DataFrame(np.repeat(x, 2, axis=0))[::2],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_array_gives_the_same_data(form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = from_arrays(FORMS[form](X), SIGNS, FORMS[form](X), SIGNS, dtype=F64)
    assert torch.equal(own.x, from_arrays(X, SIGNS, dtype=F64).x)
    assert torch.equal(own.x_test, own.x)
    assert X[0, 0] == 1


@pytest.mark.parametrize(
    "labels",
    [
        np.array(SIGNS, dtype=">i2"),
        np.array(SIGNS[::-1])[::-1],
        torch.tensor(SIGNS, dtype=torch.bfloat16),
        pd.Series([1, 0, -1, -1, 0, 1])[lambda s: s != 0],
        pd.Categorical(["a", "b", "b", "a"]),
        pd.Series(["a", "b", "b", "a"], index=[3, 9, 2, 1], dtype="string"),
        np.array(["a", "b", "b", "a"], dtype=object),
        pd.Series([1, 2, 2, 1], dtype="Int64"),
        np.array([0, 2**40, 2**40, 0], dtype=np.uint64),
        [False, True, True, False],
    ],
)
def test_every_form_of_labels_gives_the_same_classes(labels: Any) -> None:
    assert from_arrays(X, labels).y.tolist() == SIGNS


def test_labels_of_any_size_cost_nothing() -> None:
    own = from_arrays(np.eye(3), [10**9, -(10**12), 5])
    assert own.classes == ("-1000000000000", "5", "1000000000")
    assert own.labels.tolist() == [2, 0, 1]
    many = from_arrays(np.ones((20_000, 1)), np.arange(20_000) * 10**9)
    assert many.labels.tolist() == list(range(20_000))


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.ma.masked_array(X, X == 5), SIGNS, "^x: 1 entries are masked; fill them or leave them out"),
        (X, np.ma.masked_array(SIGNS, [1, 0, 0, 0]), "^labels: 1 entries are masked"),
        (X, np.array([2**64 - 1, 1, 1, 2], dtype=np.uint64), "^labels: .*expected one integer or string"),
        (X, [1, 2, None, 1], "^labels: .*expected one integer"),
        (X, None, "^labels=None: expected"),
        (X, "abba", "^labels='abba': expected"),
        (None, SIGNS, "^x=None: expected real numbers"),
        ("digits", SIGNS, "^x='digits': expected"),
        ([], [], r"^x: got shape \(0,\)"),
        ([[1, 2], [3]], [1, 2], "^x: .*expected real numbers"),
        (X + 0j, SIGNS, "^x: got shape .* of complex128"),
        (X.astype(str), SIGNS, "^x: got shape .*expected real numbers"),
        ([["1e400", 1]] * 4, SIGNS, "^x: "),
        (np.where(X == 5, np.longdouble("1e4000"), X), SIGNS, r"^x: holds NaN or infinity, first at \(1, 1\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_no_data_is_refused_by_name(x: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrays(x, labels)


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        ([[1e200, 1], [1, 2]], torch.float32),
        ([[1e-200, 0], [1, 2]], torch.float32),
        ([[7e4, 1], [1, 2]], torch.float16),
        ([[1e-9, 0], [1, 2]], torch.float16),
    ],
)
def test_numbers_that_a_type_cannot_hold_are_said_and_the_advice_works(x: Any, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^x: numbers as .*do not fit into {dtype}; write dtype=torch.float64"):
        from_arrays(x, [0, 1], dtype=dtype, unit_norm=False)
    wide = from_arrays(x, [0, 1], dtype=F64, unit_norm=False)
    assert wide.x.tolist() == x
    with pytest.raises(ValueError, match="do not fit into"):
        wide.to(dtype=dtype)
    unit = from_arrays(x, [0, 1], dtype=dtype)
    assert torch.allclose(unit.x.double().norm(dim=1), torch.ones(2, dtype=F64), atol=1e-3)


@given(power=st.integers(-300, 300), seed=st.integers(0, 99), standardise=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_unit_of_the_inputs_does_not_matter(power: int, seed: int, standardise: bool) -> None:
    x = np.random.default_rng(seed).standard_normal((5, 3))
    options = dict(standardise=standardise, dtype=F64)
    try:
        own = from_arrays(x * 2.0**power * 2.0 ** (2 * power), [0, 1, 0, 1, 0], **options)
    except ValueError as error:
        assert standardise
        assert "divide x by abs(x).max()" in str(error)  # noqa: PT017
    else:
        assert torch.allclose(own.x, from_arrays(x, [0, 1, 0, 1, 0], **options).x, rtol=1e-12)


def test_a_constant_column_is_centred_whatever_its_value() -> None:
    x = np.column_stack([np.full(30, 0.1), np.arange(30.0)])
    own = from_arrays(x, np.arange(30) % 2, standardise=True, unit_norm=False, dtype=F64)
    assert own.x[:, 0].tolist() == [0] * 30


def test_data_keep_to_floating_types() -> None:
    own = from_arrays(X, SIGNS)
    for wrong in (torch.int64, torch.bool, torch.complex64, torch.float8_e5m2):
        for call in (lambda t: own.to(t), lambda t: own.to(dtype=t), lambda t: data("digits", dtype=t)):
            with pytest.raises(ValueError, match=r"expected a floating-point type, e\.g\. dtype=torch.float64"):
                call(wrong)
    assert own.to(F64).x.dtype == own.to(dtype=F64).x.dtype == F64
    with pytest.raises(ValueError, match=r"^device='gpu': no device of this machine; write e.g. cpu"):
        own.to("gpu")
    with pytest.raises(ValueError, match=r"^unit_norm='no': expected True or False"):
        from_arrays(X, SIGNS, unit_norm="no")


BAD_SEEDS = [2**64, -1, 0.5, 3.0, True, "1", None, np.float64(1), torch.tensor(0.5), [1]]


@pytest.mark.parametrize("wrong", BAD_SEEDS)
def test_what_is_no_seed_is_no_seed_of_data(wrong: Any) -> None:
    for call in (lambda s: data("teacher", seed=s), lambda s: from_arrays(X, SIGNS, seed=s)):
        with pytest.raises(ValueError, match=r"^seed=.*: expected a whole number >= 0 and <= 18446744073709551615"):
            call(wrong)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, torch.tensor])
def test_a_seed_of_any_integer_type_is_that_seed(kind: Any) -> None:
    assert torch.equal(data("teacher", seed=kind(3)).x, data("teacher", seed=3).x)
    assert data("teacher", seed=2**64 - 1).x.isfinite().all()


@given(
    value=st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_each_kind_of_argument_says_what_to_write(value: Any) -> None:
    kinds: list[Any] = [
        inputs.count,
        inputs.seed,
        inputs.flag,
        inputs.dtype,
        inputs.array,
        inputs.labels,
        lambda n, v: inputs.number(n, v, "a number"),
        lambda n, v: inputs.counts(n, v, "(3,)"),
        lambda n, v: inputs.choice(n, v, ("a", "b")),
        lambda n, v: inputs.instance(n, v, Data, "data('digits')"),
        lambda n, v: inputs.tensor(n, v, like=torch.zeros(())),
    ]
    for kind in kinds:
        try:
            found = kind("what", value)
        except ValueError as error:
            assert str(error).startswith("what"), error  # noqa: PT017
        else:
            if isinstance(found, float):
                assert math.isfinite(found)
            if isinstance(found, Tensor):
                assert found.isfinite().all()
