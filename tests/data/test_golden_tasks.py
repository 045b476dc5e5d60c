"""VQA, GQA, NLVR2 and captioning rows against those that the published code made of the same texts and images."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests import golden
from tests.data.region_samples import region_text
from tests.data.test_text import golden_tokenizer
from vinvl.captioning.data import (
    CaptionDataset,
    CaptionedImageDataset,
    CaptionLimits,
    Replacements,
    choose_positions,
    with_caption,
)
from vinvl.captioning.files import read_caption_jsonl
from vinvl.captioning.task import caption_attention_mask
from vinvl.data.batch import Example, collate
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.sampling import Draw
from vinvl.data.table import Column, RecordTable
from vinvl.data.text import encode_texts
from vinvl.models.config import SpecialTokens
from vinvl.nlvr2.data import NLVR2Dataset
from vinvl.nlvr2.files import read_nlvr2
from vinvl.vqa.answers import AnswerTargets, AnswerVocabulary
from vinvl.vqa.data import AnsweringDataset

TOKENIZER = golden_tokenizer()
SPECIAL = SpecialTokens.of(TOKENIZER)
PAD, MASK = SPECIAL.pad_token_id, SPECIAL.mask_token_id


def padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)))


VQA = golden.facts("oscar/data__vqa")


class TestAnsweringAndPairs:
    facts = golden.facts("oscar/data__gqa_nlvr2")
    recorded = golden.arrays("oscar/data__gqa_nlvr2")
    length, regions = facts["max_seq_length"], facts["max_img_seq_length"]

    def text_and_images(self, objects: dict[int, str], *, use_tags: bool) -> RegionText:
        """`objects`: image number → its tags as recorded, joined by ";"."""
        images = [self.recorded[f"inputs.img_{index}"] for index in range(4)]
        tags = [objects.get(index, "").replace(";", " ") for index in range(4)]
        return region_text(TOKENIZER, images, tags, InputLimits(self.length, self.regions, use_tags))

    def assert_recorded(self, recorded: Mapping[str, np.ndarray], key: str, side: int | None, example: Example) -> None:
        """Tokens, segments, both halves of the mask and, where recorded, regions."""

        def of(name: str) -> np.ndarray:
            tensor = recorded[f"{key}.{name}"]
            return tensor if side is None else tensor[side]

        np.testing.assert_array_equal(padded(example.input_ids, self.length), of("input_ids"))
        np.testing.assert_array_equal(padded(example.token_type_ids, self.length), of("segment_ids"))
        text_mask, region_mask = np.split(of("input_mask"), [self.length])
        np.testing.assert_array_equal(padded(np.ones(len(example.input_ids)), self.length), text_mask)
        np.testing.assert_array_equal(padded(np.ones(len(example.regions.rows())), self.regions), region_mask)
        if f"{key}.img_feat" in recorded:
            rows, padding = np.split(of("img_feat"), [len(example.regions.rows())])
            np.testing.assert_array_equal(example.regions.rows(), rows)
            assert not padding.any()

    @pytest.mark.parametrize("case", VQA["vqa"], ids=lambda case: f"{case['i']}-{case['with_tags']}")
    def test_vqa(self, case: Mapping[str, Any]) -> None:
        assert (VQA["max_seq_length"], VQA["max_img_seq_length"]) == (self.length, self.regions)
        recorded = golden.arrays("oscar/data__vqa")
        key = f"vqa.{case['i']}.{'tags' if case['with_tags'] else 'notags'}"
        question_id = int(recorded[f"{key}.q_id"][0])
        targets = AnswerTargets(
            tuple(f"answer {index}" for index in range(VQA["num_labels"])),
            np.array(case["labels"], dtype=np.int64),
            np.array(case["scores"], dtype=np.float32),
            np.array([0, len(case["labels"])]),
        )
        dataset = AnsweringDataset(
            encode_texts(TOKENIZER, [case["question"]]),
            np.array([case["i"]]),
            region_text=self.text_and_images({case["i"]: case["objects"] or ""}, use_tags=case["with_tags"]),
            targets=targets,
            records=cast(RecordTable, SimpleNamespace(row=lambda index: {"question_id": question_id})),
            scored=True,
        )
        example = dataset[Draw(0, 0)]
        self.assert_recorded(recorded, key, None, example)
        assert TOKENIZER.convert_ids_to_tokens(padded(example.input_ids, self.length).tolist()) == case["tokens"]
        labels = dataset.collate([example]).labels
        assert labels is not None
        np.testing.assert_array_equal(labels[0].numpy(), recorded[f"{key}.target_scores"])
        # The published code calls a question without any known answer by answer 0.
        assert [*example.label_ids.tolist(), 0][0] == recorded[f"{key}.label_first"][0]
        assert example.record["question_id"] == question_id

    @pytest.mark.parametrize("row", range(4))
    def test_gqa(self, row: int) -> None:
        cases = self.facts["gqa"]
        vocabulary = AnswerVocabulary(tuple(f"answer {index}" for index in range(self.facts["num_labels"])))
        # The published code trains an answer that it does not know as answer 0; here it has no target.
        answers = [f"answer {case['labels'][0]}" if case["labels"] else "(not in the vocabulary)" for case in cases]
        dataset = AnsweringDataset(
            encode_texts(TOKENIZER, [case["question"] for case in cases]),
            np.arange(4),
            region_text=self.text_and_images({case["i"]: case["objects"] for case in cases}, use_tags=True),
            targets=AnswerTargets.of_one_answer(Column.of(answers), vocabulary),
            records=None,  # type: ignore[arg-type]
            scored=False,
        )
        example = dataset[Draw(0, row)]
        self.assert_recorded(self.recorded, f"gqa.{row}", None, example)
        labels = example.label_ids.tolist()
        assert [*labels, 0][:1] == self.recorded[f"gqa.{row}.label"].tolist()
        assert example.label_scores.tolist() == [1.0] * len(labels)

    @pytest.mark.parametrize("case", facts["nlvr2"], ids=lambda case: f"{case['i']}-{case['with_tags']}")
    def test_nlvr2(self, case: dict[str, Any], tmp_path: Path) -> None:
        record = {
            "identifier": "dev-0-0-0", "sentence": case["statement"], "label": str(bool(case["label"])),
            "left_image_id": str(case["left_image"]), "right_image_id": str(case["right_image"]),
        }  # fmt: skip
        (tmp_path / "one.json").write_text(json.dumps(record) + "\n")
        records = read_nlvr2(tmp_path / "one.json")
        tokens = encode_texts(TOKENIZER, records["sentence"])
        images = records.image_ids.astype(np.int64)
        objects = {case["left_image"]: case["left_objects"], case["right_image"]: case["right_objects"]}
        texts = self.text_and_images(objects, use_tags=case["with_tags"])
        dataset = NLVR2Dataset(records, tokens, images, texts)
        key = f"nlvr2.{case['i']}.{'tags' if case['with_tags'] else 'notags'}"
        pair = dataset[Draw(0, 0)]
        for side, example in enumerate(pair):
            self.assert_recorded(self.recorded, key, side, example)
            assert example.label_ids.tolist() == self.recorded[f"{key}.label"].reshape(-1).tolist()
        batch = dataset.collate([pair])
        assert len(batch) == 2 and batch.labels is not None and batch.labels.tolist() == [case["label"]]
        assert batch.input_ids[1, : len(pair[1].input_ids)].tolist() == pair[1].input_ids.tolist()


CAPTIONS = golden.facts("oscar/data__caption_tensorizer")["meta"]["rows"]
CAPTION_TENSORS = golden.arrays("oscar/data__caption_tensorizer.io")
TRAINING_ROWS = [row for row in CAPTIONS if row["is_train"]]
TEST_ROWS = [row for row in CAPTIONS if not row["is_train"]]


def row_name(row: dict[str, Any]) -> str:
    return f"{row['mode']}-{row['i']}"


class PublishedDraws:
    """Python's random module in the order of the published calls: one shuffle, then draws word by word."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.random = random.Random(row["python_random_seed"])

    def order(self, caption_length: int) -> np.ndarray:
        """(caption_length,): at which turn each place is chosen; [CLS] never is."""
        places = list(range(1, caption_length))
        self.random.shuffle(places)
        order = np.full(caption_length, np.inf)
        order[places] = np.arange(len(places))
        return order

    def replacement(self, token: int, replacements: Replacements) -> int:
        """The second draw and the random word are made only where the published code makes them."""
        first = self.random.random()
        second = self.random.random() if first > 0.8 else 1.0
        word = self.random.randint(0, replacements.vocab_size) if first > 0.8 and second <= 0.5 else 0
        return int(replacements.of(*(np.array(one) for one in (token, first, second, word))))


