"""A tokenised conversation as coloured text: what the loss sees stands out."""

from rich.text import Text

from steersman.text.template import Rendered
from steersman.text.tokenize import Encoder, loss_mask

TRAINED, CONTEXT, CUT_OFF = "bold green", "default", "dim strike"


def colour(rendered: Rendered, encoder: Encoder, seq_len: int | None = None) -> Text:
    """A line of counts, then the conversation with its trained tokens coloured.

    What lies beyond the first `seq_len` + 1 tokens is struck out.
    """
    encoded = encoder.encode(rendered.text, rendered.literal)
    num_tokens = len(encoded.ids)
    num_kept = num_tokens if seq_len is None else min(seq_len + 1, num_tokens)
    trained = loss_mask(encoded, rendered.trained)
    printable = rendered.text.replace("\x1b", "␛")  # somebody's words must not command the terminal
    starts = [start for start, _ in encoded.offsets] + [len(printable)]
    text = Text(f"{num_kept:,} of {num_tokens:,} tokens kept, {sum(trained[:num_kept]):,} trained\n", style=CONTEXT)
    for index in range(num_tokens):
        style = CUT_OFF if index >= num_kept else TRAINED if trained[index] else CONTEXT
        text.append(printable[starts[index] : starts[index + 1]], style=style)
    return text
