"""Computes the stored results of the book: ``make full``, or ``python results/remake.py [--size cpu] [part …]``.

Every part is a list of independent jobs; each job is one call of `nclib.train`.  Training is kept where
``NCLIB_RUNS`` says, by default in ``results/.runs``: a finished job is loaded, not run again, unless its data, its
configuration or the package's code has changed, and one that was cut off goes on where it was.  So the command can
be stopped and given again at any time.  With ``--jobs N`` the jobs go to N processes, with ``--dask ADDRESS`` to
the workers of a Dask cluster, which have `nclib` installed and share the folder of runs.

Three sizes: ``full`` is the experiment as published, for a GPU; ``cpu`` is the part of it that two cores do in some
hours; ``check`` means nothing and is over in a minute, to see that all works here before the long run begins
(``--size check --folder _build/check``).  They differ in numbers only.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import nclib as nc  # noqa: E402
from nclib import files  # noqa: E402
from nclib.book.results import save_result  # noqa: E402

#: What runs jobs: `map`, or the like.
Map = Callable[[Callable[[dict[str, Any]], pd.DataFrame], list[dict[str, Any]]], Iterable[pd.DataFrame]]

#: What `torch.optim.SGD(weight_decay=0.01)` of the published experiment is in this book's convention, λ‖W‖².
LAMBDA = 0.01 / 2

#: The sizes, part by part.  Each job trains all initial norms and seeds of its part.
# fmt: off
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {
        "binary": {
            "n": None, "epochs": 1000, "batch": 128, "lr": 0.01, "decay": LAMBDA,
            "init_norms": [0.01, 0.1, 0.5, 1, 3, 5, 10], "seeds": [0, 1, 2],
        },
        "labels": {
            "n": None, "epochs": 1000, "batch": 128, "lr": 0.01, "decay": LAMBDA,
            "init_norms": [1], "seeds": [0, 1, 2],
        },
        "collapse": {
            "n": None, "n_test": None, "epochs": 350, "widths": [64, 128, 256, 512], "batch": 128,
            "decay": 5e-4 / 2, "seeds": [0], "precision": "tf32",
        },
    },
    # Binary: a quarter of the images, of the batch and of the learning rate, and four times the weight decay: as
    # many steps in an epoch, and the same product of learning rate and weight decay, as at full size.  Ten classes:
    # a hundredth of the steps, and ten times the weight decay.
    "cpu": {
        "binary": {
            "n": 2500, "epochs": 60, "batch": 32, "lr": 0.0025, "decay": 4 * LAMBDA,
            "init_norms": [1, 3, 10], "seeds": [0, 1],
        },
        "labels": {
            "n": 2500, "epochs": 60, "batch": 32, "lr": 0.0025, "decay": 4 * LAMBDA,
            "init_norms": [1], "seeds": [0, 1],
        },
        "collapse": {
            "n": 1000, "n_test": 1000, "epochs": 60, "widths": [16, 32, 64, 128], "batch": 50,
            "decay": 10 * 5e-4 / 2, "seeds": [0],
        },
    },
    "check": {
        "binary": {
            "n": 40, "epochs": 2, "batch": 10, "lr": 0.001, "decay": LAMBDA, "init_norms": [1, 3], "seeds": [0, 1],
        },
        "labels": {
            "n": 40, "epochs": 2, "batch": 10, "lr": 0.001, "decay": LAMBDA, "init_norms": [1], "seeds": [0, 1],
        },
        "collapse": {
            "n": 80, "n_test": 20, "epochs": 3, "widths": [4, 4, 4, 4], "batch": 20,
            "decay": 5e-4 / 2, "seeds": [0],
        },
    },
}
# fmt: on

#: Shares of the training labels that are redrawn at random.
NOISE = [0.2, 0.4, 0.6, 0.8, 1.0]


def published(net: Any) -> dict[str, float]:
    """ρ as it was published: under BN each layer's norm is divided by the length of its standard deviations."""
    norms = [layer.weight.double().norm().item() for layer in net.layers]
    deviations = [(bn.var.double() + bn.eps).sqrt().norm().item() for bn in net.norms]
    return {"rho_published": np.prod(norms) / np.prod(deviations)}


def binary_job(
    norm: str,
    weight_decay: float,
    noise: float,
    n: int | None,
    epochs: int,
    batch: int,
    lr: float,
    init_norms: list[float],
    seeds: list[int],
) -> pd.DataFrame:
    """The four-convolution net on two classes, for all initial norms and seeds.

    Targets are one-hot: with one output of ±1, and the loss not averaged over outputs, the paper's rate diverges.
    """
    data = nc.data("cifar10", classes=(1, 2), n=n, standardise=True, verify=False)
    opt = nc.sgd(lr, momentum=0.9, batch=batch, epochs=epochs, coding="one-hot")
    grid = {"seed": seeds, "init_norm": init_norms, "weight_decay": [weight_decay], "noise": [noise]}
    measure = ("loss", "test", "norms", "margins", published)
    arch = nc.convnet(norm=norm)  # type: ignore[arg-type]
    return nc.train(data, arch, opt, grid=grid, measure_every=measured(epochs), measure=measure).history


