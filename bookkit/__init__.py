"""What turns chapters into a book: the Sphinx extension, the notebooks, the tools for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the parts of the extension (Sphinx calls this)."""
    for part in ("execution", "verdicts", "package_page", "reader_aids", "website", "mathematics"):
        app.setup_extension(f"{__name__}.{part}")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
