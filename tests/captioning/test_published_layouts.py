"""Rows of the published captioning folders as our data module gives them, against those that Oscar made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertTokenizer

from tests import golden
from vinvl.captioning.data import CaptionDataset, CaptioningDataModule
from vinvl.captioning.task import caption_attention_mask
from vinvl.data.batch import Example
from vinvl.data.sampling import Draw

REPLICA = golden.FOLDER / "published/replica"
FOLDERS = {"coco_caption": REPLICA / "coco_caption", "nocaps": REPLICA / "nocaps"}
FACTS = {name: golden.facts(f"published/expected/{name}") for name in FOLDERS}
ARRAYS = {name: golden.arrays(f"published/expected/{name}") for name in FOLDERS}
CAPTION = FACTS["coco_caption"]
TESTED = ("input_ids", "segment_ids", "attention_mask.packed", "masked_pos")
MASK = 4


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stores are made on first use, beside the tokenizer."""
    folder = tmp_path_factory.mktemp("stores")
    BertTokenizer(str(REPLICA / "vocabulary/vocab.txt"), do_lower_case=True).save_pretrained(folder / "words")
    return folder


def data_module(stores: Path, folder: str, split: str, **limits: int) -> CaptioningDataModule:
    """With `split` read for predictions, and the training split of COCO for training."""
    names = {"train": FOLDERS["coco_caption"], split: FOLDERS[folder]}
    return CaptioningDataModule(
        splits={name: {"published": str(path / f"{name}.yaml")} for name, path in names.items()},
        regions=None,
        stores={
            name: {
                "from": str(path / f"{name}.feature.tsv"),
                "to": str(stores / f"{path.name}_{name}.h5"),
                "sizes": str(path / f"{name}.hw.tsv"),
                "workers": 1,
            }
            for name, path in names.items()
        },
        tags={name: str(path / f"{name}.label.tsv") for name, path in names.items()},
        tokenizer=str(stores / "words"),
        train_split="train", val_split=split, test_split=split, predict_split=split,
        use_tags=True, use_regions=True, on_missing="error", on_missing_captions="error",
        batch_size=2, eval_batch_size=2, num_workers=0, pin_memory=False, seed=1, prepare=None,
        training_items="captions", mask_probability=0.15, max_masked_tokens=3, **limits,
    )  # fmt: skip


def limits_of(recorded: Mapping[str, Any]) -> dict[str, int]:
    return {
        "max_regions": recorded["max_img_seq_length"],
        "max_tokens": recorded["max_seq_length"],
        "max_caption_tokens": recorded["max_seq_a_length"],
    }


def placed(example: Example, name: str, places: np.ndarray, length: int) -> np.ndarray:
    row = np.zeros(length, dtype=np.int64)
    row[places] = getattr(example, name)
    return row


def mask_of(module: CaptioningDataModule, example: Example, places: np.ndarray, text: int, regions: int) -> np.ndarray:
    """(text + regions, text + regions) bool, with the published padding put back."""
    batch = module.datasets["predict"].collate([example])
    everywhere = np.concatenate([places, text + np.arange(len(example.regions))])
    mask = np.zeros((text + regions,) * 2, dtype=bool)
    mask[np.ix_(everywhere, everywhere)] = caption_attention_mask(batch)[0].numpy()
    return mask


def unpacked(packed: np.ndarray, width: int) -> np.ndarray:
    return np.unpackbits(packed, axis=-1, count=width).astype(bool)


def assert_regions(example: Example, arrays: Mapping[str, np.ndarray], image_id: str, limit: int) -> None:
    rows, features = example.regions.rows(), arrays[f"features.{image_id}"]
    assert len(rows) == min(len(features), limit)
    np.testing.assert_array_equal(rows[:, :-6], features[: len(rows)].astype(np.float32))
    np.testing.assert_allclose(rows[:, -6:], arrays[f"geometry.{image_id}"][: len(rows)], atol=1e-6)


