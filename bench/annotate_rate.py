"""Annotation of OASST conversations against NeMo's protocol on our own engine, and against one plain forward pass.

    python bench/annotate_rate.py [--model models/gemma-3-270m] [--conversations 16] [--toy]

A predictor is trained first (once: it stays in `runs/bench-predictor`), so that labels can be guessed as well as they
can in use. The protocol is the tutorial's: for each attribute of each turn one request of one token, with the whole
prompt so far. It has batches, and valid digits alone to choose from, as we have; it keeps nothing between requests.
Both must write the same labels in fp32 before they are timed. The limit is a forward pass over the labelled
conversations, without a head. One path of each tree is annotated, so nothing is shared between conversations.
"""

import itertools
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import inputs
import sides
from result import write
from sides import Numbers

if TYPE_CHECKING:
    from steersman.generation.engine import Engine
    from steersman.models.load import LoadedModel
    from steersman.records import Conversation, Judgement
    from steersman.scoring.attributes import AttributePredictor

PREDICTOR = "runs/bench-predictor"
FORWARD_TOKENS = 2048  # of one plain forward call, as many as the engine reads at once


class OneRequestAnAttribute:
    """A Scorer that asks for one digit at a time: P(digit | prompt, label so far)."""

    reads_labels = True

    def __init__(self, engine: "Engine", predictor: "AttributePredictor") -> None:
        self.engine, self.predictor, self.schema = engine, predictor, predictor.schema

    def judge(self, conversations: Sequence["Conversation"], progress: Any = None) -> list["Judgement"]:
        from steersman.records import Judgement
        from steersman.seams import ScoreRequest

        prompts = [self.predictor.prompt(conversation) for conversation in conversations]
        values: list[dict[str, int]] = [{} for _ in prompts]
        for attribute in self.schema.attributes:
            digits = [str(value) for value in attribute.values]
            requests = []
            for prompt, decided in zip(prompts, values, strict=True):
                so_far = self.schema.encode({**decided, attribute.name: attribute.low}).removesuffix(digits[0])
                asked = prompt.model_copy(update={"text": prompt.text + so_far})
                span = {(0, len(digits[0])): digits}
                requests.append(
                    ScoreRequest(prompt=asked, continuation=digits[0], alternatives=span, compare_only=True)
                )
            for decided, scored in zip(values, self.engine.score(requests), strict=True):
                (chances,) = scored.alternatives.values()
                decided[attribute.name] = attribute.low + chances.index(max(chances))
        return [Judgement(values=one, expected={name: float(value) for name, value in one.items()}) for one in values]


def opened(model: str, precision: str, kept: int) -> tuple["LoadedModel", "Engine", "AttributePredictor"]:
    """The predictor on an engine that keeps so many tokens for reuse."""
    from steersman.generation.engine import Engine
    from steersman.generation.window import Window
    from steersman.models.load import load_model
    from steersman.scoring.attributes import AttributePredictor

    loaded = load_model(model, precision=precision)  # type: ignore[arg-type]
    engine = Engine(loaded, max_batch=32, prefix_cache_tokens=kept)
    assert loaded.card.attributes is not None
    window = Window(loaded.encoder, loaded.window)
    return loaded, engine, AttributePredictor(engine, loaded.encoder.template, loaded.card.attributes, window)


def annotated(model: str, file: str, precision: str, protocol: bool) -> Numbers:
    """Labels a second, and the labels."""
    from steersman import jsonl
    from steersman.records import Conversation
    from steersman.steerlm.annotate import annotate_unit

    _, engine, predictor = opened(model, precision, kept=0 if protocol else 65536)
    scorer = OneRequestAnAttribute(engine, predictor) if protocol else predictor
    conversations = [*jsonl.read(file, Conversation)]
    annotate_unit(conversations[:1], scorer)  # warms up
    engine.forget()
    start = time.perf_counter()
    found = annotate_unit(conversations, scorer, fits=predictor.fits)
    seconds = time.perf_counter() - start
    labels = [turn.label for one in found for turn in one.conversations if turn.role not in one.masked_roles]
    return {"rate": len(labels) / seconds, "labels": labels}


