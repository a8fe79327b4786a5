"""Results kept with the book: whole, with a manifest, and refused where their provenance is not in order."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from matplotlib.figure import Figure

from nclib.book import claims
from nclib.book.results import Result, result, save_result
from nclib.files import fingerprint

FRAME = pd.DataFrame({"epoch": [0, 1], "rho": [1.0, 1 / 3], "norm": ["bn", "none"]})
CONFIG = {"seeds": [0, 1], "lr": 0.01}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    save_result("trial", FRAME, CONFIG, seconds=7200.0, folder=tmp_path)
    return tmp_path


def test_what_was_saved_comes_back_with_its_provenance(kept: Path) -> None:
    found = result("trial", folder=kept)
    assert (found.scale, found.device) == ("full", found.manifest["device"])
    figure = Figure()
    found.stamp(figure)
    assert figure.texts[0].get_text() == found.provenance
    pd.testing.assert_frame_equal(found.frame, FRAME, rtol=1e-6)
    assert found.manifest["config"] == CONFIG
    assert {"device", "threads", "versions", "commit", "created", "seconds"} <= found.manifest.keys()
    assert "seeds 0, 1" in found.provenance
    assert found.provenance.endswith("took 2.0 h")
    assert {path.name for path in kept.iterdir()} == {"trial.csv", "trial.json"}


def test_the_same_table_gives_the_same_bytes(kept: Path, tmp_path: Path) -> None:
    before = (kept / "trial.csv").read_bytes()
    save_result("trial", FRAME.copy(), {**dict(reversed(CONFIG.items())), "lr": 0.02}, seconds=1, folder=tmp_path)
    assert (kept / "trial.csv").read_bytes() == before
    assert result("trial", folder=kept).manifest["config_sha256"] == fingerprint({**CONFIG, "lr": 0.02})


def test_the_same_table_again_keeps_the_manifest_of_its_making(kept: Path) -> None:
    before = (kept / "trial.json").read_bytes()
    save_result("trial", FRAME.copy(), dict(reversed(CONFIG.items())), seconds=1, folder=kept)
    assert (kept / "trial.json").read_bytes() == before
    save_result("trial", FRAME * 2, CONFIG, seconds=1, folder=kept)
    assert result("trial", folder=kept).frame.epoch.tolist() == [0, 2]


@pytest.mark.parametrize("damage", ["trial.csv", "trial.json"])
def test_a_result_that_is_not_in_order_is_replaced(kept: Path, damage: str) -> None:
    (kept / damage).write_text("{}")
    save_result("trial", FRAME, CONFIG, seconds=1, folder=kept)
    assert result("trial", folder=kept).manifest["seconds"] == 1


def test_a_result_survives_the_line_ends_of_windows(kept: Path) -> None:
    for path in kept.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    pd.testing.assert_frame_equal(result("trial", folder=kept).frame, FRAME)


def test_a_result_without_a_manifest_is_refused(kept: Path) -> None:
    (kept / "trial.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no manifest"):
        result("trial", folder=kept)


def test_a_configuration_that_was_changed_is_refused(kept: Path) -> None:
    facts = json.loads((kept / "trial.json").read_text())
    facts["config"]["lr"] = 0.02
    (kept / "trial.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="its configuration is not the one that was run"):
        result("trial", folder=kept)


def test_a_table_that_was_changed_is_refused(kept: Path) -> None:
    text = (kept / "trial.csv").read_text()
    (kept / "trial.csv").write_text(text.replace("0.3333333", "0.3333334"))
    with pytest.raises(ValueError, match="is not the table"):
        result("trial", folder=kept)


def test_nothing_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is empty"):
        save_result("trial", FRAME.head(0), CONFIG, seconds=0, folder=tmp_path)


@pytest.mark.parametrize("table", sorted((ROOT / "results").glob("*.csv")), ids=lambda path: path.stem)
def test_every_result_of_the_book_is_in_order(table: Path) -> None:
    found = result(table.stem)
    assert len(found.frame)
    assert found.manifest["name"] == table.stem
    assert "+" not in found.manifest["commit"], "computed by code that is in no commit"


def test_every_manifest_has_its_table() -> None:
    for manifest in (ROOT / "results").glob("*.json"):
        assert manifest.with_suffix(".csv").exists(), manifest.name


def test_of_several_names_the_first_that_is_there(kept: Path) -> None:
    assert result("trial_full", "trial", folder=kept).manifest["name"] == "trial"
    with pytest.raises(FileNotFoundError, match=r"^a\.csv or b\.csv: no such result; `make full` computes"):
        result("a", "b", folder=kept)
    with pytest.raises(TypeError, match="result needs the name of one"):
        result(folder=kept)


def test_a_claim_from_a_stored_result_says_on_what_it_was_computed(kept: Path) -> None:
    stored = result("trial", folder=kept)
    claims.claim("thm-example", "one is one", predicted=1, measured=1, rtol=0, source=stored)
    record = claims._records[-1]
    assert (record["scale"], record["device"]) == (stored.scale, stored.device)
    assert Result(stored.frame, {**stored.manifest, "config": {"size": "cpu"}}).scale == "cpu part"
