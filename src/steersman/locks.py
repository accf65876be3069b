"""One process at a time in a folder of unfinished work: the operating system's lock, which dies with its process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from steersman.errors import OutputError, named_errors

LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep others out of a folder, which is made if need be; the lock file stays, as who comes next may wait on it.

    Raises:
        OutputError: another process holds it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with named_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        raise OutputError(f"{folder}: another process is at work there; let it end, or choose another output") from None
    try:
        yield
    finally:
        lock.release()
