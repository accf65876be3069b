"""Tokenised records in flat arrays, and the next-token shift.

In: rendered conversations, an `Encoder`. Out: `Sequences`, five bytes a token, from which micro-batches are packed.

Shapes: S tokens of all sequences, L of one, T of its inputs, M trained ones.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from steersman.text.template import Rendered
from steersman.text.tokenize import Encoder

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

TOKENISE_AT_ONCE = 512


class Shifted(NamedTuple):
    """One sequence as the model sees it.

    Attributes:
        inputs_T: the ids that go in.
        trained_M: positions of the inputs whose next token is trained.
        targets_M: that next token.
    """

    inputs_T: Ints
    trained_M: Ints
    targets_M: Ints


def shift(ids_L: Ints, loss_mask_L: Bools) -> Shifted:
    """The next-token shift: position t predicts token t + 1, and is trained where `loss_mask_L[t + 1]`.

    What follows the last trained token is left out: no trained position sees it.
    """
    trained_M = np.flatnonzero(loss_mask_L[1:])
    num_inputs = int(trained_M[-1]) + 1 if len(trained_M) else 0
    return Shifted(ids_L[:num_inputs], trained_M, ids_L[trained_M + 1])


@dataclass(frozen=True)
class Sequences:
    """Many tokenised sequences, each with at least one trained token after its first.

    Attributes:
        ids_S, loss_mask_S: all tokens one after another (unshifted), and whether each is trained.
        bounds: where each sequence starts, and the end: N + 1 numbers.
        num_skipped: records left out because no trained token remained within `seq_len`.
    """

    ids_S: npt.NDArray[np.int32]
    loss_mask_S: Bools
    bounds: npt.NDArray[np.int64]
    num_skipped: int = 0

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Shifted:
        tokens = slice(self.bounds[index], self.bounds[index + 1])
        return shift(self.ids_S[tokens], self.loss_mask_S[tokens])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of inputs of each sequence."""
        return np.diff(self.bounds) - 1

    @property
    def num_trained(self) -> int:
        return int(self.loss_mask_S.sum())


def tokenise(rendered: Iterable[Rendered], encoder: Encoder, seq_len: int) -> Sequences:
    """Tokenise a stream of rendered conversations, a few hundred at a time, each cut to `seq_len` inputs.

    Records with nothing trained left are counted, not kept.
    """
    ids, masks, lengths, num_skipped = [], [], [0], 0
    stream = iter(rendered)
    while batch := list(itertools.islice(stream, TOKENISE_AT_ONCE)):
        for tokenized in encoder.encode_rendered(batch, seq_len):
            ids_L = np.asarray(tokenized.input_ids, np.int32)
            mask_L = np.asarray(tokenized.loss_mask, np.bool_)
            mask_L[:1] = False  # nothing predicts a sequence's first token
            trained = np.flatnonzero(mask_L)
            if not len(trained):
                num_skipped += 1
                continue
            end = trained[-1] + 1
            ids.append(ids_L[:end])
            masks.append(mask_L[:end])
            lengths.append(int(end))
    return Sequences(
        ids_S=np.concatenate(ids) if ids else np.empty(0, np.int32),
        loss_mask_S=np.concatenate(masks) if masks else np.empty(0, np.bool_),
        bounds=np.cumsum(lengths),
        num_skipped=num_skipped,
    )
