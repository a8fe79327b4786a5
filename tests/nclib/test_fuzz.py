"""Every public function of nclib, called with what nobody meant: what comes out is right, or says what to do.

A table holds valid calls. One or two arguments of a call are replaced: by another type, shape, value, container or
scale. What comes out must be a finite result, the valid call's own where the replacement is the same numbers in
another container; or an error that nclib raises itself and that names the argument. Nothing is printed, no warning
leaks, no argument and no global random state changes, and nothing takes longer than five seconds.

A longer run, and one of a single function: ``python -m tests.nclib.test_fuzz --calls 20000 --seed 7 --only ridge``;
or, as a test, ``NCLIB_FUZZ=20000 NCLIB_FUZZ_SEED=7``. A failure is a line to paste after
``from tests.nclib.fuzz_table import *``.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import dataclasses
import dis
import functools
import inspect
import itertools
import json
import numbers
import os
import random
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import FunctionType

import numpy as np
import pandas as pd
import pytest
import torch

import nclib as nc
from tests.nclib import fuzz_table

ROOT = Path(__file__).resolve().parents[2]
CALLS, SECONDS, MEMORY = int(os.environ.get("NCLIB_FUZZ", 2500)), 5.0, 6 * 2**30
SKIP = "skip", ""  # an argument that can't be made
WARM: set[str] = set()  # functions that were called before: the first call imports, and compiles what it imports

#: What is not fuzzed, and why.
EXCLUDED = {
    "ClaimFailed": "an error; `claim` raises it",
    "data(verify)": "the official files are not among what the tests have",
    "lines(kwargs)": "go to seaborn",
    "Runs.model(hyper)": "`grid` has them",
    "Runs.data(hyper)": "`grid` has them",
    "Watch(options)": "go to audit, which has them",
    "Watch.figure": "takes nothing",
    **dict.fromkeys(
        ["Net.forward", "Net.hidden", "Net.features", "Net.head", "Architecture.features", "ResNet18.features"],
        "what a module of torch does at every step: its errors are PyTorch's",
    ),
}
#: Where (a regular expression over the places in a result) numbers need not be finite, as the docstring says.
NOT_FINITE = {
    "audit": (r"\.table\.(value|predicted)", "a reading that is not there is missing in the table"),
    "collapse": (r"\.(nc[123]|cdnv).*", "where a denominator is zero the ratio is nan or inf"),
    "CollapseStatistics.result": (r"\.(nc[123]|cdnv).*", "as collapse"),
    "confidence_interval": (".*", "both NaN for a single value"),
    "Architecture.build": (r".*norms\.\d+\.(mean|var)", "NaN until `calibrate`, so that forgetting it is seen"),
    "train": (
        r"\.(history|final)\..*",
        "a network that diverged, as `status` and a warning say, has none from then on",
    ),
    "scale": (".*", "gives back what it is given"),
}
#: The argument that a function is there to change; and the warnings and output that it announces.
CHANGES = {"calibrate": "net", "lines": "ax"}
ANNOUNCED = {"train": "diverged", "claim": "HOLDS|FAILS", "chapter": "scale "}
#: Arguments that say how much work to do: a huge one means long work, and is no mistake.
WORK = {"epochs", "steps", "restarts", "time", "dt", "cooling", "max_evaluations", "rtol", "records"}
#: Classes in the place of a function: what they raise when they are called is their own.
CALLED = {("int", "measure"), ("int", "told"), ("nc.Data", "problem")}
#: May be right where something else is wrong.
EMPTY = {"{}", "set()", "[]", "()", "np.array([])"}


def made(source):
    """The value of a piece of the table's source."""
    return eval(source, vars(fuzz_table))


def rows(table):
    """The rows of a table, the lines of which may go on on lines that are indented."""
    return re.sub(r"\n +", " ", table).strip().split("\n")


REPLACED = {kind: new.split("; ") for kind, new in (row.split(": ", 1) for row in rows(fuzz_table.REPLACEMENTS))}


