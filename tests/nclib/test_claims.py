import json
import math

import numpy as np
import pytest
import torch

import nclib as nc
from nclib.book import claims


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("NCLIB_CLAIMS", str(tmp_path))
    nc.chapter("test_chapter")
    return tmp_path / "test_chapter.json"


def test_a_claim_that_holds_is_in_the_ledger_with_all_its_names(ledger):
    nc.claim("thm-x", "one is one", predicted=1.0, measured=[1.0, 1.0 + 1e-9], rtol=1e-6)
    (record,) = json.loads(ledger.read_text())
    names = {"theorem", "statement", "predicted", "measured", "tolerance", "seeds", "scale", "device", "passed"}
    assert names <= record.keys()
    assert record["passed"] is True
    assert record["theorem"] == "thm-x"
    assert record["seeds"] == 2
    assert record["predicted"] == 1.0
    assert record["confidence_interval"][0] < record["confidence_interval"][1]


def test_a_claim_that_fails_raises_with_both_numbers_and_is_in_the_ledger_too(ledger):
    with pytest.raises(nc.ClaimFailed) as failure:
        nc.claim("thm-x", "rho is off by two per cent", predicted=1.02, measured=1.0, rtol=1e-3)
    message = str(failure.value)
    assert "thm-x (test_chapter)" in message
    assert "predicted 1.02" in message
    assert "measured  1" in message
    assert "relative error 0.02 > 0.001" in message
    assert [r["passed"] for r in json.loads(ledger.read_text())] == [False]


@pytest.mark.parametrize(
    ("criterion", "good", "bad"),
    [
        (dict(predicted=2.0, rtol=0.125), 2.25, 2.2501),
        (dict(predicted=0.0, atol=0.1), -0.1, 0.11),
        (dict(at_most=1.0), [0.0, 1.0], [0.0, 1.1]),
        (dict(at_least=1.0), [1.0, 2.0], [0.9, 2.0]),
        (dict(between=(0.0, 1.0)), [0.0, 1.0], [-0.1, 0.5]),
        (dict(at_most=[1.0, 2.0]), [1.0, 2.0], [1.5, 1.5]),
    ],
)
def test_each_criterion_accepts_its_edge_and_refuses_what_is_beyond(criterion, good, bad):
    nc.claim("thm-x", "good", measured=good, **criterion)
    with pytest.raises(nc.ClaimFailed):
        nc.claim("thm-x", "bad", measured=bad, **criterion)


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, math.nan]])
@pytest.mark.parametrize(
    "criterion", [dict(predicted=1.0, rtol=1.0), dict(at_most=1e300), dict(at_least=-1e300), dict(between=(0, 9))]
)
def test_what_is_not_finite_never_holds(ledger, value, criterion):
    with pytest.raises(nc.ClaimFailed):
        nc.claim("thm-x", "not a number", measured=value, **criterion)
    json.loads(ledger.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_one_bad_seed_fails_a_claim_about_every_seed_but_not_one_about_a_tight_mean():
    measured = [1.0, 1.0, 1.0, 1.0, 1.002]
    with pytest.raises(nc.ClaimFailed):
        nc.claim("thm-x", "every seed", predicted=1.0, measured=measured, rtol=1e-3)
    nc.claim("thm-x", "the mean", predicted=1.0, measured=measured, rtol=2e-3, mean=True)


def test_a_claim_about_the_mean_needs_the_whole_confidence_interval():
    noisy = [0.0, 2.0, 0.0, 2.0]  # mean 1, but the interval is wide
    with pytest.raises(nc.ClaimFailed):
        nc.claim("thm-x", "positive mean", measured=noisy, at_least=0.5, mean=True)


def test_the_confidence_interval_is_students_t(ledger):
    measured = np.array([1.0, 2.0, 3.0])
    nc.claim("thm-x", "interval", measured=measured, between=(0, 9))
    (record,) = json.loads(ledger.read_text())
    low, high = record["confidence_interval"]
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.302652729911275 / math.sqrt(3))  # t(0.975, 2) = 4.3027


