"""From how many base seeds a claim held, and how near the worst came."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import nclib as nc
from bookkit import base_seeds, how_often, notebooks
from nclib.book.results import result
from nclib.theory import flow as flows

ROW = {"chapter": "01_a", "theorem": "thm-a", "statement": "s", "failed_from": [], "held": 2, "of": 2}


@pytest.mark.parametrize(
    ("tolerance", "deviations", "used", "mark"),
    [
        ("rtol 0.01", [0.001, 0.005], 0.5, "  "),
        ("rtol 0.01", [0.001, 0.007], 0.7, "~ "),
        ("atol 0.5", [0.1, 0.2], 0.4, "  "),
        ("atol 0", [0.0, 0.0], None, "  "),  # exact
        ("at most 3", [1.0, 2.0], None, "  "),  # a limit, not a tolerance
        ("rtol 0.01", [0.001, None], None, "  "),
    ],
)
def test_the_share_of_the_tolerance_that_the_worst_seed_used(
    tolerance: str, deviations: list[float | None], used: float | None, mark: str
) -> None:
    row: dict[str, Any] = {**ROW, "tolerance": tolerance, "deviations": deviations}
    assert base_seeds.share(row) == (used if used is None else pytest.approx(used))
    line = base_seeds.report([row])
    assert line.startswith(f"{mark}  2/2  01 thm-a: s")
    assert ("of it used" in line) == (used is not None)


def test_a_claim_that_failed_is_marked_and_says_from_which_seeds() -> None:
    row = {**ROW, "held": 1, "failed_from": [7], "tolerance": "rtol 0.01", "deviations": [0.005, 0.02]}
    assert base_seeds.report([row]).startswith("!!  1/2")
    assert "200% of it used] (not from 7)" in base_seeds.report([row])


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("ρ at λt = 0.1 is on it", True),
        ("at t = 2.5 every δ has decayed", True),
        ("the change is 2L ∫(μ − ρM)dt", True),
        ("a factor 4 in ρ₀ adds to the escape time", True),
        ("at the end both layers have the same norm", False),
        ("the greatest distance", False),
    ],
)
def test_where_runs_are_longer_a_claim_that_tells_of_a_time_is_excused(statement: str, told: bool) -> None:
    row = {**ROW, "statement": statement, "held": 0, "tolerance": "rtol 0.01", "deviations": [0.02, 0.02]}
    assert base_seeds.report([row]).startswith("!!")
    assert base_seeds.report([row], longer=2).startswith("t " if told else "!!")


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The calls of `nclib` as a chapter finds them where runs are longer and steps finer."""
    monkeypatch.setattr(flows._Members, "stable_step", flows._Members.stable_step)
    calls = SimpleNamespace(flow=nc.flow, exact_flow=nc.exact_flow, train=nc.train)
    base_seeds.go_on(calls, 2, 2)  # type: ignore[arg-type]
    return calls


POINTS: dict[str, Any] = dict(problem=nc.data("teacher", n=6, d=8), widths=(4,), weight_decay=0.1, rho0=3.0)


@pytest.mark.parametrize("records", [5, [0.5, 2.0]])
def test_a_longer_flow_keeps_the_times_asked_for_and_ends_later(twice: SimpleNamespace, records: Any) -> None:
    options = dict(POINTS, time=2.0, cooling=0, records=records)
    before, after = nc.flow(**options), twice.flow(**options)
    count = len(before.history)
    assert after.history.t[:count].tolist() == pytest.approx(before.history.t.tolist())
    assert after.history.t[count:].tolist() == [4.0]
    expected = nc.flow(**{**options, "time": 4.0, "dt": 0.025, "records": [4.0]}).rho
    np.testing.assert_allclose(after.rho, expected, rtol=1e-3)


