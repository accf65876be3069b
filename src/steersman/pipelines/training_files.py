"""The files of a recipe -> tokenised sequences for the head that is trained, and what was seen in them.

Conversations come in for a language model (its answers or labels are trained) and for a head of attributes (their
labels, or those of NeMo's regression files, are its targets); preference pairs, as ours or as NeMo's comparison files,
for a head that compares them and for a language model that learns from them.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.batches.sequences import Sequences, tokenise, tokenise_pairs, tokenise_valued
from steersman.card import Head
from steersman.errors import DataError
from steersman.randomness import stream
from steersman.records import Conversation, PreferencePair, Prompt
from steersman.sources.nemo import to_conversation
from steersman.sources.pairs import each_pair
from steersman.text.read import check_labels, read_rendered
from steersman.text.template import Rendered
from steersman.text.tokenize import Encoder

logger = logging.getLogger(__name__)

Target = tuple[Prompt, list[float]]
"""What a head reads, and what it is to say at its end."""

Used = TypeVar("Used")


class LabelledTurn(NamedTuple):
    """What a head of attributes learns from.

    Attributes:
        conversation: up to the labelled turn.
        values: attribute -> value.
    """

    conversation: Conversation
    values: dict[str, int]

    @property
    def opening(self) -> str:
        """What its first turn says; conversations that open alike are branches of one tree."""
        return self.conversation.conversations[0].value

    @property
    def label(self) -> str:
        label = self.conversation.conversations[-1].label
        assert label is not None
        return label

    def alone(self, label: str) -> Conversation:
        """The conversation under another label of this turn, which alone is trained."""
        *before, turn = self.conversation.conversations
        turns = [*(t.model_copy(update={"train": False}) for t in before), turn.model_copy(update={"label": label})]
        return self.conversation.model_copy(update={"conversations": turns})


def each_labelled(path: str, schema: AttributeSchema, use: Callable[[Conversation], Used]) -> Iterator[Used]:
    """What `use` makes of every conversation of a file, NeMo's regression files among them.

    Raises:
        DataError: a malformed record, a label outside the schema, or one that `use` refuses; with file and line.
    """

    def parse(record: dict[str, Any]) -> Used:
        conversation = to_conversation(record)
        check_labels(conversation, schema)
        return use(conversation)

    return (used for _, used in jsonl.parse_each(path, parse))


def labelled_turns(conversation: Conversation, schema: AttributeSchema) -> list[LabelledTurn]:
    """The turns of unmasked roles with a label to learn from, each with all before it."""
    turns = conversation.conversations
    return [
        LabelledTurn(conversation.model_copy(update={"conversations": turns[: index + 1]}), schema.parse(label))
        for index in conversation.spoken_turns()
        if turns[index].train and (label := turns[index].label)
    ]


class Contrast:
    """Draws the labels of others from all that the training files hold.

    Raises:
        DataError: a malformed record, or all labels are the same.
    """

    def __init__(self, paths: Sequence[str], schema: AttributeSchema, seed: int) -> None:
        def labels(conversation: Conversation) -> list[str]:
            return [turn.label for turn in labelled_turns(conversation, schema)]

        self._labels = [label for path in paths for found in each_labelled(path, schema, labels) for label in found]
        self._choices = stream(seed, "contrast")
        if len(set(self._labels)) < 2:
            found = len(set(self._labels))
            raise DataError(f"a contrast needs answers with different labels; these have {found}", ", ".join(paths))

    def draw(self, own: str) -> str:
        """A label other than `own`, as often as the files have it."""
        while (label := self._choices.choice(self._labels)) == own:
            pass
        return label


@dataclass
class Survey:
    """What the training data was seen to hold: attributes with how often each value is a label, and system prompts."""

    labels: dict[str, Counter[int]] = field(default_factory=dict)
    systems: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """How files are read.

    Attributes:
        head: what is trained.
        attributes: every label must fit them.
        encoder: of the model.
        seq_len, max_family: see `sequences.tokenise`.
        margin_scale: of the pairs' margins.
        contrast: of a language model that learns answers under others' labels, too: what draws them.
        pair_system: of a language model that learns from pairs: the system prompt of those that bring none.
    """

    head: Head
    attributes: AttributeSchema | None
    encoder: Encoder
    seq_len: int
    max_family: int
    margin_scale: float = 0.0
    contrast: Contrast | None = None
    pair_system: str | None = None

    def read(self, path: str, survey: Survey) -> Sequences:
        """A file's sequences, noted in `survey`. Those with nothing to train on are left out, and said to be.

        Raises:
            DataError: a malformed record, a label outside the schema, or nothing to train on at all.
        """
        size, together = (self.seq_len, self.max_family), 1
        what, flaw = "records", f"have nothing to train on within {self.seq_len} tokens; `steersman clean` says why"
        if self.contrast:
            what, together = "labelled answers", 2
            sequences = tokenise(self._contrasted(path, survey, self.contrast), self.encoder, *size, together=together)
        elif self.pair_system is not None:
            what, flaw, together = "pairs", f"are longer than {self.seq_len} tokens", 2
            sequences = tokenise_pairs(self._pairs(path, survey, self._render_answer), self.encoder, *size)
        elif self.head == "lm":
            sequences = tokenise(self._conversations(path, survey), self.encoder, *size)
        elif self.head == "reward":
            what, flaw, together = "pairs", f"are longer than {self.seq_len} tokens", 2
            pairs = self._pairs(path, survey, self.encoder.template.prompt_for_reward)
            sequences = tokenise_valued(pairs, self.encoder, *size, together=together)
        else:
            what, flaw = "labelled turns", f"are longer than {self.seq_len} tokens"
            sequences = tokenise_valued(self._labelled_turns(path, survey), self.encoder, *size)
        total = (len(sequences.bounds) - 1) // together + sequences.num_skipped
        if not total:
            raise DataError(f"nothing to train on: there are no {what}", path)
        told = f"{sequences.num_skipped} of {total} {what} {flaw}, a larger seq_len keeps more"
        if not len(sequences):
            raise DataError(f"nothing to train on: {told}", path)
        if sequences.num_skipped:
            logger.warning("%s: %s", path, told)
        return sequences

    def _conversations(self, path: str, survey: Survey) -> Iterator[Rendered]:
        """The text of each conversation."""
        for conversation, rendered in read_rendered(path, self.encoder.template, self.attributes):
            self._note(conversation, path, survey)
            yield rendered

    def _contrasted(self, path: str, survey: Survey, contrast: Contrast) -> Iterator[Rendered]:
        """Each labelled answer by itself, under the label of another and under its own."""
        assert self.attributes
        schema, write = self.attributes, self.encoder.template.render

        def use(conversation: Conversation) -> list[Rendered]:
            self._note(conversation, path, survey)
            pairs = ((turn, contrast.draw(turn.label)) for turn in labelled_turns(conversation, schema))
            return [write(turn.alone(label)) for turn, other in pairs for label in (other, turn.label)]

        return (rendered for several in each_labelled(path, schema, use) for rendered in several)

    def _labelled_turns(self, path: str, survey: Survey) -> Iterator[Target]:
        """Each labelled turn that is to be learnt from: all up to it, and its values (NaN: not given).

        For a head of values they are counted from the scales' lowest.
        """
        assert self.attributes
        schema, lows = self.attributes, [a.low if self.head == "values" else 0 for a in self.attributes.attributes]

        def use(conversation: Conversation) -> list[Target]:
            self._note(conversation, path, survey)
            return [
                (
                    self.encoder.template.prompt_for_label(turn.conversation, earlier_labels=False),
                    [turn.values.get(name, math.nan) - low for name, low in zip(schema.names, lows, strict=True)],
                )
                for turn in labelled_turns(conversation, schema)
            ]

        return (target for targets in each_labelled(path, schema, use) for target in targets)

    def _pairs(
        self, path: str, survey: Survey, write: Callable[[Conversation], Used]
    ) -> Iterator[tuple[Used, list[float]]]:
        """The chosen and the rejected answer of each pair; of each, how probably it is the better, and its margin."""

        def use(pair: PreferencePair) -> list[tuple[Used, list[float]]]:
            chosen, rejected = pair.conversations(self.pair_system or "")
            survey.systems[chosen.system] += 1
            margin = self.margin_scale * (pair.margin or 0.0)
            return [(write(chosen), [pair.soft_label, margin]), (write(rejected), [1 - pair.soft_label, -margin])]

        return (target for targets in each_pair(path, use) for target in targets)

    def _render_answer(self, conversation: Conversation) -> Rendered:
        """The text, of which the last answer and its end are trained."""
        *before, answer = conversation.conversations
        if not before:
            raise DataError("the prompt is a system message alone: there is nothing to answer")
        turns = [*(turn.model_copy(update={"train": False}) for turn in before), answer]
        return self.encoder.template.render(conversation.model_copy(update={"conversations": turns}))

    def _note(self, conversation: Conversation, path: str, survey: Survey) -> None:
        """Add what a conversation holds to the survey; `DataError` for labels that nobody knows the scale of."""
        survey.systems[conversation.system] += 1
        for message in conversation.conversations if conversation.type else ():
            if message.label and self.attributes is None:
                raise DataError(f"there are labels ({message.label}), but the recipe names no attributes", path)
            if message.label and self.attributes is not None:
                for name, value in self.attributes.parse(message.label).items():
                    survey.labels.setdefault(name, Counter())[value] += 1