def replacements(name, source, annotation):
    """What may stand in the place of an argument: (source, how): "type", "value", "same" numbers, or "perhaps"."""
    value = made(source)
    found = [(new, "type") for new in REPLACED["type"]]

    def add(how, *new):
        found.extend((one, how) for one in new)

    with contextlib.suppress(ValueError, TypeError):
        if isinstance(value, np.ndarray | torch.Tensor | list) and np.asarray(value).dtype.kind in "if":
            promised = "same" if "Array" in annotation or annotation == "Any" else "perhaps"
            for new in REPLACED["same"]:
                turns = np.asarray(value).dtype.kind == "i" and re.search("float|double|f4", new)
                add("perhaps" if turns else promised, new)
            add("perhaps", *REPLACED["perhaps"])
            add("value", *REPLACED["array"])
    if isinstance(value, numbers.Real) or value is None:
        add("value", *REPLACED["number"], *(() if name in WORK else REPLACED["huge"]))
    if isinstance(value, bool):
        add("perhaps", "np.bool_(@)", "int(@)")
    elif isinstance(value, numbers.Real):
        add(
            "same",
            *(("np.float64(@)", "np.float32(@)") if isinstance(value, float) else ("np.int64(@)", "np.uint8(@)")),
        )
        add("perhaps", "torch.tensor(@)", "np.array(@)", "float(@)")
    elif isinstance(value, str):
        add("value", *REPLACED["text"])
        add("perhaps", "np.str_(@)")
    elif isinstance(value, tuple):
        add("same", "list(@)")
        add("perhaps", "np.array(@)", "pd.Series(@)", "iter(@)")
    for kind in itertools.islice(REPLACED, 7, None):
        add("value", *(REPLACED[kind] if isinstance(value, made(kind)) else ()))
    found = [(new, how) for new, how in found if (new, name) not in CALLED]
    return [(new.replace("@", f"({source})" if " " in source else source), how) for new, how in found]


# --- calls ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """A valid call: the function, arguments (name, source, by keyword), and in one of how many rounds it is."""

    function: str
    arguments: list[tuple[str, str, bool]]
    rounds: int

    def __post_init__(self):
        self.called = made(self.function)
        self.name = self.called.__qualname__
        self.parameters = {name: str(p.annotation) for name, p in inspect.signature(self.called).parameters.items()}

    @functools.cached_property
    def expected(self):
        """The numbers that the valid call gives."""
        close_figures()
        with contextlib.redirect_stdout(None), warnings.catch_warnings(action="ignore"):
            return list(leaves(self.call({}, lambda values: None)[0]))

    def source(self, changed):
        given = [(f"{name}=" if key else "") + changed.get(name, source) for name, source, key in self.arguments]
        return f"{self.function}({', '.join(given)})"

    def call(self, changed, ready):
        """The result, and the arguments; `ready` is told these before the call."""
        values = [(name, made(changed.get(name, source)), key) for name, source, key in self.arguments]
        function = made(self.function)
        ready(values)
        return function(*(v for _, v, key in values if not key), **{n: v for n, v, key in values if key}), values


def close_figures():
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def cases():
    for row in rows(fuzz_table.TABLE):
        node, rounds = ast.parse(row, mode="eval").body, 1
        if isinstance(node, ast.BinOp):
            node, rounds = node.left, node.right.value
        function = ast.unparse(node.func)
        names = list(inspect.signature(made(function)).parameters)
        arguments = [(name, ast.unparse(value), False) for name, value in zip(names, node.args, strict=False)]
        yield Case(function, arguments + [(k.arg, ast.unparse(k.value), True) for k in node.keywords], rounds)


def sequence(only=""):
    """The cases in rounds, without end."""
    every = [case for case in cases() if only in case.function]
    for turn in itertools.count():
        yield from (case for case in every if turn % case.rounds == 0)


def leaves(value, place="", read=True):
    """Every number, array and text in a value, with its place; `read`: also what its properties give."""
    parts = ()
    if isinstance(value, torch.Tensor):
        value = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        value = (value.double() if value.is_floating_point() else value).numpy(force=True)
    if isinstance(value, np.ndarray | np.generic | str | bytes | numbers.Number):
        yield place, np.array(value)
    elif isinstance(value, torch.nn.Module):
        parts = value.state_dict().items()
    elif isinstance(value, pd.DataFrame):
        parts = [("index", value.index.to_numpy()), *((n, c.to_numpy()) for n, c in value.items())]
    elif isinstance(value, pd.Series):
        parts = [("index", value.index.to_numpy()), ("values", value.to_numpy())]
    elif isinstance(value, dict):
        parts = value.items()
    elif type(value).__module__.startswith("nclib."):
        parts = attributes(value, read)
    elif hasattr(value, "get_lines"):  # axes of Matplotlib
        parts = enumerate(line.get_xydata() for line in value.get_lines())
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        yield from leaves(part, f"{place}.{key}", read)


