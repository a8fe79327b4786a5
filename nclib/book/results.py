"""Results that take too long for a build: a CSV with a manifest beside it, kept in the book's folder ``results``.

The manifest says what was computed, on what and when, and carries two hashes: of the configuration and of the CSV.
A result without a manifest, or whose hashes do not match, is refused: a number without provenance is not there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..scale import device, device_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Result", "result", "save_result"]

_LIBRARIES = ("torch", "numpy", "pandas")


@dataclass(frozen=True)
class Result:
    """A stored result and where it comes from.

    Attributes
    ----------
    frame : DataFrame
        The table.
    manifest : dict
        name, config, config_sha256, csv_sha256, device, threads, versions, commit, created, seconds.
    """

    frame: pd.DataFrame
    manifest: dict[str, Any]

    @property
    def provenance(self) -> str:
        """One line for a caption: device, seeds, commit, date and time taken.

        Examples
        --------
        >>> import pandas as pd
        >>> facts = {"device": "cpu", "commit": "abc", "created": "2026-01-02T03:04:05+00:00", "seconds": 61.0}
        >>> Result(pd.DataFrame(), {**facts, "config": {"seeds": [0, 1]}}).provenance
        'device cpu · seeds 0, 1 · commit abc · 2026-01-02 · took 1 min'
        """
        facts = self.manifest
        seeds = ", ".join(map(str, facts["config"].get("seeds", []))) or "none"
        minutes = facts["seconds"] / 60
        took = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        made = f"commit {facts['commit']} · {facts['created'][:10]} · took {took}"
        return f"device {facts['device']} · seeds {seeds} · {made}"

    @property
    def scale(self) -> str:
        """At which size it was computed: "full", or a part of it, e.g. "cpu part".

        Examples
        --------
        >>> import pandas as pd
        >>> [Result(pd.DataFrame(), {"config": {"size": size}}).scale for size in ("full", "cpu")]
        ['full', 'cpu part']
        """
        size = self.manifest["config"].get("size", "full")
        return "full" if size == "full" else f"{size} part"

    @property
    def device(self) -> str:
        """On what it was computed.

        Examples
        --------
        >>> import pandas as pd
        >>> Result(pd.DataFrame(), {"device": "cpu"}).device
        'cpu'
        """
        return str(self.manifest["device"])

    def stamp(self, figure: Figure) -> None:
        """Write under a figure where its numbers come from.

        Examples
        --------
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> facts = {"device": "cpu", "commit": "abc", "created": "2026-01-02", "seconds": 6.0, "config": {}}
        >>> picture = Figure()
        >>> Result(pd.DataFrame(), facts).stamp(picture)
        >>> picture.texts[0].get_text()
        'device cpu · seeds none · commit abc · 2026-01-02 · took 0 min'
        """
        figure.text(0.5, -0.02, self.provenance, ha="center", va="top", fontsize=7.5, color="0.4")


def results_folder() -> Path:
    """The folder ``results`` beside the package.

    Examples
    --------
    >>> results_folder().name
    'results'
    """
    return Path(__file__).resolve().parents[2] / "results"


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a configuration made of what JSON knows, whatever the order of its keys.

    Examples
    --------
    >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def save_result(
    name: str,
    frame: pd.DataFrame,
    config: Mapping[str, Any],
    *,
    seconds: float,
    folder: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a table and its manifest, each whole or not at all.

    Parameters
    ----------
    name : str
        File name without ending.
    frame : DataFrame
        The table; numbers are written to seven digits.
    config : mapping
        All that the result depends on, in what JSON knows; ``seeds`` among it.
    seconds : float
        Wall time that computing it took.
    folder : path, optional
        Where; by default the book's ``results``.

    Returns
    -------
    Path
        The CSV's.

    Raises
    ------
    ValueError
        If the table is empty.

    Examples
    --------
    >>> import tempfile, pandas as pd
    >>> with tempfile.TemporaryDirectory() as place:
    ...     _ = save_result("trial", pd.DataFrame({"a": [1]}), {"seeds": [0]}, seconds=2.0, folder=place)
    ...     result("trial", folder=place).frame.a.tolist()
    [1]
    """
    if not len(frame):
        raise ValueError(f"frame of {name!r} is empty: there is nothing to keep; check what computed it")
    place = results_folder() if folder is None else Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    table = frame.to_csv(index=False, float_format="%.7g", lineterminator="\n").encode()
    manifest = {
        "name": name,
        "config": dict(config),
        "config_sha256": config_hash(config),
        "csv_sha256": hashlib.sha256(table).hexdigest(),
        "device": device_name() if device().type == "cuda" else _processor(),
        "threads": _threads(),
        "versions": {"python": platform.python_version(), **{lib: version(lib) for lib in _LIBRARIES}},
        "commit": _commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
    _replace(place / f"{name}.csv", table)
    _replace(place / f"{name}.json", (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return place / f"{name}.csv"


def result(*names: str, folder: str | os.PathLike[str] | None = None) -> Result:
    """Read a stored result; refuse one whose provenance is not in order.

    Parameters
    ----------
    *names : str
        As in `save_result`; of several the first that is there, e.g. the full size and a part of it.
    folder : path, optional
        Where; by default the book's ``results``.

    Returns
    -------
    Result
        ``.frame``, ``.manifest`` and ``.provenance``.

    Raises
    ------
    FileNotFoundError
        If the table or its manifest is not there.
    ValueError
        If the configuration's or the table's hash does not match.

    Examples
    --------
    >>> result("nothing")
    Traceback (most recent call last):
        ...
    FileNotFoundError: nothing.csv: no such result; `make full` computes what the book shows
    """
    import io

    import pandas as pd

    place = results_folder() if folder is None else Path(folder)
    if not names:
        raise TypeError("result needs the name of one")
    there = [name for name in names if (place / f"{name}.csv").exists()]
    if not there:
        missing = " or ".join(f"{name}.csv" for name in names)
        raise FileNotFoundError(f"{missing}: no such result; `make full` computes what the book shows")
    name = there[0]
    table, manifest = place / f"{name}.csv", place / f"{name}.json"
    if not manifest.exists():
        raise FileNotFoundError(f"{name}.csv has no manifest {name}.json, so nobody knows what it is: remove it")
    facts = json.loads(manifest.read_text("utf-8"))
    content = table.read_bytes()
    if facts.get("config_sha256") != config_hash(facts.get("config", {})):
        raise ValueError(f"{name}.json: its configuration is not the one that was run; compute the result again")
    if facts.get("csv_sha256") != hashlib.sha256(content).hexdigest():
        raise ValueError(f"{name}.csv is not the table that {name}.json was written for; compute the result again")
    return Result(pd.read_csv(io.BytesIO(content)), facts)


def _replace(file: Path, content: bytes) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    aside.write_bytes(content)
    os.replace(aside, file)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _processor() -> str:
    """What a CPU is called, e.g. for a caption."""
    return f"cpu ({os.cpu_count()} cores, {platform.machine()})"


def _commit() -> str:
    """Short hash of the book's commit, marked where files differ from it; "unknown" without git."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "nclib", "results/remake.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
