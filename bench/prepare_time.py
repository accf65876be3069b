"""`prepare oasst` and `clean` on 200 MB of trees (real ones, repeated) against the least that any code has to do.

    python bench/prepare_time.py [--model models/gemma-3-270m] [--megabytes 200] [--toy]

For `prepare` that is parsing every tree and dumping every output record with Python's own json module, and nothing in
between; the number of records must be the number of paths that a walk over the parsed trees finds. Peak memory is held
against 400 MB. For `clean` it is tokenising the rendered texts with the model's tokenizer, in batches, though it
tokenises only those of which their length leaves open whether something is trained.
"""

import gzip
import itertools
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import sides
from result import write
from sides import Numbers

MEMORY_MB, BATCH, SEQ_LEN = 400, 1000, 4096


def prepare(trees: str, prefix: str) -> Numbers:
    """The whole of `steersman prepare oasst`, with all records in one file."""
    from steersman.sources.oasst import OasstConfig, prepare_oasst

    start = time.perf_counter()
    prepare_oasst(OasstConfig(input=(trees,), output_prefix=prefix, split_ratio=1.0, overwrite=True))
    seconds = time.perf_counter() - start
    with Path(f"{prefix}_train.jsonl").open("rb") as records:
        return {"seconds": seconds, "records": sum(1 for _ in records)}


def parse_and_dump(trees: str, records: str, output: str) -> Numbers:
    """json.loads of every tree, json.dumps of every record that `prepare` wrote; reading these is not counted."""
    seconds, paths = 0.0, 0
    with open(trees) as lines:
        start = time.perf_counter()
        for line in lines:
            tree = json.loads(line)
            paths += num_paths(tree["prompt"])
        seconds += time.perf_counter() - start
    with open(records) as lines, open(output, "w") as written:
        while batch := [json.loads(line) for line in itertools.islice(lines, BATCH)]:
            start = time.perf_counter()
            for record in batch:
                written.write(json.dumps(record) + "\n")
            seconds += time.perf_counter() - start
    return {"seconds": seconds, "records": paths}


def num_paths(message: dict[str, Any], depth: int = 1) -> int:
    """Paths of two messages or more from here down to a leaf."""
    replies = message["replies"]
    return sum(num_paths(reply, depth + 1) for reply in replies) if replies else int(depth > 1)


def clean(records: str, output: str, model: str) -> Numbers:
    """The whole of `steersman clean`, the loading of its modules and its tokenizer included."""
    from steersman.cli.clean import command

    start = time.perf_counter()
    command(Path(records), Path(output), model, SEQ_LEN, control="text", overwrite=True)
    return {"seconds": time.perf_counter() - start}


def tokenise(records: str, model: str) -> Numbers:
    """The tokenizer alone on batches of rendered texts; reading and rendering them is not counted."""
    from steersman.text.read import read_rendered
    from steersman.text.tokenize import open_encoder

    encoder, schema = open_encoder(model, control="text")
    tokenizer, seconds, num = encoder.tokenizer.backend_tokenizer, 0.0, 0
    stream = read_rendered(records, encoder.template, schema)
    while texts := [rendered.text for _, rendered in itertools.islice(stream, BATCH)]:
        start = time.perf_counter()
        tokenizer.encode_batch(texts, add_special_tokens=False)
        seconds += time.perf_counter() - start
        num += len(texts)
    return {"seconds": seconds, "records": num}


def write_trees(path: Path, megabytes: float) -> None:
    """Real trees over and over, to this size."""
    with gzip.open(inputs.TREES, "rb") as stream:
        trees = stream.readlines()
    with path.open("wb") as written:
        for tree in itertools.cycle(trees):
            written.write(tree)
            if written.tell() >= megabytes * 1e6:
                return


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--megabytes", type=float, default=200)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = inputs.toy_model(folder) if asked.toy else asked.model
        megabytes = 0.5 if asked.toy else asked.megabytes
        trees, prefix, records = folder / "trees.jsonl", folder / "oasst", str(folder / "oasst_train.jsonl")
        write_trees(trees, megabytes)
        more = {"toy": asked.toy, "megabytes": megabytes}
        ours, peer = sides.alternate(
            asked.runs,
            partial(sides.run, prepare, trees=str(trees), prefix=str(prefix)),
            partial(sides.run, parse_and_dump, trees=str(trees), records=records, output=str(folder / "dumped.jsonl")),
        )
        num = ours[0]["records"]
        assert {run["records"] for run in ours + peer} == {num}, "prepare did not write every path"
        seconds = ([run["seconds"] for run in side] for side in (ours, peer))
        write("prepare_time", "s", *seconds, "json of the standard library", records=num, **more)
        peaks = [run["peak_gb"] * 1024 for run in ours]
        write("prepare_memory_mb", "MB", peaks, [MEMORY_MB] * len(peaks), "the most it may take", **more)
        ours, peer = sides.alternate(
            asked.runs,
            partial(sides.run, clean, records=records, output=str(folder / "cleaned.jsonl"), model=model),
            partial(sides.run, tokenise, records=records, model=model),
        )
        rates = ([num / run["seconds"] for run in side] for side in (ours, peer))
        write("clean_rate", "records/s", *rates, "its tokenizer alone, in batches", model=Path(model).name, **more)


if __name__ == "__main__":
    main()
