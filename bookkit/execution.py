"""Chapters executed: several at a time, never stale, and their outputs for the rest of this package.

- The execution cache goes when what its outputs depend on has changed: `nclib`, libraries, device, variables, ….
- Chapters are executed side by side before Sphinx reads them: it would take them one after another.  What comes out
  goes into the cache, where myst-nb finds it.  A chapter that fails is left out: myst-nb then executes it once
  more, and reports the failure as it reports all.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.main import JupyterCacheBase
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging

import nclib

from . import kernels, notebooks, provenance

LOGGER = logging.getLogger(__name__)


def jobs() -> int:
    """How many chapters at a time: ``BOOK_JOBS``, or one for each core, two at most."""
    return int(os.environ.get("BOOK_JOBS") or min(2, os.cpu_count() or 1))


def source_notebook(source: Path) -> nbformat.NotebookNode | None:
    """A page as myst-nb reads it; None if it is no notebook."""
    text = source.read_text("utf-8")
    reader = create_nb_reader(str(source), MdParserConfig(), NbParserConfig(), text)
    return reader.read(text) if reader else None


def is_cached(cache: JupyterCacheBase, notebook: nbformat.NotebookNode) -> bool:
    """Whether outputs for this notebook's code are there."""
    with suppress(KeyError):
        cache.match_cache_notebook(notebook)
        return True
    return False


def execute(sources: list[Path], folder: Path, timeout: int, commit: str = "") -> None:
    """Execute those of the pages that are notebooks without outputs in the cache, several at a time.

    With the outputs goes the `commit` that made them, which need not be the one that a page is assembled from.
    """
    cache = get_cache(str(folder))
    found = {source: source_notebook(source) for source in sources}
    waiting = {source: nb for source, nb in found.items() if nb is not None and not is_cached(cache, nb)}
    # Chapters share the cores, and their matrices are small: one thread each is faster than fighting for all cores.
    for name, value in notebooks.ONE_THREAD.items():
        os.environ.setdefault(name, value)

    def run(source: Path) -> ExecutionResult:
        return single_nb_execution(waiting[source], cwd=str(source.parent), timeout=timeout, allow_errors=False)

    with ThreadPoolExecutor(jobs()) as pool:
        for source, result in zip(waiting, pool.map(run, waiting), strict=True):
            if result.err is None:
                LOGGER.info("%s: executed in %.0f seconds", source.stem, result.time)
                data = {"execution_seconds": result.time, "commit": commit}
                bundle = CacheBundleIn(waiting[source], str(source), data=data)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def refuse_strangers(app: Sphinx) -> None:
    """Stop where chapters would run another folder's package, as in an environment that was copied from there."""
    found = Path(nclib.__file__).resolve().parent.parent
    if found != Path(app.srcdir).resolve():
        raise ExtensionError(
            f"the book in {app.srcdir} would run nclib of {found}, for which this environment was installed: "
            "install it here, `pip install -e .`, or remove .venv and run `make book`"
        )


def clear_cache(app: Sphinx) -> None:
    """Delete the execution cache when it was made on other foundations than today's."""
    folder, today = cache_folder(app), provenance.fingerprint(Path(app.srcdir))
    mark = folder / "fingerprint"
    if not mark.exists() or mark.read_text("utf-8") != today:
        if folder.exists():
            LOGGER.info("what outputs depend on has changed: every chapter is executed again")
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        mark.write_text(today, "utf-8")


def execute_ahead(app: Sphinx) -> None:
    """Fill the cache, several chapters at a time."""
    root = Path(app.srcdir)
    sources = sorted((root / "chapters").glob("*.md"))
    execute(sources, cache_folder(app), app.config.nb_execution_timeout, provenance.commit(root))


# --- what came out --------------------------------------------------------------------------------


def executed(app: Sphinx, docname: str) -> Path:
    """Where myst-nb leaves the executed notebook of a page."""
    return Path(app.outdir).parent / "jupyter_execute" / f"{docname}.ipynb"


def cache_folder(app: Sphinx) -> Path:
    """The execution cache."""
    return Path(app.config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")


def read(app: Sphinx, docname: str) -> nbformat.NotebookNode | None:
    """A page's executed notebook; None where the page is none.

    myst-nb leaves a notebook whose outputs came from the cache without them: there they are looked up as myst-nb
    itself looks them up, by the notebook's code.
    """
    if not executed(app, docname).exists():
        return None
    notebook = nbformat.read(executed(app, docname), as_version=4)
    if not any(cell.get("outputs") for cell in notebook.cells):
        with suppress(KeyError):  # not there: the notebook has no outputs, or failed
            _, notebook = get_cache(cache_folder(app)).merge_match_into_notebook(notebook)
    return notebook


def commit(app: Sphinx, notebook: nbformat.NotebookNode | None) -> str:
    """The commit that made a notebook's outputs; empty where nobody wrote it down."""
    with suppress(KeyError):
        return str(get_cache(cache_folder(app)).match_cache_notebook(notebook).data.get("commit", ""))
    return ""


def succeeded(env: BuildEnvironment, docname: str) -> bool:
    """Whether a page's notebook ran to its end (or the page is none)."""
    return bool(facts(env, docname).get("succeeded", True))


def facts(env: BuildEnvironment, docname: str) -> dict[str, Any]:
    """What myst-nb says of a page's execution: runtime, mtime, succeeded, …"""
    metadata: dict[str, dict[str, Any]] = getattr(env, "nb_metadata", {})
    return metadata.get(docname, {}).get("exec_data") or {}


def ask_for_files(_app: Sphinx) -> None:
    """Let the chapters' figures be drawn as PDF too, for readers to take away, and with no date in them."""
    os.environ.setdefault("NCLIB_FIGURES", "svg,pdf")
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    kernels.prepare()
    for step in (refuse_strangers, ask_for_files, clear_cache, execute_ahead):
        app.connect("builder-inited", step)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
