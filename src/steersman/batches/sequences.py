"""Tokenised records in flat arrays, families of them that share their beginnings, and the next-token shift.

In: rendered conversations, or prompts with the values that a head is to read at their end, or answers with the values
by which they are compared, and an `Encoder`. Out: `Sequences`, five bytes a token, from which micro-batches are packed.

Shapes: S tokens of all sequences, L of one, T inputs of a family, M trained ones, N chunks, B sequences, A values of
each.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from steersman.records import Prompt
from steersman.text.template import Rendered
from steersman.text.tokenize import Encoder, Tokenized

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

TOKENISE_AT_ONCE = 512
MIN_SHARED, MIN_SHARE = 64, 0.25
"""Neighbours share enough when these many first inputs, and this part of the second one's, are the same."""


class Shifted(NamedTuple):
    """A family of sequences as the model sees it: what they share at their beginnings stands there once.

    The inputs are chunks, parents before children; a sequence is the way from a chunk without a parent down to another.

    Attributes:
        inputs_T: the ids that go in.
        positions_T: their positions in their sequences.
        starts_N: where each chunk starts.
        parents_N: the chunk that each continues, -1 for none.
        trained_M: indices of the inputs whose next token is trained; twice where two sequences train it.
        targets_M: that next token; where a head reads values, it only stands for them.
        sizes_B: how many of them each sequence has.
        values_BA: what else is known of each sequence: values to be read, or by which it is compared.
    """

    inputs_T: Ints
    positions_T: Ints
    starts_N: Ints
    parents_N: Ints
    trained_M: Ints
    targets_M: Ints
    sizes_B: Ints
    values_BA: Floats


def shift(ids_L: Ints, loss_mask_L: Bools) -> Shifted:
    """The next-token shift: position t predicts token t + 1, and is trained where `loss_mask_L[t + 1]`.

    What follows the last trained token is left out: no trained position sees it.
    """
    return shift_family([(ids_L, loss_mask_L)])


def shift_family(family: Sequence[tuple[Ints, Bools]]) -> Shifted:
    """The shift of sequences (ids, loss mask) with common beginnings, computed once: the loss is the sum of theirs.

    Those that share more stand next to each other, as the paths of a tree do in depth-first order.
    """
    trained = [np.flatnonzero(mask_L[1:]) for _, mask_L in family]
    inputs = [
        ids_L[: trained_M[-1] + 1 if len(trained_M) else 0]
        for (ids_L, _), trained_M in zip(family, trained, strict=True)
    ]
    shared = [common_prefix(one, next_one) for one, next_one in itertools.pairwise(inputs)]
    chunks: list[tuple[Ints, int, int]] = []  # ids, depth, parent
    places: list[list[Ints]] = [[] for _ in inputs]  # of each sequence's inputs among all
    num_inputs = 0

    def grow(first: int, end: int, depth: int, parent: int) -> None:
        """Chunks of the sequences from `first` to `end`, which have their first `depth` inputs in common."""
        nonlocal num_inputs
        common = min([len(inputs[first]), *shared[first : end - 1]])
        if common > depth:
            chunks.append((inputs[first][depth:common], depth, parent))
            parent = len(chunks) - 1
            for sequence in range(first, end):
                places[sequence].append(np.arange(num_inputs, num_inputs + common - depth))
            num_inputs += common - depth
        branches = [first, *(i + 1 for i in range(first, end - 1) if shared[i] == common), end]
        for branch, next_branch in itertools.pairwise(branches):
            if len(inputs[branch]) > common or next_branch - branch < end - first:
                grow(branch, next_branch, common, parent)

    grow(0, len(inputs), 0, -1)
    empty = np.empty(0, np.int64)
    place = [np.concatenate([empty, *parts]) for parts in places]
    return Shifted(
        inputs_T=np.concatenate([empty, *(ids for ids, _, _ in chunks)]),
        positions_T=np.concatenate([empty, *(np.arange(depth, depth + len(ids)) for ids, depth, _ in chunks)]),
        starts_N=np.cumsum([0, *(len(ids) for ids, _, _ in chunks)])[:-1],
        parents_N=np.array([parent for _, _, parent in chunks], np.int64),
        trained_M=np.concatenate([place_T[trained_M] for place_T, trained_M in zip(place, trained, strict=True)]),
        targets_M=np.concatenate([ids_L[trained_M + 1] for (ids_L, _), trained_M in zip(family, trained, strict=True)]),
        sizes_B=np.array([len(trained_M) for trained_M in trained], np.int64),
        values_BA=np.empty((len(family), 0), np.float32),
    )


