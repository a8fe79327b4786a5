"""Does every claim hold from other random numbers?  ``python -m bookkit.base_seeds [--seeds 1-10] [chapter …]``.

Executes chapters from several base seeds (``NCLIB_SEED``) and prints, for every claim, from how many of them it
held and which share of its tolerance the worst used; more than three fifths is marked.  A claim that fails stops a
chapter everywhere else; here it is counted and the chapter goes on, so that one failure does not hide the next.
Exits 1 when a claim holds from fewer than nine tenths of the base seeds, or a cell fails for another reason.

With ``--longer 2`` every flow and every training goes on to twice its time, with ``--finer 2`` flows take half the
step: a claim about where training ends must not notice, see `go_on`.  One that tells of a time may fail then, and
is listed with a ``t`` in front.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import nbformat
import pandas as pd
from nbclient import NotebookClient

from nclib import files
from nclib.book.results import result, save_result
from nclib.scale import scale_name
from nclib.theory import flow as flows
from nclib.training.runs import _measured

from . import kernels, ledger, notebooks, provenance

ENOUGH = 0.9
SHARE = 0.6
#: A statement with one of these words tells of a time, and may change where runs are longer.
OF_A_TIME = re.compile(r"t = |\b(dt|times?|steps?|epochs?|rates?|early|integral|curve)\b")
NAME = "base_seeds"  # of the stored table

_COUNT_FAILURES = """\
import nclib as nc

def _counted(claim):
    def counted(*arguments, **options):
        try:
            claim(*arguments, **options)
        except nc.ClaimFailed:
            pass  # it is in the ledger, as failed

    return counted

nc.claim = _counted(nc.claim)
"""

_GO_ON = """\
import sys

sys.path.append({root!r})
from bookkit import base_seeds