@pytest.mark.parametrize("setting", ["published", "short"])
def test_training_rows(stores: Path, setting: str) -> None:
    recorded, arrays = CAPTION["datasets"][f"{setting}.train"], ARRAYS["coco_caption"]
    limits = limits_of(recorded)
    text, regions = limits["max_tokens"], limits["max_regions"]
    module = data_module(stores, "coco_caption", "test", **limits)
    module.setup("predict")
    module.setup("fit")
    dataset = module.datasets["train"]
    assert isinstance(dataset, CaptionDataset) and len(dataset) == recorded["length"] == len(recorded["rows"])
    for image, image_id in enumerate(recorded["image_keys"]):
        tags = dataset.contexts.region_text.tags.text(int(dataset.contexts.images[image]), regions)
        assert tags.replace(", ", " ") == recorded["tags"][image_id]
    captions, owners = list(dataset.records.captions or ()), dataset.records.caption_image
    ours = {
        (dataset.records["image_id"][owner], text): row
        for row, (owner, text) in enumerate(zip(owners, captions, strict=True))
    }
    for row, (image_id, caption) in enumerate(recorded["rows"]):  # in the order of the caption file; ours go by images
        example = dataset[Draw(0, ours[image_id, caption])]
        assert example.position_ids is not None
        for own, name in (("input_ids", "input_ids"), ("token_type_ids", "segment_ids")):
            expected = arrays[f"{setting}.train.{row}.unmasked.{name}"]
            np.testing.assert_array_equal(placed(example, own, example.position_ids, text), expected)
        expected = unpacked(arrays[f"{setting}.train.{row}.unmasked.attention_mask.packed"], text + regions)
        np.testing.assert_array_equal(mask_of(module, example, example.position_ids, text, regions), expected)
        assert_regions(example, arrays, image_id, regions)
        assert example.record["image_id"] == image_id


def assert_to_write(
    module: CaptioningDataModule,
    row: int,
    image_id: str,
    arrays: Mapping[str, np.ndarray],
    key: str,
    room: int,
    regions: int,
) -> None:
    """A row of an image to write a caption for; the published one has `room` places for it, all [MASK], in front."""
    dataset: Any = module.datasets["predict"]
    example: Example = dataset[Draw(0, row)]
    ids, segments, packed, masked = (arrays[f"{key}.{name}"] for name in TESTED)
    assert example.position_ids is not None and example.record["image_id"] == image_id
    places = example.position_ids - module.caption_limits.max_caption_tokens + room
    assert example.position_ids.tolist() == list(range(40 if room == 20 else room, 40 + len(places)))[: len(places)]
    shown = placed(example, "input_ids", places, len(ids))
    shown[:room] = ids[:room]  # ours has no caption yet
    np.testing.assert_array_equal(shown, ids)
    assert set(ids[1 : room - 1]) <= {MASK} and masked[:room].sum() == room
    np.testing.assert_array_equal(placed(example, "token_type_ids", places, len(ids)), segments)
    mask = mask_of(module, example, places, len(ids), regions)
    expected = unpacked(packed, len(mask))
    np.testing.assert_array_equal(mask[room:, room:], expected[room:, room:])
    caption, context = expected[:room, :room], expected[:room, room:]
    assert (caption == np.tri(room, dtype=bool)).all() and not expected[room:, :room].any()
    assert (context == mask[room:, room:].any(axis=0)).all()  # a caption sees whatever tags and regions there are
    assert_regions(example, arrays, image_id, regions)


@pytest.mark.parametrize("name", [name for name in CAPTION["datasets"] if not name.endswith("train")])
def test_rows_to_write_captions_for(stores: Path, name: str) -> None:
    recorded, (setting, split) = CAPTION["datasets"][name], name.split(".")
    limits = limits_of(recorded)
    module = data_module(stores, "coco_caption", split, **limits)
    module.setup("predict")
    assert [[image_id, ""] for image_id in recorded["image_keys"]] == recorded["rows"]
    assert len(module.datasets["predict"]) == recorded["length"]
    for row, image_id in enumerate(recorded["image_keys"]):
        key = f"{setting}.{split}.{row}.test"
        room, regions = limits["max_caption_tokens"], limits["max_regions"]
        assert_to_write(module, row, image_id, ARRAYS["coco_caption"], key, room, regions)
        tags = module.region_text.tags.text(row, regions).replace(", ", " ")
        assert tags == recorded["tags"][image_id]


@pytest.mark.parametrize(("folder", "split"), [("coco_caption", "test"), ("nocaps", "val")])
def test_rows_as_they_are_decoded(stores: Path, folder: str, split: str) -> None:
    """20 places for the caption and 30 for tags, which are numbered from 40 on as in training."""
    decoding, restored = CAPTION["inference"], CAPTION["restored_for_test"]
    trained = CAPTION["datasets"]["published.train"]
    module = data_module(stores, folder, split, **limits_of(trained))
    module.setup("predict")
    room = decoding["max_seq_a_length_of_the_dataset"]
    assert restored["max_seq_a_length"] == decoding["od_labels_start_posid"] == trained["max_seq_a_length"]
    assert restored["max_seq_length"] == decoding["max_seq_length"] == room + 30
    dataset: Any = module.datasets["predict"]
    for row, image_id in enumerate(dataset.records.image_ids.tolist()):
        key = f"inference.test.{row}" if folder == "coco_caption" else image_id
        assert_to_write(module, row, image_id, ARRAYS[folder], key, room, trained["max_img_seq_length"])
        if folder == "nocaps":
            tags = module.region_text.tags.text(row, 50).replace(", ", " ")
            assert tags == FACTS["nocaps"]["images"][image_id]["tags"]
