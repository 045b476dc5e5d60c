"""What pre-training data refuses, a sentence each, as the datamodule is used."""

from pathlib import Path
from typing import Any

import pytest

from tests.pretraining.samples import TOKENIZER, mixed_rows, store_of, write_lines
from tests.pretraining.test_data import datamodule
from vinvl.run.errors import UserError

ONE_IMAGE = [{"image_id": 3, "text": f"a {word}"} for word in ("dog", "table", "park")]
CAPTIONS = [{"image_id": image, "text": "a dog"} for image in range(4)]


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


GOOD = '{"image_id": 1, "text": "a dog"}'


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        (lines(GOOD, '{"image_id": 2}'), {}, r"train\.jsonl line 2 is no row .*`text`"),
        ("", {}, r"train\.jsonl holds no rows"),
        (
            lines(GOOD, '{"image_id": "x/77", "text": "a dog"}'),
            {"on_missing": "error"},
            r"regions\.h5.* has no image x/77 \(asked for by .*train\.jsonl line 2 \(image x/77\); 1 of 2 rec.*ids "
            r"like '0'\. Extract the missing ones or pass data\.on_missing=skip\.",
        ),
        (
            lines('{"image_id": "x/77", "text": "a dog"}'),
            {"on_missing": "skip"},
            r"1 of 1 records in all lack theirs\)\. .*ids like '0'\. Is it the store of these records\?",
        ),
        (
            lines(GOOD, '{"image_id": 2, "text": "a dog", "tags": ["zebra"]}'),
            {},
            r"train\.jsonl has tags of another label set: none of its 1 tag names \(such as 'zebra'\)",
        ),
    ],
)  # fmt: skip
def test_a_bad_corpus(tmp_path: Path, content: str, settings: dict[str, Any], sentence: str) -> None:
    store_of(tmp_path)
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=sentence) as raised:
        datamodule(tmp_path, {"train": str(tmp_path / "train.jsonl")}, val_split="train", **settings).setup("fit")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob(".*partial"))


def test_a_corpus_of_one_image_has_no_mismatched_triplets(tmp_path: Path) -> None:
    store_of(tmp_path)
    splits = {"train": str(write_lines(tmp_path / "train.jsonl", ONE_IMAGE))}
    for variant in ("oscar", "mmf"):
        with pytest.raises(
            UserError, match=r"All 3 rows of the split are of one image \(.*line 1 \(image 3\) is the fir"
        ):
            datamodule(tmp_path, splits, val_split="train", variant=variant).setup("fit")
    data = datamodule(tmp_path, splits, val_split="train", variant="matched")
    data.setup("fit")
    assert len(data.datasets["train"]) == 3


def test_mode_2_needs_questions(tmp_path: Path) -> None:
    store_of(tmp_path)
    splits: dict[str, Any] = {"train": str(write_lines(tmp_path / "train.jsonl", CAPTIONS))}
    with pytest.raises(UserError, match=r"textb_sample_mode=2 takes wrong second texts from answers, and no corpus"):
        datamodule(tmp_path, splits, val_split="train", textb_sample_mode=2).setup("fit")
    splits["train"] = [splits["train"], str(write_lines(tmp_path / "more.jsonl", mixed_rows(6)))]
    datamodule(tmp_path, splits, val_split="train", textb_sample_mode=2).setup("fit")


def test_a_folder_without_corpus_files(tmp_path: Path) -> None:
    store_of(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"train is a folder without corpus files \(\.jsonl\)"):
        datamodule(tmp_path, {"train": str(tmp_path / "train")}, val_split="train").setup("fit")


def test_another_tokenizer_gets_an_index_of_its_own(tmp_path: Path) -> None:
    store_of(tmp_path)
    path = write_lines(tmp_path / "train.jsonl", CAPTIONS)
    splits = {"train": str(path)}
    datamodule(tmp_path, splits, val_split="train").setup("fit")
    other = type(TOKENIZER).from_pretrained(tmp_path / "tokenizer")
    other.add_tokens(["a dog"])
    other.save_pretrained(tmp_path / "other")
    data = datamodule(tmp_path, splits, val_split="train", tokenizer=str(tmp_path / "other"))
    data.setup("fit")
    found: Any = data.datasets["train"]
    assert found.rows.mixture.shares[0].corpus.lengths[:, 0].tolist() == [1] * 4
    assert len(list(tmp_path.glob("train.jsonl.index-*"))) == 2
