"""Instruction tokens: what is known, what is unknown, how a batch is padded."""

import pytest

from vipra_ros.policy.text import MOST_TOKENS, PAPER_PROMPT, REMEMBERED, Prompt, TokenizerError, train_word_tokenizer

TASKS = ["reach above the red cube", "push the green cube into the blue zone", "Lift the blue cube!"]


def test_marks_are_one_token_and_words_ignore_case():
    prompt = Prompt(train_word_tokenizer(TASKS), "{task}", proprio=True)
    assert len(prompt.between) == 2 and len(prompt.after) == 2
    assert prompt.before("PUSH the Green cube into the blue zone") == prompt.before(TASKS[1])
    assert prompt.before(TASKS[1])[0] == prompt.begin and len(prompt.before(TASKS[1])) == 1 + 8 + 1
    assert prompt.before("lift the blue cube !") == prompt.before("lift  the blue cube!")


def test_unknown_words_are_named_and_share_one_token():
    prompt = Prompt(train_word_tokenizer(TASKS), "{task}", proprio=False)
    assert prompt.unknown_words("paint the red cube") == ["paint"]
    assert prompt.unknown_words(TASKS[0]) == []
    assert prompt.before("paint the red cube") == prompt.before("eat the red cube")


def test_batch_is_padded_on_the_left():
    prompt = Prompt(train_word_tokenizer(TASKS), "{task}", proprio=False)
    ids, mask = prompt.batch(TASKS)
    assert mask[:, -1].all() and mask.sum(1).tolist() == [len(prompt.before(t)) for t in TASKS]
    for row, keep, text in zip(ids, mask, TASKS):
        assert row[keep].tolist() == prompt.before(text)


def test_ids_do_not_depend_on_the_order_of_the_data():
    a, b = (train_word_tokenizer(t) for t in (TASKS, TASKS[::-1]))
    assert a.get_vocab() == b.get_vocab()


def test_template_and_round_trip(tmp_path):
    tokenizer = train_word_tokenizer([*TASKS, PAPER_PROMPT])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompt = Prompt.load(tmp_path / "tokenizer.json", PAPER_PROMPT, proprio=False)
    assert prompt.unknown_words(PAPER_PROMPT.replace("{task}", "")) == []
    assert len(prompt.before(TASKS[0])) > len(Prompt(tokenizer, "{task}", False).before(TASKS[0])) + 10


def test_unusable_tokenizers_are_refused(tmp_path):
    from tokenizers import Tokenizer, models

    with pytest.raises(TokenizerError, match="<s>"):
        Prompt(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "{task}", False)
    with pytest.raises(TokenizerError, match="task"):
        Prompt(train_word_tokenizer(TASKS), "do it", False)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(TokenizerError, match="tokenizer.json"):
        Prompt.load(tmp_path / "t.json", "{task}", False)


def test_an_instruction_of_marks_alone_is_not_understood():
    prompt = Prompt(train_word_tokenizer(["lift the red cube"]), "{task}", False)
    assert prompt.strange_words("lift the red cube.") == () and prompt.strange_words("lift the mug.") == ("mug",)
    assert prompt.strange_words("???") == ("?", "?", "?") and prompt.strange_words("\N{ROBOT FACE}") != ()


def test_few_instructions_are_remembered():
    prompt = Prompt(train_word_tokenizer(["go"]), "{task}", False)
    for n in range(REMEMBERED + 10):
        prompt.before(f"go {n}")
    assert len(prompt._known) == REMEMBERED and len(prompt.before("go " * 500)) > MOST_TOKENS
    assert len(prompt._known) == REMEMBERED
