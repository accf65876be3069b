"""The one on-disk form: JSON lines, typed on reading, written atomically, produced in resumable units.

- `read` streams records of a pydantic type from `.jsonl` or `.jsonl.gz`; a bad line raises `DataError` with
  `file:line`, or, under `on_error="skip"`, goes to a rejects file and is counted.
- `writer` makes a file appear whole or not at all.
- `Journal` splits a long job into units of records by index. A unit is committed whole; a job that was cut continues
  after its last committed unit and ends with the same bytes as one that was never cut.
"""

import contextlib
import gzip
import hashlib
import itertools
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from steersman.errors import DataError, OutputError, named_errors
from steersman.locks import hold

Record = TypeVar("Record", bound=BaseModel)
Item = TypeVar("Item")
OnError = Literal["stop", "skip"]
BUFFER = 1 << 20
"""Bytes that are read or written at once."""


def dumps(record: Any) -> bytes:
    """One line of JSON, newline included; pydantic records in their JSON form, bytes (a line already) as they are."""
    if isinstance(record, bytes):
        return record
    if isinstance(record, BaseModel):
        to_json = getattr(record, "to_json", None)
        record = to_json() if to_json else record.model_dump(by_alias=True)
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def pretty(value: Any) -> bytes:
    """JSON for people to read."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def fingerprint(*paths: str | Path) -> str:
    """SHA-256 of files' contents (folders: of every file below, with its relative path), 16 hex digits."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        if not path.exists():
            raise DataError("no such file or folder", path)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file.relative_to(path) if path.is_dir() else file.suffix).encode())
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()[:16]


def digest(settings: Any) -> str:
    """What tells one job from another: 16 hex digits of its inputs' fingerprints and settings (anything JSON)."""
    return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


class Rejects:
    """Where skipped lines go: counts them and, given a path, keeps them as {"file", "line", "error", "text"}."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.count = 0
        self.reasons: dict[str, int] = {}
        self._file: IO[bytes] | None = None

    def add(self, error: DataError, text: bytes) -> None:
        self.count += 1
        self.reasons[error.reason] = self.reasons.get(error.reason, 0) + 1
        if self.path is not None:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb")
            entry = {"file": str(error.path), "line": error.line, "error": error.reason}
            self._file.write(dumps({**entry, "text": text.decode("utf-8", "replace").rstrip("\n")}))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_lines(path: str | Path, progress: Callable[[int], Any] | None = None) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes) of every line that is not blank.

    `progress(n)` hears of every n further bytes of the file (compressed ones, of a .gz) that were read.

    Raises:
        DataError: the file is absent, or a gzip stream is damaged or ends early (names the line reached).
    """
    path = Path(path)
    if path.is_dir():
        raise DataError("is a folder; give a .jsonl or .jsonl.gz file", path)
    number = 0
    try:
        with path.open("rb", BUFFER) as file, gzip.open(file) if path.suffix == ".gz" else file as stream:
            num_read = 0
            for number, line in enumerate(stream, start=1):
                if progress and (position := file.tell()) > num_read:
                    progress(position - num_read)
                    num_read = position
                if not line.isspace():
                    yield number, line
    except FileNotFoundError:
        raise DataError("no such file", path) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"gzip data damaged or cut short after this line ({error}); fetch the file again", path, number + 1
        ) from None


def parse_json(line: bytes) -> dict[str, Any]:
    """The JSON object on a line; `DataError` (unplaced) when it is none."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"not valid JSON ({error}); mend the line or use --on-error skip") from None
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, found {type(value).__name__}")
    return value


def explain(error: ValidationError) -> str:
    """A pydantic error in one line: `conversations.2.from: Field required`."""
    parts = []
    for item in error.errors(include_url=False, include_input=False)[:3]:
        where = ".".join(str(part) for part in item["loc"])
        parts.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "; ".join(parts)


def parse_each(
    path: str | Path,
    parse: Callable[[dict[str, Any]], Item],
    *,
    on_error: OnError = "stop",
    rejects: Rejects | None = None,
    limit: int | None = None,
) -> Iterator[tuple[int, Item]]:
    """(line number, parse(object)) of every line; the one place where a bad line is placed, skipped or fatal.

    `parse` raises `DataError` or pydantic's `ValidationError`. `limit` reads the first so many lines only. The damaged
    end of a gzip file counts as one bad line.
    """
    rejects = rejects or Rejects()
    for number, line in itertools.islice(_sound_lines(path, on_error, rejects), limit):
        try:
            try:
                item = parse(parse_json(line))
            except ValidationError as error:
                raise DataError(explain(error)) from None
        except DataError as error:
            placed = error.at(path, number)
            if on_error == "stop":
                raise placed from None
            rejects.add(placed, line)
            continue
        yield number, item


def _sound_lines(path: str | Path, on_error: OnError, rejects: Rejects) -> Iterator[tuple[int, bytes]]:
    """`read_lines`, where under "skip" a damaged gzip file ends at the damage."""
    try:
        yield from read_lines(path)
    except DataError as error:
        if on_error == "stop" or error.line is None:
            raise
        rejects.add(error, b"")


def read(
    path: str | Path,
    record_type: type[Record],
    *,
    on_error: OnError = "stop",
    rejects: Rejects | None = None,
    limit: int | None = None,
) -> Iterator[Record]:
    """Stream the records of a file. See `parse_each` for errors."""
    parsed = parse_each(path, record_type.model_validate, on_error=on_error, rejects=rejects, limit=limit)
    return (record for _, record in parsed)


def check_absent(path: str | Path, overwrite: bool = False) -> Path:
    """The path, when nothing is there or it may be replaced; `OutputError` otherwise."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another path or pass --overwrite")
    return path


