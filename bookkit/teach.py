"""For those who teach: what each chapter needs and gives, how the chapters depend on each other, and all exercises.

Everything is gathered from the chapters: from their "Before you start", and from their exercises with their stars.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape

from docutils import nodes
from sphinx import addnodes

from .page_parts import Shown, chapter_numbers, raw, with_math

NEED, GIVE = "You need", "You will be able to"

_BOX, _GAP = (158, 46), (18, 40)  # of the map, in units of its view box


def lectures(shown: Shown) -> list[nodes.Node]:
    """For each chapter what it needs, what one can do after it, and its notebook."""
    parts = []
    for docname, said in before_you_start(shown).items():
        told = "".join(
            f"<dt>{name}</dt><dd>{''.join(_html(shown, node) for node in said[name]).strip()}</dd>"
            for name in (GIVE, NEED)
            if name in said
        )
        head = f'<a href="{shown.link(docname)}">{escape(shown.chapter_title(docname))}</a>'
        notebook = f'<a href="{shown.notebook(docname)}" download>notebook</a>'
        parts.append(f'<div class="nc-lecture"><h3>{head} <small>{notebook}</small></h3><dl>{told}</dl></div>')
    return [raw("".join(parts))]


def exercises(shown: Shown) -> list[nodes.Node]:
    """All exercises, the easiest first, each with a link."""
    found: dict[int, list[str]] = {}
    for docname in shown.pages:
        for node in shown.app.env.get_doctree(docname).findall(lambda n: n.tagname == "exercise_enumerable_node"):
            title = node[0][-1].astext()
            number = shown.numbers(docname, "exercise", node["label"])
            link = f'<a href="{shown.link(docname, node["label"])}">{number} {escape(title.rstrip(" ★"))}</a>'
            found.setdefault(title.count("★"), []).append(f"<li>{link}</li>")
    parts = [
        f'<p><strong>{"★" * stars}</strong></p><ul class="nc-columns">{"".join(found[stars])}</ul>'
        for stars in sorted(found)
    ]
    return [raw("".join(parts))]


def before_you_start(shown: Shown) -> dict[str, dict[str, list[nodes.Node]]]:
    """What each chapter says before it starts, by the words in bold with which that begins."""
    found: dict[str, dict[str, list[nodes.Node]]] = {}
    for docname in shown.pages:
        for box in shown.app.env.get_doctree(docname).findall(nodes.admonition):
            if box[0].astext() != "Before you start":
                continue
            said = found[docname] = dict[str, list[nodes.Node]]()
            told = list[nodes.Node]()
            for node in (child for paragraph in box.findall(nodes.paragraph) for child in paragraph):
                if isinstance(node, nodes.strong):
                    told = said[node.astext()] = []
                else:
                    told.append(node)
    return found


def _html(shown: Shown, node: nodes.Node) -> str:
    if isinstance(node, nodes.math):
        return with_math(f"${node.astext()}$")
    target = _target(shown, node)
    if target is not None:
        return f'<a href="{shown.link(*target)}">{escape(node.astext())}</a>'
    if isinstance(node, addnodes.pending_xref) and node["reftarget"] in shown.where:
        return shown.theorem_link(node["reftarget"])
    return escape(node.astext())


def _target(shown: Shown, node: nodes.Node) -> tuple[str, str] | None:
    """Page and anchor of a section that is referred to."""
    if not isinstance(node, addnodes.pending_xref):
        return None
    found = shown.app.env.domaindata["std"]["labels"].get(node["reftarget"])
    return (found[0], found[1]) if found else None


def needs(shown: Shown) -> dict[str, set[str]]:
    """For each chapter those that it says it needs, itself left out."""
    number = {}
    for name in shown.pages:
        if found := shown.app.env.toc_secnumbers.get(name, {}).get("", ()):
            number[found[0]] = name
    graph = dict[str, set[str]]()
    for docname, said in before_you_start(shown).items():
        told = said.get(NEED, [])
        named = {number[n] for n in chapter_numbers("".join(node.astext() for node in told)) if n in number}
        linked = {target[0] for node in told if (target := _target(shown, node))}
        graph[docname] = named | (linked & set(shown.pages)) - {docname}
    return graph


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the arrows that follow from others."""

    def above(name: str) -> set[str]:
        return {far for near in graph.get(name, ()) for far in {near} | above(near)}

    return {
        name: {near for near in found if not any(near in above(other) for other in found)}
        for name, found in graph.items()
    }


def lecture_map(shown: Shown) -> list[nodes.Node]:
    """Which chapter needs which: a drawing from above to below, each box a link."""
    graph = reduced(needs(shown))
    level: dict[str, int] = {}
    for name in graph:  # in reading order: what a chapter needs stands before it
        level[name] = 1 + max((level.get(near, 0) for near in graph[name]), default=-1)
    rows = [[name for name in graph if level[name] == depth] for depth in range(max(level.values(), default=0) + 1)]
    (width, height), (beside, below) = _BOX, _GAP
    whole = max(map(len, rows)) * (width + beside)
    place = {
        name: (whole / 2 + (i - len(row) / 2) * (width + beside) + beside / 2, depth * (height + below) + 1)
        for depth, row in enumerate(rows)
        for i, name in enumerate(row)
    }
    arrows = []
    for name, found in graph.items():
        x, y = place[name][0] + width / 2, place[name][1]
        for near in found & place.keys():
            u, v = place[near][0] + width / 2, place[near][1] + height
            arrows.append(f'<path d="M{u:g} {v:g} C{u:g} {v + below:g} {x:g} {y - below:g} {x:g} {y:g}"/>')
    boxes = [_box(shown, name, *place[name]) for name in graph]
    tall = len(rows) * (height + below) - below + 2
    drawing = (
        f'<svg class="nc-lecture-map" viewBox="0 0 {whole:g} {tall:g}" role="group" aria-label="Which chapter '
        f'needs which; the list below says it in words" style="min-width:{0.62 * whole:g}px">'
        f"{''.join(arrows)}{''.join(boxes)}</svg>"
    )
    return [
        raw(f'<div class="nc-scrolls" tabindex="0" role="region" aria-label="Map of the chapters">{drawing}</div>')
    ]


def _box(shown: Shown, docname: str, x: float, y: float) -> str:
    title = shown.chapter_title(docname)
    lines = textwrap.wrap(title, max(22, len(title) // 2 + 4))
    middle = y + _BOX[1] / 2 + 4.5 - 8 * (len(lines) - 1)
    text = "".join(
        f'<text x="{x + _BOX[0] / 2:g}" y="{middle + 16 * i:g}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    box = f'<rect x="{x:g}" y="{y:g}" width="{_BOX[0]}" height="{_BOX[1]}" rx="5"/>'
    return f'<a href="{shown.link(docname)}" aria-label="{escape(title)}">{box}{text}</a>'
