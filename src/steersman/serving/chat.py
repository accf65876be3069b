"""Chat messages as clients send them -> a `Conversation`."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from steersman.errors import DataError
from steersman.records import ASSISTANT, USER, Conversation, Message

ROLES = {"user": USER, "assistant": ASSISTANT}
SYSTEM_ROLES = ("system", "developer")


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message.

    Attributes:
        role: system (or developer), user or assistant, in any case.
        content: text, whole or in pieces.
        label: of an earlier answer: the label string that it was given, so that the model sees how it was steered.
    """

    model_config = ConfigDict(extra="ignore")

    role: str = Field(max_length=64)
    content: str | list[TextPart]
    label: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


def to_conversation(messages: Sequence[ChatMessage], system: str) -> Conversation:
    """The conversation that messages make.

    Args:
        messages: the system prompt may come first.
        system: the model's own, for messages that bring none.

    Raises:
        DataError: a role that there is not, a system prompt that is not first, or nothing said.
    """
    turns = []
    for index, message in enumerate(messages):
        role = message.role.lower()
        if role in SYSTEM_ROLES:
            if index:
                raise DataError(f"messages.{index}: a system prompt can only come first")
            system = message.text
        elif role in ROLES:
            turns.append(Message(role=ROLES[role], value=message.text, label=message.label))
        else:
            raise DataError(
                f"messages.{index}: unknown role {message.role!r}; this server knows system, user, assistant"
            )
    if not turns:
        raise DataError("messages: nobody has said anything yet; give at least one user message")
    return Conversation(system=system, conversations=turns)
