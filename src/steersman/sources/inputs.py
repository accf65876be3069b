"""The raw files of a preparation, read line by line: JSON lines, a JSON array, parquet, on disk or at `hf://`.

Whatever the form, a line reaches its source as JSON bytes with a place (`file:line`, or the number of the item in an
array or of the row in a parquet file), and a bad one stops the run or goes to the rejects.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import ValidationError

from steersman import jsonl
from steersman.errors import ConfigError, DataError, LabelError, RemoteError
from steersman.jsonl import OnError, Rejects
from steersman.sources.spool import Spool

Item = TypeVar("Item")

HUB = "hf://"
_HUB_FILE = re.compile(
    r"hf://(?P<kind>datasets/)?(?!datasets/|spaces/|buckets/)(?P<repo>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/pr/\d+|refs/convert/[^/]+|[^/]+))?/(?P<path>.+)"
)


class Line(NamedTuple):
    """A line of an input and where it stands.

    Attributes:
        path, number: the file, and the number of the line, item or row from 1.
        text: JSON.
        part: which of the locations the file belongs to, from 0.
    """

    path: str
    number: int
    text: bytes
    part: int = 0


class Inputs:
    """A sequence of files as one sequence of lines.

    Args:
        locations: paths, or `hf://datasets/OWNER/NAME[@REVISION]/FILE` with `*` allowed in FILE; fetched at once.
        on_error, rejects: what becomes of lines that cannot be used.
        limit: read only the first so many lines, bad ones included.
    """

    def __init__(
        self, locations: Sequence[str], *, on_error: OnError, rejects: Rejects, limit: int | None = None
    ) -> None:
        self._files = [(part, file) for part, location in enumerate(locations) for file in fetch(location)]
        self._on_error = on_error
        self._rejects = rejects
        self._limit = limit

    @property
    def num_bytes(self) -> int:
        """Size of all files together, as they lie on the disk."""
        return sum(file.stat().st_size for file in self.files if file.exists())

    @property
    def files(self) -> list[Path]:
        """The files of all locations, one after the other."""
        return [file for _, file in self._files]

    def lines(self, progress: Callable[[int], Any]) -> Iterator[Line]:
        """The lines of all files up to the limit; `progress(n)` hears of n further bytes read."""
        return islice(self._lines(progress), self._limit)

    def parse(self, lines: Iterable[Line], parse: Callable[[bytes], Item]) -> Iterator[tuple[Line, Item]]:
        """Every line that `parse` can use, with what it made of it.

        `parse` refuses a line by `DataError`, `LabelError` or pydantic's `ValidationError`.
        """
        for line in lines:
            try:
                item = parse(line.text)
            except ValidationError as error:
                self._reject(line, jsonl.explain(error))
            except DataError as error:
                self._reject(line, error.reason)
            except LabelError as error:
                self._reject(line, str(error))
            else:
                yield line, item

    def _reject(self, line: Line, reason: str) -> None:
        """Stop with a `DataError` at this line, or note it and go on, as `on_error` says."""
        error = DataError(reason, line.path, line.number)
        if self._on_error == "stop":
            raise error from None
        self._rejects.add(error, line.text)

    def _lines(self, progress: Callable[[int], Any]) -> Iterator[Line]:
        """The lines of all files; under "skip" a damaged file ends at the damage, which counts as one bad line."""
        for part, file in self._files:
            try:
                for number, text in _reader(file)(file, progress):
                    yield Line(str(file), number, text, part)
            except DataError as error:
                if error.line is None:
                    raise
                self._reject(Line(str(file), error.line, b""), error.reason)


def joined_rows(rows: Spool) -> Iterator[Line]:
    """Parked rows (JSON: [path, number, row], under the key of what they belong to) as one line for all of equal key.

    It holds a list of the rows, and stands where the first of them stood.
    """
    for items in rows.groups():
        parked = [orjson.loads(rows[item]) for item in items]
        path, number, _ = parked[0]
        yield Line(path, number, orjson.dumps([row for _, _, row in parked]))


Reader = Callable[[Path, Callable[[int], Any]], Iterator[tuple[int, bytes]]]
"""(number from 1, JSON) of every line, item or row of a file."""

CHUNK = 1 << 16
"""Characters of an array that are read at once."""
_ARRAY_START = re.compile(rb"\s*\[\s*\{")


def _reader(file: Path) -> Reader:
    """How a file is to be read: as parquet by its name, as an array of objects if it opens as one, else as lines."""
    if file.suffix == ".parquet":
        return _parquet_rows
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            opens_array = _ARRAY_START.match(stream.read(CHUNK))
    except (OSError, EOFError, zlib.error):
        return jsonl.read_lines  # which says what is wrong
    return _array_items if opens_array else jsonl.read_lines


def _array_items(file: Path, progress: Callable[[int], Any]) -> Iterator[tuple[int, bytes]]:
    """The items of one JSON array, a line each, as the red-team attempts are published; memory holds a chunk."""
    decoder = json.JSONDecoder()
    number = num_read = 0
    try:
        with file.open("rb") as raw, gzip.open(raw) if file.suffix == ".gz" else raw as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8")
            unread = text.read(CHUNK).lstrip().removeprefix("[").lstrip()
            while not unread.startswith("]"):
                try:
                    item, end = decoder.raw_decode(unread)
                except ValueError:  # the item ends in the next chunk, or is none
                    chunk = text.read(CHUNK)
                    if not chunk:
                        raise
                    unread += chunk
                    continue
                number += 1
                yield number, json.dumps(item).encode()
                unread = unread[end:].lstrip(", \t\r\n") or text.read(CHUNK).lstrip(", \t\r\n")
                if (position := raw.tell()) > num_read:
                    progress(position - num_read)
                    num_read = position
            if unread[1:].strip() or text.read(CHUNK).strip():
                raise ValueError("something follows its end")
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = getattr(error, "msg", error)  # of JSON errors: without their place, which is one in the chunk
        raise DataError(
            f"the JSON array is damaged or cut short at this item ({reason}); fetch the file again", file, number + 1
        ) from None


def _parquet_rows(file: Path, progress: Callable[[int], Any]) -> Iterator[tuple[int, bytes]]:
    """(row number from 1, JSON) of every row; memory holds a part of one row group at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet needs pyarrow: pip install 'steersman[parquet]'", file) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(batch_size=256, row_groups=[group]):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, orjson.dumps(row, default=str)
                progress(file.stat().st_size // table.num_row_groups)
    except FileNotFoundError:
        raise DataError("no such file", file) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"parquet data damaged or cut short ({error}); fetch the file again", file, number + 1
        ) from None


