"""From how many base seeds a claim held, and how near the worst came."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nclib as nc
from bookkit import base_seeds
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
