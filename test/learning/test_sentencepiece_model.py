"""tokenizer.model -> tokenizer.json: the ids are those of sentencepiece itself."""

import pytest

from vipra_ros.config import ConfigError
from vipra_ros.learning.sentencepiece_model import convert, pieces
from vipra_ros.policy.text import PAPER_PROMPT, Prompt

spm = pytest.importorskip("sentencepiece")

TEXTS = [
    PAPER_PROMPT.format(task="pick up the red block and place it in the blue bowl"),
    "<vision>",
    "</dynamics>",
    "lift  the   red cube",
    " leading and trailing ",
    "Würfel 立方体 🤖\n",
    "",
    "aaaaaaaaaaaaa 12345.678",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    words = "the red green blue cube block bowl robot should take action what lift push reach place pick".split()
    lines = [f"{a} {b} {c}." for a in words for b in words for c in words[:6]] + ["USER: you are 0123456789 `x`"] * 20
    (folder / "text").write_text("\n".join(lines))
    spm.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=420, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    return folder / "tokenizer.model"


def test_ids_and_text_equal_sentencepiece(model):
    theirs, ours = spm.SentencePieceProcessor(model_file=str(model)), convert(model)
    assert ours.get_vocab_size() == theirs.get_piece_size() == 420
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids)


def test_the_prompt_reads_it(model, tmp_path):
    convert(model).save(str(tmp_path / "tokenizer.json"))
    prompt = Prompt.load(tmp_path / "tokenizer.json", PAPER_PROMPT, proprio=False)
    theirs = spm.SentencePieceProcessor(model_file=str(model))
    text = PAPER_PROMPT.format(task="lift the red cube")
    assert prompt.before("lift the red cube") == [1, *theirs.encode(text), *theirs.encode("<vision>")]


def test_other_files_are_refused(model, tmp_path):
    data = model.read_bytes()
    for name, content in {"empty": b"", "text": b"no protobuf at all", "cut": data[: len(data) // 2 - 3]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="SentencePiece|pieces"):
            pieces(tmp_path / name)
