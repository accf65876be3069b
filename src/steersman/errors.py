"""Every error that a user can meet, as one tree.

    SteersmanError (ValueError)
    ├── ConfigError      a recipe or a flag is wrong: names the key and the nearest valid one
    ├── DataError        a record is wrong: names file, line and remedy
    ├── LabelError       an attribute name or value lies outside the schema
    ├── TokenizerError   the tokenizer cannot do what the template needs
    ├── ModelError       a model folder is absent, half-written or of the wrong kind
    ├── OutputError      a result cannot be written: path exists, no space
    ├── NonFiniteError   a loss or gradient is NaN or infinite
    ├── RemoteError      a server answered with an error, or not at all
    │   └── UnavailableError   whatever it is asked: nothing answers, or it takes no requests from us
    └── BusyError        a server's queue is full: ask again later

The command line prints the message alone and exits with status 1 (2 for `ConfigError`): a message says what
is wrong, where, and what to do about it. Anything else that escapes is a bug and shows its traceback.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class SteersmanError(ValueError):
    """Base of all errors that are the user's to mend."""


class ConfigError(SteersmanError):
    """A recipe, an override or a flag is wrong."""


class DataError(SteersmanError):
    """A record cannot be used; the message begins with `file:line` where both are known."""

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None) -> None:
        self.reason, self.path, self.line = message, path, line
        place = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(place + message)

    def at(self, path: str | Path, line: int) -> "DataError":
        """The same error, placed at a file and a line (1-based)."""
        return DataError(self.reason, path, line)


class LabelError(SteersmanError):
    """An attribute or its value lies outside the schema."""


class TokenizerError(SteersmanError):
    """The tokenizer cannot do what the template needs."""


class ModelError(SteersmanError):
    """A model folder is absent, half-written or of the wrong kind."""


class OutputError(SteersmanError):
    """A result cannot be written."""


class NonFiniteError(SteersmanError):
    """A loss or a gradient is NaN or infinite."""


class RemoteError(SteersmanError):
    """A server answered with an error, or not at all; `kind` is one of a few words for it, to be counted."""

    def __init__(self, message: str, kind: str = "unusable answer") -> None:
        super().__init__(message)
        self.kind = kind


class UnavailableError(RemoteError):
    """A server that cannot be had, whatever it is asked: it is down, another one, or wants another key."""


class BusyError(SteersmanError):
    """A server has no room for a request now; `pause` is after how many seconds to ask again."""

    def __init__(self, message: str, pause: int) -> None:
        super().__init__(message)
        self.pause = pause


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into `OutputError` with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{path}: no space left on the disk; what was committed is safe: free some space and run again"
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise OutputError(f"{path}: cannot write here ({error.strerror})") from None
        raise
