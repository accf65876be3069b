"""One process at a time in a folder of unfinished work: the operating system's lock, which dies with its process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from steersman.errors import OutputError

LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep others out of a folder, which is made if need be; the lock file stays, as who comes next may wait on it.

    Raises:
        OutputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(f"{folder}: another process is at work there; let it end, or choose another output") from None
    try:
        yield
    finally:
        lock.release()