def plain(model: str, file: str, precision: str, labels: list[str]) -> Numbers:
    """Labels a second, were each token of the labelled conversations computed once and nothing else done."""
    import torch

    from steersman import jsonl
    from steersman.batches.packing import first_fit
    from steersman.models.attention import Segments
    from steersman.models.load import hidden_states
    from steersman.records import Conversation

    loaded, _, predictor = opened(model, precision, kept=0)
    ready, sequences = iter(labels), []
    for conversation in jsonl.read(file, Conversation):
        turns = [
            turn.model_copy(update={"label": None if turn.role in conversation.masked_roles else next(ready)})
            for turn in conversation.conversations
        ]
        last = turns.pop()
        asked = conversation.model_copy(update={"conversations": [*turns, last.model_copy(update={"label": None})]})
        prompt = predictor.prompt(asked)
        text = prompt.text + str(last.label)
        sequences.append(loaded.encoder.encode_prompt(prompt.model_copy(update={"text": text})))
    rows = [[sequences[index] for index in row] for row in first_fit([*map(len, sequences)], FORWARD_TOKENS)]

    @torch.inference_mode()
    def forward(row: list[list[int]]) -> None:
        ids = torch.tensor([[token for sequence in row for token in sequence]])
        positions = torch.tensor([[position for sequence in row for position in range(len(sequence))]])
        segments = Segments([0, *itertools.accumulate(map(len, row))])
        hidden_states(loaded.model, ids, positions, segments, torch.tensor([0]))

    forward(rows[0])  # warms up
    start = time.perf_counter()
    for row in rows:
        forward(row)
    return {"rate": len(labels) / (time.perf_counter() - start), "tokens": sum(map(len, sequences))}


def train_predictor(model: str, folder: Path, output: Path, steps: int) -> str:
    """A generative predictor of the OASST attributes, after so many steps; there already when it was trained before."""
    from steersman.config import validate
    from steersman.pipelines.jobs import TrainConfig, run_training
    from steersman.text.tokenize import load_tokenizer

    recipe = {
        "role": "attributes", "model": model, "output": str(output), "attributes": "oasst", "seq_len": 512,
        "template": {"control": "text", "bos": load_tokenizer(model).bos_token_id is not None},
        "data": {"train": [{"path": str(folder / "oasst_train.jsonl")}]}, "batch": {"tokens": 2048}, "steps": steps,
        "optim": {"lr": 1e-4}, "checkpoint": {"every": None},
    }  # fmt: skip
    return str(run_training(validate(recipe, TrainConfig, "bench")).last)


def write_data(model: str, folder: Path, num: int, longest: int) -> Path:
    """Labelled conversations to train on; one of each of so many other trees, which ends in an answer, to annotate."""
    from steersman import jsonl
    from steersman.card import TemplateSpec
    from steersman.records import Conversation
    from steersman.sources.oasst import OasstConfig, prepare_oasst
    from steersman.text.tokenize import Encoder, load_tokenizer

    trees, prefix = str(inputs.TREES), str(folder / "oasst")
    prepare_oasst(OasstConfig(input=(trees,), output_prefix=prefix, split_ratio=0.5))
    encoder = Encoder(load_tokenizer(model), TemplateSpec(control="text"))
    firsts: dict[str, Conversation] = {}
    for conversation in jsonl.read(folder / "oasst_val.jsonl", Conversation):
        while conversation.is_masked(conversation.conversations[-1]):
            conversation.conversations.pop()
        if len(encoder.encode_conversation(conversation).input_ids) <= longest:
            firsts.setdefault((conversation.model_extra or {})["tree_id"], conversation)
    chosen = [one.model_dump(by_alias=True, exclude_unset=True) for one in itertools.islice(firsts.values(), num)]
    path = folder / "unlabelled.jsonl"
    jsonl.write(path, chosen)
    return path


def share_equal(one: Numbers, other: Numbers) -> float:
    """Share of turns with the same label."""
    return sum(a == b for a, b in zip(one["labels"], other["labels"], strict=True)) / len(one["labels"])


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--conversations", type=int, default=16, help="to annotate (%(default)s)")
    options.add_argument("--steps", type=int, default=120, help="of the predictor's training (%(default)s)")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, output, num, steps = asked.model, Path(PREDICTOR), asked.conversations, asked.steps
        if asked.toy:
            model, output, num, steps = inputs.toy_model(folder), folder / "predictor", 3, 2
        file = write_data(model, folder, num, longest=1800)
        predictor = train_predictor(model, folder, output, steps)
        us, protocol = (
            partial(sides.run, annotated, model=predictor, file=str(file), protocol=which) for which in (False, True)
        )
        exact = us(precision="float32")
        assert exact["labels"] == protocol(precision="float32")["labels"], "labels differ in fp32"
        limit = partial(sides.run, plain, model=predictor, file=str(file), precision="bfloat16", labels=exact["labels"])
        found, peer, limits = sides.alternate(
            asked.runs, partial(us, precision="bfloat16"), partial(protocol, precision="bfloat16"), limit
        )
        more = {"toy": asked.toy, "model": Path(model).name, "labels": len(exact["labels"])}
        rates, peer_rates, limit_rates = ([run["rate"] for run in side] for side in (found, peer, limits))
        equal = min(share_equal(a, b) for a, b in zip(found, peer, strict=True))
        write("annotate_rate", "labels/s", rates, peer_rates, "our engine, one request an attribute, nothing kept",
              equal_bf16=equal, **more)  # fmt: skip
        write("annotate_limit", "labels/s", rates, limit_rates, "one plain forward pass over the same tokens",
              tokens=limits[0]["tokens"], **more)  # fmt: skip


if __name__ == "__main__":
    main()