@pytest.mark.parametrize("shape", [(3, 2), (6,), (3, 1, 2), (6, 1)])
def test_what_is_measured_of_a_seed_is_averaged_for_the_interval(ledger, shape):
    values = np.array([0.0, 2.0, 2.0, 4.0, 4.0, 6.0]).reshape(shape)  # seed by seed: means 1, 3 and 5
    nc.claim("thm-x", "interval", measured=values, predicted=values, atol=0, seeds=3)
    (record,) = json.loads(ledger.read_text())
    assert record["seeds"] == 3
    assert record["measured"] == record["predicted"] == values.ravel().tolist()
    low, high = record["confidence_interval"]
    assert (low + high) / 2 == pytest.approx(3.0)
    assert (high - low) / 2 == pytest.approx(4.302652729911275 * 2 / math.sqrt(3))


@pytest.mark.parametrize(("measured", "seeds"), [(1.0, 1), ([1.0], 1), ([1.0, 2.0], 2), (np.ones((4, 3)), 4)])
def test_the_first_axis_says_how_many_seeds_there_are(ledger, measured, seeds):
    nc.claim("thm-x", "seeds", measured=measured, at_most=2)
    nc.claim("thm-x", "one seed all the same", measured=measured, at_most=2, seeds=1)
    counted, said = json.loads(ledger.read_text())
    assert (counted["seeds"], said["seeds"]) == (seeds, 1)
    assert (counted["confidence_interval"] is None) == (seeds == 1)
    assert said["confidence_interval"] is None


def test_tensors_are_numbers_too():
    nc.claim("thm-x", "tensor", predicted=torch.ones(2), measured=torch.ones(2, requires_grad=True), atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(measured=1.0), "give one criterion"),
        (dict(measured=1.0, at_most=1, at_least=1), "give one criterion"),
        (dict(measured=1.0, rtol=0.1), "rtol compares with a prediction; write predicted="),
        (dict(measured=1.0, predicted=0.0, rtol=0.1), "write atol="),
        (dict(measured=1.0, predicted=1.0, rtol=-0.1), "expected a tolerance, a number >= 0"),
        (dict(measured=[], at_most=1), "measured is empty"),
        (dict(measured=[1.0, 2.0], predicted=[1.0, 2.0, 3.0], rtol=1), "does not broadcast"),
        (dict(measured=1.0, predicted=[1.0, 1.0], rtol=1), "does not broadcast"),
        (dict(measured=1.0, predicted=1.0, rtol=1.0, atol=1.0), "given: rtol, atol"),
        (dict(measured=[1.0, 2.0], at_most=[1.0, 2.0, 3.0]), "at_most has shape"),
        (dict(measured=[1.0, 2.0], at_most=9, seeds=3), "its first axis must run over the seeds"),
        (dict(measured=[1.0, 2.0], at_most=9, seeds=0), "its first axis must run over the seeds"),
        (dict(measured=1.0, at_most=9, seeds=5), "measured is a number; its first axis must run over the seeds"),
        (dict(measured=1.0, at_most=9, mean=True), "mean=True needs several seeds"),
        (dict(measured=1.0, between=(2, 1)), "the first number must not exceed the second"),
    ],
)
def test_malformed_claims_say_what_to_write(ledger, wrong, message):
    with pytest.raises(ValueError, match=message):
        nc.claim("thm-x", "malformed", **wrong)
    assert json.loads(ledger.read_text()) == []


def test_words_are_not_measurements():
    with pytest.raises(ValueError, match="measured='small': expected a number"):
        nc.claim("thm-x", "words", measured="small", at_most=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(theorem=3), "theorem=3: expected words"),
        (dict(statement=None), "statement=None: expected words"),
        (dict(source="stored"), "source: expected what nc.result returned"),
        (dict(seeds=1.5), "seeds=1.5: expected a whole number"),
        (dict(predicted=np.nan, atol=1.0, at_most=None), "predicted: holds NaN"),
        (dict(at_most=np.inf), "at_most: holds NaN or infinity"),
        (dict(at_most=None, between=3), "between=3: write two numbers"),
        (dict(at_most=None, predicted=1.0, atol=np.nan), "atol=nan: expected a tolerance"),
        (dict(measured=1j), "measured"),
    ],
)
def test_a_wrong_claim_leaves_no_trace(ledger, wrong, message):
    right = dict(theorem="thm-x", statement="s", measured=1.0, at_most=2.0)
    with pytest.raises((ValueError, TypeError), match=message):
        nc.claim(**right | wrong)
    nc.claim(**right)
    assert len(json.loads(ledger.read_text())) == 1


