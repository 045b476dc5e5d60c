"""Features other than those that a model was trained on: refused where they do not fit, and where known warned of."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import vinvl
from tests.detector.samples import SMALL
from tests.predictor.samples import (
    close,
    detector_file,
    picture_paths,
    predictions,
    store_of,
    tensors,
)
from tests.regions.samples import write
from vinvl.predictor import OtherFeatures
from vinvl.regions import Regions, RegionStore, RegionStoreWriter
from vinvl.run.errors import UserError

pytestmark = pytest.mark.slow

QUESTION = "how many red things are there?"


def test_of_another_dimension(runs: dict[str, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other.h5", [], feature_dim=3)
    with pytest.raises(UserError, match=r"holds features of 3 numbers, and .* was trained on features of 2,048"):
        vinvl.load(runs["vqa"], features=other, device="cpu")
    with pytest.raises(UserError, match=r"detector\.pth makes features of 256 numbers, and .* of 2,048"):
        vinvl.load(runs["vqa"], detector=detector_file(tmp_path), device="cpu")


def test_what_is_known_and_what_is_not(folder: Path, own_runs: dict[str, Path], tmp_path: Path) -> None:
    given: dict[str, Any] = {"detector": folder / "detector.pth", "device": "cpu"}
    store = folder / "features.h5"
    content = tensors(own_runs["vqa"])
    record = content["vinvl"]["features"]["provenance"]

    def forged(**changes: Any) -> Path:
        content["vinvl"]["features"]["provenance"] = {**record, **changes} if changes else {}
        torch.save(content, tmp_path / "forged.ckpt")
        return tmp_path / "forged.ckpt"

    with pytest.warns(OtherFeatures, match="weights_sha256 was") as told:
        vinvl.load(forged(weights_sha256="0" * 64), **given)
    assert [one.filename for one in told if one.category is OtherFeatures] == [__file__]
    with pytest.warns(OtherFeatures, match="label_map_sha256 was"):
        vinvl.load(forged(label_map_sha256="0" * 64), **given)
    with pytest.warns(OtherFeatures, match="has other features than those that the model was"):
        vinvl.load(forged(weights_sha256="0" * 64), features=store, device="cpu")
    with pytest.warns(OtherFeatures, match="max_boxes was -1"):  # a record that cannot be is not followed
        vinvl.load(forged(max_boxes=-1, boxes=["regressed"]), **given)
    harmless = {"weights": "moved.pth", "image_id": {}, "precision": "bf16-mixed", "made": "x", "versions": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherFeatures)
        vinvl.load(forged(**harmless), features=store, **given)
        unknown = vinvl.load(forged(), **given)  # as of features that were converted
    assert unknown._looking.detector is not None
    assert unknown._looking.detector.detector.config == SMALL  # as the weight file says


def test_tags_need_names(folder: Path, own_runs: dict[str, Path]) -> None:
    given: dict[str, Any] = {"detector": folder / "detector.pth", "device": "cpu", "labels": "none"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OtherFeatures)
        with pytest.raises(UserError, match=r"has no names of classes, and .* was trained with them as tags"):
            vinvl.load(own_runs["vqa"], **given)
        model = vinvl.load(own_runs["vqa"], inputs={"use_tags": False}, **given)
    image = next(iter(picture_paths(folder).values()))
    assert model.ask(image, QUESTION).answer and model.regions(image).classes[0].startswith("class ")


def test_a_store_without_names_is_warned_of(folder: Path, own_runs: dict[str, Path], tmp_path: Path) -> None:
    source = RegionStore(folder / "features.h5")
    with RegionStoreWriter(tmp_path / "bare.h5", feature_dim=source.feature_dim) as writer:
        for one in (source.at(0), source.at(1)):
            writer.add(Regions(one.image_id, one.features, one.boxes, width=one.width, height=one.height))
    with pytest.warns(OtherFeatures, match=r"bare\.h5.* has no names of classes, so its images have no tags"):
        model = vinvl.load(own_runs["vqa"], features=tmp_path / "bare.h5", device="cpu")
    assert model.ask(source.at(0).image_id, QUESTION).answer
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        vinvl.load(own_runs["vqa"], features=tmp_path / "bare.h5", inputs={"use_tags": False}, device="cpu")
    assert not any("no names of classes" in str(one.message) for one in told)


def test_tags_from_elsewhere(
    demo_data: Path, runs: dict[str, Path], folder: Path, own_runs: dict[str, Path], tmp_path: Path
) -> None:
    """For a store's images they are those that the door takes; for pictures there are none but the detector's."""
    path = tmp_path / "tags.json"
    images = [str(image_id) for image_id in RegionStore(store_of(demo_data)).image_ids]
    path.write_text(json.dumps({image_id: ["red", "star", f"{i}"] for i, image_id in enumerate(images)}))
    asked = json.loads((demo_data / "demo/v2_OpenEnded_mscoco_test2014_questions.json").read_text())["questions"]
    expected = predictions(runs["vqa"], demo_data, tmp_path / "door", f"++data.tags={path}")
    model = vinvl.load(runs["vqa"], features=store_of(demo_data), inputs={"tags": str(path)}, device="cpu")
    found = model.ask([str(one["image_id"]) for one in asked], [one["question"] for one in asked])
    for one, door in zip(found, expected, strict=True):
        close([score for _, score in one.top], door.probabilities)
    usual = vinvl.load(runs["vqa"], features=store_of(demo_data), device="cpu")
    assert usual.ask(images[0], QUESTION) != model.ask(images[0], QUESTION)
    with pytest.warns(OtherFeatures, match=r"was trained with tags from .*tags\.json; those of a picture are"):
        vinvl.load(own_runs["vqa"], inputs={"tags": str(path)}, detector=folder / "detector.pth", device="cpu")