@dataclass(frozen=True)
class CaptionCase:
    """A recorded row, and the settings it was made with."""

    row: dict[str, Any]

    def tensor(self, name: str) -> np.ndarray:
        return CAPTION_TENSORS[f"outputs.{self.row['mode']}.{self.row['i']}.{name}"]

    @property
    def limits(self) -> CaptionLimits:
        row = self.row
        return CaptionLimits(row["max_seq_a_length"], row["max_seq_length"], row["mask_prob"], row["max_masked_tokens"])

    def contexts(self, folder: Path) -> CaptionedImageDataset:
        row, image = self.row, CAPTION_TENSORS[f"inputs.img_{self.row['i']}"]
        limits = InputLimits(row["max_seq_length"], row["max_img_seq_length"], use_tags=row["tags"] is not None)
        line = {"image_id": 7, "captions": [row["caption"] or "(none)"]}
        (folder / "one.jsonl").write_text(json.dumps(line) + "\n")
        records = read_caption_jsonl(folder / "one.jsonl", "error")
        return CaptionedImageDataset(records, np.zeros(1, dtype=np.int64), self.texts(image, limits), self.limits)

    def texts(self, image: np.ndarray, limits: InputLimits) -> RegionText:
        return region_text(TOKENIZER, [image], [self.row["tags"] or ""], limits)

    def as_published(self, example: Example, name: str) -> np.ndarray:
        """A compact row's tokens or segments at their positions: the published padding put back."""
        assert example.position_ids is not None
        row = np.zeros(self.row["max_seq_length"], dtype=np.int64)
        row[example.position_ids] = getattr(example, name)
        return row

    def assert_recorded(self, example: Example) -> None:
        """Tokens, segments, regions, and who sees whom, with the published padding put back."""
        np.testing.assert_array_equal(self.as_published(example, "input_ids"), self.tensor("input_ids"))
        np.testing.assert_array_equal(self.as_published(example, "token_type_ids"), self.tensor("segment_ids"))
        tokens = TOKENIZER.convert_ids_to_tokens(self.as_published(example, "input_ids").tolist())
        assert tokens == self.row["tokens"]
        kept = len(example.regions.rows())
        assert kept == min(len(CAPTION_TENSORS[f"inputs.img_{self.row['i']}"]), self.row["max_img_seq_length"])
        if f"outputs.{row_name(self.row).replace('-', '.')}.img_feat" in CAPTION_TENSORS:
            rows, padding = np.split(self.tensor("img_feat"), [kept])
            np.testing.assert_array_equal(example.regions.rows(), rows)
            assert not padding.any()
        assert example.position_ids is not None
        places = np.concatenate([example.position_ids, self.row["max_seq_length"] + np.arange(kept)])
        ours = np.zeros((self.row["max_seq_length"] + self.row["max_img_seq_length"],) * 2)
        ours[np.ix_(places, places)] = caption_attention_mask(collate([example], pad_token_id=PAD))[0]
        np.testing.assert_array_equal(ours, self.tensor("attention_mask"))


