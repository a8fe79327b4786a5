"""Many independent calls on one core, one machine or many, of which a crash loses none.

All it takes is an executor as `concurrent.futures` has it, so processes and a Dask cluster are used alike.
Each result is written as soon as it arrives, to a file named by what was computed: calling again resumes.
"""

from __future__ import annotations

import ast
import concurrent.futures as cf
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import os
import sys
import textwrap
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Grid = Mapping[str, Iterable[Any]] | Iterable[Row]


class SweepFailed(RuntimeError):
    """Some calls failed: `failures` lists (configuration, exception), `results` holds all other rows."""

    def __init__(self, failures: list[tuple[Row, BaseException]], results: pd.DataFrame, calls: int) -> None:
        config, error = failures[0]
        super().__init__(
            f"{len(failures)} of {calls} calls failed, the first at {config} with {type(error).__name__}: "
            f"{error}; the rest is in `.results`: mend the function or the grid and call again"
        )
        self.failures, self.results = failures, results


def sweep(
    function: Callable[..., Any],
    grid: Grid,
    *,
    executor: Any = None,
    folder: str | os.PathLike[str] | None = None,
    retries: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Call ``function(**config)`` for every configuration of a grid and gather the results.

    Every result is recorded once, by the process that calls `sweep`, and a recorded call is never made again.
    A call under way when a worker dies is made again, alone, so that only a guilty one uses up its retries.

    Parameters
    ----------
    function : callable
        Returns a dict (one row), a list of dicts or a DataFrame of numbers, strings, booleans and None.
        Processes and clusters must be able to import it, so define it in a module.
    grid : mapping or iterable of dicts
        ``dict(lr=[0.1, 1], seed=range(8))`` stands for all sixteen combinations; or the configurations
        themselves. Values are numbers, strings, booleans, None, dataclasses, or lists of these.
    executor : optional
        A `concurrent.futures` executor or a Dask ``distributed.Client``; one after another when left out.
    folder : path, optional
        Where each result is kept as JSON. What is found there is not computed again, unless the source of
        `function` itself has changed. Code that it calls is not looked at: take a new folder then.
    retries : int
        How often a call is made again after the worker that made it died.
    progress : bool
        Show a bar where the output is a terminal.

    Returns
    -------
    pandas.DataFrame
        Columns of the configuration, then of the result; rows in the order of the grid, equal ones made once.

    Raises
    ------
    SweepFailed
        If calls raised or lost their workers too often; after all others are done and stored.
    ValueError, TypeError
        If the grid or the executor cannot be used.

    Examples
    --------
    >>> table = sweep(lambda a, b: {"product": a * b}, dict(a=[2, 3], b=[5]), progress=False)
    >>> table.to_numpy().tolist()
    [[2, 5, 10], [3, 5, 15]]
    """
    import pandas as pd
    from tqdm import tqdm

    headers = [(config, _header(function, config)) for config in _configurations(grid)]
    configs = {_key(header): (config, header) for config, header in headers}
    done: dict[str, list[Row]] = {}
    failed: dict[str, BaseException] = {}
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        found = {key: _read(Path(folder, f"{key}.json"), header) for key, (_, header) in configs.items()}
        done = {key: rows for key, rows in found.items() if rows is not None}
    calls = {key: functools.partial(function, **config) for key, (config, _) in configs.items() if key not in done}
    bar = tqdm(total=len(configs), initial=len(done), file=sys.stdout, disable=None if progress else True)
    with bar, closing(_outcomes(calls, executor, retries)) as outcomes:
        for key, result, error in outcomes:
            header = configs[key][1]
            try:
                rows = _rows(result, header["config"]) if error is None else []
            except (TypeError, ValueError) as unusable:
                error = unusable
            if error is not None:
                failed[key] = error
            else:
                if folder is not None:
                    _write(Path(folder, f"{key}.json"), {**header, "rows": rows})
                done[key] = rows
            bar.update()
    table = pd.DataFrame(
        [_columns(header["config"] | row) for key, (_, header) in configs.items() for row in done.get(key, [])]
    )
    if failed:
        failures = [(config, failed[key]) for key, (config, _) in configs.items() if key in failed]
        raise SweepFailed(failures, table, len(configs)) from failures[0][1]
    return table


def _configurations(grid: Grid) -> list[Row]:
    if not isinstance(grid, Mapping):
        return [dict(config) for config in grid]
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(f"grid[{name!r}]={values!r}: not a list of values; write {name}=[{values!r}]")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class _Serial(cf.Executor):
    """The executor that makes each call at once, in this thread."""

    _max_workers = 1

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
        future: cf.Future[Any] = cf.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _outcomes(
    calls: Mapping[str, Callable[[], Any]], executor: Any, retries: int
) -> Generator[tuple[str, Any, BaseException | None]]:
    """Make all calls; yield (key, result, None) or (key, None, exception) as each ends."""
    pool = _Serial() if executor is None else executor
    pool = pool.get_executor(pure=False) if hasattr(pool, "get_executor") else pool  # a distributed.Client
    if not hasattr(pool, "submit"):
        raise TypeError(f"executor={executor!r}: cannot submit calls; write e.g. ProcessPoolExecutor(4)")
    # No more calls in flight than workers: a process pool that breaks does not say which call broke it.
    # A cluster does, and grows and shrinks: a thousand keep it busy.
    workers = getattr(pool, "_max_workers", 1000)
    queue, suspects, deaths = deque(calls), deque[str](), Counter[str]()
    flying: dict[cf.Future[Any], str] = {}
    with ExitStack() as renewed:
        try:
            while queue or suspects or flying:
                source, limit = (queue, workers) if queue else (suspects, 1)
                while source and len(flying) < limit:
                    try:
                        flying[pool.submit(calls[source[0]])] = source[0]
                        source.popleft()
                    except cf.BrokenExecutor as broken:
                        if isinstance(pool, cf.ProcessPoolExecutor):
                            pool = renewed.enter_context(_like(pool))
                        else:
                            yield source.popleft(), None, broken
                for future in cf.wait(flying, return_when=cf.FIRST_COMPLETED).done:
                    key = flying.pop(future)
                    error = cf.CancelledError() if future.cancelled() else future.exception()
                    died = isinstance(error, cf.BrokenExecutor | cf.CancelledError)
                    # Dask's exception is known by its name, so that Dask need not be installed.
                    if (died or type(error).__name__ == "KilledWorker") and deaths[key] < retries:
                        deaths[key] += 1
                        suspects.append(key)
                    else:
                        yield key, None if error else future.result(), error
        finally:
            for future in flying:
                future.cancel()


def _like(pool: cf.ProcessPoolExecutor) -> cf.ProcessPoolExecutor:
    """A working pool in place of one that a dead worker broke; no public way tells its settings."""
    workers: int = pool._max_workers  # type: ignore[attr-defined]
    return cf.ProcessPoolExecutor(workers, pool._mp_context, pool._initializer, pool._initargs)


def _header(function: Callable[..., Any], config: Row) -> Row:
    """What a result is the result of: the function's name, a hash of its source, the configuration."""
    try:
        code = textwrap.dedent(inspect.getsource(function))
        code = ast.unparse(ast.parse(code))  # comments and layout do not count
    except (OSError, TypeError, SyntaxError):
        code = ""
    name = f"{function.__module__}.{function.__qualname__}"
    return {"function": name, "source": _key(code), "config": {k: _plain(v) for k, v in config.items()}}


def _key(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _plain(value: Any) -> Any:
    """The value in the types of JSON."""
    if getattr(value, "ndim", None) == 0:  # NumPy and PyTorch scalars
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if dataclasses.is_dataclass(value):
        return repr(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{value!r}: a {type(value).__name__} cannot be recorded; write numbers, strings or lists")


def _rows(result: Any, config: Row) -> list[Row]:
    rows = result.to_dict("records") if hasattr(result, "to_dict") else result
    rows = [rows] if isinstance(rows, Mapping) else rows
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError(f"the call returned a {type(result).__name__}; return a dict, dicts or a DataFrame")
    rows = [{str(name): _plain(value) for name, value in row.items()} for row in rows]
    for name in {name for row in rows for name in row.keys() & config if row[name] != config[name]}:
        raise ValueError(f"the call returned another {name} than it was given; give that column another name")
    return rows


def _columns(row: Row) -> Row:
    """Lists as tuples, which a table can be grouped by."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _write(path: Path, content: Row) -> None:
    """Write whole or not at all, whatever happens meanwhile."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _read(path: Path, header: Row) -> list[Row] | None:
    """The rows of a recorded call, None if there is none; what is not such a record is set aside."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows: list[Row] = content.pop("rows")
        if _key(content) == _key(header):
            return rows
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    aside = path.replace(path.with_suffix(".set-aside"))
    warnings.warn(f"{path} is damaged; kept as {aside.name}, its call is made again", stacklevel=3)
    return None
