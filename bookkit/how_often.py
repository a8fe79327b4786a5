"""``{how-often}``: the stored table of `make seeds`, from how many base seeds each claim of the book held."""

from __future__ import annotations

from collections.abc import Collection
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from docutils import nodes

from nclib.book import claims
from nclib.book.results import Result, result

from . import base_seeds, page_parts

COLUMNS = ("Held", "Theorem", "Claim", "Criterion", "Largest deviation, or value", "Share of the tolerance")
BY_CHAPTER = ("Chapter", "Claims", "Base seeds", "Held in whole", "Measured", "Code since")

Key = tuple[str, str, str]  # chapter, theorem, statement


def how_often(shown: page_parts.Shown) -> list[nodes.Node]:
    """A line a chapter, then every claim that the book still makes, the worst share first."""
    try:
        stored = result(base_seeds.NAME)
    except FileNotFoundError:
        return [page_parts.raw('<p class="nc-summary unchecked">No run of <code>make seeds</code> is kept.</p>')]
    made = {(r["chapter"], r["theorem"], r["statement"]) for _, r in shown.book.records()}
    held, gone, missing = compare(stored.frame, made)
    chapters = {chapter for chapter, _, _ in made}
    titles = {n.rpartition("/")[2]: shown.chapter_title(n) for n in shown.pages if n.rpartition("/")[2] in chapters}
    parts = [summary(stored, held), by_chapter(stored, held, titles, Path(shown.app.srcdir))]
    if gone:
        parts.append(f"<p>Left out, because the book no longer claims them in these words: {gone} rows.</p>")
    told = [f"{titles[c]}: {words}" for c, _, words in missing if c in stored.manifest["config"]["chapters"]]
    if told:
        items = "".join(f"<li>{page_parts.with_math(words)}</li>" for words in told)
        parts.append(f"<p>Claimed since, and not yet tried from other base seeds:</p><ul>{items}</ul>")
    rows = "".join(map(row, held.to_dict("records")))
    table = page_parts.table(rows, "How often each claim held", COLUMNS)
    return [page_parts.raw("".join(parts) + page_parts.with_links(shown, table))]


def compare(frame: pd.DataFrame, made: Collection[Key]) -> tuple[pd.DataFrame, int, list[Key]]:
    """Rows of claims that the book makes, worst share first; how many it makes no more; and those without a row."""
    keys = list(frame[["chapter", "theorem", "statement"]].itertuples(index=False, name=None))
    now = set(made)
    kept = frame[[key in now for key in keys]].sort_values("share", ascending=False, kind="stable")
    return kept, len(frame) - len(kept), sorted(now - set(keys))


def summary(stored: Result, held: pd.DataFrame) -> str:
    """One line for all of it."""
    always = int((held.held == held.of).sum())
    near = int((held.share > base_seeds.SHARE).sum())
    seeds = len(stored.manifest["config"]["seeds"])
    words = [
        f"{always} of {len(held)} claims held from every base seed",
        f"{near} used more than {base_seeds.SHARE:.0%} of a tolerance",
        f"{seeds} base seeds",
        stored.device,
        f"last run {stored.manifest['created'][:10]}",
    ]
    kind = "holds" if always == len(held) else "fails"
    return f'<p class="nc-summary {kind}">{escape(" · ".join(words))}</p>'


def by_chapter(stored: Result, held: pd.DataFrame, titles: dict[str, str], root: Path) -> str:
    """A line a chapter: claims, base seeds, from how many the whole of it held, when and by which code."""
    lines, run = [], stored.manifest["config"]["chapters"]
    for chapter in dict.fromkeys([*titles, *run]):
        if chapter not in run:
            lines.append(f"<tr><td>{escape(titles[chapter])}</td>{'<td>not run</td>' * (len(BY_CHAPTER) - 1)}</tr>")
            continue
        facts = run[chapter]
        source = root / "chapters" / f"{chapter}.md"
        same = source.exists() and base_seeds.code_hash(source) == facts["code_sha256"]
        rows = stored.frame[stored.frame.chapter == chapter]
        lost = {seed for seeds in rows.failed_from.astype(str) for seed in seeds.split()}
        whole = set(map(str, facts["seeds"])) - lost - set(map(str, facts["broke_off"]))
        cells = (
            titles.get(chapter, chapter), (held.chapter == chapter).sum(),
            f"{len(facts['seeds'])} ({facts['scale']})", len(whole),
            f"{facts['day']}, commit {facts['commit']}", "unchanged" if same else "changed",
        )  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return page_parts.table("".join(lines), "Base seeds by chapter", BY_CHAPTER)


def row(found: dict[str, Any]) -> str:
    """One claim in words."""
    least, most = (claims.number(found[name]) for name in ("least", "most"))
    label = f'<span class="nc-label">{escape(found["theorem"])}</span>'
    cells = (
        f"{found['held']} of {found['of']}", label, escape(found["statement"], quote=False), found["tolerance"],
        most if least == most or pd.notna(found["share"]) else f"{least} … {most}",
        "" if pd.isna(found["share"]) else f"{found['share']:.0%}",
    )  # fmt: skip
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{"holds" if found["held"] == found["of"] else "fails"}">{body}</tr>'
