"""Chapters executed side by side before Sphinx reads them: it would take them one after another.

What comes out goes into the execution cache, where myst-nb finds it.  A chapter that fails is left out: myst-nb
then executes it once more, and reports the failure as it reports all.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.main import JupyterCacheBase
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from sphinx.util import logging

from . import notebooks

LOGGER = logging.getLogger(__name__)


def jobs() -> int:
    """How many chapters at a time: ``BOOK_JOBS``, or one for each core, two at most."""
    return int(os.environ.get("BOOK_JOBS") or min(2, os.cpu_count() or 1))


def read(source: Path) -> nbformat.NotebookNode | None:
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


def execute(sources: list[Path], folder: Path, timeout: int) -> None:
    """Execute those of the pages that are notebooks without outputs in the cache, several at a time."""
    cache = get_cache(str(folder))
    found = {source: read(source) for source in sources}
    waiting = {source: nb for source, nb in found.items() if nb is not None and not is_cached(cache, nb)}
    # Chapters share the cores, and their matrices are small: one thread each is faster than fighting for all cores.
    for name, value in notebooks.ONE_THREAD.items():
        os.environ.setdefault(name, value)
    if jobs() < 2 or len(waiting) < 2:
        return

    def run(source: Path) -> ExecutionResult:
        return single_nb_execution(waiting[source], cwd=str(source.parent), timeout=timeout, allow_errors=False)

    with ThreadPoolExecutor(jobs()) as pool:
        for source, result in zip(waiting, pool.map(run, waiting), strict=True):
            if result.err is None:
                LOGGER.info("%s: executed in %.0f seconds", source.stem, result.time)
                bundle = CacheBundleIn(waiting[source], str(source), data={"execution_seconds": result.time})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
