"""What an audit found: a table of readings, each with what a theorem predicts where it applies."""

from __future__ import annotations

import difflib
import html
import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..book.claims import finite
from ..inputs import Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

HOLDS, FAILS, APART, UNTESTED = "holds", "fails", "does not apply", "not tested"

_STYLE = """
<style>
.nc-audit{font:14px/1.5 system-ui,sans-serif;max-width:60rem}
.nc-audit-cards{display:flex;flex-wrap:wrap;gap:.6em;margin:.6em 0}
.nc-audit-cards div{border:1px solid color-mix(in srgb,currentColor 30%,transparent);border-radius:6px;
 padding:.4em .8em}
.nc-audit-cards b{display:block;font-size:1.35em;font-weight:600}
.nc-audit table{border-collapse:collapse;width:100%}
.nc-audit th,.nc-audit td{text-align:left;vertical-align:top;padding:.2em .6em .2em 0;
 border-top:1px solid color-mix(in srgb,currentColor 20%,transparent)}
.nc-audit td.n{white-space:nowrap;font-variant-numeric:tabular-nums}
.nc-audit td:last-child{min-width:16rem}
.nc-audit-scroll{overflow-x:auto}
</style>"""


@dataclass(frozen=True)
class Reading:
    """One number read off a model, and what a theorem says of it."""

    group: str
    name: str
    value: float | None  # None where there is nothing to read
    predicted: float | None = None
    verdict: str = ""  # of a prediction: holds, fails, does not apply, not tested
    theorem: str = ""  # its label in the book
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "predicted"):
            found = getattr(self, name)
            object.__setattr__(self, name, None if found is None else finite(found))  # a frozen class is set so


@dataclass(frozen=True)
class Report:
    """The readings of a model; `table` and `layers` are data frames, ``report["nc1"]`` is one value."""

    model: str
    n: int
    classes: int
    findings: list[str]
    readings: list[Reading]
    layer_rows: list[dict[str, Any]]
    margins: Array = field(repr=False)

    def __getitem__(self, name: str) -> float:
        for reading in self.readings:
            if reading.name == name:
                return math.nan if reading.value is None else reading.value
        near = difflib.get_close_matches(str(name), [r.name for r in self.readings], n=1)
        raise KeyError(f"{name!r} is no reading{f'; did you mean {near[0]!r}?' if near else ''}; they are in table")

    @property
    def table(self) -> pd.DataFrame:
        """One row per reading: group, name, value, predicted, verdict, theorem, note."""
        import pandas as pd

        frame = pd.DataFrame([asdict(reading) for reading in self.readings])
        return frame.astype({"value": "Float64", "predicted": "Float64"})

    @property
    def layers(self) -> pd.DataFrame:
        """One row per layer: its norm with batch norm folded in, stable rank, and how it was read."""
        import pandas as pd

        return pd.DataFrame(self.layer_rows)

    def to_json(self) -> str:
        """All of it but the margins of the single points; what is not finite is null."""
        told = {name: getattr(self, name) for name in ("model", "n", "classes", "findings", "layer_rows")}
        told["readings"] = [asdict(reading) for reading in self.readings]
        return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)

    def figure(self) -> Figure:
        """The distribution of the margins, and the norms of the layers."""
        import matplotlib.pyplot as plt
        import numpy as np

        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        left.hist(self.margins, bins=min(60, max(8, int(np.sqrt(self.n)))), color="C0")
        left.axvline(0, color="0.3", lw=0.8)
        normalised = math.isfinite(self["rho"])
        left.set(xlabel="normalised margin" if normalised else "margin, not normalised", ylabel="training points")
        right.bar(range(1, len(self.layer_rows) + 1), [row["norm"] or 0 for row in self.layer_rows], color="C0")
        right.set(xlabel="layer", ylabel=r"norm $\rho_k$, batch norm folded in")
        return figure

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.n} points, {self.classes} classes"]
        lines += [f"  {finding}" for finding in self.findings]
        group = ""
        for r in self.readings:
            if r.group != group:
                group = r.group
                lines.append(group)
            predicted = "" if r.predicted is None else f"  predicted {number(r.predicted)}"
            verdict = f"  {r.verdict}" if r.verdict else ""
            theorem = f" ({r.theorem})" if r.theorem else ""
            note = f": {r.note}" if r.note else ""
            lines.append(f"  {r.name:<22}{number(r.value):>11}{predicted}{verdict}{theorem}{note}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        large = [r for r in self.readings if r.name in _CARDS and r.value is not None]
        cards = "".join(f"<div>{_CARDS[r.name]}<b>{number(r.value)}</b></div>" for r in large)
        findings = "".join(f"<li>{html.escape(finding)}</li>" for finding in self.findings)
        tested = [r for r in self.readings if r.verdict in (HOLDS, FAILS)]
        what = html.escape(f"{self.model}: {self.n} points, {self.classes} classes")
        return (
            f'{_STYLE}<div class="nc-audit"><p><strong>{what}</strong></p><div class="nc-audit-cards">{cards}</div>'
            f"<ul>{findings}</ul>{_table('predictions that apply', tested) if tested else ''}"
            f"<details><summary>All {len(self.readings)} readings</summary>{_table('all readings', self.readings)}"
            "</details></div>"
        )


#: What stands large at the top of a report.
_CARDS = {
    "rho": "norm ρ", "margin_q50": "median margin", "error": "training error", "nc1_quotient": "NC1, quotient",
    "departure": "departure from homogeneity", "stationarity": "distance from rest",
}  # fmt: skip


def _table(label: str, readings: list[Reading]) -> str:
    heads = ("reading", "value", "predicted", "verdict", "note")
    head = "".join(f'<th scope="col">{word}</th>' for word in heads)
    return (
        f'<div class="nc-audit-scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, readings))}</tbody></table></div>"
    )


def _row(r: Reading) -> str:
    label = f' <span class="nc-label">{html.escape(r.theorem)}</span>' if r.theorem else ""
    predicted = "" if r.predicted is None else number(r.predicted)
    return (
        f'<tr><th scope="row">{html.escape(r.name)}</th><td class="n">{number(r.value)}</td>'
        f'<td class="n">{predicted}</td><td>{html.escape(r.verdict)}</td><td>{html.escape(r.note)}{label}</td></tr>'
    )


def number(value: float | None) -> str:
    """To four digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"
