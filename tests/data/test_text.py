"""Tokens: truncation, segments, and tokenizers as they are read."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import golden
from vinvl.data import text
from vinvl.data.table import Column
from vinvl.data.text import assemble_pair, encode_texts, load_tokenizer, truncated_lengths
from vinvl.run.errors import UserError

CLS, SEP = 2, 3


def golden_tokenizer(decoder: bool = True) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(golden.facts("oscar/vocab"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if decoder:
        tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def published_truncation(first: int, second: int, limit: int) -> tuple[int, int]:
    """The published loop: one token at a time, from the longer side, on a tie from the second."""
    while first + second > limit:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 100))
def test_truncation_is_the_published_loop(first: int, second: int, limit: int) -> None:
    assert truncated_lengths(first, second, limit) == published_truncation(first, second, limit)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(5, 60))
def test_pairs_never_pass_the_limit_and_keep_their_segments(first: int, second: int, limit: int) -> None:
    question, tags = np.full(first, 10), np.full(second, 20)
    input_ids, token_type_ids = assemble_pair(question, tags, max_tokens=limit, cls_token_id=CLS, sep_token_id=SEP)
    assert len(input_ids) == len(token_type_ids) <= limit
    assert input_ids[0] == CLS and input_ids[-1] == SEP
    assert set(input_ids[token_type_ids == 1]) <= {20, SEP} and 20 not in input_ids[token_type_ids == 0]


def test_missing_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no tokenizer folder .*nowhere: give one that exists, or a name"):
        load_tokenizer(tmp_path / "nowhere")


def test_encoding_keeps_empty_texts_in_their_place() -> None:
    tokens = encode_texts(golden_tokenizer(), ["the dog", "", "a cat"])
    assert tokens.lengths().tolist() == [2, 0, 2]
    assert tokens.joined(np.array([2, 1, 0, 2])).tolist() == [*tokens[2], *tokens[0], *tokens[2]]


def by_transformers(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return encoded


def with_rule(name: str, rule: object) -> PreTrainedTokenizerFast:
    tokenizer = golden_tokenizer()
    setattr(tokenizer.backend_tokenizer, name, rule)
    return tokenizer


def with_token(**options: bool) -> PreTrainedTokenizerFast:
    tokenizer = golden_tokenizer()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("a cat", normalized=False, **options)])
    return tokenizer


TOKENIZERS = {
    "BERT's": golden_tokenizer(),
    "a token with a blank": with_token(),
    "no rules": with_rule("pre_tokenizer", None),
    "other rules": with_rule("normalizer", normalizers.Replace("the dog", "cat")),
}
PIECES = ["the dog", "a cat", "a", " ", "\t", "\u0301", "\u4e2d", "[SEP]", "x\u3000y", "\u0130"]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=("Cs",))).map("".join)))
def test_many_texts_have_the_tokens_that_each_has_alone(name: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    texts += ["the dog  a cat", ""]
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(text, "LEAST_BY_WORDS", 1)
        changed.setattr(text, "ENCODE_CHUNK", 1)  # five texts at once
        for given_ in (texts, Column.of(texts)):
            found = encode_texts(tokenizer, given_)
            assert [row.tolist() for row in found] == by_transformers(tokenizer, texts)


def test_of_many_texts_each_word_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    make = text._encoder

    def listening(tokenizer: PreTrainedTokenizerFast) -> Any:
        encode = make(tokenizer)
        return lambda texts: asked.extend(texts) or encode(texts)

    monkeypatch.setattr(text, "_encoder", listening)
    encode_texts(golden_tokenizer(), ["the dog", "the cat", "a cat"] * text.LEAST_BY_WORDS)
    assert asked == ["the", "dog", "cat", "a"]


def tokenizer_folder(folder: Path, **tokenizer_config: object) -> Path:
    golden_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokenizer_config))
    return folder


CODE = "from pathlib import Path\nPath('ran').touch()\nclass T: pass\nclass C: pass\n"
OWN_CODE = {
    "a tokenizer of its own": (
        {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.T", "own.T"]}},
        {},
    ),
    "as older files say it": ({"tokenizer_class": "OwnTokenizer", "auto_map": ["own.T", None]}, {}),
    "a configuration of its own": ({}, {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}),
    "a model in place of the tokenizer": (
        {"tokenizer_class": "AutoModel"},
        {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.T"}},
    ),
    "the tokenizer of the model": ({}, {"tokenizer_class": "AutoProcessor", "auto_map": {"AutoProcessor": "own.T"}}),
}


@pytest.mark.parametrize(("of_tokenizer", "of_model"), OWN_CODE.values(), ids=OWN_CODE)
def test_code_of_a_folder_is_neither_run_nor_asked_for(
    of_tokenizer: dict, of_model: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))  # what a person who is asked might say
    folder = tokenizer_folder(tmp_path / "folder", **of_tokenizer)
    (folder / "own.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps(of_model))
    if of_tokenizer or "tokenizer_class" in of_model:
        with pytest.raises(UserError, match=r"no code from a model's folder is run|is no tokenizer's class"):
            load_tokenizer(folder)
    else:
        load_tokenizer(folder)  # which needs none of the code
    assert sys.stdin.readline() and "[y/N]" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("ran"))


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"unk_token": "[NONE]"}}, "Missing"),
        ({"model": {"vocab": {"[UNK]": 1, "huge": 2**30}}}, "numbers that no model has"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}, "No tokenizer could be loaded"),
        ({"model": {"type": "Unigram", "vocab": [], "unk_id": 7}}, "No tokenizer could be loaded"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 60}},
            "its rules insert 120 characters, 8 may",
        ),
    ],
)
def test_tokenizers_that_cannot_encode(change: dict, sentence: str, tmp_path: Path) -> None:
    path = tokenizer_folder(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    for part, value in change.items():
        content[part] = {**(content[part] or {}), **value}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(tmp_path)


def test_a_configuration_of_millions_is_not_built_for_its_tokenizer(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "num_labels": 10**12}))
    assert len(load_tokenizer(tmp_path)) == len(golden_tokenizer())


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"unk_token": ""}, "its special tokens are not in its vocabulary"),
        ({"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, r"it names another file than tokenizer\.json"),
    ],
)
def test_what_a_folder_may_not_say(said: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    tokenizer_folder(tmp_path, **said)
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(tmp_path)


def test_texts_that_cannot_be_encoded() -> None:
    tokenizer = golden_tokenizer()
    with pytest.raises(UserError, match="cannot encode one of the texts"):
        encode_texts(tokenizer, ["the dog", "half \ud800 a character"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    with pytest.raises(UserError, match=r"cannot encode one of the texts \(Onig: .*retry-limit"):
        encode_texts(tokenizer, ["a" * 60 + " dog"])


def test_a_vocabulary_that_says_nothing_is_lower_case(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    assert load_tokenizer(tmp_path)("A Man")["input_ids"] == [2, 5, 6, 3]
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    assert load_tokenizer(tmp_path)("A Man")["input_ids"] == [2, 1, 1, 3]
