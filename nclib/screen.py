"""What is shown while something runs, and to whom: a person, a log file, or a program; never a word to stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal, Protocol

__all__ = ["Bar", "audience", "bar", "shell"]

_LINE_EVERY = 30.0  # seconds between two lines of a log
_DELAY = 2.0  # what is over sooner needs no bar


def shell() -> Any:
    """The IPython in which this process runs, in a notebook or a terminal; None elsewhere."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def audience() -> Literal["person", "log", "program"]:
    """Who is watching: a person at a terminal or notebook, a log file, or a program that executes a notebook.

    Examples
    --------
    >>> audience() in ("person", "log", "program")
    True
    """
    kernel = getattr(shell(), "kernel", None)
    if kernel is not None:
        # A program that executes a notebook (nbclient, papermill) allows no input; a person's front end does.
        return "person" if getattr(kernel, "_allow_stdin", False) else "program"
    return "person" if sys.stdout is not None and sys.stdout.isatty() else "log"


class Bar(Protocol):
    """What `bar` yields."""

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total is finished."""


@contextlib.contextmanager
def bar(total: int, what: str, *, start: int = 0, show: bool | None = None) -> Iterator[Bar]:
    """Show how much of `total` is done and roughly how long the rest takes.

    In a terminal and in a notebook that a person sits at, a bar that redraws itself; in a log file, a line
    now and then; while a notebook is executed by a program, nothing.  Nothing either for what takes less
    than two seconds.

    Parameters
    ----------
    total : amount of work.
    what : what is going on, e.g. "train 32 networks".
    start : how much was done before, by a run that is being resumed.
    show : False is silent.

    Examples
    --------
    >>> with bar(10, "count") as progress:
    ...     progress.update(10)
    """
    watched = audience() if show is None or show else "program"
    if watched == "person":
        from tqdm import tqdm

        shown = tqdm(
            total=total, initial=start, desc=what, file=sys.stdout, leave=False, delay=_DELAY, unit="epoch",
            dynamic_ncols=True,
        )  # fmt: skip
        try:
            yield _Redrawn(shown)
        finally:
            shown.close()
    elif watched == "log":
        yield _Lines(total, what, start)
    else:
        yield _Silent()


class _Silent:
    def update(self, done: int, note: str = "") -> None:
        pass


class _Redrawn:
    def __init__(self, shown: Any) -> None:
        self.shown = shown

    def update(self, done: int, note: str = "") -> None:
        if note:
            self.shown.set_postfix_str(note, refresh=False)
        self.shown.update(done - self.shown.n)


class _Lines:
    def __init__(self, total: int, what: str, start: int) -> None:
        self.total, self.what, self.start = total, what, start
        self.began = self.printed = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.printed < _LINE_EVERY or done <= self.start:
            return
        self.printed = now
        spent = now - self.began
        left = spent * (self.total - done) / (done - self.start)
        note = f", {note}" if note else ""
        print(
            f"{self.what}: {done}/{self.total} ({done / self.total:.0%}), {_clock(spent)} spent, "
            f"about {_clock(left)} left{note}",
            flush=True,
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