def common_prefix(one: Ints, other: Ints) -> int:
    """How many first elements are the same."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


@dataclass(frozen=True)
class Sequences:
    """Many tokenised sequences, each with at least one trained token after its first; items are families.

    Attributes:
        ids_S, loss_mask_S: all tokens one after another (unshifted), and whether each is trained.
        bounds: where each sequence starts, and the end.
        families: the first sequence of each family, and the end: F + 1 numbers.
        lengths: number of inputs of each family.
        num_skipped: records left out because no trained token remained within `seq_len`.
        values_NA: of each sequence, see `Shifted`; None for plain text.
    """

    ids_S: npt.NDArray[np.int32]
    loss_mask_S: Bools
    bounds: npt.NDArray[np.int64]
    families: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    num_skipped: int = 0
    values_NA: Floats | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, family: int) -> Shifted:
        first, end = self.families[family : family + 2]
        tokens = [slice(*bounds) for bounds in itertools.pairwise(self.bounds[first : end + 1])]
        shifted = shift_family([(self.ids_S[sequence], self.loss_mask_S[sequence]) for sequence in tokens])
        if self.values_NA is None:
            return shifted
        return shifted._replace(values_BA=self.values_NA[first:end])

    def with_value(self, value_N: Floats) -> "Sequences":
        """The same, with a further value of each sequence."""
        before = [] if self.values_NA is None else [self.values_NA]
        return replace(self, values_NA=np.column_stack([*before, value_N]))

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of sequences of each family."""
        return np.diff(self.families)

    @property
    def num_trained(self) -> int:
        return int(self.loss_mask_S.sum())


def tokenise(
    rendered: Iterable[Rendered], encoder: Encoder, seq_len: int, max_family: int = 0, *, together: int = 1
) -> Sequences:
    """Tokenise a stream of rendered conversations, a few hundred at a time, each cut to `seq_len` inputs.

    Records with nothing trained left are counted, not kept. Neighbours that share enough of their beginnings become
    families of at most `max_family` inputs.

    Args:
        rendered: texts with their trained spans.
        encoder: of the model.
        seq_len: longest sequence, in inputs.
        max_family: longest family, in inputs.
        together: how many after one another are always of one family, 2 for the same answer under two labels. They keep
            as many trained tokens as the one with the fewest; when that is none all are left out, and counted as one.
    """
    ids, masks, num_skipped = [], [], 0
    stream = iter(rendered)
    while batch := list(itertools.islice(stream, TOKENISE_AT_ONCE * together)):
        tokenized = encoder.encode_rendered(batch, seq_len)
        for first in range(0, len(batch), together):
            group = [(np.asarray(t.input_ids, np.int32), np.asarray(t.loss_mask)) for t in tokenized[first:][:together]]
            trained = [1 + np.flatnonzero(mask_L[1:]) for _, mask_L in group]  # nothing predicts the first token
            num_trained = min(map(len, trained))
            if not num_trained:
                num_skipped += 1
                continue
            for (ids_L, mask_L), trained_M in zip(group, trained, strict=True):
                end = trained_M[num_trained - 1] + 1
                ids.append(ids_L[:end])
                masks.append(np.concatenate([[False], mask_L[1:end]]))
    return _flat(ids, masks, max_family, num_skipped, together)


