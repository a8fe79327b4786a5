"""The loop on the page "All of nclib" and the engines of `nclib.train` compute the same."""

from typing import Any

import nbformat
import pytest
import torch
from conftest import ROOT

import nclib as nc


@pytest.fixture(scope="module")
def plain() -> Any:
    """The function as the page has it."""
    cells = nbformat.read(ROOT / "chapters" / "all_of_nclib.ipynb", as_version=4).cells
    (source,) = [cell.source for cell in cells if cell.cell_type == "code" and "def plain(" in cell.source]
    names: dict[str, Any] = {"torch": torch}
    exec(source.partition("\n\n\npairs = ")[0], names)
    return names["plain"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("arch", "engine"),
    [
        (nc.mlp(widths=(9, 7)), "stacked"),
        (nc.mlp(widths=(9, 7)), "vmap"),
        (nc.mlp(widths=(9, 7)), "loop"),
        (nc.mlp(widths=(9, 7), norm="bn"), "stacked"),
        (nc.convnet(widths=(3, 4)), "vmap"),
        (nc.convnet(widths=(3, 4)), "loop"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}-{value.norm}",
)
def test_every_engine_computes_the_loop_of_the_page(plain: Any, arch: Any, engine: Any, momentum: float) -> None:
    problem = nc.data("digits", classes=(3, 8), n=30, flat=False, dtype=torch.float64)
    opt = nc.sgd(lr=0.2, momentum=momentum, batch=8, epochs=5, weight_decay=0.01)
    runs = nc.train(problem, arch, opt, grid=dict(seed=range(3)), engine=engine)
    for seed in range(3):
        start = arch.build(problem.input_shape, problem.outputs, seed=seed, dtype=torch.float64)
        for ours, theirs, before in zip(
            plain(problem, arch, opt, seed).layers, runs.model(seed=seed).layers, start.layers, strict=True
        ):
            assert torch.allclose(ours.weight, theirs.weight, rtol=0, atol=1e-11)
            assert (ours.weight - before.weight).norm() > 0.05  # it has gone somewhere
