"""Do the tests see a wrong formula? Change the package's formulas one at a time, and count who notices.

    python -m tests.mutants [theory/flow …] [--sample 150] [--seed 0] [--jobs 2]

In a copy of the repository, never in the working tree, one formula is changed: an operator, a sign, a constant, a
factor or term dropped, max for min, sum for mean, a root left out, a comparison turned round, an axis or a degree
of freedom. Then the tests that reach it are run, the fastest first, until one fails. Which tests reach which
function is found in a first run of all that concern the part of the package. What is no formula is left alone:
messages, types, defaults, indices, conditions for errors.

Exit status 1 if less than 97 % of the changes were noticed, not counting those in `EQUIVALENT`, after which every
result is the same. This is no part of `make test`: a change costs seconds, and there are nearly two thousand.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ENOUGH = 0.97
# What tests need besides this package; brought in once, then every run is a fork of this process.
HEAVY = (
    "torch torch.func pandas seaborn matplotlib.pyplot scipy.integrate scipy.optimize scipy.stats scipy.linalg "
    "sympy cvxpy sklearn.datasets hypothesis playwright.sync_api safetensors.numpy pytest pooch tqdm filelock"
)
# The tests that concern each part, besides the examples in its docstrings.
TESTS = {
    "theory": "closed_forms bounds flow optima relu views recomputed 02 03 05 06",
    "collapse": "collapse views recomputed 06",
    "networks": "models norms calibration folding last_layer gradients recomputed",
    "training": "train steps plain_loop runs recomputed",
}
# No formulas: files on disk, clocks, bars; how many numbers fit in a cache; a GPU's graphs; what is printed.
LEFT_OUT = {"training/disk.py", "training/__init__.py"}
ONLY_SPEED = {"chunk_size", "widths", "threads_for", "_record", "_chunks", "_calibrate", "_largest_activation"}
ONLY_SPEED |= {"_CHUNK", "_CHUNK_NUMBERS", "_CHUNK_NUMBERS_CUDA", "_ROOM", "_SMALL", "_LARGE_ONE", "__repr__"}
# Changes after which every result is the same: (file, the line, the change) and why.
EQUIVALENT = {
    (
        "networks/normalisation.py",
        "for part in torch.split(a, max(1, (2**26 if a.is_cuda else 2**17) // a[0].numel())):",
        "1 → (0.5)",
    ): "how many at a time",
    (
        "theory/bounds.py",
        "active = circle(ends + widths / 2) @ x.T > 0  # (arcs, N)",
        "2 → (4)",
    ): "any direction within the arc",
    (
        "networks/readings.py",
        "largest = torch.linalg.eigvalsh(torch.where(undefined[:, None, None], 0.0, gram))[:, -1]",
        "0.0 → (1)",
    ): "what is undefined becomes NaN afterwards",
    (
        "theory/bounds.py",
        "V = [_on_sphere(v.detach() + _on_sphere(slope)) for v, slope in zip(V, slopes, strict=True)]",
        "v.detach() + _on_sphere(slope) → (v.detach() - _on_sphere(slope))",
    ): "goes down instead of up, and the size of what is found counts",
    ("theory/closed_forms.py", "high = 2 * low", "2 * low → (2)"): "doubled until it is beyond the root",
    (
        "theory/optima.py",
        "return np.unique(circle(ends + widths / 2) @ x.T > 0, axis=0)",
        "circle(ends + widths / 2) @ x.T > 0 → (circle(ends + widths / 2) @ x.T <= 0)",
    ): "the opposite direction shows the complement, and all directions are there",
    (
        "theory/optima.py",
        "return np.unique(circle(ends + widths / 2) @ x.T > 0, axis=0)",
        "2 → (4)",
    ): "any direction within the arc",
    (
        "theory/optima.py",
        "cones = [cp.multiply(2 * patterns - 1, part @ x.T) >= 0 for part in (v, u)]",
        "1 → (0.5)",
    ): "only the signs of 2D − 1 count",
    (
        "theory/optima.py",
        "start[ends[0] : ends[1]] = np.abs(start[ends[0] : ends[1]])",
        "np.abs(start[ends[0] : ends[1]]) → (start[ends[0]:ends[1]])",
    ): "the optimiser itself moves a start into its bounds; another start",
    (
        "theory/optima.py",
        'options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "maxcor": 20, "ftol": 0.0, "gtol": 1e-12}',
        "2 → (4)",
    ): "how long it may take, which it never does",
    (
        "training/measure.py",
        "size = ensemble.n * widths(plan)",
        "ensemble.n * widths(plan) → (ensemble.n)",
    ): "by which of two ways to the same numbers it goes",
    ("training/runs.py", "chosen = {-1}", "1 → (2)"): "any number that is no epoch",
    (
        "training/runs.py",
        'if self.engine == "loop" and x.dim() == 4 and self._bears_channels_last():',
        "self.engine == \"loop\" → (self.engine != 'loop')",
    ): "the order of numbers in memory",
    (
        "training/stacked.py",
        "folded[-1] = folded[-1] * scale.sign()[:, None, None]",
        "folded[-1] * scale.sign()[:, None, None] → (folded[-1])",
    ): "only norms and stable ranks are read off these weights",
}

SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
TURNED = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
OTHER = {
    "max": "min", "min": "max", "amax": "amin", "amin": "amax", "maximum": "minimum", "minimum": "maximum",
    "argmax": "argmin", "argmin": "argmax", "sum": "mean", "mean": "sum", "prod": "sum", "std": "var", "var": "std",
    "sin": "cos", "cos": "sin", "floor": "ceil", "ceil": "floor", "flip": "clone",
}  # fmt: skip
REMOVED = {"sqrt", "square", "abs", "log", "exp", "rsqrt", "sign", "relu"}
AXES = {
    "sum",
    "mean",
    "std",
    "var",
    "amax",
    "amin",
    "max",
    "min",
    "prod",
    "cumsum",
    "vector_norm",
    "softmax",
    "sort",
}
BOUNDS = {"max", "min", "maximum", "minimum", "where", "full"}
LIBRARIES = {"np", "torch", "math", "F"}
SETTINGS = {"dim", "axis", "unbiased", "correction", "ddof", "min", "append", "initial"}


class Mutant(NamedTuple):
    """One changed formula."""

    file: str
    line: int
    text: str
    change: str
    source: str
    function: int | None  # the line at which Python says that the innermost function begins

    @property
    def part(self) -> str:
        return self.file.split("/")[0]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.text, self.change


# ------------------------------------------------------------------------------------------ what is changed


def variants(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """The wrong formulas that could stand in the place of this one."""
    if isinstance(node, ast.BinOp):
        if type(node.op) in SWAPPED:
            yield ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right)
            yield node.left
        if isinstance(node.op, ast.Add | ast.Mult):
            yield node.right
        if isinstance(node.op, ast.Pow):
            yield node.left
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in TURNED:
        yield ast.Compare(node.left, [TURNED[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield from _numbers(node.value, parent)
    elif isinstance(node, ast.Constant) and type(node.value) is bool and isinstance(parent, ast.keyword):
        if parent.arg in SETTINGS:
            yield ast.Constant(not node.value)
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _numbers(value: float, parent: ast.AST) -> Iterator[ast.AST]:
    if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Pow):
        yield from (ast.Constant(value + 1), ast.Constant(value - 1))
    elif isinstance(parent, ast.BinOp | ast.UnaryOp | ast.AugAssign) or (
        isinstance(parent, ast.Call) and _name(parent) in BOUNDS and not _is_method(parent)
    ):
        yield from (ast.Constant(2 * value), ast.Constant(value / 2)) if value else (ast.Constant(1),)
    elif (isinstance(parent, ast.keyword) and parent.arg in SETTINGS) or (
        isinstance(parent, ast.Call) and _name(parent) in AXES
    ):
        yield ast.Constant(0 if value else 1)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    name = _name(node)
    if name in OTHER:
        other = copy.deepcopy(node)
        if isinstance(other.func, ast.Attribute):
            other.func.attr = OTHER[name]
        elif isinstance(other.func, ast.Name) and name in ("max", "min"):
            other.func.id = OTHER[name]
        else:
            return
        yield other
    elif name in REMOVED and isinstance(node.func, ast.Attribute):
        if not _is_method(node) and len(node.args) == 1:
            yield node.args[0]
        elif _is_method(node) and not node.args:
            yield node.func.value
    elif name == "abs" and len(node.args) == 1:
        yield node.args[0]


def _is_method(call: ast.Call) -> bool:
    """Whether it is `x.f(…)`, not `f(…)` or `np.f(…)`."""
    function = call.func
    return isinstance(function, ast.Attribute) and getattr(function.value, "id", "") not in LIBRARIES


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _first_name(node: ast.AST) -> str:
    """What an assignment assigns to, or the first of several."""
    return re.findall(r"\w+", ast.unparse(node.targets[0]))[0] if isinstance(node, ast.Assign) else ""


def mutants(file: str, source: str) -> list[Mutant]:
    """Every changed formula of a module."""
    found: list[Mutant] = []
    starts = [0]
    for row in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    rows, whole = source.splitlines(), source.encode()

    def visit(node: ast.AST, parent: ast.AST, function: int | None) -> None:
        if isinstance(node, ast.FunctionDef):
            if node.name in ONLY_SPEED:
                return
            function = min(part.lineno for part in (node, *node.decorator_list))
            children: list[ast.AST] = list(node.body)
        elif isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or _first_name(node) in ONLY_SPEED:
            return
        elif isinstance(node, ast.If) and any(isinstance(inner, ast.Raise) for inner in node.body):
            children = [*node.body, *node.orelse]
        elif isinstance(node, ast.AnnAssign):
            children = [node.value] if node.value else []
        elif isinstance(node, ast.Subscript):
            children = [node.value]
        elif isinstance(node, ast.Call) and _name(node) in (
            "range",
            "warn",
            "new_zeros",
            "new_empty",
            "view",
            "islice",
        ):
            children = []
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.expr):
            low, high = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            for other in variants(node, parent):
                add(node.lineno, low, high, f"({ast.unparse(ast.fix_missing_locations(other))})", function)
        elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPPED:
            other = ast.AugAssign(node.target, SWAPPED[type(node.op)](), node.value)
            low, high = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            for text in (ast.unparse(ast.fix_missing_locations(other)), "pass"):
                add(node.lineno, low, high, text, function)
        for child in children:
            visit(child, node, function)

    def add(line: int, low: int, high: int, text: str, function: int | None) -> None:
        old = " ".join(whole[low:high].decode().split())
        changed = (whole[:low] + text.encode() + whole[high:]).decode()
        with contextlib.suppress(SyntaxError):
            ast.parse(changed)
            found.append(Mutant(file, line, rows[line - 1].strip(), f"{old} → {text}", changed, function))

    tree = ast.parse(source)
    visit(tree, tree, None)
    return found


# -------------------------------------------------------------------------------------- who notices a change


class Watch:
    """A pytest plugin: how long each test takes, and which functions of the package it calls."""

    def __init__(self, package: str) -> None:
        self.package, self.seconds, self.calls = package, dict[str, float](), dict[str, list[Any]]()

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.began = time.perf_counter()
        sys.setprofile(self.profile)

    def profile(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.package):
            self.seen.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.setprofile(None)
        self.seconds[nodeid] = time.perf_counter() - self.began
        self.calls[nodeid] = [[file[len(self.package) + 1 :], line] for file, line in sorted(self.seen)]


class Chosen:
    """A pytest plugin: these tests alone, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {name: i for i, name in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda i: self.place[i.nodeid])


