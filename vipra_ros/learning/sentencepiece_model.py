"""LLaMA's SentencePiece model (tokenizer.model) as a `tokenizers` vocabulary, without sentencepiece.

The file is a protobuf ModelProto (github.com/google/sentencepiece, sentencepiece_model.proto): field 1 repeated pieces
{1 text, 2 score, 3 type}, field 2 trainer {3 model type: 2 is BPE}, field 3 normaliser {1 name}. BPE joins, of all
neighbours, the pair whose piece has the best score; as a merge list that is: every split of every piece into two known
pieces, in order of the score of the whole.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from vipra_ros.config import ConfigError

UNKNOWN, CONTROL, BYTE = 2, 3, 6
BPE = 2
SPACE = "\u2581"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number longer than 64 bits")


def fields(data: bytes):
    """(number, value) of every field of a protobuf message; values are int, 4- or 8-byte strings, or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, at = _varint(data, at)
            if size is None or at + size > len(data):
                raise ValueError(f"field {number} is cut off or unknown")
            value, at = data[at : at + size], at + size
        yield number, value


def pieces(path: str | Path) -> list[tuple[str, float, int]]:
    """(text, score, type) of every piece in the order of the ids.

    Raises:
        ConfigError: no SentencePiece BPE model without normalisation.
    """
    path, found, kind, normaliser = Path(path), [], 1, "identity"
    try:
        for number, value in fields(path.read_bytes()):
            if number == 1:
                piece = dict(fields(value))
                score = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0]
                found.append((piece[1].decode(), score, piece.get(3, 1)))
            elif number == 2:
                kind = dict(fields(value)).get(3, 1)
            elif number == 3:
                normaliser = dict(fields(value)).get(1, b"identity").decode()
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{path}: no SentencePiece model ({error}); give tokenizer.model of LWM") from None
    if not found or kind != BPE or normaliser != "identity":
        raise ConfigError(
            f"{path}: {len(found)} pieces, model type {kind}, normaliser {normaliser!r}; LLaMA's is BPE (2), 'identity'"
        )
    return found


def convert(path: str | Path) -> Tokenizer:
    """The vocabulary as a `tokenizers.Tokenizer` with the same ids (no <s> is added by itself)."""
    table = pieces(path)
    ids = {text: i for i, (text, _, _) in enumerate(table)}
    merges = []
    for whole, score, kind in table:
        if kind in (UNKNOWN, CONTROL, BYTE):
            continue
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], left, right))
    merges.sort()
    unknown = next((text for text, _, kind in table if kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            [(left, right) for *_, left, right in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(kind == BYTE for _, _, kind in table),
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [text for text, _, kind in table if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return tokenizer
