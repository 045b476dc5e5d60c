"""NoCaps' pictures have numbers, ids in Open Images and file names, and stores by any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.captioning.samples import annotation, coco_file
from tests.regions.samples import make_regions, write
from vinvl.captioning.data import CaptioningDataModule
from vinvl.captioning.files import CaptionRecords, read_coco_captions
from vinvl.regions import RegionStore

OPEN_IDS = [f"{number:016x}" for number in (200, 100, 300)]


def records(folder: Path) -> CaptionRecords:
    images = [
        {"id": number, "open_images_id": one, "file_name": f"{one}.jpg", "width": 100, "height": 100}
        for number, one in enumerate(OPEN_IDS)
    ]
    return read_coco_captions(coco_file(folder, images, [annotation(n, n) for n in range(3)]))


def module_of(folder: Path, ids: list[str], **more: Any) -> CaptioningDataModule:
    path = write(folder / "store.h5", [make_regions(one, 1) for one in ids])
    module = CaptioningDataModule(
        splits={}, regions=str(path), tokenizer="", tags=None,
        train_split="", val_split="", test_split="", predict_split="", max_tokens=9, max_regions=9,
        use_tags=True, use_regions=True, on_missing="error", on_missing_captions="error",
        batch_size=2, eval_batch_size=2, num_workers=0, pin_memory=False, seed=1, prepare=None,
        training_items="captions", mask_probability=0.15, max_masked_tokens=3, max_caption_tokens=5, **more,
    )  # fmt: skip
    module.store = RegionStore(path)
    return module


def places(folder: Path, ids: list[str], **more: Any) -> list[int]:
    return [int(place) for place in np.ravel(module_of(folder, ids, **more).places_of(records(folder)))]


@pytest.mark.parametrize("ids", [OPEN_IDS, [f"{one}.jpg" for one in OPEN_IDS], ["0", "1", "2"]])
def test_stores_by_any_of_their_ids(tmp_path: Path, ids: list[str]) -> None:
    assert places(tmp_path, [ids[2], "7", ids[0], ids[1]]) == [2, 3, 0]


def test_a_number_of_coco_is_not_taken_for_one_of_nocaps(tmp_path: Path) -> None:
    assert places(tmp_path, ["1", OPEN_IDS[0], OPEN_IDS[2]]) == [1, -1, 2]


def test_a_table_of_ids_counts_first(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text("0\ta\n1\tb\n2\tc\n")
    assert places(tmp_path, ["c", "b", "a", *OPEN_IDS], image_ids=str(tmp_path / "table.tsv")) == [2, 1, 0]


def test_of_images_that_the_store_calls_otherwise_its_names_are_told(tmp_path: Path) -> None:
    for ids, expected in (([*OPEN_IDS, "7"], dict(zip("012", OPEN_IDS, strict=True))), (["2", "1", "0"], {})):
        module, read = module_of(tmp_path, ids), records(tmp_path)
        module._read["val"] = (read, module.places_of(read))
        assert module.renamed_images("val") == expected
