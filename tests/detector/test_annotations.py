"""The file that all annotations are brought into: written, read through a memory map, and refused where damaged."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from tests.data.reader_checks import BROKEN_FILES, refusal
from tests.detector.coco_samples import write as write_coco
from vinvl.data.table import ABOUT, DIGEST, batch_digest
from vinvl.detector.annotations import BATCH, AnnotatedPicture, open_annotations, write_annotations
from vinvl.detector.instances import InstanceOptions, read_instances
from vinvl.detector.records import SCHEMA
from vinvl.regions.regions import LabelMap

NAMES = LabelMap(("__background__", "cat", "dog"), ("__no_attribute__", "black", "small"))


def pictures(number: int = 3) -> Iterator[AnnotatedPicture]:
    """Pictures of 0, 1, 2, … objects."""
    for index in range(number):
        objects = index % 5
        boxes = np.array([[place, 1.5, place + 2.25, 20] for place in range(objects)], np.float32).reshape(-1, 4)
        labels = np.array([1 + place % 2 for place in range(objects)], np.int32)
        crowd = np.array([place == 1 for place in range(objects)], bool)
        named = [[2, 1] if place == 0 else [] for place in range(objects)]
        yield AnnotatedPicture(f"id {index}", f"sub/{index}.jpg", 30, 20 + index, boxes, labels, crowd, named)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, many = tmp_path / "set.arrow", 2 * BATCH + 7
    assert write_annotations(path, pictures(many), NAMES, "a test") == many
    found, labels = open_annotations(path)
    assert labels == NAMES and len(found) == many and found.source(0) == str(path)
    for index, one in enumerate(pictures(many)):
        if index % 1000 < 6 or index > many - 6:
            assert (found["image_id"][index], found["file_name"][index]) == (one.image_id, one.file_name)
            objects = found.objects(index)
            assert objects.boxes.tolist() == one.boxes.tolist() and objects.labels.tolist() == one.labels.tolist()
            assert objects.crowd.tolist() == one.crowd.tolist()
            assert [[number for number in row if number] for row in objects.attributes.tolist()] == one.attributes
    assert found.sizes[[0, many - 1]].tolist() == [[30, 20], [30, 19 + many]]
    assert found.counts()[:5].tolist() == [0, 1, 1, 2, 3]  # the second of each is a crowd
    assert [path.name for path in tmp_path.iterdir()] == ["set.arrow"]


def test_the_table_of_coco_has_the_same_columns(tmp_path: Path) -> None:
    annotations, folder = write_coco(tmp_path)
    table = read_instances(annotations, folder, None, InstanceOptions())[0].table
    assert table.select(SCHEMA.names).schema.equals(SCHEMA)


def test_a_mapped_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "set.arrow"
    write_annotations(path, pictures(4 * BATCH), NAMES, "a test")
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    found, _ = open_annotations(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 10_000
    assert held < path.stat().st_size / 20 and peak < path.stat().st_size, (held, peak)
    assert found.objects(9).boxes.shape == (4, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": "id 0"}, "has the picture 'id 0' twice"),
        ({"image_id": " "}, "the id of a picture is ' '"),
        ({"file_name": "\ud800"}, "half of a surrogate pair"),
        ({"file_name": "a/../../b"}, "leads out of the folder"),
        ({"file_name": "/etc/passwd"}, "leads out of the folder"),
        ({"file_name": ""}, "leads out of the folder of pictures, or none"),
        ({"width": 0}, "has no width"),
        ({"boxes": np.array([[0, 0, 31, 5]])}, "not x1 y1 x2 y2 within"),
        ({"boxes": np.array([[0, 0, 5, np.nan]])}, "not x1 y1 x2 y2 within"),
        ({"boxes": np.array([[-1, 0, 5, 5]])}, "not x1 y1 x2 y2 within"),
        ({"boxes": np.array([[6, 0, 5, 5]])}, "not x1 y1 x2 y2 within"),
        ({"labels": np.array([0])}, "a class beyond the 2 of"),
        ({"labels": np.array([3])}, "a class beyond the 2 of"),
        ({"attributes": [[1, 3]]}, "an attribute beyond the 2 of"),
        ({"attributes": [[0]]}, "an attribute beyond the 2 of"),
    ],
)
def test_pictures_that_cannot_be_used_are_not_written(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    given = list(pictures())
    given[1] = given[1]._replace(**change)
    sentence = refusal(write_annotations, tmp_path / "set.arrow", given, NAMES, "made.json")
    assert words in sentence and sentence.startswith("made.json"), sentence
    assert "'id 1'" in sentence or "image_id" in change
    assert list(tmp_path.iterdir()) == []


def test_attributes_need_names_and_a_file_needs_pictures(tmp_path: Path) -> None:
    nameless = LabelMap(NAMES.classes, ())
    assert "beyond the 0 of" in refusal(write_annotations, tmp_path / "set.arrow", pictures(), nameless, "made.json")
    assert "holds no pictures" in refusal(write_annotations, tmp_path / "set.arrow", [], NAMES, "made.json")
    with pytest.raises(ValueError, match="unequal"):
        write_annotations(tmp_path / "set.arrow", [next(pictures())._replace(attributes=[[]])], NAMES, "made.json")
    assert list(tmp_path.iterdir()) == []


def test_boxes_in_shares_of_the_picture_are_refused(tmp_path: Path) -> None:
    given = [one._replace(boxes=one.boxes / 1e3) for one in pictures(20)]
    sentence = refusal(write_annotations, tmp_path / "set.arrow", given, NAMES, "made.json")
    assert sentence.startswith("made.json: no box of the picture 'id 1' reaches beyond pixel 1 (16 of 16 are so)")
    write_annotations(
        tmp_path / "set.arrow", [given[1]._replace(image_id="other"), *pictures(800)], NAMES, "made.json"
    )  # one is no matter
    assert len(open_annotations(tmp_path / "set.arrow")[0]) == 801


def column(batch: pa.RecordBatch, name: str, values: Any) -> pa.RecordBatch:
    """The batch with other values in one column."""
    index = batch.schema.get_field_index(name)
    return batch.set_column(index, batch.schema.field(index), pa.array(values, batch.schema.field(index).type))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("width", [30, 30, None], "empty places"),
        ("boxes", [[], [1, 2, 3], [0] * 8], "boxes of another number than labels"),
        ("boxes", [[], [0, 0, float("inf"), 5], [0] * 8], "picture 2 of a batch has a box"),
        ("boxes", [[], [0, 0, None, 5], [0] * 8], "empty places"),
        ("crowd", [[], [], [True] * 2], "crowd of another number"),
        ("labels", [[], [1], [2, 7]], "picture 3 of a batch has a class beyond"),
        ("attributes", [[], [[-1]], [[], []]], "an attribute beyond"),
        ("file_name", ["a", "../b", "c"], "leads out of"),
        ("height", [20, -1, 5], "picture 2 of a batch has no width or no height"),
    ],
)
def test_files_that_others_made_are_checked(tmp_path: Path, name: str, values: Any, words: str) -> None:
    path = tmp_path / "set.arrow"
    write_annotations(path, pictures(), NAMES, "a test")
    with ipc.open_file(str(path)) as reader:
        schema, batch = reader.schema, column(reader.get_batch(0), name, values)
    about = schema.metadata[ABOUT]
    with ipc.new_file(str(path), schema) as writer:
        writer.write_batch(batch, custom_metadata={DIGEST: batch_digest(batch, about)})
    sentence = refusal(open_annotations, path)
    assert words in sentence and sentence.startswith(str(path)), sentence


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.arrow"
    for content, _ in BROKEN_FILES:
        path.write_bytes(content)
        assert "no file of annotations" in refusal(open_annotations, path)
    assert "does not exist" in refusal(open_annotations, tmp_path / "none.arrow")
    batch = pa.record_batch({"image_id": ["a"]})
    for metadata, words in (
        ({}, "another kind of Arrow file"),
        ({ABOUT: b'{"format": "vinvl annotations", "version": 2, "label_map": "", "made_of": ""}'}, "of version 2"),
        ({ABOUT: b'{"format": "vinvl annotations", "version": 1, "label_map": "", "made_of": ""}'}, "its columns are"),
    ):
        with ipc.new_file(str(path), batch.schema.with_metadata(metadata)) as writer:
            writer.write_batch(batch)
        assert words in refusal(open_annotations, path)


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "set.arrow"
    write_annotations(path, pictures(40), NAMES, "a test")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    expected = open_annotations(path)[0].table
    path = tmp_path / "damaged.arrow"  # what is mapped would change with its file
    for stop in random.integers(0, len(whole), 40).tolist():
        path.write_bytes(whole[:stop])
        refusal(open_annotations, path)
    for place in random.integers(0, len(whole), 300).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(random.integers(8)))]) + whole[place + 1 :])
        try:
            found = open_annotations(path)[0].table
        except Exception as error:
            assert type(error).__name__ == "UserError", error
        else:
            assert found.equals(expected)  # it is a byte that nothing is read from