base_seeds.go_on(nc, {longer}, {finer})
"""


class Outcome(NamedTuple):
    """What one chapter did from one base seed."""

    chapter: str
    seed: int
    records: list[ledger.Record]
    errors: list[str]  # of cells that failed for another reason than a claim


def go_on(nc: ModuleType, longer: int, finer: int) -> None:
    """Let `flow`, `exact_flow` and `train` go on to `longer` times their end, and `flow` in steps of a `finer`-th.

    The times and epochs that a chapter asks to record are recorded as before, and one more at the new end: what it
    looks up by its time or epoch is where it was, what it reads at the end of a run is from later on.  A learning
    rate stays, a schedule is stretched.  Left alone are loops written out in a chapter, `step_by_step`, and what
    keeps snapshots, whose epochs the chapter knows by number.
    """

    def later_flow(follow: Callable[..., Any]) -> Callable[..., Any]:
        steps = inspect.signature(follow).parameters.get("dt")

        @functools.wraps(follow)
        def later(*arguments: Any, time: float, records: Any = 40, **options: Any) -> Any:
            dt = options.get("dt", steps.default) if steps else time / 500
            if steps:
                options["dt"] = dt / finer
            else:
                options["max_evaluations"] = longer * options.get("max_evaluations", 20_000)
            asked = flows._times(records, min(dt, time / 2), time)
            return follow(*arguments, time=longer * time, records=sorted({*asked, longer * time}), **options)

        return later

    def stable_step(members: Any, state: Any, whole: Any = flows._Members.stable_step) -> Any:
        return whole(members, state) / finer

    def later_train(data: Any, arch: Any, opt: Any, *, measure_every: Any = None, **options: Any) -> Any:
        if options.get("snapshots"):
            return train(data, arch, opt, measure_every=measure_every, **options)
        asked, epochs = _measured(measure_every, opt.epochs), longer * opt.epochs
        plan = opt.schedule if isinstance(opt.schedule, str) else tuple((longer * e, f) for e, f in opt.schedule)
        return train(
            data, arch, replace(opt, epochs=epochs, schedule=plan), measure_every=[*asked, epochs], **options
        )

    train = nc.train
    flows._Members.stable_step = stable_step  # type: ignore[method-assign]
    nc.flow, nc.exact_flow, nc.train = later_flow(nc.flow), later_flow(nc.exact_flow), later_train  # type: ignore[attr-defined]


def run(source: Path, seed: int, folder: Path, longer: int = 1, finer: int = 1, timeout: int = 3600) -> Outcome:
    """Execute one chapter from one base seed, perhaps with longer runs and finer steps."""
    made = notebooks.notebook(source.read_text("utf-8"))
    first = _COUNT_FAILURES
    if (longer, finer) != (1, 1):
        first += _GO_ON.format(root=str(notebooks.ROOT), longer=longer, finer=finer)
    made.cells.insert(0, nbformat.v4.new_code_cell(first))
    surroundings = {**os.environ, "NCLIB_SEED": str(seed), "NCLIB_CLAIMS": str(folder / str(seed))}
    surroundings |= notebooks.ONE_THREAD
    client = NotebookClient(
        made, timeout=timeout, allow_errors=True, kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
    )  # fmt: skip
    client.execute(env=surroundings)
    errors = [f"{o['ename']}: {o['evalue']}" for o in ledger.outputs(made) if o.output_type == "error"]
    return Outcome(source.stem, seed, ledger.read_records(made), errors)


def table(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One row a claim: from how many base seeds it held, from which it failed, and the worst deviation."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for outcome in outcomes:
        for place, record in enumerate(outcome.records):
            row = rows.setdefault(
                (outcome.chapter, place),
                {key: record[key] for key in ("chapter", "theorem", "statement", "tolerance")}
                | {"held": 0, "of": 0, "failed_from": [], "deviations": []},
            )
            row["of"] += 1
            row["held"] += record["passed"]
            row["deviations"].append(record["deviation"])
            if not record["passed"]:
                row["failed_from"].append(outcome.seed)
    return [rows[key] for key in sorted(rows)]


def share(row: dict[str, Any]) -> float | None:
    """Which part of its tolerance the worst base seed used; None where a claim has no tolerance but a limit."""
    found = row["deviations"]
    return ledger.share(row["tolerance"], None if None in found else max(found))


def report(rows: Iterable[dict[str, Any]], longer: int = 1) -> str:
    """The table as text: ``!`` and ``!!`` mark claims that did not always hold, ``~`` those near their limit."""
    lines = []
    for row in rows:
        found = [d for d in row["deviations"] if d is not None]
        span = f"{min(found):.2g} … {max(found):.2g}" if found else "not finite"
        part = share(row)
        used = f", {part:.0%} of it used" if part is not None else ""
        near = "~ " if part is not None and part > SHARE else "  "
        mark = near if row["held"] == row["of"] else "! " if row["held"] >= ENOUGH * row["of"] else "!!"
        mark = "t " if mark == "!!" and excused(row, longer) else mark
        lost = f" (not from {', '.join(map(str, row['failed_from']))})" if row["failed_from"] else ""
        lines.append(
            f"{mark} {row['held']:2d}/{row['of']}  {row['chapter'][:2]} {row['theorem']}: {row['statement']}"
            f" [{row['tolerance']}; worst of each seed {span}{used}]{lost}"
        )
    return "\n".join(lines)


def code_hash(source: Path) -> str:
    """Of a chapter's code, whatever the text around it says."""
    cells = notebooks.notebook(source.read_text("utf-8")).cells
    return files.fingerprint([cell.source for cell in cells if cell.cell_type == "code"])