def attributes(value, read):
    """What an object of nclib's holds, and what its properties give, which may refuse to."""
    names = [*getattr(value, "_fields", getattr(value, "__dict__", ()))]
    for kind in type(value).__mro__ if read else ():
        names += [n for n, p in vars(kind).items() if isinstance(p, property | functools.cached_property)]
    for name in dict.fromkeys(n for n in names if not n.startswith("_")):
        try:
            yield name, getattr(value, name)
        except (ValueError, TypeError) as error:
            if not raised_by_nclib(error):
                raise
    if read and hasattr(value, "_repr_html_"):
        yield "html", value._repr_html_()


def difference(one, other, close):
    """Where two lists of leaves differ, if they do: their bits, or (`close`) their numbers by more than that."""
    if close:
        one, other = ([(p, v) for p, v in part if v.dtype.kind in "iufc"] for part in (one, other))
    if [p for p, _ in one] != [p for p, _ in other]:
        return f"has {[p for p, _ in one]}, not {[p for p, _ in other]}"
    for (place, a), (_, b) in zip(one, other, strict=True):
        if close:
            alike = a.shape == b.shape and np.allclose(a, b, rtol=close, atol=close, equal_nan=True)
        else:
            alike = repr(a.tolist()) == repr(b.tolist())
        if not alike:
            return f"{place or 'result'} = {short(a, 70)}, not {short(b, 70)}"
    return ""


def short(value, most=150):
    return " ".join(str(value).split())[:most]


def raised_by_nclib(error):
    """Whether a `raise` of nclib's own made this error."""
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    code = last.tb_frame.f_code
    own = code.co_filename.startswith(str(ROOT / "nclib"))
    return own and code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


class SlowError(BaseException):
    """A call took too long."""


def too_slow(*_):
    raise SlowError


def attempt(case, changed, hows):
    """Make a call; what is wrong with what comes out, as (rule, what came out), or None."""
    before, state = [], []

    def kept(values):
        """What the arguments hold that the call must leave alone."""
        return [leaf for n, v, _ in values if n != CHANGES.get(case.name) for leaf in leaves(v, n, read=False)]

    def begin(values):
        before.extend(kept(values))
        state.append(world())
        leaked.clear()
        signal.setitimer(signal.ITIMER_PROF, SECONDS if case.name in WARM else 20 * SECONDS)
        WARM.add(case.name)

    error, values, found = None, [], []
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        try:
            result, values = case.call(changed, begin)
            found = list(leaves(result))
        except (SlowError, Exception) as caught:
            error = caught
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    if not state:
        return SKIP
    announced = ANNOUNCED.get(case.name, "(?!)")
    if isinstance(error, SlowError):
        return "too slow", f"no result in {SECONDS} s of CPU time"
    if error is not None and (wrong := wrong_error(error, case, changed, hows)):
        return wrong, short(f"{type(error).__name__}: {error}")
    if error is None:
        if other := difference(kept(values), before, 0):
            return "argument changed", other
        where = NOT_FINITE.get(case.name, ("(?!)",))[0]
        for place, leaf in found:
            if leaf.dtype.kind in "fc" and not np.isfinite(leaf).all() and not re.fullmatch(where, place):
                return "not finite", f"{place or 'result'} = {short(leaf)}"
        if {*hows} <= {"same", "perhaps"}:
            rough = any("float16" in new or "'f2'" in new for new in changed.values())
            if other := difference(found, case.expected, 0.05 if rough else 1e-4):
                return "another result", other
    for warning in leaked:
        if not re.search(announced, str(warning.message)):
            return "warning", short(f"{warning.category.__name__}: {warning.message}")
    sys.stdout.flush(), sys.stderr.flush()
    said = os.pread(1, 10**6, 0).decode(errors="replace")
    if said and not re.search(announced, said):
        return "output", short(said)
    return None if world() == state[0] else ("global state changed", "")


def wrong_error(error, case, changed, hows):
    """Which rule an error breaks, if any."""
    kind, usual = type(error).__name__, ("ValueError", "TypeError", "RuntimeError")
    documented = (case.called.__doc__ or "").partition("Raises\n")[2].partition("Examples\n")[0]
    if not raised_by_nclib(error) or (kind not in usual and kind not in documented):
        return "raw error"
    if {*hows} == {"same"}:
        return "the same numbers refused"
    right = {*changed} if hows == ["type"] and not {*changed.values()} <= EMPTY else {*case.parameters}
    if owner := getattr(case.called, "__self__", None):  # what it was made from may be at fault
        right |= {*inspect.signature(type(owner)).parameters}
    right |= {word for new in changed.values() for word in re.findall(r"(\w+)(?:=|': )", new)}
    named = any(re.search(rf"(?<!\w){name}(?!\w)", str(error)) for name in right)
    return "" if named or kind not in usual else "argument not named"


