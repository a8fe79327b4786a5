"""Speed and memory, each beside a baseline timed in the same run: ``python -m benchmarks [--json FILE]``.

Every module ``bench_*.py`` in this folder has a function ``rows()`` that returns dicts with ``name``,
``ours_s``, ``baseline_s``, ``ratio`` (baseline/ours: above 1 is faster), ``repeats``, ``threads``, ``note`` and,
where a figure is promised, ``goal`` (the least ratio) and ``met``.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> int:
    """Run the benchmarks, print the table; 1 if a figure that is promised was missed."""
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare nclib with baselines.")
    parser.add_argument("only", nargs="*", choices=[[], *names], metavar="part", help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--threads", type=int, default=2, help="1 counts CPU time, for a busy machine (default 2)")
    options = parser.parse_args()
    # Before torch is imported: its libraries read this once.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    table = [row for name in options.only or names for row in gather(name, options.threads)]
    print(report(table))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": table}, indent=1) + "\n")
    return int(any(row.get("met") is False for row in table))


def gather(name: str, threads: int) -> list[dict[str, Any]]:
    """The rows of one module; one that looks at a single thread only takes no argument."""
    print(f"benchmarks.bench_{name} ...", file=sys.stderr, flush=True)
    rows = importlib.import_module(f"benchmarks.bench_{name}").rows
    found: list[dict[str, Any]] = rows(threads) if inspect.signature(rows).parameters else rows()
    return found


def report(table: list[dict[str, Any]]) -> str:
    """The table as text."""
    lines = [("what / against what", "ours", "baseline", "ratio", "goal", "", "threads", "note")]
    for row in table:
        goal, met = row.get("goal"), row.get("met")
        lines.append(
            (
                row["name"],
                seconds(row["ours_s"]),
                seconds(row["baseline_s"]),
                f"{row['ratio']:.2f}",
                "" if goal is None else f">= {goal:.3g}",
                {None: "", True: "met", False: "MISSED"}[met],
                str(row["threads"]),
                row["note"],
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)), line[-1]])
        for line in lines
    )


def seconds(value: float) -> str:
    """A time with three digits and its unit."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def machine() -> dict[str, Any]:
    """Where the figures were taken."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


if __name__ == "__main__":
    sys.exit(main())
