"""Instruction -> tokens of the prefix around the vision and proprio spans.

`tiny` uses a word-level vocabulary made from the instructions of its data (an unknown word becomes <unk>);
`paper` reads the tokenizer.json of its language model. Marks such as `<vision>` are plain text to the tokenizer:
one token in our vocabulary, several pieces in a foreign one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
MARKS = ("<vision>", "</vision>", "<proprio>", "</proprio>", "<dynamics>", "</dynamics>", "<action>", "</action>")
#: Tokens up to the frames that an engine takes: an instruction is a sentence, and attention grows with the square.
MOST_TOKENS = 128
#: Instructions of which the tokens are kept.
REMEMBERED = 1024
#: The prompt of the reference implementation; `{task}` is the instruction.
PAPER_PROMPT = "You are a helpful assistant. USER: What action should the robot take to `{task}` ASSISTANT:"


class TokenizerError(ValueError):
    """A tokenizer cannot be used; one line with the remedy."""


def open_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer.json.

    Raises:
        TokenizerError: there is no such file, or it is none.
    """
    if not Path(path).exists():
        raise TokenizerError(f"{path}: no such file; give a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise TokenizerError(f"{path}: not a tokenizer ({error}); give a tokenizer.json") from None


def train_word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Every lower-cased word of `texts`, in alphabetical order (so the same data give the same ids)."""
    normalise = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # Every punctuation mark alone, so that a quote next to a full stop is not a new word.
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(normalise.normalize_str(text))})
    special = [PAD, UNKNOWN, BEGIN, END, *MARKS]
    vocabulary = {word: i for i, word in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalise, split
    tokenizer.add_special_tokens(special)
    return tokenizer


class Prompt:
    """Makes the text tokens of a prefix: `before(instruction)`, `between`, `after` (see model.policy.Prefix)."""

    def __init__(self, tokenizer: Tokenizer, template: str, proprio: bool):
        if "{task}" not in template:
            raise TokenizerError(f"prompt {template!r} has no {{task}}; the instruction must stand somewhere")
        self.begin = tokenizer.token_to_id(BEGIN)
        if self.begin is None:
            raise TokenizerError(f"the tokenizer knows no {BEGIN}; give the tokenizer.json of a LLaMA model")
        self.tokenizer, self.template = tokenizer, template
        self.between = self._ids("</vision>" + (" <proprio>" if proprio else ""))
        self.after = self._ids("</proprio> <action>" if proprio else "<action>")
        self._known: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: str | Path, template: str, proprio: bool) -> Prompt:
        """From a tokenizer.json (the `tokenizers` format)."""
        return cls(open_tokenizer(path), template, proprio)

    @property
    def size(self) -> int:
        """Entries of the text table, 16-aligned."""
        return -(-self.tokenizer.get_vocab_size() // 16) * 16

    def before(self, instruction: str) -> list[int]:
        """Tokens from <s> up to and with <vision>."""
        if instruction not in self._known:  # no str.format: a template of somebody else may ask for gigabytes of blanks
            text = " ".join(self.template.replace("{task}", instruction.strip()).split())
            tokens = [self.begin, *self._ids(text), *self._ids("<vision>")]
            if len(tokens) > MOST_TOKENS:
                return tokens
            if len(self._known) == REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[instruction] = tokens
        return self._known[instruction]

    def batch(self, instructions: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """int64 (b, l) left-padded ids and bool (b, l) True where a token stands."""
        rows = [self.before(text) for text in instructions]
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), bool)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = row
            mask[i, longest - len(row) :] = True
        return ids, mask

    def unknown_words(self, instruction: str) -> list[str]:
        """Words of an instruction the vocabulary lacks (empty for a sub-word tokenizer)."""
        encoded = self.tokenizer.encode(instruction, add_special_tokens=False)
        return [instruction[a:b] for token, (a, b) in zip(encoded.tokens, encoded.offsets) if token == UNKNOWN]

    def strange_words(self, instruction: str) -> tuple[str, ...]:
        """Unknown words that matter: a full stop tells nothing apart, unless there is nothing else."""
        unknown = self.unknown_words(instruction)
        if any(c.isalnum() for c in instruction):
            unknown = [word for word in unknown if any(c.isalnum() for c in word)]
        return tuple(unknown)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids
