"""Retrieval data: texts and masks as published, mismatched pairs, captions in use, folds and blocks."""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from tests import golden
from tests.data.region_samples import image_regions, region_text
from tests.retrieval.samples import retrieval_data
from vinvl.captioning.files import read_caption_jsonl
from vinvl.data.batch import Batch, Example, collate
from vinvl.data.inputs import InputLimits
from vinvl.data.sampling import Draw
from vinvl.data.text import encode_texts
from vinvl.models.config import SpecialTokens
from vinvl.retrieval.data import (
    ATTENTION_TYPES,
    RetrievalPairs,
    attention_mask_of,
    blocks_of,
    caption_first,
    first_captions,
    folds_of,
    parts_of,
    segment_lengths,
    share_of,
)
from vinvl.run.errors import UserError

FACTS = golden.facts("oscar/data__retrieval_tensorize")["meta"]
TENSORS = golden.arrays("oscar/data__retrieval_tensorize.io")
MAX_TOKENS, MAX_REGIONS = FACTS["max_seq_length"], FACTS["max_img_seq_length"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    words = golden.facts("oscar/vocab")
    words = words["vocab"] if isinstance(words, dict) else words
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return BertTokenizerFast(str(path), do_lower_case=True)


def golden_example(tokenizer: BertTokenizerFast, number: int, tags: str) -> Example:
    encoded = encode_texts(tokenizer, [FACTS["captions"][number], FACTS["tags"][number] if tags == "tags" else ""])
    ids, types = caption_first(encoded[0], encoded[1], max_tokens=MAX_TOKENS, special=SpecialTokens.of(tokenizer))
    return Example(ids, types, image_regions(TENSORS[f"inputs.img_{number}"][:MAX_REGIONS]))


def published_form(examples: list[Example]) -> Batch:
    """The examples padded to the published fixed lengths."""
    longest = Example(
        np.zeros(MAX_TOKENS, dtype=np.int64),
        np.zeros(MAX_TOKENS, dtype=np.int64),
        image_regions(np.zeros((MAX_REGIONS, examples[0].regions.width), dtype=np.float32)),
    )
    return collate([*examples, longest], pad_token_id=0)


@pytest.mark.parametrize("tags", ["tags", "notags"])
def test_texts_and_masks_are_the_published_ones(tokenizer: BertTokenizerFast, tags: str) -> None:
    batch = published_form([golden_example(tokenizer, number, tags) for number in range(4)])
    for number in range(4):
        for name, found in (("input_ids", batch.input_ids), ("segment_ids", batch.token_type_ids)):
            np.testing.assert_array_equal(found[number], TENSORS[f"outputs.CLR.{number}.{tags}.{name}"])
    for attention_type, number in product(ATTENTION_TYPES, range(4)):
        mask = attention_mask_of(parts_of(batch), attention_type)[number]
        np.testing.assert_array_equal(mask, TENSORS[f"outputs.{attention_type}.{number}.{tags}.attention_mask"])


@pytest.mark.parametrize("pair", FACTS["train_pairs"], ids=lambda pair: pair["python_random_seed"])
def test_pairs_are_the_published_ones_for_the_negatives_that_were_drawn(
    tokenizer: BertTokenizerFast, pair: Mapping[str, Any], tmp_path: Path
) -> None:
    lines = [{"image_id": key, "captions": texts} for key, texts in FACTS["train_captions"].items()]
    records = read_caption_jsonl(write_lines(tmp_path / "train.jsonl", *lines))
    records = first_captions(records, FACTS["num_captions_per_img"])
    assert records.captions is not None
    tokens, tags = encode_texts(tokenizer, records.captions), [FACTS["train_tags"][line["image_id"]] for line in lines]
    images = [TENSORS[f"inputs.img_{number}"] for number in range(4)]
    text = region_text(tokenizer, images, tags, InputLimits(MAX_TOKENS, MAX_REGIONS))
    dataset = RetrievalPairs(records, tokens, np.arange(4), text, attention_type="CLR", seed=0)
    other = pair["neg_image_index"]
    wrong = int(dataset.offsets[other]) + pair["neg_caption_index"] if pair["negative_is_caption"] else None
    dataset.mismatch = lambda image, generator: (wrong, other)  # type: ignore[method-assign]
    matched, mismatched = dataset[Draw(0, pair["index"])]
    assert matched.label_ids.tolist() == [pair["pos_label"]] and mismatched.label_ids.tolist() == [pair["neg_label"]]

    def padded(values: np.ndarray) -> list[int]:
        return [*values.tolist(), *[0] * (MAX_TOKENS - len(values))]

    assert padded(matched.input_ids) == pair["pos_input_ids"]
    assert padded(mismatched.input_ids) == pair["neg_input_ids"]
    assert padded(mismatched.token_type_ids) == pair["neg_segment_ids"]
    assert mismatched.regions.rows().sum() == pytest.approx(pair["neg_feat_checksum"], rel=1e-5)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(3, 25))
