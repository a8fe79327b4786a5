"""Figures to play with: their data, their script in a real browser, and what stands there without a script."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from playwright.sync_api import Browser, Page

from nclib.book.explore import Explorable, explore_curves, explore_flow, replay
from nclib.data import Data, data
from nclib.theory.flow import flow

DECAYS, NORMS = [0.01, 0.1], [0.1, 1.0, 10.0]


def points() -> Data:
    return data("teacher", n=5, d=3, seed=1, dtype=torch.float64)


def the_flow(**options: Any) -> Explorable:
    options = {"weight_decay": DECAYS, **options}
    return explore_flow(points(), (6, 4), rho0=NORMS, time=20, caption="c", alt="a", **options)


def curves() -> pd.DataFrame:
    rows = [(a, b, t, a * t + b) for a in (1, 2) for b in (0.5, 3.0) for t in (1, 2, 4)]
    return pd.DataFrame(rows, columns=["a", "b", "t", "value"])


def the_curves(**options: Any) -> Explorable:
    return explore_curves(
        curves(),
        **{
            "x": "t",
            "measures": {"value": "value v"},
            "controls": {"a": "first", "b": "second"},
            "told": lambda rows: f"ends at {rows.value.iloc[-1]:g}",
            "caption": "c <b>",
            "alt": 'say "a"',
            **options,
        },
    )


def the_replay(**options: Any) -> Explorable:
    frames = np.array([[[0, 0], [1, 1]], [[0, 2], [2, 1]], [[0, 3], [3, 1]]])
    return replay(
        frames, [0, 1],
        **{
            "names": ["zero", "one"], "at": [0, 10, 20], "told": ["begin", "middle", "end"],
            "title": "two points", "caption": "c", "alt": "a", "means": frames, **options,
        },
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- the markup


@pytest.mark.parametrize("make", [the_flow, the_curves, the_replay])
def test_the_output_is_one_figure_with_a_picture_for_where_no_script_runs(make: Any) -> None:
    markup = make()._repr_html_()
    assert re.fullmatch(r"<figure .*</figure>", markup, re.DOTALL)
    assert markup.count("<img alt=") == 1
    assert "data:image/svg+xml;base64," in markup
    assert "http://www.w3.org/2000/svg" in markup  # a name, not an address that is fetched
    assert not re.search(r"(src|href)=\"?https?:", markup)
    assert make()._repr_html_() == markup


def test_texts_are_escaped_and_numbers_are_json() -> None:
    frame = curves()
    frame.loc[0, "value"] = np.nan
    made = the_curves(told=lambda rows: "</script><b>")
    markup = made._repr_html_()
    assert "c &lt;b&gt;" in markup
    assert 'alt="say &quot;a&quot;"' in markup
    assert markup.count("</script>") == 2
    text = re.search(r'<script type="application/json">(.*?)</script>', markup, re.DOTALL)
    assert text is not None
    assert json.loads(text[1])["series"][0]["told"] == "</script><b>"


def test_a_curve_is_found_by_its_controls_and_carries_its_prediction() -> None:
    frame = curves().assign(limit=lambda f: 10 * f.a)
    made = explore_curves(
        frame, x="t", measures={"value": "v"}, controls={"a": "first"}, told=lambda rows: "", caption="c", alt="a",
        predicted={"value": "limit"},
    )  # fmt: skip
    assert [s["at"] for s in made.spec["series"]] == [[1], [2]]
    assert [s["predicted"] for s in made.spec["series"]] == [[10.0], [20.0]]
    assert repr(made) == "Explorable('curves'): a"


def small_replay(frames: Any, groups: Any, **options: Any) -> Explorable:
    return replay(frames, groups, names=["a", "b"], at=[0], told=[""], title="", caption="", alt="", **options)


ERRORS: dict[str, Any] = {
    "start=9: expected a whole number >= 0 and <= 1": lambda: the_flow(start=9),
    "weight_decay=0.0: expected a positive number": lambda: the_flow(weight_decay=[0]),
    "measures='nothing': frame has no such column": lambda: the_curves(measures={"nothing": "n"}),
    "measures and controls: name at least one": lambda: the_curves(measures={}),
    "start=(0,): one position for each of the 2 controls": lambda: the_curves(start=(0,)),
    "frames: holds NaN": lambda: small_replay([[[math.nan, 0], [1, 1]]], [0, 1]),
    "groups holds int64 from -1": lambda: small_replay([[[0, 0], [1, 1]]], [0, -1]),
    "means: holds NaN": lambda: small_replay([[[0, 0], [1, 1]]], [0, 1], means=[[[math.nan, 0], [1, 1]]]),
    "weight_decay: holds NaN": lambda: the_flow(weight_decay=[math.nan]),
    "start=0.5: expected a whole number": lambda: the_flow(start=0.5),
    "controls=3: expected names": lambda: the_curves(controls=3),
    "frame: expected a table": lambda: explore_curves(
        [1], x="t", measures={"v": "v"}, controls={"a": "a"}, told=repr, caption="", alt=""
    ),
    "at and told have 2 and 3 entries": lambda: the_replay(at=[0, 1]),
    "names has 1 entries; the groups are 0..1": lambda: the_replay(names=["zero"]),
    "means has shape (1, 2)": lambda: the_replay(means=[[0, 1]]),
    "frames has shape (2,)": lambda: replay([0, 1], [0], names=["a"], at=[], told=[], title="", caption="", alt=""),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_say_what_to_write(message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ERRORS[message]()


# ---------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    file: Path = tmp_path_factory.mktemp("explore") / "page.html"
    figures = (the_flow(start=1), the_curves(), the_replay())
    file.write_text("<!doctype html><meta charset=utf-8>" + "".join(f._repr_html_() for f in figures), "utf-8")
    context = browser.new_context()
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    opened.goto(file.as_uri())
    yield opened
    context.close()
    assert wrong == []


def test_the_page_shows_the_flow_of_the_package_at_every_position(page: Page) -> None:
    run = flow(points(), (6, 4), weight_decay=[0.0, *DECAYS], rho0=NORMS, time=20, records=60)
    box, spread = page.locator(".nc-explore").nth(0), run.final.groupby("weight_decay")["rho"]
    for position, decay in enumerate(DECAYS):
        box.locator("input[type=range]").evaluate(
            "(input, v) => { input.value = v; input.dispatchEvent(new Event('input')); }", position
        )
        heads = box.locator(".nc-head strong").all_inner_texts()
        assert heads == [f"100× → {(spread.max() / spread.min())[at]:.2f}×" for at in (0.0, decay)]
        assert f"with λ = {decay:g} they end" in box.locator(".nc-told").inner_text()
    curves = the_flow().spec["curves"]
    for measure, column in enumerate(["rho", "margin_min", "mse"]):
        box.locator("select").select_option(str(measure))
        assert box.locator(".nc-chart:visible").count() == 2
        for (decay, norm), rows in run.history.query("t > 0").groupby(["weight_decay", "rho0"]):
            drawn = curves[[0.0, *DECAYS].index(decay)][measure][NORMS.index(norm)]
            np.testing.assert_allclose(drawn, rows[column].clip(lower=1e-6 if column == "mse" else None), rtol=1e-3)


def test_the_picture_gives_way_to_the_drawing(page: Page) -> None:
    assert page.locator(".nc-static:visible").count() == 0
    assert page.locator(".nc-live:visible").count() == 3


def test_sliders_work_by_keyboard_and_say_what_they_show(page: Page) -> None:
    box = page.locator(".nc-explore").nth(1)
    assert box.locator(".nc-told").inner_text() == "ends at 4.5"
    box.get_by_label("second").focus()
    page.keyboard.press("ArrowRight")
    assert box.locator(".nc-told").inner_text() == "ends at 7"
    assert box.get_by_label("second").get_attribute("aria-valuetext") == "3"
    label = box.locator("svg.nc-chart").get_attribute("aria-label") or ""
    assert label.endswith("ends at 7")


def test_a_replay_plays_pauses_and_begins_again(page: Page) -> None:
    box = page.locator(".nc-explore").nth(2)
    button, said = box.get_by_role("button"), box.locator(".nc-told")
    assert said.inner_text() == "begin"
    button.click()
    assert "Pause" in button.inner_text()
    waits_for = functools.partial(page.wait_for_function, arg=box.element_handle())
    waits_for("box => box.querySelector('.nc-told').textContent === 'end'")
    waits_for("box => box.querySelector('button').textContent.includes('Play')")
    button.click()  # at the end: from the beginning again
    waits_for("box => box.querySelector('.nc-told').textContent !== 'end'")
    box.get_by_label("epoch").focus()  # moving the slider pauses
    page.keyboard.press("Home")
    assert "Play" in button.inner_text()
    assert said.inner_text() == "begin"


def test_without_scripts_the_picture_stays(browser: Browser, page: Page) -> None:
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(page.url)
    assert plain.locator(".nc-static img:visible").count() == 3
    context.close()
