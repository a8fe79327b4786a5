"""From how many base seeds a claim held, and how near the worst came."""

from __future__ import annotations

from typing import Any

import pytest

from bookkit import base_seeds

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