def test_captions_come_first_and_nothing_exceeds_the_limit(caption: int, tags: int, limit: int) -> None:
    special = SpecialTokens(101, 102, 0, 103, 100)
    words, names = np.arange(200, 200 + caption), np.arange(300, 300 + tags)
    ids, types = caption_first(words, names, max_tokens=limit, special=special)
    first, second = segment_lengths(caption, tags, limit)
    assert len(ids) == len(types) == first + second <= limit
    assert first == min(caption + 2, limit) and (types == 0).sum() == first
    assert ids[1 : first - 1].tolist() == words[: limit - 2].tolist()
    assert ids[first:-1].tolist() == (names[: second - 1].tolist() if second else [*ids[first:-1]])
    assert (len(ids) == limit) == (caption + 2 >= limit or (tags > 0 and caption + tags + 3 >= limit))


@pytest.fixture(scope="module")
def pairs(demo_data: Path) -> RetrievalPairs:
    data = retrieval_data(demo_data)
    data.setup("fit")
    dataset = data.datasets["train"]
    assert isinstance(dataset, RetrievalPairs)
    return dataset


def test_half_of_the_mismatched_pairs_have_a_wrong_caption_and_half_a_wrong_image(pairs: RetrievalPairs) -> None:
    kinds: Counter[str] = Counter()
    others: Counter[int] = Counter()
    for epoch in range(10):
        for index in range(len(pairs)):
            image = int(pairs.image_of[index])
            caption, other = pairs.mismatch(image, Draw(epoch, index).generator(3))
            assert other != image
            assert caption is None or int(pairs.image_of[caption]) == other
            kinds["image" if caption is None else "caption"] += 1
            others[other] += 1
    total = 10 * len(pairs)
    assert abs(kinds["image"] / total - 0.5) < 4 * 0.5 / total**0.5
    expected = total / len(others)
    assert set(others) == set(range(len(pairs.images)))
    assert all(abs(count - expected) < 5 * expected**0.5 for count in others.values())


def test_a_pair_depends_on_seed_epoch_and_index_alone(pairs: RetrievalPairs) -> None:
    def ids(epoch: int) -> list[list[int]]:
        return [pairs[Draw(epoch, index)][1].input_ids.tolist() for index in (5, 17, 40)]

    assert ids(2) == ids(2)
    assert any(ids(2)[i] != ids(epoch)[i] for i in range(3) for epoch in range(3, 8))


def test_the_mismatched_pair_keeps_what_is_not_wrong(pairs: RetrievalPairs) -> None:
    items = [pairs[Draw(0, index)] for index in range(3)]
    batch = pairs.collate(items)
    assert batch.labels is not None and batch.labels.tolist() == [1, 1, 1, 0, 0, 0]
    for row, example in enumerate([*(first for first, _ in items), *(second for _, second in items)]):
        assert batch.input_ids[row, : len(example.input_ids)].tolist() == example.input_ids.tolist()
    for index in range(0, len(pairs), 7):
        matched, mismatched = pairs[Draw(0, index)]
        assert matched.label_ids.tolist() == [1] and mismatched.label_ids.tolist() == [0]
        wrong_image = mismatched.record["image"] != matched.record["image"]
        wrong_caption = mismatched.record["caption"] != matched.record["caption"]
        assert wrong_image != wrong_caption
        for example in (matched, mismatched):
            image = int(pairs.images[example.record["image"]])
            np.testing.assert_array_equal(example.regions.rows(), pairs.region_text.region_rows(image))
            assert pairs.region_text.tag_ids(image)[0] == example.input_ids[example.token_type_ids == 1][0]


def test_other_masks_say_who_sees_whom(demo_data: Path) -> None:
    data = retrieval_data(demo_data, attention_type="LR")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.attention_mask.shape[1:] == (batch.attention_mask.shape[-1],) * 2
    caption = (batch.token_type_ids[0] == 0) & batch.attention_mask[0].any(-1)[: batch.token_type_ids.shape[1]]
    assert not batch.attention_mask[0, 0, batch.token_type_ids.shape[1] :].any()  # [CLS] sees no region
    assert batch.attention_mask[0, 0].sum() == caption.sum()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.data())
