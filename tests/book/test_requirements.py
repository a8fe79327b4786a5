"""pyproject.toml, constraints.txt, environment.yml and Colab's own versions agree with one another."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OWN = canonicalize_name(PROJECT["name"])


def pins(path: Path) -> dict[str, Version]:
    """``name==version`` lines of a file."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            found[canonicalize_name(name)] = Version(version)
    return found


PINS = pins(ROOT / "constraints.txt")
COLAB = pins(ROOT / "tests" / "book" / "colab-versions.txt")
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    extra: [r for r in map(Requirement, texts) if canonicalize_name(r.name) != OWN]
    for extra, texts in PROJECT["optional-dependencies"].items()
}
DIRECT = BASE + [requirement for extra in EXTRAS.values() for requirement in extra]


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_direct_requirement_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    assert name in PINS, f"{name} is not in constraints.txt: run `make pins`"
    assert requirement.specifier.contains(PINS[name]), f"constraints.txt pins {name}=={PINS[name]}"


def test_constraints_hold_exact_public_versions_only() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not x.startswith("#")]
    assert lines == sorted(lines, key=str.lower)
    for line in lines:
        specifier = Requirement(line).specifier
        assert [clause.operator for clause in specifier] == ["=="], line
    assert all(version.local is None for version in PINS.values())
    assert OWN not in PINS


@pytest.mark.parametrize("requirement", BASE + EXTRAS["convex"], ids=str)
def test_colab_satisfies_what_a_chapter_needs(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    assert name in COLAB, f"{name} is not in Colab: make it an extra"
    assert requirement.specifier.contains(COLAB[name]), f"Colab carries {name} {COLAB[name]}"


def test_bounds_leave_room_upwards() -> None:
    for requirement in BASE:
        assert {clause.operator for clause in requirement.specifier} <= {">=", "<"}, str(requirement)


def test_book_tools_are_pinned_exactly() -> None:
    exact = {canonicalize_name(r.name) for r in EXTRAS["book"] if str(r.specifier).startswith("==")}
    engine = {"jupyter-book", "sphinx", "docutils", "myst-parser", "myst-nb", "sphinx-book-theme", "jupytext"}
    assert engine <= exact
    assert PINS["jupyter-book"] < Version("2")


def test_conda_environment_installs_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert canonicalize_name(environment["name"]) == OWN
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (from_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert from_pip == ["-c constraints.txt", "-e .[book,test]"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "--constraint constraints.txt" in makefile
    assert "'.[book,test]'" in makefile
    # Nothing that pip pins may come from conda at another version.
    named = {canonicalize_name(Requirement(entry).name) for entry in conda}
    assert named == {"python", "pip", "make", "git", "jupyterlab", "jupyterlab-myst"}
    assert not named & set(PINS)


def test_python_versions_agree() -> None:
    required = SpecifierSet(PROJECT["requires-python"])
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    (entry,) = [x for x in environment["dependencies"] if isinstance(x, str) and x.startswith("python")]
    offered = SpecifierSet(entry.removeprefix("python"))
    for minor in range(8, 20):
        version = f"3.{minor}"
        assert not offered.contains(version) or required.contains(version)
    assert required.contains("3.13"), "Colab runs Python 3.13"
