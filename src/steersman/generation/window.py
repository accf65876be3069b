"""What fits a model's window: asked before a long job sends a prompt that would stop it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steersman.records import Prompt

if TYPE_CHECKING:
    from steersman.text.tokenize import Encoder

TOO_LONG = "longer than the window"
"""The reason that reports and records give for what was left out."""


@dataclass(frozen=True)
class Window:
    """Most tokens that a model takes at once.

    Attributes:
        encoder: the model's tokenizer and template.
        size: tokens of prompt and continuation together.
    """

    encoder: "Encoder"
    size: int

    def holds(self, prompt: Prompt, room: int = 1) -> bool:
        """Whether the prompt and `room` further tokens fit."""
        return len(self.encoder.encode_prompt(prompt)) + room <= self.size
