"""The two ways into Colab, each run as a reader would: elsewhere, without `nclib`, without network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, run
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from bookkit import colab, ledger, myst, notebooks

CHAPTERS = notebooks.chapters(ROOT)
each_chapter = pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)

NO_NETWORK = """
import socket

def refuse(address):
    if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1", ""):
        raise OSError(f"no network here, but {address} was asked for")

class Socket(socket.socket):
    def connect(self, address):
        refuse(address)
        return super().connect(address)

    def connect_ex(self, address):
        refuse(address)
        return super().connect_ex(address)

socket.socket = Socket
socket.SocketType = Socket
real = socket.getaddrinfo

def getaddrinfo(host, *rest, **named):
    refuse((host or "localhost",))
    return real(host, *rest, **named)

socket.getaddrinfo = getaddrinfo
"""

EXECUTE = """
import nbformat, nbclient
notebook = nbformat.read("chapter.ipynb", as_version=4)
here = {"metadata": {"path": "."}}
client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="bare", resources=here)
try:
    client.execute()
finally:
    nbformat.write(notebook, "executed.ipynb")
"""


#: The Python whose libraries are used: the book's own, or one with Colab's versions (`make drill`).
COLAB_PYTHON = os.environ.get("COLAB_PYTHON")
DONOR = COLAB_PYTHON or sys.executable

#: Executing all chapters once more is for `make drill`; without it the first one stands for all.
EXECUTED = CHAPTERS if COLAB_PYTHON else CHAPTERS[:1]


class Bare:
    """A Python with another's libraries, but without `nclib` and without network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([DONOR, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / "bin" / "python"
        # A folder named in a .pth file joins the path, but .pth files inside it are not read: so an editable
        # install of this project stays out.
        libraries = dict.fromkeys(self.site_packages(DONOR))
        site = Path(self.site_packages(self.python)[0])
        (site / "libraries.pth").write_text("\n".join(libraries), "utf-8")
        (site / "sitecustomize.py").write_text(NO_NETWORK, "utf-8")
        kernel = folder / "jupyter" / "kernels" / "bare"
        kernel.mkdir(parents=True)
        command = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(
            json.dumps({"argv": command, "display_name": "Bare", "language": "python"}), "utf-8"
        )

    @staticmethod
    def site_packages(python: str | Path) -> list[str]:
        """Where a Python finds its libraries."""
        where = "import sysconfig as s; print(s.get_path('purelib')); print(s.get_path('platlib'))"
        return subprocess.check_output([python, "-c", where], text=True).splitlines()

    @property
    def surroundings(self) -> dict[str, str]:
        """Environment variables: nothing of this project's; an empty value removes one."""
        jupyter = str(self.folder / "jupyter")
        return {"PYTHONPATH": "", "HOME": str(self.folder), "JUPYTER_PATH": jupyter, "NCLIB_CLAIMS": ""}

    def run(self, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run some code in `cwd`."""
        return run([self.python, "-c", code], cwd, timeout=600, **self.surroundings)

    def start(self, code: str, cwd: Path) -> subprocess.Popen[bytes]:
        """Start to run some code in `cwd`."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.surroundings}
        environment = {name: value for name, value in environment.items() if value}
        return subprocess.Popen([self.python, "-c", code], cwd=cwd, env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)  # fmt: skip

    def execute(self, notebook: NotebookNode, cwd: Path) -> tuple[NotebookNode, str]:
        """Execute a notebook in `cwd`; return it with its outputs, and what went wrong (nothing: empty)."""
        nbformat.write(notebook, cwd / "chapter.ipynb")
        done = self.run(EXECUTE, cwd)
        wrong = done.stdout if done.returncode else ""
        if not (cwd / "executed.ipynb").exists():
            return notebook, wrong
        return nbformat.read(cwd / "executed.ipynb", as_version=4), wrong


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def self_contained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the self-contained notebooks, made just now."""
    folder = tmp_path_factory.mktemp("colab")
    assert len(colab.write(ROOT, folder)) == len(CHAPTERS)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.mark.drill
def test_bare_environment_has_no_nclib_and_no_network(bare: Bare, empty: Path) -> None:
    done = bare.run("import nclib", empty)
    assert "No module named 'nclib'" in done.stdout
    for attempt in (
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
        "import urllib.request; urllib.request.urlopen('http://host.invalid')",
    ):
        assert "no network here" in bare.run(attempt, empty).stdout
    assert bare.run("import torch, numpy, matplotlib", empty).returncode == 0


@pytest.mark.drill
@pytest.mark.timeout(700)
@pytest.mark.parametrize("source", EXECUTED, ids=lambda path: path.stem)
def test_self_contained_notebook_runs_in_an_empty_folder(
    source: Path, bare: Bare, self_contained: Path, empty: Path
) -> None:
    notebook = nbformat.read(self_contained / source.with_suffix(".ipynb").name, as_version=4)
    executed, wrong = bare.execute(notebook, empty)
    assert not wrong, wrong[-3000:]
    made = ledger.read_records(executed)
    assert made
    assert all(claim["passed"] for claim in made)
    assert {claim["chapter"] for claim in made} == {source.stem}
    left = {path.name for path in empty.iterdir()}
    assert left == {"chapter.ipynb", "executed.ipynb", "_build"}


@each_chapter
def test_self_contained_notebook_reads_as_plain_markdown(source: Path, self_contained: Path) -> None:
    notebook = nbformat.read(self_contained / source.with_suffix(".ipynb").name, as_version=4)
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"\{[a-z]+(?::[a-z]+)?\}`", prose), "a role is left"
    assert not re.search(r"^ *(?:> )?:{3,}", prose, re.MULTILINE), "a colon fence is left"
    assert not re.search(r"^\([\w-]+\)=$", prose, re.MULTILINE), "a target is left"
    assert not re.search(r"\]\([\w./-]+\.md(?:#[^)]*)?\)", prose), "a link into the book is left"
    assert prose.count("<details>") == prose.count("</details>")


def test_self_contained_notebooks_come_out_the_same_again(self_contained: Path, tmp_path: Path) -> None:
    shutil.copytree(self_contained, tmp_path / "colab")
    assert colab.write(ROOT, tmp_path / "colab") == []
    (tmp_path / "colab" / "99_gone.ipynb").touch()
    colab.write(ROOT, tmp_path / "colab")
    assert not (tmp_path / "colab" / "99_gone.ipynb").exists()


@each_chapter
def test_set_up_is_folded_and_carries_the_whole_package(source: Path, self_contained: Path) -> None:
    notebook = nbformat.read(self_contained / source.with_suffix(".ipynb").name, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("# @title ")
    assert first.metadata.cellView == "form"
    assert first.metadata.jupyter.source_hidden
    names = {"sys": sys}
    exec(first.source.partition("if ")[0], names)
    import base64
    import io
    import zipfile

    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(str(names["PACKAGE"]))))
    inside = {name: archive.read(name) for name in archive.namelist()}
    expected = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in (ROOT / "nclib").rglob("*.py")}
    assert {name: data for name, data in inside.items() if name.endswith(".py")} == expected


# --- from the published repository ----------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """Address of a git repository that holds the package as it is now."""
    folder = tmp_path / "origin" / "small-norm.git"
    shutil.copytree(ROOT / "nclib", folder / "nclib", ignore=shutil.ignore_patterns("__pycache__"))
    me = ["-c", "user.name=t", "-c", "user.email=t@host.invalid", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*me, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder.as_uri()


def short(url: str) -> NotebookNode:
    """A notebook of one claim, with the set-up cell where there is an address."""
    claim = """import nclib as nc

nc.chapter("short")
nc.claim("thm-sum", "a sum", predicted=4, measured=2 + 2, rtol=0)"""
    return notebooks.notebook(notebooks.with_setup(f"```{{code-cell}} ipython3\n{claim}\n```\n", url))


@pytest.mark.drill
def test_set_up_clones_the_published_repository(bare: Bare, repository: str, empty: Path) -> None:
    executed, wrong = bare.execute(short(repository), empty)
    assert not wrong, wrong[-3000:]
    assert [claim["passed"] for claim in ledger.read_records(executed)] == [True]
    assert (empty / "small-norm" / "nclib" / "__init__.py").exists()
    # The second time the clone is there, and is not made again.
    (empty / "small-norm" / "mark").touch()
    _, wrong = bare.execute(short(repository), empty)
    assert not wrong, wrong[-3000:]
    assert (empty / "small-norm" / "mark").exists()


@pytest.mark.drill
def test_set_up_leaves_a_package_that_is_there_alone(repository: str, empty: Path) -> None:
    cell = new_code_cell(notebooks.setup_source(repository))
    executed = new_notebook(cells=[cell, new_code_cell("import nclib; print(nclib.__file__)")])
    NotebookClient(executed, kernel_name="python3", resources={"metadata": {"path": str(empty)}}).execute()
    assert executed.cells[1].outputs[0]["text"].strip() == str(ROOT / "nclib" / "__init__.py")
    assert list(empty.iterdir()) == []


@pytest.mark.drill
def test_without_a_repository_the_line_that_fails_says_where_the_package_is(bare: Bare, empty: Path) -> None:
    chapter = notebooks.notebook(CHAPTERS[0].read_text("utf-8"))
    _, wrong = bare.execute(chapter, empty)
    assert "No module named 'nclib'" in wrong
    assert "import nclib as nc  # comes with the book's repository and its notebooks for download" in wrong


# --- MyST as plain Markdown -----------------------------------------------------------------------

BOOK = """
# A chapter

(here)=
## A section

:::{prf:theorem} Norm and $\\rho$
:label: thm-one

$$
a = b \\\\
  > c
$$ (eq-one)

:::

::::{exercise} Think
:label: ex-one

See {eq}`eq-one`.

:::{note}
Inner.
:::

::::

:::{solution} ex-one
:class: dropdown

By {prf:ref}`thm-one`, {prf:ref}`it <thm-one>`, {ref}`here`, {cite:t}`one2020`, {cite}`one2020,two2021`,
[](other.md) and [there](https://host.invalid).

:::

```{code-block} python
:class: x
{cite}`left`
```

% a comment
"""


@pytest.fixture
def labels(tmp_path: Path) -> myst.Labels:
    bib = (
        '@article{one2020, author={M{\\"u}ller, A. and B, C.}, title={One}, year={2020}, journal={J}}\n'
        "@book{two2021, author={D, E and F, G and H, I}, title={Two}, year={2021}, publisher={P}}\n"
    )
    (tmp_path / "references.bib").write_text(bib, "utf-8")
    chapters = [
        (tmp_path / "one.md", notebooks.notebook(BOOK)),
        (tmp_path / "other.md", notebooks.notebook("# Other\n")),
    ]
    return myst.collect(chapters, tmp_path / "references.bib")


def test_theorem_becomes_a_quotation_with_a_bold_title(labels: myst.Labels, tmp_path: Path) -> None:
    text = myst.plain(BOOK, labels, tmp_path)
    assert "> **Theorem 1.1 (Norm and $\\rho$).**" in text
    assert "> $$ a = b \\\\ > c \\tag{1.1} $$" in text  # on one line: no mark of the quotation gets into it


def test_roles_become_words(labels: myst.Labels, tmp_path: Path) -> None:
    text = myst.plain(BOOK, labels, tmp_path)
    assert "See (1.1)." in text
    assert "By Theorem 1.1, it (Theorem 1.1), A section, Müller and B (2020), " in text
    assert "(Müller and B, 2020; D et al., 2021),\nOther and [there](https://host.invalid)." in text
    assert "(here)=" not in text
    assert "a comment" not in text
    assert labels.cited == ["one2020", "two2021"]
    assert myst.references(labels).splitlines() == [
        "- D, F and H. *Two*. P. 2021.",
        "- Müller and B. *One*. J. 2020.",
    ]


def test_solution_folds_and_code_is_left_alone(labels: myst.Labels, tmp_path: Path) -> None:
    text = myst.plain(BOOK, labels, tmp_path)
    assert "<details>\n<summary><b>Solution to Exercise 1.1</b></summary>\n\nBy Theorem" in text
    assert "```python\n{cite}`left`\n```" in text
    assert "> > **Note.**" in text


def test_pictures_are_carried_along(labels: myst.Labels, tmp_path: Path) -> None:
    (tmp_path / "p.svg").write_text("<svg/>", "utf-8")
    text = myst.plain(":::{figure} p.svg\n:alt: a dot\n:name: fig-p\n\nA dot.\n:::", labels, tmp_path)
    assert text == "![a dot](data:image/svg+xml;base64,PHN2Zy8+)\n\nA dot."
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        myst.plain(":::{figure} gone.png\n:::", labels, tmp_path)
