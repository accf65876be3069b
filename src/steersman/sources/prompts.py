"""Prompts that want an answer, from any of the files that people keep them in, as Conversations.

One JSON object a line, in one of these forms; other keys are carried along:

- `{"prompt": "..."}`, or a list of messages under that key;
- `{"messages": [{"role", "content"}, ...]}`, ending with the user's;
- `{"turns": ["..."]}`: a question of the Vicuna set;
- a conversation (`{"conversations": [...]}`): what comes before its last answer.

A line may bring `attributes` of its own.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from steersman.errors import DataError
from steersman.records import ASSISTANT, USER, Conversation, Message

Which = Literal["last", "every"]


@dataclass(frozen=True, kw_only=True)
class Context:
    """A conversation up to where somebody is to answer.

    Attributes:
        conversation: its last turn is the one to be answered.
        role: who answers.
        label: label string of the answer that stood there, if one did.
    """

    conversation: Conversation
    role: str = ASSISTANT
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromptLine(Context):
    """A line of a prompt file.

    Attributes:
        source: the line's own JSON object.
        attributes: those that the line asks for.
    """

    source: dict[str, Any]
    attributes: dict[str, int] = field(default_factory=dict)


def contexts(conversation: Conversation, which: Which = "last") -> list[Context]:
    """What the unmasked turns of a conversation answer (and its end, when a masked role has the last word).

    "last" gives the last of these alone; none when a conversation holds no turn to answer.
    """
    turns = conversation.conversations
    found = [
        Context(
            conversation=conversation.model_copy(update={"conversations": turns[:index]}),
            role=turns[index].role,
            label=turns[index].label,
        )
        for index in conversation.spoken_turns()
        if index > 0
    ]
    answerer = found[-1].role if found else ASSISTANT
    if conversation.is_masked(turns[-1]) and answerer not in conversation.masked_roles:
        found.append(Context(conversation=conversation, role=answerer))
    return found[-1:] if which == "last" else found


class _ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class _Attributes(BaseModel):
    attributes: dict[str, StrictInt]


class _Chat(BaseModel):
    messages: list[_ChatMessage] = Field(min_length=1)


def _from_messages(messages: Any, system: str) -> Conversation:
    chat = _Chat.model_validate({"messages": messages}).messages
    if chat[0].role == "system":
        system, chat = chat[0].content, chat[1:]
    if not chat or chat[-1].role != "user" or any(message.role == "system" for message in chat):
        raise DataError("messages must end with the user's, and only the first may be the system's")
    names = {"user": USER, "assistant": ASSISTANT}
    turns = [Message(role=names[message.role], value=message.content) for message in chat]
    return Conversation(system=system, conversations=turns)


def parse_prompt(line: dict[str, Any], system: str) -> PromptLine:
    """The prompt on one line; `system` is the system prompt of those that bring none.

    Raises:
        DataError, ValidationError: none of the forms that the module lists.
    """
    attributes = _Attributes.model_validate({"attributes": line.get("attributes") or {}}).attributes
    if "conversations" in line:
        context = next(iter(contexts(Conversation.model_validate(line))), None)
        if context is None:
            raise DataError("the conversation holds no turn to answer")
        return PromptLine(**vars(context), source=line, attributes=attributes)
    if "messages" in line:
        conversation = _from_messages(line["messages"], system)
    elif isinstance(line.get("prompt"), list):
        conversation = _from_messages(line["prompt"], system)
    else:
        text = line.get("prompt")
        if text is None and isinstance(turns := line.get("turns"), list) and len(turns) == 1:
            text = turns[0]
        if not isinstance(text, str) or not text:
            raise DataError('no prompt; write {"prompt": "..."}, or messages, turns (one) or conversations')
        conversation = Conversation(system=system, conversations=[Message(role=USER, value=text)])
    return PromptLine(conversation=conversation, source=line, attributes=attributes)
