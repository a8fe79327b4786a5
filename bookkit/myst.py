"""MyST Markdown made readable where only plain Markdown is understood (Colab, GitHub's previews).

Directives become block quotes with a bold title, or ``<details>`` where the book folds them; roles become
text; numbers and names of theorems, equations, figures and sources are those of the book.
"""

from __future__ import annotations

import base64
import mimetypes
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from nbformat import NotebookNode
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.richtext import Text as RichText

_FENCE = re.compile(r"^(?P<mark>:{3,}|`{3,}|~{3,})(?:\{(?P<name>[^}]+)\})?[ \t]*(?P<argument>.*)$")
_OPTION = re.compile(r"^:(?P<key>[\w-]+):[ \t]*(?P<value>.*)$")
_TARGET = re.compile(r"^\((?P<label>[^)\s]+)\)=\s*$")
_HEADING = re.compile(r"^#{1,6}[ \t]+(?P<text>.+?)\s*$")
_EQUATION = re.compile(r"\$\$(?P<body>.*?)\$\$(?:[ \t]*\((?P<label>[\w:.-]+)\))?", re.DOTALL)
_ROLE = re.compile(r"\{(?P<name>[\w:+-]+)\}(?P<ticks>`+)(?P<content>.+?)(?P=ticks)", re.DOTALL)
_LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s]+)\)")
_EXPLICIT = re.compile(r"^(?P<text>.*?)\s*<(?P<target>[^<>]+)>$", re.DOTALL)

#: Directives numbered in the book, by the name under which they are counted.
_COUNTED = {"exercise": "exercise", "figure": "figure"}
#: Directives that leave nothing behind.
_SILENT = {"bibliography", "tableofcontents", "contents", "index", "raw"}


@dataclass(frozen=True)
class Target:
    """Something a role can point at."""

    kind: str  # theorem, exercise, figure, equation, section, …
    number: str
    title: str

    def __str__(self) -> str:
        if self.kind == "equation":
            return f"({self.number})"
        return f"{self.kind.capitalize()} {self.number}" if self.number else self.title


@dataclass
class Labels:
    """Every label of the book, and its sources."""

    targets: dict[str, Target] = field(default_factory=dict)
    sources: BibliographyData = field(default_factory=BibliographyData)
    cited: list[str] = field(default_factory=list)  # filled while a notebook is rendered


@dataclass(frozen=True)
class Block:
    """A fenced directive (or code block, when `name` is empty)."""

    name: str
    argument: str
    options: dict[str, str]
    body: str
    source: str


def collect(chapters: list[tuple[Path, NotebookNode]], bibliography: Path) -> Labels:
    """Number what the book numbers, chapter by chapter, as the book does."""
    labels = Labels(sources=parse_file(str(bibliography)) if bibliography.exists() else BibliographyData())
    for chapter, (path, notebook) in enumerate(chapters, start=1):
        counts: defaultdict[str, int] = defaultdict(int)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                _collect_text(cell.source, chapter, counts, labels)
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if figure.get("caption"):
                counts["figure"] += 1
                number = f"{chapter}.{counts['figure']}"
                labels.targets[figure.get("name", "")] = Target("figure", number, "")
        title = next((m["text"] for line in _lines(notebook) if (m := _HEADING.match(line))), path.stem)
        labels.targets[path.stem] = Target("section", "", title)
    return labels