def test_steps_are_finer_also_where_stability_rules_them(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(POINTS, rho0=10.0, leak=1.0, time=0.2, records=[0.2])
    exact = nc.exact_flow(**options)
    coarse = nc.flow(**options, dt=1.0, cooling=0)
    monkeypatch.setattr(flows._Members, "stable_step", flows._Members.stable_step)
    calls = SimpleNamespace(flow=nc.flow, exact_flow=nc.exact_flow, train=nc.train)
    base_seeds.go_on(calls, 1, 2)  # type: ignore[arg-type]
    fine = calls.flow(**options, dt=1.0, cooling=0)
    assert abs(fine.rho - exact.rho) < 0.7 * abs(coarse.rho - exact.rho)
    assert calls.exact_flow(**options).rho == pytest.approx(exact.rho)


def test_a_longer_training_keeps_its_epochs_and_stretches_its_schedule(twice: SimpleNamespace) -> None:
    opt = nc.sgd(lr=0.1, epochs=6, schedule=((3, 0.1),))
    runs = twice.train(POINTS["problem"], nc.mlp(widths=(4,)), opt, measure_every=[2, 5], progress=False)
    assert runs.history.epoch.tolist() == [2, 5, 6, 12]
    whole = nc.sgd(lr=0.1, epochs=12, schedule=((6, 0.1),))
    expected = nc.train(POINTS["problem"], nc.mlp(widths=(4,)), whole, measure_every=[2], progress=False)
    assert runs.final.loss[0] == expected.final.loss[0]
    known = twice.train(POINTS["problem"], nc.mlp(widths=(4,)), opt, snapshots=True, progress=False)
    assert known.history.epoch.max() == 6


# ------------------------------------------------------------------------------- the table that the book shows


def outcome(chapter: str, seed: int, *deviations: float, errors: tuple[str, ...] = ()) -> base_seeds.Outcome:
    """A chapter of so many claims, each with the tolerance .1."""
    records = [
        {"chapter": chapter, "theorem": "thm-a", "statement": f"claim {i}", "tolerance": "rtol 0.1",
         "deviation": deviation, "passed": deviation <= 0.1}
        for i, deviation in enumerate(deviations)
    ]  # fmt: skip
    return base_seeds.Outcome(chapter, seed, records, list(errors))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The second chapter run first, then the first, then the second again from other base seeds."""
    first, second = notebooks.chapters()[:2]
    for source, outcomes in (
        (second, [outcome(second.stem, 9, 0.5, 0.5)]),
        (first, [outcome(first.stem, 1, 0.02), outcome(first.stem, 2, 0.05), outcome(first.stem, 3, 0.01)]),
        (second, [outcome(second.stem, 4, 0.2, 0.07), outcome(second.stem, 5, 0.03, 0.09, errors=("E: e",))]),
    ):
        base_seeds.keep(source, outcomes, "abc", 60.0, folder=tmp_path)
    return tmp_path


def test_chapters_run_one_by_one_make_one_table(kept: Path) -> None:
    stored = result("base_seeds", folder=kept)
    first, second = (source.stem for source in notebooks.chapters()[:2])
    assert stored.frame.chapter.tolist() == [first, second, second]
    assert stored.frame.held.tolist() == [3, 1, 2]
    assert stored.frame.failed_from.tolist() == ["none", "4", "none"]
    np.testing.assert_allclose(stored.frame.share, [0.5, 2.0, 0.9])
    config = stored.manifest["config"]
    assert config["seeds"] == [1, 2, 3, 4, 5]
    assert list(config["chapters"]) == [first, second]
    assert config["chapters"][second]["broke_off"] == [5]
    assert stored.manifest["seconds"] == 120


def test_the_page_shows_the_worst_first_and_only_what_is_claimed_now(kept: Path) -> None:
    frame = result("base_seeds", folder=kept).frame
    first, second = (source.stem for source in notebooks.chapters()[:2])
    made = {(first, "thm-a", "claim 0"), (second, "thm-a", "claim 1"), (second, "thm-a", "a new one")}
    held, gone, missing = how_often.compare(frame, made)
    assert held.statement.tolist() == ["claim 1", "claim 0"]
    assert (gone, missing) == (1, [(second, "thm-a", "a new one")])
    row = how_often.row(frame.to_dict("records")[1])
    assert row.startswith(
        '<tr class="fails"><td>1 of 2</td><td><span class="nc-label">thm-a</span></td><td>claim 0<'
    )
    assert row.endswith("<td>0.2</td><td>200%</td></tr>")


def test_the_page_counts_whole_chapters_and_sees_that_code_has_changed(kept: Path) -> None:
    stored = result("base_seeds", folder=kept)
    for facts, name in zip(stored.manifest["config"]["chapters"].values(), ("same", "other"), strict=True):
        facts["code_sha256"] = facts["code_sha256"] if name == "same" else name
    lines = how_often.by_chapter(stored, stored.frame, {}, ROOT).split("<tr>")
    assert "<td>1</td><td>3 (quick)</td><td>3</td>" in lines[-2]
    assert "commit abc</td><td>unchanged</td>" in lines[-2]
    assert "<td>2</td><td>2 (quick)</td><td>0</td>" in lines[-1]  # one claim failed, one run broke off
    assert "<td>changed</td>" in lines[-1]


def test_the_stored_table_was_made_by_code_that_is_in_a_commit() -> None:
    stored = result("base_seeds")
    for name, facts in stored.manifest["config"]["chapters"].items():
        assert facts["commit"], name
        assert "with changes" not in facts["commit"], name
        rows = stored.frame[stored.frame.chapter == name]
        assert len(rows)
        assert (rows.of <= len(facts["seeds"])).all()


def test_a_chapters_hash_is_that_of_its_code(tmp_path: Path) -> None:
    source = notebooks.chapters()[0]
    text, other = source.read_text("utf-8"), tmp_path / "other.md"
    other.write_text(text + "\nMore words.\n", "utf-8")
    assert base_seeds.code_hash(other) == base_seeds.code_hash(source)
    other.write_text(text.replace("nc.seeds(5)", "nc.seeds(6)"), "utf-8")
    assert base_seeds.code_hash(other) != base_seeds.code_hash(source)


def test_the_whole_page(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = notebooks.chapters()[0].stem
    records = [("chapters/" + first, {"chapter": first, "theorem": "thm-a", "statement": "claim 0"})]
    shown: Any = SimpleNamespace(
        book=SimpleNamespace(records=lambda: iter(records)),
        pages=["chapters/" + first],
        chapter_title=lambda name: f"1. {name}",
        app=SimpleNamespace(srcdir=str(ROOT)),
        where={"thm-a": "chapters/" + first},
        theorem_link=lambda label: f"<a>{label}</a>",
    )
    monkeypatch.setattr(how_often, "result", lambda name: result(name, folder=kept))
    second = notebooks.chapters()[2].stem
    records += [("chapters/" + first, {**records[0][1], "statement": "a new $x$"})]
    records += [("chapters/" + second, {**records[0][1], "chapter": second})]
    shown.pages.append("chapters/" + second)
    (page,) = how_often.how_often(shown)
    text = page.astext()
    assert f"<li>1. chapters/{first}: a new <span" in text
    assert f"<td>1. chapters/{second}</td><td>not run</td>" in text
    assert text.count("<li>") == 1
    assert "1 of 1 claims held from every base seed · 0 used more than 60% of a tolerance · 5 base seeds" in text
    assert "no longer claims them in these words: 2 rows" in text
    assert f"<td>1. chapters/{first}</td><td>1</td><td>3 (quick)</td><td>3</td>" in text
    assert "<td>3 of 3</td><td><a>thm-a</a></td><td>claim 0</td><td>rtol 0.1</td><td>0.05</td><td>50%</td>" in text
    monkeypatch.setattr(how_often, "result", lambda name: result(name, folder=kept / "nothing"))
    (page,) = how_often.how_often(shown)
    assert "No run of" in page.astext()
