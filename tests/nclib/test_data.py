"""Data sets: splits, truth of the synthetic sets, label noise, and every error."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib.data import NAMES, data, from_arrays, synthetic
from nclib.data.raw import redraw

F64 = torch.float64


def rows(x):
    """Inputs as a set of tuples, to compare sets of points."""
    return {tuple(row) for row in x.flatten(1).tolist()}


# ------------------------------------------------------------------------------------------------ digits


def test_digits_default_is_a_disjoint_split_of_all_images():
    digits = data("digits", unit_norm=False, dtype=F64)
    assert (len(digits.x), len(digits.x_test)) == (1438, 359)
    everything = torch.cat([digits.x, digits.x_test])
    assert everything.min() == 0
    assert everything.max() == 1
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert rows(everything) == rows(torch.tensor(bunch.data / 16))
    label_of = {tuple(row): label for row, label in zip((bunch.data / 16).tolist(), bunch.target, strict=True)}
    assert [label_of[tuple(row)] for row in digits.x.tolist()] == digits.labels.tolist()
    assert [label_of[tuple(row)] for row in digits.x_test.tolist()] == digits.labels_test.tolist()


def test_first_class_is_plus_one():
    pair, reverse = data("digits", classes=(3, 8), n=50), data("digits", classes=("8", 3), n=50)
    assert pair.classes == ("3", "8")
    assert reverse.classes == ("8", "3")
    assert torch.equal(pair.y, torch.where(pair.labels == 0, 1.0, -1.0))
    assert pair.y_test.shape == pair.labels_test.shape
    assert (pair.outputs, pair.input_shape) == (1, (64,))


def test_more_classes_are_one_hot():
    three = data("digits", classes=(5, 0, 7), n=30)
    assert three.y.shape == (30, 3)
    assert torch.equal(three.y.argmax(1), three.labels)
    assert torch.equal(three.y.sum(1), torch.ones(30))
    assert three.outputs == 3


@pytest.mark.parametrize("n", [10, 101, 999])
def test_training_points_are_balanced_to_one(n):
    counts = data("digits", n=n).labels.bincount(minlength=10)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1


def test_a_full_class_leaves_its_share_to_the_others():
    everything = data("digits", classes=(8, 3), n=357)
    assert everything.labels.bincount().tolist() == [174, 183]
    assert len(everything.x_test) == 0
    assert everything.y_test.shape == (0,)


def test_smaller_training_sets_are_subsets_and_test_points_stay():
    small, large = (data("digits", classes=(3, 8), n=n, n_test=60, seed=4) for n in (40, 200))
    assert rows(small.x) < rows(large.x)
    assert torch.equal(small.x_test, large.x_test)
    assert not rows(large.x) & rows(large.x_test)


def test_seed_decides_the_split():
    first, again, other = (data("digits", n=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_no_global_generator_is_used():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for name in ("digits", "teacher", "gaussians"):
        data(name, noise=0.3)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (F64, 1e-15), (torch.bfloat16, 4e-3)])
def test_unit_norm(dtype, tolerance):
    for name in ("digits", "teacher", "gaussians"):
        loaded = data(name, dtype=dtype)
        for x in (loaded.x, loaded.x_test):
            assert x.dtype == dtype
            assert (x.double().flatten(1).norm(dim=1) - 1).abs().max() <= tolerance


def test_standardise_uses_the_training_images_only():
    loaded = data("digits", n=100, standardise=True, unit_norm=False, dtype=F64)
    plain = data("digits", n=100, unit_norm=False, dtype=F64)
    assert abs(loaded.x.mean()) < 1e-12
    assert loaded.x.std(correction=0).item() == pytest.approx(1)
    expected = (plain.x_test - plain.x.mean()) / plain.x.std(correction=0)
    assert torch.allclose(loaded.x_test, expected, atol=1e-12)


def test_standardise_comes_before_unit_norm():
    loaded = data("digits", n=100, standardise=True, dtype=F64)
    raw = data("digits", n=100, standardise=True, unit_norm=False, dtype=F64)
    assert torch.allclose(loaded.x, raw.x / raw.x.norm(dim=1, keepdim=True))


def test_flat_changes_the_shape_only():
    images, vectors = data("digits", n=20, flat=False), data("digits", n=20)
    assert images.input_shape == (1, 8, 8)
    assert torch.equal(images.x.flatten(1), vectors.x)


def test_to_moves_everything_and_keeps_labels():
    loaded = data("teacher", dtype=F64)
    single = loaded.to(dtype=torch.float32)
    assert {t.dtype for t in (single.x, single.x_test, single.y, *single.truth)} == {torch.float32}
    assert single.labels.dtype == torch.int64
    assert torch.equal(single.x, loaded.x.float())
    meta = loaded.to("meta")
    assert {t.device.type for t in (meta.x, meta.labels, meta.x_test, meta.labels_test, *meta.truth)} == {"meta"}


def test_repr_is_short():
    assert repr(data("gaussians", n=5)) == (
        "Data('gaussians', classes=('0', '1'), x=(5, 20), x_test=(1000, 20), float32, cpu)"
    )


# ----------------------------------------------------------------------------------------------- teacher


def output(truth, x):
    """Bias-free ReLU network with the given weight matrices."""
    for weight in truth[:-1]:
        x = torch.relu(x @ weight.T)
    return x @ truth[-1].T


@pytest.mark.parametrize("width", [2, 4, 16])
@pytest.mark.parametrize("unit_norm", [True, False])
def test_teacher_labels_are_the_sign_of_its_truth(width, unit_norm):
    loaded = data("teacher", n=50, d=7, width=width, seed=3, unit_norm=unit_norm, dtype=F64)
    assert loaded.truth[0].shape == (width, 7)
    assert torch.equal(output(loaded.truth, loaded.x)[:, 0].sign(), loaded.y)
    assert torch.equal(output(loaded.truth, loaded.x_test)[:, 0].sign(), loaded.y_test)
    assert loaded.bayes_error == 0


def test_teacher_has_no_mean():
    for seed in range(5):
        loaded = data("teacher", d=3, width=6, n_test=100_000, seed=seed, dtype=F64)
        values = output(loaded.truth, loaded.x_test)
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(100_000)


def test_teacher_always_shows_both_classes():
    for seed in range(40):
        assert data("teacher", n=2, n_test=0, d=5, seed=seed).labels.bincount().tolist() == [1, 1]


def test_teacher_stays_while_points_are_added():
    small, large = (data("teacher", n=n, seed=5, dtype=F64) for n in (20, 50))
    assert torch.equal(small.x, large.x[:20])
    assert torch.equal(small.x_test, large.x_test)
    assert torch.equal(small.truth[0], large.truth[0])


def test_teacher_gives_up_with_advice(monkeypatch):
    monkeypatch.setattr(synthetic, "TEACHER_TRIES", 0)
    with pytest.raises(ValueError, match=r"n=2, d=1, width=2: .*one class only; write a larger n, d or width"):
        data("teacher", n=2, d=1, width=2)


# --------------------------------------------------------------------------------------------- gaussians


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize(("k", "d", "separation"), [(2, 1, 2.0), (2, 20, 3.0), (3, 2, 2.5), (10, 30, 4.0)])
def test_gaussians_bayes_error(k, d, separation, unit_norm):
    many = 200_000
    loaded = data("gaussians", classes=k, d=d, separation=separation, n_test=many, unit_norm=unit_norm, dtype=F64)
    scores = output(loaded.truth, loaded.x_test)
    guess = scores.argmax(1) if k > 2 else (scores[:, 0] <= 0).long()
    error = loaded.bayes_error
    measured = (guess != loaded.labels_test).double().mean().item()
    assert abs(measured - error) < 4 * math.sqrt(error * (1 - error) / many)


def test_gaussians_bayes_error_closed_forms():
    assert synthetic.gaussians_error(2, 2.0) == pytest.approx(0.15865525393145707, rel=1e-12)
    for k in (3, 10, 1000):
        assert synthetic.gaussians_error(k, 0.0) == pytest.approx(1 - 1 / k, rel=1e-9)
    # Far apart only single mix-ups count: the union bound over K - 1 neighbours becomes sharp.
    for separation in (14.0, 20.0):
        union = 9 * synthetic.gaussians_error(2, separation)
        assert synthetic.gaussians_error(10, separation) == pytest.approx(union, rel=1e-3)
        assert synthetic.gaussians_error(10, separation) < union


@given(k=st.integers(2, 12), more=st.integers(0, 5), edge=st.floats(0.1, 10), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_simplex_is_regular_and_centred(k, more, edge, seed):
    corners = synthetic.simplex(k, k - 1 + more, edge, np.random.default_rng(seed))
    assert np.allclose(corners.sum(0), 0, atol=1e-12 * k * edge)
    distances = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    assert np.allclose(distances[~np.eye(k, dtype=bool)], edge, rtol=1e-12)


# ----------------------------------------------------------------------------------------- label noise


def test_noise_redraws_a_share_uniformly():
    clean = np.repeat(np.arange(5), 20_000)
    noisy = redraw(clean, 5, 0.4, seed=1)
    wrong = (noisy != clean).mean()
    assert abs(wrong - 0.4 * 4 / 5) < 4 * math.sqrt(0.4 * 0.2 * 0.8 / 100_000)
    for k in range(5):
        others = np.bincount(noisy[(clean == k) & (noisy != k)], minlength=5)
        assert others[k] == 0
        assert np.delete(others, k) == pytest.approx(1600, rel=0.1)


def test_noise_leaves_test_labels_inputs_and_its_argument_alone():
    clean, noisy = (data("digits", n=500, noise=noise, seed=2) for noise in (0.0, 1.0))
    assert torch.equal(clean.labels_test, noisy.labels_test)
    assert torch.equal(clean.x, noisy.x)
    agree = (clean.labels == noisy.labels).double().mean()
    assert 0.05 < agree < 0.15
    assert torch.equal(clean.labels, data("digits", n=500, seed=2).labels)


def test_more_noise_keeps_what_less_noise_changed():
    clean = np.zeros(1000, dtype=np.int64)
    less, more = redraw(clean, 10, 0.2, seed=0), redraw(clean, 10, 0.6, seed=0)
    changed = less != 0
    assert changed.sum() > 150
    assert (more[changed] == less[changed]).all()


# --------------------------------------------------------------------------------------------- own arrays


def test_from_arrays_normalises_a_copy():
    x = np.array([[3.0, 4.0], [0.0, 2.0]])
    own = from_arrays(x, [7, 2], dtype=F64)
    assert own.classes == ("2", "7")
    assert own.labels.tolist() == [1, 0]
    assert own.x.tolist() == [[0.6, 0.8], [0.0, 1.0]]
    assert x[0, 0] == 3.0
    assert own.x_test.shape == (0, 2)
    assert own.bayes_error is None


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda y: torch.tensor(y, dtype=torch.float32)])
def test_from_arrays_keeps_signs(kind):
    signs = [1, -1, -1, 1]
    own = from_arrays(np.eye(4), kind(signs))
    assert own.classes == ("1", "-1")
    assert own.y.tolist() == signs


def test_from_arrays_takes_names_and_keeps_classes_asked_for():
    x = np.arange(1.0, 13).reshape(6, 2)
    own = from_arrays(
        x,
        ["cat", "dog", "owl", "cat", "dog", "owl"],
        x[:3],
        ["owl", "cat", "yak"],
        classes=("owl", "cat"),
        unit_norm=False,
    )
    assert own.classes == ("owl", "cat")
    assert own.labels.tolist() == [1, 0, 1, 0]
    assert own.x.tolist() == x[[0, 2, 3, 5]].tolist()
    assert own.labels_test.tolist() == [0, 1]


def test_from_arrays_takes_tensors_with_gradients_and_images():
    x = torch.rand(4, 3, 5, 5, requires_grad=True)
    own = from_arrays(x, [0, 1, 0, 1], standardise=True, unit_norm=False)
    assert own.input_shape == (3, 5, 5)
    assert not own.x.requires_grad
    assert torch.allclose(own.x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-6)


def test_standardise_of_vectors_is_entrywise_and_survives_a_constant():
    own = from_arrays([[1.0, 5.0], [3.0, 5.0]], [0, 1], standardise=True, unit_norm=False)
    assert own.x.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(name="didgits"),
            r"name='didgits': unknown; did you mean 'digits'\? write one of 'digits', ",
        ),
        (dict(name="Fashion_MNIST"), r"did you mean 'fashion-mnist'\?"),
        (dict(name="qqq"), r"name='qqq': unknown; write one of 'digits', 'teacher'"),
        (dict(name=None), r"name=None: unknown"),
        (
            dict(name="digits", classes=(3, 12)),
            r"classes=\(3, 12\): no class 12; digits has classes 0\.\.9; "
            r"write two or more of them, e\.g\. classes=\(3, 8\)",
        ),
        (dict(name="digits", classes=(3, -1)), r"no class -1"),
        (dict(name="digits", classes=("3", "x")), r"no class 'x'"),
        (dict(name="digits", classes=(3, 8.5)), r"no class 8\.5"),
        (
            dict(name="digits", classes=(3,)),
            r"classes=\(3,\): fewer than two classes; digits has classes 0\.\.9",
        ),
        (dict(name="digits", classes=()), r"fewer than two classes"),
        (dict(name="digits", classes=(3, "3")), r"classes=\(3, '3'\): a class stands twice"),
        (dict(name="digits", classes=3), r"classes=3: expected a sequence; digits has classes"),
        (dict(name="digits", classes="38"), r"classes='38': expected a sequence"),
        (
            dict(name="digits", classes=(3, 8), n=358),
            r"n=358: expected a whole number >= 2 and <= 357",
        ),
        (
            dict(name="digits", classes=(3, 8), n=300, n_test=58),
            r"n_test=58: expected a whole number >= 0 and <= 57",
        ),
        (
            dict(name="digits", classes=(3, 8), n=1),
            r"n=1: expected a whole number >= 2 and <= 357; write e\.g\. n=2",
        ),
        (dict(name="digits", n=10.5), r"n=10\.5: expected a whole number >= 10"),
        (dict(name="digits", n=True), r"n=True: expected a whole number"),
        (dict(name="digits", n_test=-1), r"n_test=-1: expected a whole number >= 0"),
        (dict(name="digits", seed=-1), r"seed=-1: expected a whole number >= 0"),
        (dict(name="digits", seed=0.5), r"seed=0\.5: expected a whole number >= 0"),
        (
            dict(name="digits", noise=1.2),
            r"noise=1\.2: expected a share of labels to redraw, e\.g\.",
        ),
        (dict(name="digits", noise=-0.1), r"noise=-0\.1: expected"),
        (dict(name="digits", noise=math.nan), r"noise=nan: expected"),
        (dict(name="digits", noise="0.1"), r"noise='0\.1': expected"),
        (dict(name="digits", dtype=torch.int64), r"dtype=torch\.int64: expected a floating-point type"),
        (dict(name="digits", width=3), r"width=3: no option of 'digits', only of 'teacher'; leave it out"),
        (dict(name="digits", d=3), r"d=3: no option of 'digits', only of 'teacher', 'gaussians'"),
        (
            dict(name="teacher", separation=1.0),
            r"separation=1\.0: no option of 'teacher', only of 'gaussians'",
        ),
        (dict(name="gaussians", verify=False), r"verify=False: no option of 'gaussians', only of 'mnist'"),
        (
            dict(name="teacher", standardise=True),
            r"standardise=True: .*known truth of 'teacher'; leave it out",
        ),
        (dict(name="teacher", classes=(0, 1)), r"classes=\(0, 1\): 'teacher' always has two classes"),
        (dict(name="teacher", n=1), r"n=1: 'teacher' needs a point of each .* write n=2 or more"),
        (dict(name="teacher", width=1), r"width=1: expected a whole number >= 2"),
        (dict(name="teacher", width=5), r"width=5: .* in pairs; write an even width, e\.g\. width=6"),
        (dict(name="teacher", d=0), r"d=0: expected a whole number >= 1"),
        (
            dict(name="gaussians", classes=(0, 1)),
            r"classes=\(0, 1\): 'gaussians' takes the number of classes",
        ),
        (dict(name="gaussians", classes=1), r"classes=1: expected a whole number >= 2"),
        (dict(name="gaussians", classes=5, d=3), r"d=3: 5 class means .* need d >= 4; write d=4"),
        (dict(name="gaussians", separation=-1), r"separation=-1: expected a distance, 0 to 1e30"),
        (dict(name="gaussians", separation=math.inf), r"separation=inf: expected a distance"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        data(**arguments)
    assert "\n" not in str(caught.value)


GOOD = np.eye(3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ([[1.0, math.nan], [1, 2]], [0, 1]),
            {},
            r"x: holds NaN or infinity, first at \(0, 1\)",
        ),
        ((GOOD, [0, 1, 0], [[0, math.inf, 0]], [1]), {}, r"x_test: holds NaN or infinity, first at \(0, 1\)"),
        (([1.0, 2.0], [0, 1]), {}, r"x: got shape \(2,\) of float64; expected real numbers, one input a row"),
        (([["a", "b"]], [0]), {}, r"x: got shape \(1, 2\) of <U1; expected real numbers"),
        ((np.empty((3, 0)), [0, 1, 0]), {}, r"x: got shape \(3, 0\)"),
        ((GOOD, [0, 1]), {}, r"labels: 2 labels for 3 inputs; give one for each row"),
        ((GOOD, [0, 1, 0], GOOD, [1]), {}, r"labels_test: 1 labels for 3 inputs"),
        ((GOOD, [[0, 1, 0]]), {}, r"labels: got shape \(1, 3\) of int64; expected one integer or string"),
        ((GOOD, [0, 1, math.nan]), {}, r"labels: got shape \(3,\) of float64"),
        ((GOOD, [0, 1, 0.5]), {}, r"labels: got shape \(3,\) of float64"),
        ((GOOD, [1, 1, 1]), {}, r"fewer than two classes; arrays has classes 1; write two or more"),
        ((GOOD, [0, 1, 2]), {"classes": (0, 3)}, r"classes=\(0, 3\): no class 3; arrays has classes 0\.\.2"),
        (
            (GOOD, ["a", "b", "c"]),
            {"classes": ("a",)},
            r"arrays has classes 'a', 'b', 'c'; .* classes=\('a', 'b'\)",
        ),
        ((GOOD, [0, 1, 0], GOOD), {}, r"labels_test=None: a test set needs x_test and labels_test"),
        ((GOOD, [0, 1, 0], None, [1]), {}, r"x_test=None: a test set needs"),
        ((GOOD, [0, 1, 0], [[1.0]], [1]), {}, r"x_test: shape \(1, 1\); expected \('N', 3\)"),
        ((GOOD, [0, 1, 0], GOOD, [0, 1, 5]), {}, r"labels_test: value 5 is not among the training labels"),
        (
            ([[0.0, 0], [1, 0]], [0, 1]),
            {},
            r"x: row 0 is all zeros, which cannot be scaled .* unit_norm=False",
        ),
        ((GOOD, [0, 1, 0], GOOD * 0, [0, 1, 1]), {}, r"x_test: row 0 is all zeros"),
        ((GOOD, [0, 1, 0]), {"noise": 2}, r"noise=2: expected"),
        ((GOOD, [0, 1, 0]), {"seed": "a"}, r"seed='a': expected"),
    ],
)
def test_bad_arrays_are_named_in_one_line(arguments, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_arrays(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_zero_rows_pass_without_unit_norm():
    assert from_arrays([[0.0, 0], [1, 0]], [0, 1], unit_norm=False).x[0].tolist() == [0, 0]


def test_names_lists_every_set():
    assert NAMES == ("digits", "teacher", "gaussians", "mnist", "fashion-mnist", "cifar10")
