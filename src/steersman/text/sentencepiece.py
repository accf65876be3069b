"""A bare SentencePiece `.model` (BPE or Unigram) -> a fast tokenizer with the same ids."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steersman.errors import TokenizerError

_SPACE = "▁"
_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # piece types


def convert_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a `.model` file. Control pieces become special tokens, user-defined ones added tokens.

    A text that begins with a space is not given another one in front, as SentencePiece would under `add_dummy_prefix`.

    Raises:
        TokenizerError: not a SentencePiece model, or one of words or characters.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise TokenizerError(f"{path}: not a SentencePiece model") from None
    trainer = proto.trainer_spec
    backend = Tokenizer(_model(proto, path))
    backend.normalizer = _normalizer(proto.normalizer_spec)
    dummy_prefix = proto.normalizer_spec.add_dummy_prefix
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="first" if dummy_prefix else "never", split=False
    )
    to_text = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*to_text, *([decoders.Strip(" ", 1, 0)] if dummy_prefix else [])])
    backend.add_tokens(
        [
            AddedToken(piece.piece, special=piece.type != _USER_DEFINED, normalized=False)
            for piece in proto.pieces
            if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=trainer.unk_piece,
        bos_token=trainer.bos_piece if trainer.bos_id >= 0 else None,
        eos_token=trainer.eos_piece if trainer.eos_id >= 0 else None,
        pad_token=trainer.pad_piece if trainer.pad_id >= 0 else None,
    )


def _model(proto: Any, path: Path) -> models.Model:
    trainer = proto.trainer_spec
    if trainer.model_type == _UNIGRAM:
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        return models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    if trainer.model_type != _BPE:
        raise TokenizerError(f"{path}: a SentencePiece model of words or characters; use BPE or Unigram")
    return models.BPE(
        vocab={piece.piece: index for index, piece in enumerate(proto.pieces)},
        merges=_merges(proto),
        unk_token=trainer.unk_piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best piece first: SentencePiece joins by the result's score."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = []
    for index, piece in enumerate(proto.pieces):
        if piece.type == _NORMAL:
            for cut in range(1, len(piece.piece)):
                left, right = piece.piece[:cut], piece.piece[cut:]
                if left in scores and right in scores:
                    merges.append((-piece.score, index, cut, left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _normalizer(spec: Any) -> normalizers.Normalizer:
    """SentencePiece's own normalisation: its character map, then superfluous spaces."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        left = not spec.add_dummy_prefix  # a space in front serves as the dummy prefix
        steps += [normalizers.Strip(left=left, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)
