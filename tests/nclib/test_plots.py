import matplotlib
import numpy as np
import pandas as pd
import pytest
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
    with pytest.raises(ValueError, match=r"column 'rho' is not in the frame; it has t"):
        nc.lines(pd.DataFrame({"t": [1]}), x="t", y="rho")


def test_a_row_holds_three_panels():
    with pytest.raises(ValueError, match="n=4: a row holds 1, 2 or 3 panels"):
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