def world():
    """Global random state, and PyTorch's settings."""
    torchs = torch.get_rng_state().numpy().tobytes(), torch.get_default_dtype(), torch.get_num_threads()
    return random.getstate(), np.random.get_state()[1].tobytes(), *torchs  # noqa: NPY002


# --- a worker, and who watches it ----------------------------------------------------------------------------


def work(seed, first, last, only):
    """Make calls, and say on stdout which and what was wrong."""
    list(cases())  # an error in the table is still seen
    out = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    met = set()
    for i, case in enumerate(itertools.islice(sequence(only), last)):
        new = id(case) not in met
        met.add(id(case))
        if i < first:
            continue
        dice, found = random.Random(f"{seed}/{i}"), SKIP
        while found == SKIP:
            # The first time as it is.
            chosen = [] if new else dice.sample(case.arguments, min(len(case.arguments), dice.choice([1, 1, 1, 2])))
            picks = {n: dice.choice(replacements(n, s, case.parameters[n])) for n, s, _ in chosen}
            changed = {name: new for name, (new, _) in picks.items()}
            told = [i, case.name, case.source(changed)]
            print(json.dumps(told), file=out, flush=True)
            found = attempt(case, changed, [how for _, how in picks.values()])
            close_figures()
            os.ftruncate(1, 0), os.lseek(1, 0, os.SEEK_SET)
        if found:
            print(json.dumps([*told, *found]), file=out, flush=True)


def hunt(calls, seed, only=""):
    """Make so many calls in another process, in a new one where it hangs or dies: [(name, source, rule, out)]."""
    found, done = [], 0
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NCLIB_")}
        environment |= {"NCLIB_CLAIMS": folder, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "NCLIB_DEVICE": "cpu"}
        while done < calls:
            command = [sys.executable, "-m", "tests.nclib.test_fuzz", "--work", str(done), "--calls", str(calls)]
            command += ["--seed", str(seed), "--only", only]
            told = None
            with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as worker:
                for line in said_by(worker):
                    done, *told = json.loads(line)
                    found += [told] if len(told) > 2 else []
            assert told, "the worker does not start"
            if worker.returncode:
                rule = "hang" if worker.returncode == -signal.SIGKILL else "crash"
                found.append([*told[:2], rule, f"exit code {worker.returncode}"])
            done = done + 1 if worker.returncode else calls
    return found


def said_by(worker):
    """The worker's lines as they come; it is killed where none comes for long."""
    rest, wait = b"", 120.0
    while select.select([worker.stdout], [], [], wait)[0]:
        part = os.read(worker.stdout.fileno(), 2**16)
        if not part:
            return
        *whole, rest = (rest + part).split(b"\n")
        yield from whole
        wait = 6 * SECONDS
    worker.kill()


def grouped(found, most=3):
    """Findings as text, by rule and function, at most so many of each."""
    groups = collections.defaultdict(list)
    for name, source, rule, out in found:
        groups[rule, name].append((source, out))
    for (rule, name), calls in sorted(groups.items()):
        kinds = {out[:30]: (source, out) for source, out in reversed(calls)}  # of each kind of outcome the first
        shown = [f"{source}\n    -> {out}" for source, out in [*kinds.values()][-most:]]
        yield "\n".join([f"## {rule}: {name} ({len(calls)})", *shown])


# --- tests ---------------------------------------------------------------------------------------------------


def test_every_public_function_method_and_parameter_is_in_the_table():
    table = list(cases())
    found = {case.name for case in table} | {
        f"{case.name}({name})" for case in table for name, *_ in case.arguments
    }
    wanted = {*nc.__all__} | {f"{case.name}({name})" for case in table for name in case.parameters}
    owners = [case.called.__self__ for case in table if hasattr(case.called, "__self__")] + [fuzz_table.net()]
    for kind in {kind for owner in owners for kind in type(owner).__mro__ if kind.__module__.startswith("nclib.")}:
        wanted |= {
            f"{kind.__name__}.{n}" for n, f in vars(kind).items() if isinstance(f, FunctionType) and n[0] != "_"
        }
    assert wanted - found == {*EXCLUDED}


@pytest.mark.timeout(600 + CALLS)
def test_whatever_the_arguments_what_comes_out_is_right_or_says_what_to_do():
    found = hunt(CALLS, int(os.environ.get("NCLIB_FUZZ_SEED", 0)))
    assert not found, "\n".join(["", *grouped(found)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.seed, given.work, given.calls, given.only)
    else:
        findings = hunt(given.calls, given.seed, given.only)
        print(f"{given.calls} calls, seed {given.seed}: {len(findings)} fail", *grouped(findings), sep="\n\n")
