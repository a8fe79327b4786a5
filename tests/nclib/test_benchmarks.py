"""The benchmarks of the GPU engine run; what they measure on a CPU means nothing."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.bench_gpu import Size, compare, rows

TINY = Size(images=12, batch=6, widths=(2, 2, 2), starts=(0.5, 1.0), resnet_images=12, resnet_widths=(2, 2, 2, 2))


def test_every_comparison_of_the_gpu_engine_runs() -> None:
    before = torch.backends.cudnn.allow_tf32
    table = list(compare(torch.device("cpu"), TINY, repeats=1))
    names = [row["name"] for row in table]
    for word in ("grid", "CUDA graphs", "one by one", "SGD", "channels-last", "tf32, vmap"):
        assert any(word in name for name in names), word
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in table)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows() == []
    assert "no CUDA device" in capsys.readouterr().err
