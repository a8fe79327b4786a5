import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

import nclib as nc
from nclib.book.plots import INK, PAPER, style

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def fresh():
    import matplotlib.pyplot as plt

    style()
    yield
    plt.close("all")


def luminance(colour):
    """Relative luminance as WCAG defines it."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return np.dot([0.2126, 0.7152, 0.0722], parts)


def test_ink_on_paper_has_the_contrast_of_body_text():
    assert (luminance(PAPER) + 0.05) / (luminance(INK) + 0.05) >= 7


def test_lines_label_their_axes_with_symbols():
    frame = pd.DataFrame({"t": [1, 2, 1, 2], "rho": [1.0, 2.0, 1.5, 2.5], "weight_decay": [0.1, 0.1, 0.2, 0.2]})
    ax = nc.lines(frame, x="t", y="rho", hue="weight_decay", log="xy")
    assert ax.get_ylabel() == r"norm $\rho$"
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_legend().get_title().get_text() == r"weight decay $\lambda$"


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"y='rho': frame has no such column; it has t"):
        nc.lines(pd.DataFrame({"t": [1]}), x="t", y="rho")


def test_a_row_holds_three_panels():
    with pytest.raises(ValueError, match="n=4: expected a whole number >= 1 and <= 3"):
        nc.panels(4)


def test_the_band_is_students_t_and_geometric_on_a_logarithmic_axis():
    values = pd.Series([1.0, 2.0, 4.0])
    frame = pd.DataFrame({"t": [1, 1, 1, 2, 2, 2], "rho": [*values, *values]})
    ax = nc.lines(frame, x="t", y="rho", log="y")
    assert ax.lines[0].get_ydata() == pytest.approx([2.0, 2.0])
    half = 4.302652729911275 * np.log(2) / np.sqrt(3)  # t(0.975, 2) times the standard error of the logarithms
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((2 * np.exp(-half), 2 * np.exp(half)))


def test_what_is_not_positive_has_no_logarithm():
    with pytest.raises(ValueError, match=r"column 'rho' is not positive everywhere"):
        nc.lines(pd.DataFrame({"t": [1], "rho": [0.0]}), x="t", y="rho", log="y")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nc.confidence_interval([]), r"values has shape \(0,\)"),
        (lambda: nc.confidence_interval([[1.0], [2.0]]), r"values has shape \(2, 1\)"),
        (lambda: nc.confidence_interval(["a", "b"]), "values"),
        (lambda: nc.panels(1.5), "n=1.5: expected a whole number"),
        (lambda: nc.panels(2, height=np.nan), "height=nan: expected inches"),
        (lambda: nc.lines([1, 2], x="t", y="rho"), "frame: expected a table"),
        (lambda: nc.lines(pd.DataFrame({"t": [1], "rho": ["a"]}), x="t", y="rho"), "y='rho': this column holds"),
        (lambda: nc.lines(pd.DataFrame({"t": [1]}), x="t", y=3), "y=3: frame has no such column; it has t"),
        (lambda: nc.lines(pd.DataFrame({"t": [1]}), x="t", y="t", log="z"), "log='z': .*write"),
        (lambda: nc.lines(pd.DataFrame({"t": [1]}), x="t", y="t", ax=1), "ax: expected axes"),
        (lambda: nc.chapter("x" * 1000), "a chapter is named like its file"),
        (lambda: nc.chapter(1), "a chapter is named like its file"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mean_with_nan_has_no_interval():
    assert np.isnan(nc.confidence_interval([1.0, np.nan, 2.0])).all()


def test_one_value_has_no_interval_and_a_series_counts_by_its_values():
    assert np.isnan(nc.confidence_interval([1.0])).all()
    values = pd.Series([1.0, 2.0, 3.0], index=[5, 7, 9])
    assert nc.confidence_interval(values) == nc.confidence_interval(torch.tensor([1, 2, 3], dtype=torch.bfloat16))


def test_lines_drawn_on_a_logarithmic_axis_again_are_the_same():
    frame = pd.DataFrame({"t": [0, 1] * 2, "rho": [20.0, 200.0, 80.0, 800.0]})
    _, ax = nc.panels()
    for _ in range(2):
        nc.lines(frame, x="t", y="rho", log="y", ax=ax)
    assert ax.lines[0].get_ydata() == pytest.approx([40, 400])
    assert ax.lines[1].get_ydata() == pytest.approx([40, 400])
