"""What is shown while something runs, and to whom: a person, a log file, or a program; never a word to stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

_LINE_EVERY = 30.0  # seconds between two lines of a log
_DELAY = 2.0  # what is over sooner needs no bar


def shell() -> Any:
    """The IPython in which this process runs, in a notebook or a terminal; None elsewhere."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def audience() -> Literal["person", "log", "program"]:
    """Who is watching: a person at a terminal or notebook, a log file, or a program that executes a notebook."""
    if (kernel := getattr(shell(), "kernel", None)) is not None:
        # A program that executes a notebook (nbclient, papermill) allows no input; a person's front end does.
        return "person" if getattr(kernel, "_allow_stdin", False) else "program"
    return "person" if sys.stdout is not None and sys.stdout.isatty() else "log"


@contextlib.contextmanager
def bar(total: int, what: str, *, start: int = 0, show: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Show how much of `total` is done (`start` by a run that is resumed) and roughly how long the rest takes.

    Yields a function of what is done, and of a note about it.  A person sees a bar that redraws itself, a log
    file gets a line now and then, a program nothing.  What takes less than two seconds shows nothing either.
    """
    watching = audience() if show else "program"
    if watching == "log":
        yield _lines(total, what, start)
    elif watching == "program":
        yield lambda done, note: None
    else:
        from tqdm import tqdm

        shown = tqdm(
            total=total, initial=start, desc=what, file=sys.stdout, leave=False, delay=_DELAY, unit="epoch",
            dynamic_ncols=True,
        )  # fmt: skip

        def redraw(done: int, note: str) -> None:
            if note:
                shown.set_postfix_str(note, refresh=False)
            shown.update(done - shown.n)

        with shown:
            yield redraw


def _lines(total: int, what: str, start: int) -> Callable[[int, str], None]:
    began = printed = time.monotonic()

    def line(done: int, note: str) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed < _LINE_EVERY or done <= start:
            return
        printed, spent = now, now - began
        left = spent * (total - done) / (done - start)
        times = f"{_clock(spent)} spent, about {_clock(left)} left{f', {note}' if note else ''}"
        print(f"{what}: {done}/{total} ({done / total:.0%}), {times}", flush=True)

    return line


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