def test_blocks_cover_every_image_of_every_fold_once(
    images: int, fold_size: int, block_size: int, world: int, data: st.DataObject
) -> None:
    counts = np.array(data.draw(st.lists(st.integers(1, 4), min_size=images, max_size=images)))
    order = np.random.default_rng(0).permutation(images)
    folds = folds_of(order, fold_size, np.insert(np.cumsum(counts), 0, 0))
    size = min(fold_size, images)
    assert [len(fold.images) for fold in folds] == [size] * (images // size)
    assert np.concatenate([fold.images for fold in folds]).tolist() == order[: size * (images // size)].tolist()
    for fold in folds:
        assert fold.images[fold.owner].tolist() == np.repeat(np.arange(images), counts)[fold.captions].tolist()
        assert len(fold.captions) == counts[fold.images].sum() and (np.diff(fold.owner) >= 0).all()
    blocks = blocks_of(folds, block_size)
    covered = [(block.fold, image) for block in blocks for image in range(block.start, block.stop)]
    assert covered == [(number, image) for number in range(len(folds)) for image in range(size)]
    finished = frozenset(data.draw(st.lists(st.integers(0, len(blocks) - 1), max_size=len(blocks))))
    shares = [share_of(rank, world, len(blocks), finished) for rank in range(world)]
    assert all(shares)
    assert sorted(number for share in shares for number in share if number >= 0) == list(range(len(blocks)))
    pending = [sum(number >= 0 and number not in finished for number in share) for share in shares]
    assert max(pending) - min(pending) <= 1


def test_only_the_first_captions_are_used(demo_data: Path) -> None:
    whole, data = retrieval_data(demo_data), retrieval_data(demo_data, captions_per_image=2)
    for one in (whole, data):
        one.setup("test")
    all_of_them, candidates = whole.candidates("test").records, data.candidates("test")
    assert np.diff(candidates.offsets).tolist() == [2] * len(candidates)
    assert len(candidates.records.caption_ids) == len(candidates.tokens) == 2 * len(candidates)
    for image in range(len(candidates)):
        assert candidates.records.captions_of(image) == all_of_them.captions_of(image)[:2]


def test_validation_is_a_sample_that_the_seed_draws(demo_data: Path) -> None:
    def drawn(seed: int) -> list[int]:
        data = retrieval_data(demo_data, seed=seed, val_images=4, val_fold_images=2)
        data.setup("fit")
        return [image for fold in data.folds("val") for image in fold.images.tolist()]

    assert drawn(3) == drawn(3) and len(set(drawn(3))) == 4
    assert any(drawn(3) != drawn(seed) for seed in (4, 5, 6))
    data = retrieval_data(demo_data, test_candidates=4)
    with pytest.warns(UserWarning, match="the last 2 of 6 images"):
        data.setup("test")
        folds = data.folds("test")
    assert [fold.images.tolist() for fold in folds] == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test_candidates": "5k"}, "asks for 5,000 images, and split 'test' gives 6: pass data.test_candidates=all"),
        ({"test_candidates": "many"}, "give 1k, 5k, all or a number of images"),
        ({"attention_type": "RL"}, "pass one of CLR, CL, CR, LR"),
        ({"block_images": 0}, "data.block_images is 0"),
        ({"max_tokens": 2}, "data.max_tokens is 2"),
        ({"test_split": "nowhere"}, "There is no split 'nowhere'"),
    ],
)
def test_settings_that_cannot_be_are_refused(demo_data: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        data = retrieval_data(demo_data, **changes)
        data.setup("test")
        data.folds("test")


def write_lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_splits_without_captions_or_of_another_form_are_refused(demo_data: Path, tmp_path: Path) -> None:
    image_id = json.loads((demo_data / "demo" / "dataset_demo.json").read_text())["images"][0]["cocoid"]
    file = write_lines(tmp_path / "own.jsonl", {"image_id": image_id})
    data = retrieval_data(demo_data, splits={"test": {"jsonl": file}})
    with pytest.raises(UserError, match=r"own\.jsonl line 1 .* has no captions, like all of its split"):
        data.setup("test")
    one = write_lines(tmp_path / "one.jsonl", {"image_id": image_id, "captions": ["a cat"]})
    data = retrieval_data(demo_data, splits={"train": {"jsonl": one}, "val": {"jsonl": one}})
    with pytest.raises(UserError, match="retrieval needs two"):
        data.setup("fit")
