"""Results that take too long for a build: a CSV with a manifest beside it, kept in the book's folder ``results``.

The manifest says what was computed, on what and when, and carries two hashes: of the configuration and of the CSV.
A result without a manifest, or whose hashes do not match, is refused: a number without provenance is not there.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import fingerprint, write
from ..scale import device, device_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / "results"


@dataclass(frozen=True)
class Result:
    """A stored result and where it comes from; returned by `result`."""

    frame: pd.DataFrame
    manifest: dict[str, Any]  # as `save_result` makes it

    @property
    def provenance(self) -> str:
        """For a caption, e.g. ``device cpu · seeds 0, 1 · commit abc · 2026-01-02 · took 1 min``."""
        facts = self.manifest
        seeds = ", ".join(map(str, facts["config"].get("seeds", []))) or "none"
        minutes = facts["seconds"] / 60
        took = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        made = f"commit {facts['commit']} · {facts['created'][:10]} · took {took}"
        return f"device {facts['device']} · seeds {seeds} · {made}"

    @property
    def scale(self) -> str:
        """At which size it was computed: "full", or a part of it, e.g. "cpu part"."""
        size = self.manifest["config"].get("size", "full")
        return "full" if size == "full" else f"{size} part"

    @property
    def device(self) -> str:
        """On what it was computed."""
        return str(self.manifest["device"])

    def stamp(self, figure: Figure) -> None:
        """Write under a figure where its numbers come from."""
        if not hasattr(figure, "text"):
            raise TypeError(f"figure: expected a Matplotlib figure, got {type(figure).__name__}")
        figure.text(0.5, -0.02, self.provenance, ha="center", va="top", fontsize=7.5, color="0.4")


def result(*names: str, folder: str | os.PathLike[str] | None = None) -> Result:
    """Read a stored result; refuse one whose provenance is not in order.

    The table is ``.frame``; there are the ``.manifest``, ``.provenance``, ``.scale``, ``.device`` and
    ``.stamp(figure)``.

    Parameters
    ----------
    names
        File names without ending; of several the first that is there, e.g. the full size and a part of it.
    folder
        Where; by default the book's ``results``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the table or its manifest is not there; if the configuration's or the table's hash does not match.

    Examples
    --------
    >>> result("nothing")
    Traceback (most recent call last):
        ...
    FileNotFoundError: nothing.csv: no such result; `make full` computes what the book shows
    """
    import pandas as pd

    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder={folder!r}: expected a path")
    place = _FOLDER if folder is None else Path(folder)
    if not names or not all(isinstance(name, str) and len(name) < 100 for name in names):
        raise TypeError(f"result needs the name of one, got names={names}")
    name = next((name for name in names if (place / f"{name}.csv").exists()), None)
    if name is None:
        missing = " or ".join(f"{name}.csv" for name in names)
        raise FileNotFoundError(f"{missing}: no such result; `make full` computes what the book shows")
    manifest = place / f"{name}.json"
    if not manifest.exists():
        raise FileNotFoundError(f"{name}.csv has no manifest {name}.json, so nobody knows what it is: remove it")
    facts = json.loads(manifest.read_text("utf-8"))
    content = (place / f"{name}.csv").read_bytes().replace(b"\r\n", b"\n")  # as git on Windows may end lines
    mend = f"bring both back with `git checkout results/{name}.*`, or compute the result again"
    if facts.get("config_sha256") != fingerprint(facts.get("config", {})):
        raise ValueError(f"{name}.json: its configuration is not the one that was run; {mend}")
    if facts.get("csv_sha256") != fingerprint(content):
        raise ValueError(f"{name}.csv is not the table that {name}.json was written for; {mend}")
    return Result(pd.read_csv(io.BytesIO(content)), facts)


def save_result(
    name: str, frame: pd.DataFrame, config: Mapping[str, Any], *, seconds: float, folder: Path = _FOLDER
) -> None:
    """Write a table, to seven digits, and its manifest, each whole or not at all.

    Where the same table of the same configuration lies already, it stays, with the manifest of its making.
    The configuration is all that the result depends on, in what JSON knows, ``seeds`` among it; it took `seconds`
    of wall time to compute.
    """
    if not len(frame):
        raise ValueError(f"frame of {name!r} is empty: there is nothing to keep; check what computed it")
    table = frame.to_csv(index=False, float_format="%.7g", lineterminator="\n").encode()
    hashes = {"config_sha256": fingerprint(dict(config)), "csv_sha256": fingerprint(table)}
    try:
        if hashes.items() <= result(name, folder=folder).manifest.items():
            return
    except (FileNotFoundError, ValueError):
        pass  # none, or one that is not in order
    processor = f"cpu ({os.cpu_count()} cores, {platform.machine()})"
    libraries = {library: version(library) for library in ("torch", "numpy", "pandas")}
    manifest = {
        "name": name,
        "config": dict(config),
        **hashes,
        "device": device_name() if device().type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **libraries},
        "commit": _commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
    write(folder / f"{name}.csv", table)
    write(folder / f"{name}.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _commit() -> str:
    """Short hash of the book's commit, marked where files differ from it; "unknown" without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "nclib", "results/remake.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