def pytest_in_a_fork(folder: Path, files: list[str], plugin: Any, limit: float, keep: Path | None = None) -> int:
    """The exit status of pytest on `files` of this copy; -1 if it took longer than `limit` seconds."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setsid()
            os.chdir(folder)
            out = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
            sys.path[:] = [str(folder), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
            sys.dont_write_bytecode = True
            import pytest

            options = [
                "-x",
                "-q",
                "--tb=line",
                "--doctest-modules",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
            ]
            options += [f"-pno:{name}" for name in ("randomly", "cacheprovider", "nbmake")]
            if isinstance(plugin, Watch):
                options.remove("-x")
            status = int(pytest.main([*options, *files], plugins=[plugin]))
            import nclib

            if not Path(nclib.__file__).is_relative_to(folder):
                status = 98
            if keep:
                keep.write_text(json.dumps([plugin.seconds, plugin.calls]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    ends = time.monotonic() + limit
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


class Reach(NamedTuple):
    """Seconds of each test of a part, and the functions that it calls."""

    seconds: dict[str, float]
    calls: dict[str, list[list[Any]]]

    def of(self, mutant: Mutant, slowest: float) -> list[str]:
        """The tests that reach the changed formula, the fastest first."""

        def reached(file: str, line: int) -> bool:
            return file == mutant.file and mutant.function in (None, line)

        able = [test for test, calls in self.calls.items() if any(reached(*call) for call in calls)]
        return sorted((test for test in able if self.seconds[test] <= slowest), key=self.seconds.__getitem__)


def reach(folder: Path, part: str) -> Reach:
    """Run all tests of a part once, unchanged."""
    names = TESTS[part].split()
    files = [f"tests/proofs/test_proofs_{n}.py" if n.isdigit() else f"tests/nclib/test_{n}.py" for n in names]
    files.append(f"nclib/{part}")  # the examples
    notes = folder / "reach.json"
    status = pytest_in_a_fork(folder, files, Watch(str(folder / "nclib")), 3600, notes)
    if status:
        raise SystemExit(
            f"{part}: the tests fail unchanged ({status})\n{(folder / 'output.txt').read_text()[-3000:]}"
        )
    return Reach(*json.loads(notes.read_text()))


def judge(folder: Path, mutant: Mutant, tests: list[str], limit: float) -> str:
    """Whether one of the tests notices the change."""
    if not tests:
        return "survived"
    place = folder / "nclib" / mutant.file
    before = place.read_text("utf-8")
    place.write_text(mutant.source, "utf-8")
    try:
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        status = pytest_in_a_fork(folder, files, Chosen(tests), limit)
    finally:
        place.write_text(before, "utf-8")
    verdicts = {0: "survived", 1: "killed", 2: "killed", -1: "timeout"}  # 2: it can't even be imported
    if status not in verdicts:
        raise SystemExit(f"{mutant.key}: pytest ended with {status}\n{(folder / 'output.txt').read_text()[-3000:]}")
    return verdicts[status]


# ------------------------------------------------------------------------------------------------- the command


def main() -> int:
    parser = argparse.ArgumentParser(description="Change formulas of nclib one at a time; do the tests notice?")
    parser.add_argument("modules", nargs="*", help="such as theory/flow or networks; all when left out")
    parser.add_argument("--sample", type=int, help="so many changes, drawn at random; all when left out")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=180, help="seconds for one change; longer counts as noticed")
    parser.add_argument("--slowest", type=float, default=10, help="seconds; tests that take longer are not used")
    parser.add_argument("--list", action="store_true", help="show the changes and stop")
    options = parser.parse_args()

    package = ROOT / "nclib"
    files = sorted(str(f.relative_to(package)) for part in TESTS for f in (package / part).rglob("*.py"))
    every = [m for f in files if f not in LEFT_OUT for m in mutants(f, (package / f).read_text("utf-8"))]
    if stale := EQUIVALENT.keys() - {m.key for m in every}:
        raise SystemExit(f"EQUIVALENT names changes that are none any more: {sorted(stale)}")
    asked = [m for m in every if not options.modules or any(m.file.startswith(name) for name in options.modules)]
    if options.sample and options.sample < len(asked):
        chosen = sorted(random.Random(options.seed).sample(range(len(asked)), options.sample))
        asked = [asked[i] for i in chosen]
    if options.list:
        print(*(f"{m.file}:{m.line}: {m.change}" for m in asked), sep="\n")
        return 0

    for name in HEAVY.split():
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(options.jobs):
            skip = shutil.ignore_patterns(".*", "_build", "__pycache__")
            copies.put(shutil.copytree(ROOT, Path(temporary).resolve() / str(job), ignore=skip))
        first = copies.get()
        known = {part: reach(first, part) for part in dict.fromkeys(m.part for m in asked)}
        copies.put(first)

        def one(mutant: Mutant) -> tuple[Mutant, str]:
            if mutant.key in EQUIVALENT:
                return mutant, "equivalent"
            folder = copies.get()
            try:
                return mutant, judge(folder, mutant, known[mutant.part].of(mutant, options.slowest), options.limit)
            finally:
                copies.put(folder)

        with ThreadPoolExecutor(options.jobs) as pool:
            for number, (mutant, verdict) in enumerate(pool.map(one, asked), start=1):
                counts.setdefault(mutant.file, Counter())[verdict] += 1
                if verdict in ("survived", "timeout"):
                    print(
                        f"[{number}/{len(asked)}] {verdict} {mutant.file}:{mutant.line}: {mutant.change}",
                        flush=True,
                    )
                    print(f"    {mutant.text}", flush=True)
    return report(counts)


def report(counts: dict[str, Counter[str]]) -> int:
    """Print the table; 1 if too few were noticed."""
    total = sum(counts.values(), Counter())
    kinds = ("killed", "timeout", "survived", "equivalent")
    print("\n| module | changes | " + " | ".join(kinds) + " |\n|---|" + "---|" * (len(kinds) + 1))
    for file, found in [*sorted(counts.items()), ("all", total)]:
        print(f"| {file} | {found.total()} | " + " | ".join(str(found[kind]) for kind in kinds) + " |")
    noticed = total["killed"] + total["timeout"]
    share = noticed / max(1, noticed + total["survived"])
    print(f"\n{share:.1%} noticed; at least {ENOUGH:.0%} is asked for")
    return int(share < ENOUGH)


if __name__ == "__main__":
    raise SystemExit(main())