@pytest.mark.parametrize("row", TRAINING_ROWS, ids=row_name)
def test_training_captions(row: dict[str, Any], tmp_path: Path) -> None:
    case, draws = CaptionCase(row), PublishedDraws(row)
    context = case.contexts(tmp_path).context(0)
    words = encode_texts(TOKENIZER, [row["caption"]])[0]
    caption = case.limits.caption(words, SPECIAL.cls_token_id, SPECIAL.sep_token_id)
    masked = choose_positions(case.limits, np.array([len(caption)]), draws.order(len(caption))[None])[0]
    hidden = caption[masked]
    replacements = Replacements(MASK, SPECIAL.unk_token_id, len(TOKENIZER))
    for position in np.flatnonzero(masked).tolist():
        caption[position] = draws.replacement(int(caption[position]), replacements)
    example = with_caption(context, caption, {})

    case.assert_recorded(example)
    np.testing.assert_array_equal(np.flatnonzero(case.tensor("masked_pos")), np.flatnonzero(masked))
    recorded_ids = case.tensor("masked_ids")
    assert hidden.tolist() == recorded_ids[: len(hidden)].tolist()
    assert (recorded_ids[len(hidden) :] == PAD).all()
    assert example.position_ids is not None and len(set(example.position_ids.tolist())) == len(example.input_ids)


