"""What flows through the folders: one type a kind of record, each with its JSON form (see docs/formats.md).

A `Conversation` is NeMo's chat JSONL; unknown keys of a record or a turn are carried along untouched. The other
records are ours.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from steersman.errors import DataError

DEFAULT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
USER, ASSISTANT = "User", "Assistant"
CHAT_ROLES = {"user": USER, "assistant": ASSISTANT}
"""Speakers of OpenAI-style messages -> roles."""

ConversationType = Literal["TEXT_TO_VALUE", "VALUE_TO_TEXT"]


class Message(BaseModel):
    """One turn.

    Attributes:
        role: the speaker; `from` in JSON. Any name without a line break.
        value: the text.
        label: label string of the turn (`quality:4,…`), or None.
        train: False keeps the turn out of the loss.
    """

    model_config = ConfigDict(populate_by_name=True, extra="allow", strict=True)

    role: str = Field(alias="from")
    value: str
    label: str | None = None
    train: bool = True

    @field_validator("role")
    @classmethod
    def _check_role(cls, role: str) -> str:
        if not role or "\n" in role or "," in role:
            raise ValueError(f"a role is a name without line breaks or commas, not {role!r}")
        return role

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: str | None) -> str | None:
        if label is not None and "\n" in label:
            raise ValueError(f"a label is one line, not {label!r}")
        return label


class Conversation(BaseModel):
    """A dialogue with the roles that are not trained.

    Attributes:
        system: system prompt, exactly as rendered ("" for none).
        mask: comma-separated roles whose turns are never trained.
        type: what the label line teaches: TEXT_TO_VALUE (predict it after the answer), VALUE_TO_TEXT (obey it), or
            None (no label line).
        conversations: the turns, in order; at least one.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    system: str = ""
    mask: str = USER
    type: ConversationType | None = None
    conversations: list[Message] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Conversation":
        if not self.masked_roles:
            raise ValueError("mask names no role")
        return self

    @property
    def masked_roles(self) -> frozenset[str]:
        return masked_roles(self.mask)

    def is_masked(self, message: Message) -> bool:
        return message.role in self.masked_roles

    def spoken_turns(self) -> Iterator[int]:
        """Indices of the turns of unmasked roles: those with labels and answers."""
        return (i for i, message in enumerate(self.conversations) if not self.is_masked(message))

    def to_json(self) -> dict[str, Any]:
        """The JSON object, keys in NeMo's order, `train` only where it is False."""
        record = self.model_dump(by_alias=True)
        for turn in record["conversations"]:
            if turn["train"]:
                del turn["train"]
        return record


def masked_roles(mask: str) -> frozenset[str]:
    """The roles that a record's `mask` names."""
    return frozenset(role.strip() for role in mask.split(",") if role.strip())


class Completion(BaseModel):
    """What a generator answers to one request.

    Attributes:
        text: the generated text, stop string excluded.
        token_ids: generated ids, stop token included when one was generated.
        finish_reason: "stop" (end token or stop string), "length" (token budget or window).
        stop: the stop string that ended it, if one did.
        logprobs: natural log-probability of each generated token under the untempered model, when asked for.
        top_logprobs: for each generated token, the likeliest tokens in its place -> their log-probabilities, when asked
            for.
        num_prompt_tokens: tokens of the prompt.
        num_cached_tokens: how many of those were not computed again.
    """

    model_config = ConfigDict(extra="forbid")

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    stop: str | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class Judgement(BaseModel):
    """What a scorer says of the last unmasked turn of a conversation.

    Attributes:
        values: attribute -> most likely value on its scale.
        probabilities: attribute -> probability of each value of the scale, ascending; empty when the scorer is exact.
        expected: attribute -> mean of that distribution (equals `values` when the scorer is exact).
    """

    model_config = ConfigDict(extra="forbid")

    values: dict[str, int]
    expected: dict[str, float]
    probabilities: dict[str, list[float]] = Field(default_factory=dict)


class PreferencePair(BaseModel):
    """Two answers to one prompt, the better first.

    Attributes:
        id: unique within the file.
        prompt: OpenAI-style messages (`role`, `content`), the last one the user's.
        chosen, rejected: the answers' text.
        soft_label: probability that `chosen` is the better one.
        principle: id of the principle under which a judge compared them, if any.
        judge: who decided: "human", a rule, or a model's name.
        source: the data set it came from.
        margin: by how much `chosen` is better, in the source's own unit, if known.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    prompt: list[dict[str, str]] = Field(min_length=1)
    chosen: str
    rejected: str
    soft_label: float = Field(default=1.0, ge=0.0, le=1.0)
    principle: str | None = None
    judge: str | None = None
    source: str | None = None
    margin: float | None = None

    def conversations(self, system: str = "") -> tuple[Conversation, Conversation]:
        """The prompt with the chosen answer, and with the rejected one; `system` where it brings no system message.

        Raises:
            DataError: a message of another role than system (first alone), user and assistant, or without content.
        """
        turns = []
        for index, message in enumerate(self.prompt):
            role, content = message.get("role"), message.get("content")
            if content is None or role not in ("system", *CHAT_ROLES) or (role == "system" and index > 0):
                raise DataError(f"prompt, message {index + 1}: give a role (system first, user, assistant) and content")
            if role == "system":
                system = content
            else:
                turns.append(Message(role=CHAT_ROLES[role], value=content))
        chosen, rejected = (
            Conversation(system=system, conversations=[*turns, Message(role=ASSISTANT, value=answer)])
            for answer in (self.chosen, self.rejected)
        )
        return chosen, rejected


Span = tuple[int, int]
"""Half-open character range [start, end) of a text."""


class Prompt(BaseModel):
    """Rendered text that a model continues.

    Attributes:
        text: with template and control strings, ready to be tokenised as one piece.
        literal: character spans of `text` (users' own words) in which a control string is ordinary text and never
            becomes a special token.
        token_ids: the tokens, where somebody else has made them; `text` then says nothing.
        answer: where the answer stands that is to be judged, if one is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    literal: tuple[Span, ...] = ()
    token_ids: tuple[int, ...] | None = None
    answer: Span | None = None