def test_opening_a_chapter_starts_its_ledger_anew(ledger):
    nc.claim("thm-x", "old", measured=0.0, at_most=1)
    nc.chapter("test_chapter")
    assert json.loads(ledger.read_text()) == []


def test_the_ledger_is_in_the_books_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("NCLIB_CLAIMS")
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "chapters").mkdir()
    monkeypatch.chdir(tmp_path / "chapters")
    nc.chapter("somewhere")
    assert (tmp_path / "_build/claims/somewhere.json").exists()


def test_a_ledger_that_cannot_be_written_says_how_to_mend_it(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("NCLIB_CLAIMS", str(blocked))
    with pytest.raises(OSError, match="set NCLIB_CLAIMS to a folder that can"):
        nc.chapter("somewhere")


def test_a_chapters_name_is_a_file_name():
    with pytest.raises(ValueError, match="a chapter is named like its file"):
        nc.chapter("a/b")


RECORD = {
    "theorem": "thm-a", "chapter": "01_a", "statement": "1 < 2 & so on", "predicted": 2.0, "measured": [2.0, 2.1],
    "deviation": 0.05, "tolerance": "rtol 0.1", "seeds": 2, "confidence_interval": [1.99, 2.11], "passed": True,
    "scale": "quick", "device": "cpu", "base_seed": 0,
}  # fmt: skip


def test_numbers_and_criteria_are_told_in_words():
    assert claims.criterion(RECORD) == "relative error 0.05 ≤ 0.1"
    assert claims.criterion({**RECORD, "passed": False}) == "relative error 0.05 > 0.1"
    assert claims.criterion({**RECORD, "tolerance": "at most 3"}) == "at most 3"
    assert claims.number([2.0, 2.1]) == "2 … 2.1"
    assert claims.number([1.0, None]) == "1 of 2 not finite"
    assert claims.number(None) == "not finite"


def test_a_sentence_says_the_verdict_in_words_and_escapes_html():
    told = claims.sentence({**RECORD, "theorem": "a<b"})
    assert told.startswith('<p class="nc-claim holds"><strong>✓ holds</strong> ')
    assert '<span class="nc-label">a&lt;b</span>: ' in told
    assert "1 &lt; 2 &amp; so on. " in told
    assert claims.sentence({**RECORD, "passed": False}).startswith('<p class="nc-claim fails"><strong>✗ fails<')
    assert "Stored result" not in told
    assert " (Stored result: full, cpu.)</span>" in claims.sentence({**RECORD, "scale": "full"})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "Predicted 2; measured 2.050 ± 0.060 in 2 seeds; off by at most 5 %, allowed 10 %."),
        (
            dict(predicted=[2.0, 3.0], measured=[2.0, 2.1, 3.0, 3.1]),
            "Predicted 2 … 3; measured 2 … 3.1, 4 values in 2 seeds; off by at most 5 %, allowed 10 %.",
        ),
        (
            dict(measured=2.0, seeds=1, confidence_interval=None, deviation=2e-16, tolerance="rtol 1e-12"),
            "Predicted 2; measured 2; off by 2e-16, allowed 1e-12.",
        ),
        (
            dict(tolerance="atol 0.1"),
            "Predicted 2; measured 2.050 ± 0.060 in 2 seeds; off by at most 0.05, allowed 0.1.",
        ),
        (dict(tolerance="at most 3", predicted="at most 3"), "Measured 2 … 2.1 in 2 seeds; must be at most 3."),
        (
            dict(measured=[2.0, None], confidence_interval=[None, None], deviation=None),
            "Predicted 2; measured 1 of 2 not finite, 2 values in 2 seeds.",
        ),
    ],
)
def test_numbers_are_told_in_a_sentence(facts, words):
    assert claims.numbers({**RECORD, **facts}) == words


def test_outside_a_notebook_a_claim_prints_one_line(capsys):
    nc.claim("thm-x", "printed", measured=0.5, at_most=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("HOLDS  thm-x: printed")