def fetch(location: str) -> list[Path]:
    """The local files that a location names; those at `hf://` are downloaded once into the hub's own cache.

    Raises:
        ConfigError: an `hf://` location of the wrong form.
        RemoteError: the hub has no such file, refused, or was out of reach.
    """
    if not location.startswith(HUB):
        return [Path(location)]
    match = _HUB_FILE.fullmatch(location)
    if match is None:
        raise ConfigError(f"{location}: write hf://datasets/OWNER/NAME[@REVISION]/FILE")
    from httpx2 import HTTPError
    from huggingface_hub import HfFileSystem, hf_hub_download

    repo_type = "dataset" if match["kind"] else "model"
    try:
        names = [match["path"]]
        if "*" in match["path"]:
            found = (_HUB_FILE.fullmatch(HUB + name) for name in sorted(HfFileSystem().glob(location)))
            names = [file["path"] for file in found if file]
        files = [
            hf_hub_download(match["repo"], name, repo_type=repo_type, revision=match["revision"]) for name in names
        ]
    except (OSError, HTTPError) as error:
        raise RemoteError(
            f"{location}: {error}; check the name and the connection, and for a gated data set run: hf auth login"
        ) from None
    if not files:
        raise RemoteError(f"{location}: the hub has no file of such a name")
    return [Path(file) for file in files]
