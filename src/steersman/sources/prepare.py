"""What all sources share: split into training and validation, derive attributes, count, write.

Comes in: groups of records (a tree's conversations, in order), one after the other. Goes out: `P_train.jsonl`,
`P_val.jsonl`, `P_schema.json` (a `DataSummary`) and, when lines were skipped, `P_rejects.jsonl`; beside each split,
where asked for, files that are made of its records.

Groups are parked on disk beside the output as they come, and what is shuffled are their numbers, so data larger than
memory works (twice the output's size must fit on the disk). The shuffle is NeMo's: `random.seed(seed);
random.shuffle(groups)`, the first `int(n * split_ratio)` train.
"""

import contextlib
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from pydantic import Field, field_validator, model_validator

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.config import Config
from steersman.errors import ConfigError, DataError, named_errors
from steersman.jsonl import OnError, Rejects
from steersman.randomness import derive_seed
from steersman.records import ASSISTANT, DEFAULT_SYSTEM, USER, Conversation, ConversationType
from steersman.sources.blend import blend
from steersman.sources.inputs import Inputs
from steersman.sources.labels import Labels, Tally
from steersman.sources.spool import Groups, Items, Spool
from steersman.sources.summary import DataSummary, length_thresholds, summary_path


class PrepareConfig(Config):
    """What to read, how to split it, where to write.

    Attributes:
        input: files, or `hf://` locations, read one after the other.
        output_prefix: P of the files that are written.
        val_input: files whose records make up the validation file; all of `input` then trains.
        split_ratio: share of the groups that train.
        seed: of the shuffle and the folds.
        fold: "k/n": validate on the k-th (from 1) of n disjoint folds, train on the others. A group's fold depends on
            nothing but the seed and its id, so it is the same in every file and mixture of files.
        limit: read only the first so many lines, before the shuffle.
        derive: attributes to compute from the text and append to each labelled assistant turn's label; `verbosity` is
            the fifth of the training turns' lengths in which the answer's length lies.
        on_error: "stop" at a bad line, or "skip" it into `P_rejects.jsonl`.
        overwrite: replace existing output.
    """

    input: tuple[str, ...] = Field(min_length=1)
    output_prefix: str = Field(min_length=1)
    val_input: tuple[str, ...] = ()
    split_ratio: float = Field(default=0.95, ge=0.0, le=1.0)
    seed: int = 10
    fold: str | None = Field(default=None, pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")
    limit: int | None = Field(default=None, ge=1)
    derive: tuple[Literal["verbosity"], ...] = ()
    on_error: OnError = "stop"
    overwrite: bool = False

    @field_validator("fold")
    @classmethod
    def _check_fold(cls, fold: str | None) -> str | None:
        if fold is not None:
            number, count = map(int, fold.split("/"))
            if number > count or count < 2:
                raise ValueError(f"write k/n with n of 2 or more and k from 1 to n, not {fold}")
        return fold

    @model_validator(mode="after")
    def _check(self) -> "PrepareConfig":
        if self.fold and self.val_input:
            raise ValueError("fold and val_input both say what to validate on: give one of them")
        return self


class ConversationConfig(PrepareConfig):
    """What conversations that are made from other data say of themselves.

    Attributes:
        type: what the label line teaches (see `Conversation`).
        mask_role: roles that are never trained, comma-separated.
        system: system prompt of those that bring none, exactly as rendered.
    """

    type: ConversationType | None = "VALUE_TO_TEXT"
    mask_role: str = USER
    system: str = DEFAULT_SYSTEM + "\n\n"

    @field_validator("mask_role")
    @classmethod
    def _check_mask_role(cls, mask_role: str) -> str:
        if not mask_role.replace(",", "").strip():
            raise ValueError("name at least one role, such as User")
        return mask_role


class BlendConfig(PrepareConfig):
    """What may be blended of several inputs.

    Attributes:
        ratio: how many records of each input there are to be for how many of the others, in their order: as many of
            them as that allows are taken, none twice. By default all are. Where `val_input` is given it has as many,
            and is blended alike.
    """

    ratio: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check_ratio(self) -> "BlendConfig":
        if self.ratio and not all(0 < share < float("inf") for share in self.ratio):
            raise ValueError("ratio: numbers above 0")
        for inputs in (self.input, self.val_input) if self.ratio else ():
            if inputs and len(inputs) != len(self.ratio):
                raise ValueError(f"ratio: give one for each input, {len(inputs)} in all, not {len(self.ratio)}")
        return self


@dataclass(frozen=True, slots=True)
class Branch:
    """A record in its JSON form.

    Attributes:
        record: a conversation or a preference pair.
        num_shared: how many of its first turns an earlier branch of the same group holds already.
    """

    record: dict[str, Any]
    num_shared: int = 0

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The turns of a conversation; none, of a preference pair."""
        turns: list[dict[str, Any]] = self.record.get("conversations", [])
        return turns

    @property
    def own_turns(self) -> list[dict[str, Any]]:
        """The turns that no earlier branch of its group holds."""
        return self.turns[self.num_shared :]

    @property
    def own_labels(self) -> list[str | None]:
        """The labels of those."""
        return [turn["label"] for turn in self.own_turns]


class Group(NamedTuple):
    """Records that stay together: all of them train, or all validate.

    Attributes:
        key: the id of the tree, or whatever else makes records alike; groups of equal key fall into the same fold.
        branches: its records; none, for a tree of one message (it counts in the split all the same).
        part: which of the inputs it comes from, where they are to be blended.
        split: which file it belongs to, where the data itself says so; a fold or validation files override that.
        dropped: why it is left out, where it is.
    """

    key: str
    branches: list[Branch]
    part: int = 0
    split: Literal["train", "val"] | None = None
    dropped: str | None = None


UNLABELLED = AttributeSchema(attributes=())
"""The schema of records without labels."""
Progress = Callable[[int], Any]
Read = Callable[[Inputs, Progress], Iterator[Group]]
Bar = Callable[..., AbstractContextManager[Progress]]
"""`cli.progress.progress_bar`, or anything that is called and used alike."""
Also = Mapping[str, Callable[[dict[str, Any]], Iterable[Any]]]
"""Further files beside each split's: NAME of `P_train_NAME.jsonl` -> the lines that a record becomes there."""


def each_line(parse: Callable[[bytes], Conversation]) -> Read:
    """A source whose lines are conversations: those that carry one `tree_id`, or begin alike, make up a group."""

    def group(text: bytes) -> Group:
        conversation = parse(text)
        key = (conversation.model_extra or {}).get("tree_id") or conversation.conversations[0].value
        return Group(str(key), [Branch(conversation.to_json())])

    return lambda inputs, progress: (
        item._replace(part=line.part) for line, item in inputs.parse(inputs.lines(progress), group)
    )


def carried(row: dict[str, Any], *used: str) -> dict[str, Any]:
    """The keys of a raw row that its record carries along untouched: all but the `used` ones.

    Raises:
        DataError: one has the name of a record's own key.
    """
    rest = {key: value for key, value in row.items() if key not in used}
    if clash := [key for key in rest if key in Conversation.model_fields]:
        raise DataError(f"the row has a key {clash[0]!r}, which the record needs for itself; rename it")
    return rest


def content_id(*texts: str) -> str:
    """An id for a record that brings none: the same texts have the same id, in any file and place."""
    return f"{derive_seed(0, *texts):016x}"


@contextlib.contextmanager
def no_bar(description: str, *, total: int | None, unit: str) -> Iterator[Progress]:
    yield lambda num_done: None


def prepare(
    config: PrepareConfig,
    read: Read,
    schema: AttributeSchema,
    bar: Bar = no_bar,
    *,
    by_key: bool = True,
    ratio: Sequence[float] = (),
    also: Also | None = None,
) -> DataSummary:
    """Read all groups, split them, and write the files.

    Args:
        config: what to do.
        read: a source: the groups of the inputs, in order.
        schema: of the labels as the source writes them.
        bar: shows the progress of reading and of writing.
        by_key: shuffle and split groups of equal key as one; otherwise each by itself.
        ratio: of the groups of each input, where they are blended.
        also: further files to write.

    Raises:
        DataError: a line cannot be used, or there is nothing to write.
        ConfigError: a derived attribute is one of the schema's already.
        OutputError: an output exists, or cannot be written.
    """
    if clash := set(config.derive) & set(schema.names):
        raise ConfigError(f"derive: the labels have {', '.join(clash)} already")
    also = also or {}
    outputs = _Outputs(config.output_prefix, config.overwrite, also)
    with Spool(outputs.train.parent) as spool:
        parked = _Parked(spool)
        with contextlib.closing(Rejects(outputs.rejects if config.on_error == "skip" else None)) as rejects:
            parked.read(config.input, config, read, rejects, bar, ratio)
            if len(spool) == 0:
                raise DataError(f"nothing to prepare in {', '.join(config.input)}" + _counted(parked.dropped))
            if config.val_input:
                parked.read(config.val_input, config, read, rejects, bar, ratio, validates=True)
        split = parked.split(config, by_key)
        lengths = _lengths(spool, split.train) if config.derive else Counter()
        if config.derive and not lengths:
            raise DataError("derive: no assistant turn in the training split has a label, so there are no thresholds")
        labels = Labels(schema, dict.fromkeys(config.derive, length_thresholds(lengths)))
        outputs.begin()
        with (
            _writer(outputs.train, also) as put_train,
            _writer(outputs.val, also) as put_val,
            bar("write", total=sum(map(len, split)), unit="groups") as progress,
        ):
            train = _write(put_train, spool, split.train, labels, progress)
            val = _write(put_val, spool, split.val, labels, progress)
    summary = DataSummary(
        attributes=train.schema,
        thresholds=labels.thresholds,
        label_counts=train.label_counts,
        train=train.counts,
        val=val.counts,
        rejects=rejects.count,
        dropped=dict(parked.dropped),
    )
    outputs.finish(summary)
    return summary


class _Split(NamedTuple):
    """Which parked items are written to which file, in order."""

    train: Items
    val: Items


class _Parked:
    """What was read, on disk, and what decides where it goes.

    Attributes:
        dropped: reason -> how many groups are left out.
    """

    def __init__(self, spool: Spool) -> None:
        self.dropped: Counter[str] = Counter()
        self._spool = spool
        self._kept = np.arange(0)
        self._validates = array("b")
        self._is_split = False

    def read(
        self,
        locations: Sequence[str],
        config: PrepareConfig,
        read: Read,
        rejects: Rejects,
        bar: Bar,
        ratio: Sequence[float],
        *,
        validates: bool = False,
    ) -> None:
        """Append the groups of some inputs, and keep those that make up the blend."""
        inputs = Inputs(locations, on_error=config.on_error, rejects=rejects, limit=config.limit)
        first, parts = len(self._spool), array("q")
        self._is_split |= validates
        with bar("read", total=inputs.num_bytes, unit="bytes") as progress:
            for group in read(inputs, progress):
                if group.dropped:
                    self.dropped[group.dropped] += 1
                    continue
                key = derive_seed(config.seed, "group", group.key)
                self._spool.append(key, _ParkedGroup.of(group.branches).dumps())
                parts.append(group.part)
                self._validates.append(validates or group.split == "val")
                self._is_split |= group.split is not None
        kept = blend(np.array(parts, dtype=np.int64), self._spool.keys[first:], ratio)
        self._kept = np.append(self._kept, first + kept)
        if num_left := len(parts) - len(kept):
            self.dropped["more than the ratio asks for"] += num_left

    def split(self, config: PrepareConfig, by_key: bool) -> _Split:
        """Shuffle and split what is kept: by fold, else as the data or the inputs say, else by share."""
        keys = self._spool.keys
        validates = np.array(self._validates, dtype=bool)[self._kept]
        items = self._kept if config.fold else self._kept[~validates]
        groups = Groups(keys[items] if by_key else np.arange(len(items)))
        shuffled = array("q", range(len(groups)))
        random.Random(config.seed).shuffle(shuffled)
        order = np.array(shuffled, dtype=np.int64)
        if config.fold:
            number, count = map(int, config.fold.split("/"))
            items = items[groups.items(order)]
            in_fold = keys[items] % count == number - 1
            return _Split(items[~in_fold], items[in_fold])
        if self._is_split:
            return _Split(items[groups.items(order)], self._kept[validates])
        num_train = int(len(order) * config.split_ratio)
        return _Split(items[groups.items(order[:num_train])], items[groups.items(order[num_train:])])


def _counted(dropped: Mapping[str, int]) -> str:
    return "".join(f"; dropped {count:,}: {reason}" for reason, count in dropped.items())


class _ParkedGroup(NamedTuple):
    """A group as it lies on the disk: what is only written and counted is not parsed again.

    Attributes:
        records: a line of JSON each.
        own_labels: of each record's own turns.
    """

    records: bytes
    own_labels: list[list[str | None]]

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> "_ParkedGroup":
        return cls(b"".join([jsonl.dumps(branch.record) for branch in branches]), [b.own_labels for b in branches])

    @classmethod
    def loads(cls, item: bytes) -> "_ParkedGroup":
        own_labels, _, records = item.partition(b"\n")
        return cls(records, orjson.loads(own_labels))

    def dumps(self) -> bytes:
        return jsonl.dumps(self.own_labels) + self.records

    def branches(self) -> Iterator[Branch]:
        for line, own_labels in zip(self.records.splitlines(), self.own_labels, strict=True):
            branch = Branch(orjson.loads(line))
            yield Branch(branch.record, len(branch.turns) - len(own_labels))


def _lengths(spool: Spool, items: Items) -> Counter[int]:
    """Length in characters -> how many labelled assistant turns have it; turns shared by several records count once."""
    return Counter(
        len(turn["value"])
        for item in items
        for branch in _ParkedGroup.loads(spool[item]).branches()
        for turn in branch.own_turns
        if turn["from"] == ASSISTANT and turn["label"]
    )


@contextlib.contextmanager
def _writer(path: Path, also: Also) -> Iterator[Callable[[bytes], Any]]:
    """Yields `write(lines)`, which adds records to a split's file and their lines to the files beside it."""
    with contextlib.ExitStack() as files:
        put = files.enter_context(jsonl.writer(path, overwrite=True))
        derived = [
            (lines, files.enter_context(jsonl.writer(_beside(path, name), overwrite=True)))
            for name, lines in also.items()
        ]

        def write(records: bytes) -> None:
            put(records)
            for record in map(orjson.loads, records.splitlines() if derived else ()):
                for lines, put_line in derived:
                    for line in lines(record):
                        put_line(line)

        yield write


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}_{name}.jsonl")