def keep(source: Path, outcomes: list[Outcome], commit: str, seconds: float, **where: Path) -> None:
    """Put a chapter into the stored table, in the place of its old rows; those of other chapters stay."""
    order = [chapter.stem for chapter in notebooks.chapters()]
    frame, kept = pd.DataFrame(map(summary, table(outcomes))), {}
    with contextlib.suppress(FileNotFoundError):
        stored = result(NAME, **where)
        kept = dict(stored.manifest["config"]["chapters"])
        others = stored.frame[stored.frame.chapter.isin(order) & (stored.frame.chapter != source.stem)]
        frame = pd.DataFrame([*others.to_dict("records"), *frame.to_dict("records")])
    kept[source.stem] = {
        "seeds": sorted(outcome.seed for outcome in outcomes),
        "broke_off": sorted(outcome.seed for outcome in outcomes if outcome.errors),
        "scale": scale_name(),
        "commit": commit,
        "day": provenance.day(time.time()),
        "seconds": round(seconds),
        "code_sha256": code_hash(source),
    }
    chapters = {name: kept[name] for name in order if name in kept}
    seeds = sorted({seed for facts in chapters.values() for seed in facts["seeds"]})
    spent = sum(facts["seconds"] for facts in chapters.values())
    frame = frame.sort_values("chapter", key=lambda names: names.map(order.index), kind="stable")
    save_result(NAME, frame, {"seeds": seeds, "chapters": chapters}, seconds=spent, **where)


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """A claim's row for the stored table: of what every base seed found, the ends."""
    found = [d for d in row["deviations"] if d is not None] or [float("nan")]
    same = {key: row[key] for key in ("chapter", "theorem", "statement", "tolerance", "held", "of")}
    failed = " ".join(map(str, row["failed_from"])) or "none"
    return same | {"failed_from": failed, "least": min(found), "most": max(found), "share": share(row)}


def excused(row: dict[str, Any], longer: int) -> bool:
    """Whether a claim may fail, because it tells of a time and runs are longer than it says."""
    return longer > 1 and bool(OF_A_TIME.search(row["statement"]))


def numbers(text: str) -> list[int]:
    """``1-3,7`` as [1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> int:
    """Run the chapters named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("chapters", nargs="*", help="their names, or the beginnings of them (default: all)")
    parser.add_argument("--seeds", type=numbers, default=numbers("1-10"), help="e.g. 1-10 or 3,7 (default 1-10)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--longer", type=int, default=1, help="multiply times and epochs (default 1)")
    parser.add_argument("--finer", type=int, default=1, help="divide the steps of flows (default 1)")
    parser.add_argument("--keep", action="store_true", help="put the rows into the table that the book shows")
    options = parser.parse_args()
    kernels.prepare()
    named = tuple(Path(name).stem for name in options.chapters) or ("",)
    chosen = [source for source in notebooks.chapters() if source.stem.startswith(named)]
    if not chosen:
        parser.error(f"no chapter of _toc.yml begins with {' or '.join(named)}")
    folder, began = notebooks.ROOT / "_build" / NAME, time.monotonic()
    how = folder, options.longer, options.finer
    commit = provenance.commit(notebooks.ROOT, "nclib", "chapters")
    with ThreadPoolExecutor(options.jobs) as pool:
        work = {source: [pool.submit(run, source, seed, *how) for seed in options.seeds] for source in chosen}
        outcomes = []
        for source, runs in work.items():
            for done in runs:
                outcome = done.result()
                outcomes.append(outcome)
                held = sum(record["passed"] for record in outcome.records)
                print(f"{outcome.chapter} from {outcome.seed}: {held} of {len(outcome.records)} hold", flush=True)
                for error in outcome.errors:
                    print(f"   {error}", flush=True)
            if options.keep and (options.longer, options.finer) == (1, 1):
                keep(source, outcomes[-len(runs) :], commit, time.monotonic() - began)
            began = time.monotonic()
    rows = table(outcomes)
    print("\n" + report(rows, options.longer))
    files.write(folder / "table.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    short = [row for row in rows if row["held"] < ENOUGH * row["of"] and not excused(row, options.longer)]
    broken = [outcome for outcome in outcomes if outcome.errors]
    print(f"\n{len(rows)} claims, {len(short)} below nine tenths; {len(broken)} of {len(outcomes)} runs broke off")
    return int(bool(short or broken))


if __name__ == "__main__":
    sys.exit(main())
