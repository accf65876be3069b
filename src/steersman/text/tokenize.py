"""Text -> token ids, and the loss mask beside them.

A text is tokenised as one piece. A token is trained when its first character lies in a trained span. Control strings
in somebody's own words stay ordinary text; the ids of everything else are those of the whole text's tokenisation.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from steersman.attributes import AttributeSchema
from steersman.card import ModelCard, TemplateSpec
from steersman.errors import ConfigError, TokenizerError
from steersman.records import Conversation, Prompt, Span
from steersman.text.bounds import longest_token, surely_trains
from steersman.text.sentencepiece import convert_sentencepiece
from steersman.text.template import Rendered, Template, overlaps

Kind = Literal["extra_id", "chatml", "chat"]
Control = Literal["special", "text"]

_BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<BOS>", "[BOS]")
_EOS_NAMES = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<EOS>", "[EOS]")
"""What BOS and EOS are called where only a bare `tokenizer.json` is given, which does not say."""


def load_tokenizer(path_or_id: str | Path) -> PreTrainedTokenizerBase:
    """A Hugging Face folder or id, a `tokenizer.json`, or a SentencePiece `.model`, alone or in a folder.

    Raises:
        TokenizerError: not there, damaged, or without a fast (Rust) tokenizer.
    """
    path = Path(path_or_id)
    if path.is_dir():
        path = _tokenizer_file(path)
    elif not path.exists() and (str(path_or_id).startswith((".", "/", "~")) or path.suffix in (".json", ".model")):
        raise TokenizerError(f"{path_or_id}: no such tokenizer; give a folder, a tokenizer.json, a .model or a hub id")
    try:
        if path.is_file():
            tokenizer: Any = convert_sentencepiece(path) if path.suffix == ".model" else _load_json(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(path_or_id))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path_or_id}: cannot load a tokenizer ({str(error).splitlines()[0]})") from None
    if not tokenizer.is_fast:
        raise TokenizerError(f"{path_or_id}: {type(tokenizer).__name__} has no fast form, which is needed for offsets")
    return tokenizer


def _tokenizer_file(folder: Path) -> Path:
    """The folder itself when transformers can read it, or its only tokenizer file."""
    if (folder / "tokenizer_config.json").exists():
        return folder
    candidates = [file for file in (folder / "tokenizer.json", *sorted(folder.glob("*.model"))) if file.exists()]
    if not candidates:
        raise TokenizerError(f"{folder}: no tokenizer here (tokenizer.json, tokenizer_config.json or a .model)")
    return candidates[0]


def _load_json(path: Path) -> PreTrainedTokenizerFast:
    if (path.parent / "tokenizer_config.json").exists() and path.name == "tokenizer.json":
        return AutoTokenizer.from_pretrained(str(path.parent))
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing narrower
        raise TokenizerError(f"{path}: not a tokenizer.json ({error})") from None
    names = {token.content for token in backend.get_added_tokens_decoder().values()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=next((name for name in _BOS_NAMES if name in names), None),
        eos_token=next((name for name in _EOS_NAMES if name in names), None),
    )


def add_control_tokens(tokenizer: PreTrainedTokenizerBase, spec: TemplateSpec) -> list[str]:
    """Make the template's control strings special tokens; returns those that are new to the vocabulary.

    Nothing is done under control="text".
    """
    if spec.control == "text":
        return []
    absent = [string for string in spec.control_strings if tokenizer.backend_tokenizer.token_to_id(string) is None]
    special = _special_tokens(tokenizer)
    wanted = [AddedToken(s, special=True, normalized=False) for s in spec.control_strings if s not in special]
    tokenizer.add_tokens(wanted, special_tokens=True)
    return absent


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def open_encoder(
    tokenizer: str | Path,
    *,
    kind: Kind | None = None,
    bos: bool | None = None,
    control: Control | None = None,
) -> tuple["Encoder", AttributeSchema | None]:
    """The encoder that training with this tokenizer will use, and the attributes where they are known.

    A model folder's card governs. Without one, and for a base model, the arguments choose; what they leave open has
    the template's defaults. Control tokens that the tokenizer lacks are added, as training does.

    Raises:
        ConfigError: an argument contradicts the card of a trained model.
        TokenizerError: see `load_tokenizer` and `Encoder`.
    """
    card = ModelCard.load(tokenizer)
    options = {"kind": kind, "bos": bos, "control": control}
    own = card.training_template
    spec = own.model_copy(update={name: value for name, value in options.items() if value is not None})
    if card.role != "base" and spec != own:
        raise ConfigError(
            f"{tokenizer} was trained with template {own.kind}, bos {own.bos}, control {own.control}, says its card; "
            "leave the template options out"
        )
    loaded = load_tokenizer(tokenizer)
    add_control_tokens(loaded, spec)
    return Encoder(loaded, spec), card.attributes


@dataclass(frozen=True)
class Encoded:
    """A tokenised text.

    Attributes:
        ids: the tokens.
        offsets: half-open character range of each; (0, 0) for BOS that is not part of the text.
    """

    ids: list[int]
    offsets: list[Span]


@dataclass(frozen=True)
class Tokenized:
    """A training sequence, unshifted: `loss_mask[t]` says that token t is a target."""

    input_ids: list[int]
    loss_mask: list[bool]

    @property
    def num_trained(self) -> int:
        return sum(self.loss_mask)


class Encoder:
    """A tokenizer under a template.

    Attributes:
        tokenizer: as it was given.
        spec: the template's strings and policies.
        template: writes the texts.
        bos_id: id of BOS, or None.
        eos_ids: tokens that end an answer: EOS, and the template's stop string where it is one token.

    Raises:
        TokenizerError: the template's control strings are not special tokens, or it wants a BOS that there is none of.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: TemplateSpec) -> None:
        special = _special_tokens(tokenizer)
        missing = [s for s in spec.control_strings if s not in special] if spec.control == "special" else []
        if missing:
            raise TokenizerError(
                f"the tokenizer lacks the special tokens {', '.join(missing)} of the template; train with it first "
                "(training adds them), or say control: text if the model was trained on them as plain text"
            )
        if spec.bos and tokenizer.bos_token_id is None:
            raise TokenizerError("the template begins with BOS, but the tokenizer has no BOS token; say bos: false")
        self.tokenizer = tokenizer
        self.spec = spec
        self.template = Template(spec, tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        stops = [special[string] for string in self.template.stop_strings if string in special]
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((*eos, *stops)))
        self._special_ids = frozenset(special.values()) - {tokenizer.unk_token_id}
        self._backend = _bare(tokenizer.backend_tokenizer)

    def encode(self, text: str, literal: Sequence[Span] = ()) -> Encoded:
        """Tokenise one text, BOS first where the template says so (never twice).

        Args:
            text: with template and control strings.
            literal: character spans in which control strings are ordinary text, ascending and disjoint.
        """
        return self._finish(text, self._backend.encode(text, add_special_tokens=False), literal)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt."""
        return self.encode(prompt.text, prompt.literal).ids if prompt.token_ids is None else list(prompt.token_ids)

    def encode_conversation(self, conversation: Conversation, seq_len: int | None = None) -> Tokenized:
        """A conversation and its loss mask, cut to `seq_len` + 1 tokens."""
        return self.encode_conversations([conversation], seq_len)[0]

    def encode_conversations(
        self, conversations: Sequence[Conversation], seq_len: int | None = None
    ) -> list[Tokenized]:
        """Many conversations, tokenised in parallel. `DataError` for one that the template cannot write."""
        return self.encode_rendered([self.template.render(conversation) for conversation in conversations], seq_len)

    def encode_rendered(self, rendered: Sequence[Rendered], seq_len: int | None = None) -> list[Tokenized]:
        """Rendered conversations, tokenised in parallel; the mask is made first, then both are cut."""
        encodings = self._backend.encode_batch([item.text for item in rendered], add_special_tokens=False)
        end = None if seq_len is None else seq_len + 1
        tokenized = []
        for item, encoding in zip(rendered, encodings, strict=True):
            encoded = self._finish(item.text, encoding, item.literal)
            tokenized.append(Tokenized(encoded.ids[:end], loss_mask(encoded, item.trained)[:end]))
        return tokenized

    def surely_trains(self, rendered: Rendered, seq_len: int) -> bool:
        """Whether the text's length alone tells that `encode_rendered` leaves a trained token; False: perhaps."""
        longest, num_tokens = self._longest_token, seq_len + 1 - self.spec.bos
        return longest is not None and not rendered.literal and surely_trains(rendered, num_tokens, longest)

    def decode(self, ids: Sequence[int]) -> str:
        """Text with its control strings; a leading BOS is left out."""
        ids = list(ids[1:] if ids and ids[0] == self.bos_id else ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _finish(self, text: str, encoding: Encoding, literal: Sequence[Span]) -> Encoded:
        ids, offsets = encoding.ids, encoding.offsets
        if literal:
            tokens = self._with_literal(text, list(zip(ids, offsets, strict=True)), literal)
            ids, offsets = [token for token, _ in tokens], [span for _, span in tokens]
        if self.spec.bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids, offsets = [self.bos_id, *ids], [(0, 0), *offsets]
        return Encoded(ids, offsets)

    def _with_literal(
        self, text: str, tokens: list[tuple[int, Span]], literal: Sequence[Span]
    ) -> list[tuple[int, Span]]:
        """Tokens of a text whose `literal` spans hold no special token.

        Special tokens split a text into runs that are tokenised independently, so only the runs with a literal span
        are tokenised anew.
        """
        result: list[tuple[int, Span]] = []
        run: list[tuple[int, Span]] = []
        run_start = 0
        for token, (start, end) in [*tokens, (None, (len(text), len(text)))]:
            if token is not None and (token not in self._special_ids or overlaps(start, end, literal)):
                run.append((token, (start, end)))
                continue
            result += self._as_words(text[run_start:start], run_start) if overlaps(run_start, start, literal) else run
            if token is not None:
                result.append((token, (start, end)))
            run, run_start = [], end
        return result

    def _as_words(self, text: str, position: int) -> list[tuple[int, Span]]:
        """Tokens of a run of words that begins at `position` of the whole text, none of them special."""
        encoding = (self._inner_words if position else self._first_words).encode(text, add_special_tokens=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._special_ids:  # the model itself (Unigram, WordLevel) knows the string: cut it apart
                if end - start < 2:
                    raise TokenizerError(f"the tokenizer makes its special token {text[start:end]!r} of plain words")
                cut = start + 1
                return self._as_words(text[:cut], position) + self._as_words(text[cut:], position + cut)
        offsets = ((position + start, position + end) for start, end in encoding.offsets)
        return list(zip(encoding.ids, offsets, strict=True))

    @cached_property
    def _longest_token(self) -> int | None:
        return longest_token(self._backend)

    @cached_property
    def _first_words(self) -> Tokenizer:
        """Knows no special tokens; for words that begin a text."""
        backend = _bare(self._backend)
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _inner_words(self) -> Tokenizer:
        """Knows no special tokens; for words further on, where a prefix space for the first word has no place."""
        backend = _bare(self._first_words)
        backend.encode_special_tokens = True
        if backend.pre_tokenizer is not None:
            state = backend.pre_tokenizer.__getstate__()
            inner = backend.pre_tokenizer
            inner.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
            backend.pre_tokenizer = inner
        return backend


def loss_mask(encoded: Encoded, trained: Sequence[Span]) -> list[bool]:
    """Which tokens have their first character in a trained span (ascending and disjoint)."""
    bounds = list(chain.from_iterable(trained))
    return [bisect_right(bounds, start) % 2 == 1 for start, _ in encoded.offsets]


def _bare(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer without post-processing, truncation and padding, sharing the model (so it costs nothing).

    Post-processors add BOS or EOS, or shorten offsets.
    """
    bare = Tokenizer(backend.model)
    if backend.normalizer is not None:
        bare.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        bare.pre_tokenizer = backend.pre_tokenizer
    added = backend.get_added_tokens_decoder()
    bare.add_tokens([added[index] for index in sorted(added)])
    assert all(bare.token_to_id(token.content) == index for index, token in added.items())
    return bare
