"""Captioning's items, batches, settings and constraints, below the doors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from tests.data.test_text import golden_tokenizer
from tests.door_in_process import CAPTIONING, composed
from tests.regions.samples import LABELS, make_regions, write
from vinvl.captioning.constraints import ConstraintOptions, DetectedConstraints
from vinvl.captioning.data import CaptioningDataModule
from vinvl.captioning.task import CaptioningTask, as_number, caption_attention_mask
from vinvl.data.batch import Batch
from vinvl.models.decoding import DecodingOptions
from vinvl.regions import LabelMap, RegionStore, RegionStoreWriter
from vinvl.run import door
from vinvl.run.errors import UserError
from vinvl.task import VinVLTask

MASK = "[MASK]"


def made(demo_data: Path, folder: Path, *overrides: str) -> tuple[CaptioningTask, CaptioningDataModule]:
    """Task and data of a configuration, as `vinvl.train` makes them."""
    with composed("train", demo_data, folder / "unused", *CAPTIONING, *overrides) as config:
        datamodule = instantiate(config.data)
        datamodule.prepare_data()
        datamodule.setup("fit")
        return door.made(VinVLTask, config.task, "task", datamodule=datamodule), datamodule


def two_epochs(demo_data: Path, folder: Path, workers: int) -> list[Batch]:
    """The batches of two epochs in their order."""
    _, datamodule = made(demo_data, folder, f"data.num_workers={workers}")
    loader: Any = datamodule.train_dataloader()
    first = list(loader)
    return first + list(loader)


def hidden_places(batches: list[Batch]) -> dict[int, tuple[int, ...]]:
    """Caption → its hidden places."""
    found = {}
    for batch in batches:
        assert batch.masked_positions is not None
        for record, row in zip(batch.records, batch.masked_positions, strict=True):
            found[record["caption_index"]] = tuple(row.nonzero().flatten().tolist())
    return found


def test_batches_do_not_depend_on_workers_and_epochs_hide_other_words(demo_data: Path, tmp_path: Path) -> None:
    alone, together = two_epochs(demo_data, tmp_path, 0), two_epochs(demo_data, tmp_path, 2)
    assert len(alone) == len(together) == 16
    for one, other in zip(alone, together, strict=True):
        assert one.records == other.records
        for name in ("input_ids", "labels", "masked_positions", "position_ids", "caption_lengths", "region_features"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    first, second = hidden_places(alone[:8]), hidden_places(alone[8:])
    assert first.keys() == second.keys() == set(range(120))  # every caption once an epoch
    assert sum(first[caption] == second[caption] for caption in first) < 60


def test_labels_follow_the_masked_positions_of_a_padded_batch(demo_data: Path, tmp_path: Path) -> None:
    """With the hidden words put back every row reads as its caption."""
    _, datamodule = made(demo_data, tmp_path, "data.num_workers=0")
    dataset: Any = datamodule.datasets["train"]
    captions = dataset.records.captions
    for batch in list(datamodule.train_dataloader()):
        assert batch.labels is not None and batch.masked_positions is not None and batch.caption_lengths is not None
        assert int(batch.masked_positions.sum()) == len(batch.labels)
        ids = batch.input_ids.clone()
        ids[batch.masked_positions] = batch.labels
        for row, length, record in zip(ids, batch.caption_lengths.tolist(), batch.records, strict=True):
            assert datamodule.tokenizer.decode(row[1 : length - 1]) == captions[record["caption_index"]].lower()


def test_padding_and_other_captions_are_seen_by_nobody(demo_data: Path, tmp_path: Path) -> None:
    _, datamodule = made(demo_data, tmp_path, "data.num_workers=0")
    batch = next(iter(datamodule.train_dataloader()))
    mask = caption_attention_mask(batch)
    exists = batch.attention_mask
    assert torch.equal(mask.any(dim=1), exists) and torch.equal(mask.any(dim=2), exists)
    assert not mask[~exists].any()


@pytest.mark.parametrize(("max_length", "first"), [(20, 40), (40, 40), (60, 60)])
def test_tags_stand_after_the_longest_caption_there_may_be(
    demo_data: Path, tmp_path: Path, max_length: int, first: int
) -> None:
    task, datamodule = made(demo_data, tmp_path, f"decoding.max_length={max_length}", "data.num_workers=0")
    batch = next(iter(datamodule.val_dataloader()))
    context = task.context(batch)
    assert context.tag_position_ids[0, 0] == first  # published: max(40, max_length)
    assert (context.tag_position_ids.diff(dim=1)[:, :2] == 1).all()
    assert torch.equal(context.mask, batch.attention_mask)
    training = next(iter(datamodule.train_dataloader()))
    rows = torch.arange(len(training))
    assert (training.position_ids[rows, training.caption_lengths] == 40).all()  # where the tags begin


def test_evaluations_during_training_search_with_beams_of_their_own(demo_data: Path, tmp_path: Path) -> None:
    given = ["decoding=constrained", "decoding.length_penalty=0.5", "task.options.validation_beams=3"]
    task, _ = made(demo_data, tmp_path, *given)
    assert task.search == DecodingOptions(num_beams=2, length_penalty=0.5)
    assert task.validation_search == replace(task.search, num_beams=3)
    assert task.constraint_options == ConstraintOptions()


def test_only_what_is_asked_for_is_trained(demo_data: Path, tmp_path: Path) -> None:
    free, _ = made(demo_data, tmp_path)
    frozen, _ = made(demo_data, tmp_path, "task.options.freeze_embedding=true")
    words = "bert.embeddings.word_embeddings.weight"
    for task, fixed in ((free, set()), (frozen, {words})):
        still = {name for name, weight in task.model.named_parameters() if not weight.requires_grad}
        assert still == fixed | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
        assert task.model.cls.predictions.decoder.weight is task.model.bert.embeddings.word_embeddings.weight


def test_references_are_rewarded_as_the_model_would_write_them(demo_data: Path, tmp_path: Path) -> None:
    task, _ = made(demo_data, tmp_path)
    written = task._as_written({"7": ["A red STAR ,  twice.", "one circle"], "8": ["two circles"]})
    texts = task.texts(torch.tensor([task.tokenizer("A red star, twice.")["input_ids"]]))
    assert written["7"][0] == texts[0] == texts[0].lower()
    assert written["7"][1] == "one circle" and written["8"] == ["two circles"]


class TestDetectedConstraints:
    TOKENIZER = golden_tokenizer()
    CLASSES = LabelMap(("__background__", "umbrella", "dog", "zyxqqv", "street car", "Tree"), ("none",))

    def store(self, path: Path, **images: list[tuple[int, float]]) -> RegionStore:
        """Images of (class, score) detections whose boxes do not overlap."""
        with RegionStoreWriter(path, feature_dim=3, detector="d", label_map=self.CLASSES, num_attributes=0) as writer:
            for image_id, found in images.items():
                regions = make_regions(image_id, len(found))
                regions.classes[:], regions.class_scores[:] = zip(*found, strict=True)
                left = 5.0 * np.arange(len(found))
                regions.boxes[:] = np.stack([left, left, left + 4, left + 4], axis=1)
                writer.add(regions)
        return RegionStore(path)

    def names(self, store: RegionStore, image_id: str, max_length: int = 20, **options: Any) -> tuple[list[str], int]:
        """The constraints of an image and how many were left out."""
        found = DetectedConstraints(ConstraintOptions(**options), None, self.TOKENIZER, max_length)
        return [constraint.name for constraint in found([image_id], store)[0]], found.dropped

    def test_the_surest_first_without_background_and_generic_classes(self, tmp_path: Path) -> None:
        store = self.store(tmp_path / "s.h5", a=[(0, 0.99), (2, 0.5), (1, 0.9), (5, 0.95), (2, 0.8)])
        assert self.names(store, "a") == (["umbrella", "dog"], 0)  # a tree is too generic
        assert self.names(store, "a", excluded=self.written(tmp_path, ["Dog"])) == (["tree", "umbrella"], 0)
        assert self.names(store, "a", max_constraints=1) == (["umbrella"], 0)
        assert self.names(store, "a", min_score=0.85) == (["umbrella"], 0)
        assert self.names(store, "a", synonyms=self.written(tmp_path, {"Dog": "cat"})) == (["umbrella", "cat"], 0)

    def written(self, folder: Path, content: Any) -> str:
        path = folder / f"{len(list(folder.iterdir()))}.json"
        path.write_text(json.dumps(content))
        return str(path)

    def test_one_that_has_no_room_leaves_it_to_the_next(self, tmp_path: Path) -> None:
        store = self.store(tmp_path / "s.h5", a=[(3, 0.9), (2, 0.8), (4, 0.7)])
        length = len(self.TOKENIZER("zyxqqv", add_special_tokens=False)["input_ids"])
        assert length > 3
        assert self.names(store, "a", max_length=20) == (["zyxqqv", "dog", "street car"], 0)
        assert self.names(store, "a", max_length=length + 1) == (["zyxqqv"], 2)
        assert self.names(store, "a", max_length=length) == (["dog", "street car"], 1)
        assert self.names(store, "a", max_length=2) == (["dog"], 2)

    def test_forms_of_a_word_will_do(self, tmp_path: Path) -> None:
        store = self.store(tmp_path / "s.h5", a=[(2, 0.9)])
        options = ConstraintOptions(word_forms=self.written(tmp_path, {"dog": ["dogs", "cat", "zyxqqv"]}))
        ((constraint,),) = DetectedConstraints(options, None, self.TOKENIZER, 20)(["a"], store)
        single = [word for word in ("dog", "dogs", "cat") if len(self.TOKENIZER.tokenize(word)) == 1]
        assert list(constraint.steps[0]) == self.TOKENIZER.convert_tokens_to_ids(single)

    def test_another_detectors_store_and_images_it_has_not(self, tmp_path: Path) -> None:
        other = self.store(tmp_path / "other.h5", a=[(1, 0.9)])
        own = RegionStore(write(tmp_path / "own.h5", [make_regions("a", 2), make_regions("b", 2)]))
        assert own.label_map == LABELS
        found = DetectedConstraints(ConstraintOptions(regions=str(tmp_path / "other.h5")), None, self.TOKENIZER, 20)
        assert [[one.name for one in image] for image in found(["b", "a", "b"], own)] == [[], ["umbrella"], []]
        assert (found.dropped, found.without_regions) == (0, 2)
        told = found.describe_losses(0, 2)
        assert told is not None and told.startswith("2 images are not in") and other.image_ids[0] == "a"
        assert found.describe_losses(0, 0) is None
        assert found.describe_losses(3, 0) == "3 constraints had no room within decoding.max_length=20"

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("hierarchy", ["dog"]),
            ("hierarchy", {"dog": 3}),
            ("synonyms", "dog"),
            ("synonyms", {"dog": ["cat"]}),
            ("word_forms", ["dog"]),
            ("word_forms", {"dog": "dogs"}),  # one text is no list, though it can be gone through letter by letter
            ("word_forms", {"dog": [1]}),
            ("excluded", {"dog": "cat"}),
            ("excluded", ["dog", 3]),
        ],
    )
    def test_files_in_another_form(self, tmp_path: Path, name: str, content: Any) -> None:
        store = self.store(tmp_path / "s.h5", a=[(1, 0.9)])
        options = {name: self.written(tmp_path, content)}
        with pytest.raises(UserError, match=r"\.json holds no JSON (object of|list of names)"):
            self.names(store, "a", **options)

    def test_a_circle_of_classes(self, tmp_path: Path) -> None:
        store = self.store(tmp_path / "s.h5", a=[(1, 0.9), (2, 0.8)])
        options = {"hierarchy": self.written(tmp_path, {"Dog": "Umbrella", "umbrella": "dog"})}
        with pytest.raises(UserError, match="goes in a circle"):
            self.names(store, "a", **options)


@pytest.mark.parametrize(
    ("image_id", "number"),
    [("391895", 391895), ("000042", "000042"), ("COCO_val2014_1", "COCO_val2014_1"), ("٣", "٣"), ("1²", "1²")],
)
def test_ids_in_the_result_file_are_numbers_where_they_are_written_so(image_id: str, number: int | str) -> None:
    assert as_number(image_id) == number
