import pytest
import torch

import nclib as nc
from nclib.scale import base_seed, device_name


def test_scale_picks_the_named_value(monkeypatch):
    monkeypatch.setenv("NCLIB_SCALE", "full")
    assert nc.scale(quick=1, full=2) == 2
    monkeypatch.setenv("NCLIB_SCALE", "")
    assert nc.scale(quick=1, full=2) == 1


def test_an_unknown_scale_is_an_error_that_says_what_to_write(monkeypatch):
    monkeypatch.setenv("NCLIB_SCALE", "huge")
    with pytest.raises(ValueError, match=r"NCLIB_SCALE='huge': unknown; write one of 'quick', 'full'"):
        nc.scale(quick=1, full=2)


def test_device_obeys_the_variable(monkeypatch):
    monkeypatch.setenv("NCLIB_DEVICE", "cpu")
    assert nc.device() == torch.device("cpu")
    assert device_name() == "cpu"


def test_an_unknown_device_is_an_error(monkeypatch):
    monkeypatch.setenv("NCLIB_DEVICE", "abacus")
    with pytest.raises(ValueError, match="NCLIB_DEVICE='abacus': no device of this machine"):
        nc.device()


@pytest.mark.parametrize("name", ["cuda", "meta"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_device_is_an_error(monkeypatch, name):
    monkeypatch.setenv("NCLIB_DEVICE", name)
    with pytest.raises(ValueError, match=r"no device of this machine|nothing trains there"):
        nc.device()


@pytest.mark.parametrize("text", ["-1", "1.5", "seven", str(2**64), "9" * 5000])
def test_a_base_seed_that_is_no_whole_number_is_an_error(monkeypatch, text):
    monkeypatch.setenv("NCLIB_SEED", text)
    with pytest.raises(ValueError, match=r"the base seed is a whole number in \[0, 2\*\*64\)"):
        base_seed()


def test_seeds_derive_from_the_base_seed(monkeypatch):
    monkeypatch.setenv("NCLIB_SEED", "1")
    one = nc.seeds(4)
    monkeypatch.setenv("NCLIB_SEED", "2")
    two = nc.seeds(4)
    assert len({*one, *two}) == 8
    assert nc.seeds(2) == two[:2]
    assert not set(nc.seeds(4, stream=1)) & set(two)


def test_no_seeds_is_an_error():
    with pytest.raises(ValueError, match="n=0: expected a whole number >= 1"):
        nc.seeds(0)
