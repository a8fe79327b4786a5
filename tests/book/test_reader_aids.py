"""What helps a reader: the package's page from its docstrings, words and symbols, page heads."""

from __future__ import annotations

import inspect
import re

import pytest
from conftest import ROOT
from docutils import nodes

import nclib
from bookkit import package_page, reader_aids, website

# ------------------------------------------------------------------------------------- the package's page


def test_every_public_name_stands_on_the_package_page() -> None:
    text = (ROOT / "reference/package.md").read_text("utf-8")
    documented = re.findall(r"^\.\. auto(?:function|class|exception):: nclib\.(\w+)$", text, re.MULTILINE)
    listed = re.findall(r"^   nclib\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == nclib.__all__
    assert sorted(listed) == nclib.__all__


def test_every_public_function_has_an_example_that_runs() -> None:
    for name in nclib.__all__:
        thing = getattr(nclib, name)
        if inspect.isfunction(thing):
            examples = (inspect.getdoc(thing) or "").partition("Examples\n--------")[2]
            assert ">>>" in examples, name
            assert "+SKIP" not in examples, name


def test_mathematics_names_and_bars_become_restructured_text() -> None:
    made = package_page.restructured("With `rho`, `x` and $a|b$: |x| and ``|y|``.")
    assert made == r"With :py:obj:`~nclib.rho`, ``x`` and :math:`a|b`: \|x\| and ``|y|``."
    assert package_page.restructured("$$a\n= b$$") == "\n\n.. math:: a = b\n\n"


# --------------------------------------------------------------------------------------- words and symbols


@pytest.mark.parametrize(
    ("symbol", "formula", "found"),
    [
        (r"\rho", r"\rho=1", True),
        (r"\rho", r"\rho_k", True),
        (r"\rho_k=\lVert W_k\rVert_F", r"a\rho_k", True),
        ("K", r"\mathcal K", True),
        ("K", r"\Kappa", False),
        ("M", r"\max M_1", True),
        ("M", "Max", False),
        (r"\mu=\langle m_n\rangle", r"\multimap", False),
        (r"x_n\in\mathbb R^d", "x_n", True),
    ],
)
def test_symbols_are_found_in_formulas(symbol: str, formula: str, found: bool) -> None:
    assert reader_aids.uses(symbol, formula) == found


def test_a_meaning_for_a_tip_leaves_formulas_out() -> None:
    text = nodes.paragraph(
        "", "", nodes.Text("The norm, "), nodes.math("", r"\rho"), nodes.Text(", of all layers.")
    )
    assert reader_aids.plain(text) == "The norm, of all layers."


# --------------------------------------------------------------------------------------------- page heads


def test_a_description_is_the_beginning_of_the_first_real_paragraph() -> None:
    long = " ".join(["word"] * 100)
    tree = nodes.section()
    tree += nodes.paragraph("", "Too short.")
    tree += nodes.paragraph("", "", nodes.Text(long))
    told = website.description(tree)  # type: ignore[arg-type]
    assert told.startswith("word word")
    assert told.endswith(" …")
    assert len(told) <= 202
