"""Files that are whole or not there, and locks that go with their process."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from nclib import files


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A child process that runs `code` and has said "ready"."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()  # type: ignore[union-attr]


def test_what_is_written_replaces_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    files.write(file, "old")
    files.write(file, b"n\xc3\xa4w")
    assert file.read_text("utf-8") == "näw"
    assert os.listdir(file.parent) == ["a.txt"]


KILLED_BEFORE_THE_RENAME = """
import os, sys, time
from pathlib import Path
from nclib import files
def replace(aside, file):
    print("ready", flush=True)
    time.sleep(60)
os.replace = replace
files.write(Path(sys.argv[1]), "new")
"""


def test_a_process_killed_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    files.write(file, "old")
    kill(start(KILLED_BEFORE_THE_RENAME, file))
    assert file.read_text() == "old"
    files.write(file, "new")
    assert file.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(handle: int) -> None:
        raise error

    files.write(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        files.write(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder in which this process cannot write, even when the tests are run as root."""
    folder = Path(tempfile.mkdtemp())
    (folder / "a.txt").write_text("old")
    folder.chmod(0o555)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_folder_that_cannot_be_written_to_is_an_error_and_stays_as_it_is(read_only_folder: Path) -> None:
    for place in (read_only_folder, read_only_folder / "new"):
        with pytest.raises(PermissionError):
            files.write(place / "a.txt", "new")
        with pytest.raises(PermissionError), files.lock(place / "lock"):
            pass
    assert os.listdir(read_only_folder) == ["a.txt"]
    assert (read_only_folder / "a.txt").read_text() == "old"


def test_fingerprints_tell_apart_what_differs() -> None:
    assert files.fingerprint(b"a") == files.fingerprint("a") != files.fingerprint(["a"])
    assert files.fingerprint({"a": 1, "b": [1.0, None]}) == files.fingerprint({"b": [1.0, None], "a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.canonical({"a": object()})


HOLDER = """
import sys, time
from pathlib import Path
from nclib import files
with files.lock(Path(sys.argv[1])) as held:
    assert held
    print("ready", flush=True)
    time.sleep(60)
"""

WAITER = """
import sys
from pathlib import Path
from nclib import files
with files.lock(Path(sys.argv[1]), waiting="ready") as held:
    print(held, flush=True)
"""


def test_one_process_waits_for_the_other_until_that_one_is_killed(tmp_path: Path) -> None:
    holder = start(HOLDER, tmp_path / "lock")
    waiter = start(WAITER, tmp_path / "lock")  # it says that it waits
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(0.5)
    kill(holder)
    assert waiter.communicate(timeout=20) == ("True\n", None)


@pytest.mark.skipif(os.name == "nt", reason="needs flock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.lock(tmp_path / "lock") as held:
        assert not held