def collapse_job(
    weight_decay: float,
    n: int | None,
    n_test: int | None,
    epochs: int,
    widths: list[int],
    batch: int,
    seeds: list[int],
    precision: str = "float32",
) -> pd.DataFrame:
    """ResNet-18 on all ten classes, to terminal collapse."""
    data = nc.data("cifar10", n=n, n_test=n_test, standardise=True, unit_norm=False, verify=False)
    arch = nc.resnet18(widths=tuple(widths))
    steps = ((epochs // 3, 0.1), (2 * epochs // 3, 0.01))
    opt = nc.sgd(0.05, momentum=0.9, batch=batch, epochs=epochs, schedule=steps, precision=precision)
    grid = {"seed": seeds, "init_norm": [he_norms(arch, data)], "weight_decay": [weight_decay]}
    measure = ("loss", "test", "norms", "collapse")
    return nc.train(data, arch, opt, grid=grid, measure_every=measured(epochs), measure=measure).history


def he_norms(arch: Any, data: nc.Data) -> tuple[float, ...]:
    """‖W_k‖ of He's initialisation, √(2 · outputs of the layer)."""
    return tuple((2 * shape.out) ** 0.5 for shape in arch.shapes(data.input_shape, len(data.classes)))


def measured(epochs: int, times: int = 24) -> list[int]:
    """Epochs at which to measure: the start, then about evenly in the logarithm."""
    return sorted({0, epochs, *(round(epochs ** (i / times)) for i in range(times + 1))})


def jobs(part: str, size: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """What a part calls, and with what."""
    fixed = {key: value for key, value in size.items() if key != "decay"}
    if part == "collapse":
        return collapse_job, [{"weight_decay": decay, **fixed} for decay in (size["decay"], 0.0)]
    if part == "labels":
        return binary_job, [
            {"norm": "bn", "weight_decay": size["decay"], "noise": noise, **fixed} for noise in NOISE
        ]
    settings = [(norm, decay) for norm in ("bn", "none") for decay in (size["decay"], 0.0)]
    return binary_job, [{"norm": norm, "weight_decay": decay, "noise": 0.0, **fixed} for norm, decay in settings]


def config(part: str, size_name: str) -> dict[str, Any]:
    """All that a part's table depends on; its hash is in the manifest."""
    size = SIZES[size_name][part]
    function, calls = jobs(part, size)
    return {"part": part, "size": size_name, "seeds": size["seeds"], "function": function.__name__, "calls": calls}


def make(part: str, size_name: str, everywhere: Map, folder: Path) -> None:
    """Compute one part, or what is missing of it, and write its table."""
    name, size = f"{part}_{size_name}", SIZES[size_name][part]
    function, calls = jobs(part, size)
    clock = folder / ".runs" / f"{name}.seconds"  # of the attempts that did not come to an end
    before, began = float(clock.read_text()) if clock.exists() else 0.0, time.monotonic()
    try:
        histories = list(everywhere(functools.partial(work, function, variables()), calls))
    finally:
        seconds = before + time.monotonic() - began
        files.write(clock, str(seconds))
    norms = [call.get("norm", "bn") for call in calls]
    table = pd.concat([history.assign(norm=norm) for history, norm in zip(histories, norms, strict=True)])
    aside = {"member", *size, *(column for column in table if column.startswith("rho_"))} - {"rho_published"}
    columns = [column for column in dict.fromkeys([*calls[0], *table]) if column in table and column not in aside]
    save_result(name, table[columns], config(part, size_name), seconds=seconds, folder=folder)
    clock.unlink()
    print(f"{name}: {len(table)} rows, {seconds / 60:.0f} min in all", flush=True)


def variables() -> dict[str, str]:
    """The environment variables of this process that a job depends on."""
    return {name: value for name, value in os.environ.items() if name.startswith("NCLIB_")}


def work(function: Callable[..., pd.DataFrame], surroundings: dict[str, str], call: dict[str, Any]) -> pd.DataFrame:
    """One job, wherever it runs."""
    os.environ.update(surroundings)
    return function(**call)


@contextlib.contextmanager
def workers(options: argparse.Namespace) -> Iterator[Map]:
    """A `map` over jobs: in this process, in several, or on a cluster."""
    if options.dask:
        with cluster(options.dask) as client:
            yield lambda do, calls: client.gather(client.map(do, calls, retries=2, pure=False))
    elif options.jobs > 1:
        # A fresh process for each: a fork would take over a thread pool, or a GPU, that is in use.
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            yield pool.map
    else:
        yield map


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """A client of the Dask scheduler at `address`; where that is not there, or no longer, the end."""
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # who is gone is said below
    try:
        client = Client(address)
    except OSError as error:
        sys.exit(f"--dask {address}: no scheduler answers there ({error}); start one with `dask scheduler`")
    try:
        with client:
            client.upload_file(__file__, load=False)  # a worker imports it with its first job
            yield client
    except CancelledError:
        gone = "the scheduler is gone; what is finished is kept: start another one and give the command again"
        sys.exit(f"--dask {address}: {gone}")


def main() -> int:
    """Make the parts asked for, or all."""
    parser = argparse.ArgumentParser(description="Compute the stored results of the book.")
    parts = list(SIZES["full"])
    parser.add_argument("parts", nargs="*", choices=[[], *parts], metavar="part", help=f"of {', '.join(parts)}")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument(
        "--folder", type=Path, default=HERE, help="where to keep results (default: beside this script)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--dask", metavar="ADDRESS", help="address of a Dask scheduler")
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.environ.setdefault("NCLIB_RUNS", str(folder / ".runs"))
    with workers(options) as everywhere:
        for part in options.parts or parts:
            make(part, options.size, everywhere, folder)
    return 0


if __name__ == "__main__":
    import remake  # under the name by which workers can import it

    sys.exit(remake.main())