def is_of_job(path: str | Path, job: str, overwrite: bool = False) -> bool:
    """Whether a file holds the finished work of a job, whose digest its records name under `job`.

    What a job that was killed at the very end left of its units goes, too.

    Raises:
        OutputError: it is another job's, and may not be replaced.
    """
    path = Path(path)
    if not path.exists():
        return False
    first = next((line.get("job") for _, line in parse_each(path, dict, limit=1)), None)
    if first != job and not overwrite:
        raise OutputError(
            f"{path} belongs to a job with other inputs or settings; choose another output, delete the file, or pass "
            "--overwrite"
        )
    if first == job:
        _sweep(_work_folder(path), job)
    return first == job


def _work_folder(output: Path) -> Path:
    """Where the units of a journal lie until all are done."""
    return output.with_name(output.name + ".partial")


def _sweep(folder: Path, job: str) -> None:
    """Remove the units of a finished job; not those of another one, which may still continue."""
    job_file = folder / "job.json"
    if not job_file.exists() or digest(orjson.loads(job_file.read_bytes())["settings"]) == job:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose bytes stand under `path`, durably, when the block ends well, and nowhere otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb", BUFFER) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writer(path: str | Path, *, overwrite: bool = False) -> Iterator[Callable[[Any], Any]]:
    """Yields `write(record)`; the file appears under its name when the block ends well, and not at all otherwise.

    A path ending in .gz is compressed (with no time stamp, so equal records give equal bytes).
    """
    path = check_absent(path, overwrite)
    with _replacing(path) as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
                yield lambda record: stream.write(dumps(record))
        else:
            yield lambda record: raw.write(dumps(record))


def write(path: str | Path, records: Iterable[Any], *, overwrite: bool = False) -> int:
    """Write all records atomically; returns how many."""
    count = 0
    with writer(path, overwrite=overwrite) as put:
        for record in records:
            put(record)
            count += 1
    return count


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a small file atomically and durably."""
    with _replacing(Path(path)) as stream:
        stream.write(content)


class Journal:
    """A long job in fixed units of records by index, committed whole.

    Units lie in `<output>.partial/` until the last is done, then become `<output>` in one rename. `settings` (anything
    JSON) and the inputs' fingerprints say what the job is: a journal of another job is refused, not mixed.
    """

    def __init__(self, output: str | Path, *, unit: int, settings: Any, overwrite: bool = False) -> None:
        self.output = check_absent(output, overwrite)
        self.unit = unit
        self.folder = _work_folder(self.output)
        self._job = orjson.dumps({"unit": unit, "settings": settings}, option=orjson.OPT_SORT_KEYS)
        job_file = self.folder / "job.json"
        has_units = any(self.folder.glob("*.jsonl"))
        if has_units and job_file.read_bytes() != self._job:
            raise OutputError(
                f"{self.folder} holds the unfinished work of a job with other inputs or settings; "
                "finish that one, or delete the folder to start afresh"
            )
        if not has_units:  # a job that was refused before its first unit leaves nothing to mix
            write_bytes(job_file, self._job)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:08d}.jsonl"

    def done(self, index: int) -> bool:
        return self._path(index).exists()

    def run(
        self,
        items: Sequence[Item],
        work: Callable[[Sequence[Item]], Iterable[Any]],
        progress: Callable[[int], Any] | None = None,
    ) -> Path:
        """Apply `work` to each unit that is not committed yet, commit it, and join all units into the output.

        Raises:
            OutputError: another process is at the same job, or the output cannot be written.
        """
        with hold(self.folder):
            return self._run(items, work, progress)

    def _run(
        self,
        items: Sequence[Item],
        work: Callable[[Sequence[Item]], Iterable[Any]],
        progress: Callable[[int], Any] | None,
    ) -> Path:
        starts = range(0, len(items), self.unit)
        for index, start in enumerate(starts):
            batch = items[start : start + self.unit]
            if not self.done(index):
                write_bytes(self._path(index), b"".join(dumps(record) for record in work(batch)))
            if progress:
                progress(len(batch))
        temporary = self.folder / "joined.tmp"
        with named_errors(self.output):
            with temporary.open("wb") as joined:
                for index in range(len(starts)):
                    with self._path(index).open("rb") as stream:
                        shutil.copyfileobj(stream, joined)
                joined.flush()
                os.fsync(joined.fileno())
            os.replace(temporary, self.output)
            shutil.rmtree(self.folder)
        return self.output