def _write(put: Callable[[bytes], Any], spool: Spool, items: Items, labels: Labels, progress: Progress) -> Tally:
    """Write the records of the items, with their final labels; returns what they amount to."""
    tally, keys = Tally(labels), spool.keys
    for item in items:
        group = _ParkedGroup.loads(spool[item])
        if labels.thresholds:
            group = _derived(group, labels)
        put(group.records)
        tally.add(int(keys[item]), group.own_labels)
        progress(1)
    return tally


def _derived(group: _ParkedGroup, labels: Labels) -> _ParkedGroup:
    """A group with the derived attributes in its labels."""
    branches = list(group.branches())
    for branch in branches:
        for turn in branch.turns:
            labels.derive(turn)
    return _ParkedGroup.of(branches)


class _Outputs:
    """The files of a prefix, and a marker that lies beside them while they are being written.

    A run that was killed between two of its files leaves the marker, which tells the next run that what it finds is no
    one's finished work.
    """

    def __init__(self, prefix: str, overwrite: bool, beside: Iterable[str]) -> None:
        self.train, self.val, self.rejects = (Path(f"{prefix}_{name}.jsonl") for name in ("train", "val", "rejects"))
        self._summary = summary_path(prefix)
        self._marker = self.train.with_name(f".{self.train.stem}.unfinished")
        derived = (_beside(path, name) for path in (self.train, self.val) for name in beside)
        for path in (self.train, self.val, *derived, self._summary):
            jsonl.check_absent(path, overwrite or self._marker.exists())
        with named_errors(self.rejects):
            self.rejects.unlink(missing_ok=True)

    def begin(self) -> None:
        jsonl.write_bytes(self._marker, b"")

    def finish(self, summary: DataSummary) -> None:
        summary.save(self._summary)
        self._marker.unlink()