@pytest.mark.parametrize("row", TRAINING_ROWS, ids=row_name)
def test_a_dataset_hides_as_many_words_and_keeps_the_rest(row: dict[str, Any], tmp_path: Path) -> None:
    case = CaptionCase(row)
    dataset = CaptionDataset(
        case.contexts(tmp_path),
        encode_texts(TOKENIZER, [row["caption"]]),
        Replacements(MASK, SPECIAL.unk_token_id, len(TOKENIZER)),
        seed=3,
    )
    whole = case.tensor("input_ids").copy()
    hidden = np.flatnonzero(case.tensor("masked_pos"))
    whole[hidden] = case.tensor("masked_ids")[: len(hidden)]  # the published row before words were hidden
    seen = set()
    for epoch in range(30):
        example = dataset[Draw(epoch, 0)]
        np.testing.assert_array_equal(case.as_published(example, "input_ids"), whole)
        batch = dataset.collate([example])
        assert batch.masked_positions is not None and batch.labels is not None
        masked = batch.masked_positions[0].numpy()
        assert masked.sum() == len(hidden)
        seen.add(tuple(np.flatnonzero(masked).tolist()))
        assert batch.labels.tolist() == example.input_ids[masked].tolist()
        assert (batch.input_ids[0].numpy() == example.input_ids)[~masked].all()
    assert 0 not in {place for places in seen for place in places}  # [CLS] is never hidden
    length = len(dataset[Draw(0, 0)].input_ids) - int((case.tensor("segment_ids") == 1).sum())
    if length - 1 > len(hidden):
        assert len(seen) > 1  # another choice in another epoch
    assert {place for places in seen for place in places} >= {length - 1} or len(hidden) == 1  # [SEP] may be


@pytest.mark.parametrize("row", TEST_ROWS, ids=row_name)
def test_images_to_write_captions_for(row: dict[str, Any], tmp_path: Path) -> None:
    """The published row has places for the caption in front, all [MASK]; here there is nothing in front."""
    case = CaptionCase(row)
    example = case.contexts(tmp_path)[Draw(0, 0)]
    room = row["max_seq_a_length"]
    assert not case.as_published(example, "input_ids")[:room].any() and example.caption_length == 0
    places = np.array([SPECIAL.cls_token_id, *[MASK] * (room - 2), SPECIAL.sep_token_id])
    case.assert_recorded(with_caption(example, places, {}))
    assert (case.tensor("masked_pos") == 1).all()  # published: no hidden words, so all places are marked


def test_a_random_word_beyond_the_vocabulary_is_unknown() -> None:
    replacements = Replacements(MASK, SPECIAL.unk_token_id, vocab_size=148)
    draws = [(0.8, 0.0, 5), (0.81, 0.5, 5), (0.81, 0.5, 148), (0.81, 0.51, 5)]
    first, second, words = (np.array(one) for one in zip(*draws, strict=True))
    # The published comparisons: above 0.8, at most 0.5.
    assert replacements.of(np.full(4, 9), first, second, words).tolist() == [MASK, 5, SPECIAL.unk_token_id, 9]