def tokenise_valued(
    valued: Iterable[tuple[Prompt, Sequence[float]]],
    encoder: Encoder,
    seq_len: int,
    max_family: int = 0,
    *,
    together: int = 1,
    answers: bool = False,
) -> Sequences:
    """Prompts at whose last token a head is to read values (NaN: unknown); those longer than `seq_len` are left out.

    A further token stands for the values, so that they are predicted as a next token is.

    Args:
        valued: prompts with their values.
        encoder, seq_len, max_family: see `tokenise`.
        together: how many prompts after one another are always of one family, 2 for pairs. When one of them is too
            long all of them are left out, and counted as one.
        answers: the head reads at each token of the answer, too, before the last one.
    """

    def rendered(prompt: Prompt) -> Rendered:
        return Rendered(prompt.text, (prompt.answer,) if answers and prompt.answer else (), prompt.literal)

    def finish(read: Tokenized) -> tuple[Ints, Bools]:
        return np.array([*read.input_ids, 0], np.int32), np.array([False, *read.loss_mask[:-1], True])

    texts = ((rendered(prompt), values) for prompt, values in valued)
    return _tokenise_whole(texts, encoder, seq_len, max_family, together, finish)


def tokenise_pairs(
    valued: Iterable[tuple[Rendered, Sequence[float]]], encoder: Encoder, seq_len: int, max_family: int = 0
) -> Sequences:
    """Answers that are compared in twos, each with its values; two of which one is longer than `seq_len` are left out.

    Args:
        valued: the first answer of each pair in its conversation, then the second, with the answers' spans trained.
        encoder, seq_len, max_family: see `tokenise`.
    """

    def finish(read: Tokenized) -> tuple[Ints, Bools]:
        mask_L = np.array(read.loss_mask)
        end = 1 + np.flatnonzero(mask_L)[-1] if mask_L.any() else len(mask_L)
        return np.array(read.input_ids, np.int32)[:end], mask_L[:end]

    return _tokenise_whole(valued, encoder, seq_len, max_family, 2, finish)


def _tokenise_whole(
    valued: Iterable[tuple[Rendered, Sequence[float]]],
    encoder: Encoder,
    seq_len: int,
    max_family: int,
    together: int,
    finish: Callable[[Tokenized], tuple[Ints, Bools]],
) -> Sequences:
    """Texts with values, none of them cut: groups of `together` with one of more than `seq_len` inputs are left out."""
    ids, masks, values, num_skipped = [], [], [], 0
    stream = iter(valued)
    while batch := list(itertools.islice(stream, TOKENISE_AT_ONCE * together)):
        tokenized = encoder.encode_rendered([rendered for rendered, _ in batch], seq_len + 1)
        for first in range(0, len(batch), together):
            group = [finish(read) for read in tokenized[first:][:together]]
            if any(len(ids_L) > seq_len + 1 for ids_L, _ in group):
                num_skipped += 1
                continue
            ids += [ids_L for ids_L, _ in group]
            masks += [mask_L for _, mask_L in group]
            values += [given for _, given in batch[first:][:together]]
    return replace(_flat(ids, masks, max_family, num_skipped, together), values_NA=np.asarray(values, np.float32))


def _flat(
    ids: Sequence[Ints], masks: Sequence[Bools], max_family: int, num_skipped: int, together: int = 1
) -> Sequences:
    families, lengths = _families([ids_L[:-1] for ids_L in ids], max_family, together)
    return Sequences(
        ids_S=np.concatenate(ids).astype(np.int32) if ids else np.empty(0, np.int32),
        loss_mask_S=np.concatenate(masks) if masks else np.empty(0, np.bool_),
        bounds=np.cumsum([0, *map(len, ids)]),
        families=families,
        lengths=lengths,
        num_skipped=num_skipped,
    )


def _families(
    inputs: Sequence[Ints], max_family: int, together: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each family starts (and the end), and how many inputs it has: groups of `together`, or several of them."""
    starts: list[int] = []
    lengths: list[int] = []
    for first in range(0, len(inputs), together):
        group = inputs[first : first + together]
        length = sum(map(len, group)) - sum(common_prefix(one, other) for one, other in itertools.pairwise(group))
        shared = common_prefix(inputs[first - 1], group[0]) if starts else 0
        own = length - shared
        if shared >= max(MIN_SHARED, MIN_SHARE * len(group[0])) and lengths[-1] + own <= max_family:
            lengths[-1] += own
        else:
            starts.append(first)
            lengths.append(length)
    return np.array([*starts, len(inputs)], np.int64), np.array(lengths, np.int64)