def _lines(notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from cell.source.splitlines()


def _collect_text(text: str, chapter: int, counts: defaultdict[str, int], labels: Labels) -> None:
    waiting: list[str] = []  # targets before a heading
    for piece in _blocks(text):
        if isinstance(piece, str):
            for line in piece.splitlines():
                if target := _TARGET.match(line):
                    waiting.append(target["label"])
                elif heading := _HEADING.match(line):
                    for label in waiting:
                        labels.targets[label] = Target("section", "", heading["text"])
                    waiting.clear()
            for equation in _EQUATION.finditer(piece):
                if equation["label"]:
                    counts["equation"] += 1
                    number = f"{chapter}.{counts['equation']}"
                    labels.targets[equation["label"]] = Target("equation", number, "")
            continue
        kind = piece.name.removeprefix("prf:") if piece.name.startswith("prf:") else _COUNTED.get(piece.name)
        if kind and kind != "proof" and "nonumber" not in piece.options:
            counts[kind] += 1
            label = piece.options.get("label") or piece.options.get("name") or ""
            labels.targets[label] = Target(kind, f"{chapter}.{counts[kind]}", piece.argument)
        if piece.name:
            _collect_text(piece.body, chapter, counts, labels)


def _blocks(text: str) -> Iterator[str | Block]:
    """Split Markdown into plain text and fenced blocks."""
    lines = text.split("\n")
    plain: list[str] = []
    i = 0
    while i < len(lines):
        opening = _FENCE.match(lines[i])
        if opening is None or (opening["mark"][0] == ":" and not opening["name"]):
            plain.append(lines[i])
            i += 1
            continue
        closing = re.compile(rf"^{opening['mark'][0]}{{{len(opening['mark'])},}}\s*$")
        end = next((j for j in range(i + 1, len(lines)) if closing.match(lines[j])), len(lines))
        if plain:
            yield "\n".join(plain)
            plain = []
        options, body = _options(lines[i + 1 : end]) if opening["name"] else ({}, lines[i + 1 : end])
        yield Block(
            name=opening["name"] or "",
            argument=opening["argument"].strip(),
            options=options,
            body="\n".join(body).strip("\n"),
            source="\n".join(lines[i : end + 1]),
        )
        i = end + 1
    if plain:
        yield "\n".join(plain)


def _options(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """A directive's options (``:key: value`` lines or a YAML block) and the rest of its lines."""
    if lines and lines[0].strip() == "---":
        end = next((j for j in range(1, len(lines)) if lines[j].strip() == "---"), len(lines))
        read = yaml.safe_load("\n".join(lines[1:end])) or {}
        return {key: str(value) for key, value in read.items()}, lines[end + 1 :]
    options: dict[str, str] = {}
    for j, line in enumerate(lines):
        option = _OPTION.match(line)
        if option is None:
            return options, lines[j:]
        options[option["key"]] = option["value"]
    return options, []


def plain(text: str, labels: Labels, folder: Path) -> str:
    """Rewrite a Markdown cell of the book as plain Markdown; `folder` is where its figures lie."""
    pieces = []
    for piece in _blocks(text):
        if isinstance(piece, str):
            pieces.append(_text(piece, labels))
        elif not piece.name:
            pieces.append(piece.source)
        else:
            pieces.append(_directive(piece, labels, folder))
    joined = "\n".join(pieces)
    return re.sub(r"\n{3,}", "\n\n", joined).strip("\n")


def caption(options: dict[str, str], labels: Labels) -> str:
    """Caption of a figure that a code cell draws, as Markdown."""
    target = labels.targets.get(options.get("name", ""))
    number = f"**{target}.** " if target and target.number else ""
    return number + _text(" ".join(options["caption"].split()), labels)


def _text(text: str, labels: Labels) -> str:
    kept = [line for line in text.split("\n") if not _TARGET.match(line) and not line.startswith("% ")]
    text = _EQUATION.sub(lambda m: _equation(m, labels), "\n".join(kept))
    text = _ROLE.sub(lambda m: _role(m["name"], m["content"], labels), text)
    return _LINK.sub(lambda m: _link(m, labels), text)


def _equation(match: re.Match[str], labels: Labels) -> str:
    """A display equation on one line: a block quote's marks must not get into the mathematics."""
    body = " ".join(match["body"].split())
    target = labels.targets.get(match["label"] or "")
    tag = rf" \tag{{{target.number}}}" if target else ""
    return f"$$ {body}{tag} $$"


def _role(name: str, content: str, labels: Labels) -> str:
    explicit = _EXPLICIT.match(content)
    target = explicit["target"] if explicit else content.strip()
    if name.startswith("cite"):
        return _citation(name, [key.strip() for key in content.split(",")], labels)
    if name == "math":
        return f"${content}$"
    if name.startswith("glue"):
        return f"*{content.partition(':')[0]}* (computed by this notebook)"
    if name in ("abbr", "term"):
        return explicit["text"] if explicit else content
    found = labels.targets.get(target) or labels.targets.get(Path(target).stem)
    if explicit and explicit["text"] and "%s" not in explicit["text"]:
        return f"{explicit['text']} ({found})" if found and found.number else explicit["text"]
    return str(found) if found else f"`{content}`"


def _link(match: re.Match[str], labels: Labels) -> str:
    """Links into the book become text: there is no book around the notebook."""
    target = match["target"]
    if re.match(r"^[a-z]+:", target):
        return match[0]
    found = labels.targets.get(target.removeprefix("#")) or labels.targets.get(Path(target.partition("#")[0]).stem)
    return match["text"] or (str(found) if found else Path(target).stem.replace("_", " "))


def _directive(block: Block, labels: Labels, folder: Path) -> str:
    if block.name in _SILENT:
        return ""
    if block.name in ("figure", "image"):
        return _picture(block, labels, folder)
    if block.name == "math":
        label = block.options.get("label", "")
        return _text(f"$$\n{block.body}\n$$" + (f" ({label})" if label else ""), labels)
    if block.name in ("code", "code-block", "sourcecode", "literalinclude", "mermaid"):
        return f"```{block.argument}\n{block.body}\n```"
    title, body = _title(block, labels), plain(block.body, labels, folder)
    if not title:
        return body
    if "dropdown" in block.options.get("class", "") or block.name == "dropdown":
        return f"<details>\n<summary><b>{_html(title)}</b></summary>\n\n{body}\n\n</details>"
    quoted = "\n".join(f"> {line}".rstrip() for line in f"**{title}.**\n\n{body}".split("\n"))
    return f"{quoted}\n"


def _title(block: Block, labels: Labels) -> str:
    argument = _text(block.argument, labels)
    if block.name.startswith("prf:") or block.name in _COUNTED:
        kind = block.name.removeprefix("prf:")
        target = labels.targets.get(block.options.get("label", ""))
        name = str(target) if target and target.number else kind.capitalize()
        return f"{name} ({argument})" if argument else name
    if block.name.startswith("solution"):
        return "" if block.name == "solution-end" else f"Solution to {_role('ref', block.argument, labels)}"
    if block.name in ("admonition", "dropdown", "card", "topic", "tab-item"):
        return argument
    if block.name in ("div", "grid", "tab-set", "table", "list-table", "epigraph", "margin", "aside"):
        return argument
    return f"{block.name.capitalize()}: {argument}" if argument else block.name.capitalize()


def _html(title: str) -> str:
    """A title inside HTML: code marks become tags; mathematics stays."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", title)


def _picture(block: Block, labels: Labels, folder: Path) -> str:
    """The picture itself, carried in the text, and its caption."""
    path = folder / block.argument
    if not path.exists():
        raise FileNotFoundError(f"{block.argument}: no such picture beside {folder}")
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    data = base64.b64encode(path.read_bytes()).decode()
    target = labels.targets.get(block.options.get("name", ""))
    number = f"**{target}.** " if target and target.number else ""
    words = _text(block.body, labels)
    return f"![{block.options.get('alt', '')}](data:{kind};base64,{data})\n\n{number}{words}".rstrip()


def _citation(role: str, keys: list[str], labels: Labels) -> str:
    found = []
    for key in keys:
        entry = labels.sources.entries.get(key)
        if entry is None:
            found.append((key, ""))
            continue
        if key not in labels.cited:
            labels.cited.append(key)
        found.append((_authors(entry), entry.fields.get("year", "")))
    if role == "cite:t":
        return ", ".join(f"{who} ({year})" if year else who for who, year in found)
    return "(" + "; ".join(f"{who}, {year}" if year else who for who, year in found) + ")"


def _authors(entry: Entry, most: int = 2) -> str:
    names = [_latex(" ".join(p.prelast_names + p.last_names)) for p in entry.persons.get("author", [])]
    if len(names) > most:
        return f"{names[0]} et al."
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def _latex(text: str) -> str:
    """LaTeX of a bibliography as Unicode."""
    return str(RichText.from_latex(text))


def references(labels: Labels) -> str:
    """The cited sources as a Markdown list, in order of author."""
    rows = []
    for key in labels.cited:
        entry = labels.sources.entries[key]
        fields = {name: _latex(value) for name, value in entry.fields.items()}
        where = fields.get("journal") or fields.get("booktitle") or fields.get("publisher") or ""
        link = fields.get("url") or (f"https://doi.org/{fields['doi']}" if "doi" in fields else "")
        parts = [_authors(entry, most=8), f"*{fields['title']}*", where, fields.get("year", ""), link]
        rows.append("- " + ". ".join(part for part in parts if part) + ("" if link else "."))
    return "\n".join(sorted(rows))
