"""Pictures to a store: what is in it, and that it is the same however the work was shared out or interrupted."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.detector.samples import SMALL_WEIGHTS, small_detector
from tests.extraction.samples import LABELS, USED, pictures, run_extract
from tests.picture_samples import broken_pictures, gradient, save, with_orientation
from vinvl.detector import Detector
from vinvl.detector.detector import HostCopy
from vinvl.extraction import feed as feed_module
from vinvl.extraction import run as module_module
from vinvl.regions import RegionStore
from vinvl.regions.merging import merge_stores

QUICK = ("detector.min_size=48", "detector.max_size=80", "detector.rpn_proposals=10")


def store_of(folder: Path, *given: str, name: str = "f.h5") -> RegionStore:
    run_extract(folder, f"images={folder / 'pictures'}", f"output={folder / name}", *given)
    return RegionStore(folder / name)


def test_a_store_holds_what_the_detector_says(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    store = store_of(tmp_path)
    detector = small_detector()
    detector.config = USED
    assert list(store.image_ids) == ["picture_0001", "picture_0003", "picture_0000", "picture_0002"]
    assert store.label_map.classes[5] == "class 5" and store.label_map.attributes[7] == "attribute 7"
    assert store.verify() == []
    for path in sorted((tmp_path / "pictures").rglob("*.png")):
        image = Image.open(path)
        found, regions = detector.detect([image])[0], store[path.stem]
        assert (regions.width, regions.height) == image.size
        np.testing.assert_allclose(regions.features.astype(np.float32), found.features.numpy(), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(regions.boxes, found.boxes.numpy(), atol=1e-2)
        np.testing.assert_array_equal(regions.classes, found.labels.numpy())
        np.testing.assert_allclose(regions.class_scores, found.scores.numpy(), atol=1e-4)
        np.testing.assert_allclose(regions.attribute_scores, found.attribute_scores.numpy(), atol=1e-4)
        named = regions.attribute_scores > 0
        np.testing.assert_array_equal(regions.attributes[named], found.attribute_labels.numpy()[named])
        assert (regions.attributes[~named] == 0).all() and named.any()


def test_a_store_says_how_it_was_made(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    store = store_of(tmp_path, "detector.score_threshold=0.3")
    said = store.provenance
    assert (said["nms_filter"], said["boxes"], said["score_threshold"]) == (1, "regressed", 0.3)
    assert said["weights"] == "small_state_dict.safetensors" and len(said["weights_sha256"]) == 64
    assert said["colour_order"] == "BGR" and said["exif_orientation"] == "apply" and said["precision"] == "32-true"
    assert said["versions"]["torch"] == torch.__version__
    assert (
        "NMS_FILTER 1" in store.detector and "0.3" in store.detector and said["weights_sha256"][:12] in store.detector
    )


def test_batches_shards_and_order_give_the_same_store(tmp_path: Path) -> None:
    """Bit for bit: a picture's features depend on nobody who is beside it."""
    pictures(tmp_path / "pictures", 6)
    whole = store_of(tmp_path)
    parts = []
    for index in range(2):
        name = f"part-{index:05d}-of-00002.h5"
        place = [f"images={tmp_path / 'pictures'}", f"output={tmp_path / 'part.h5'}"]
        run_extract(tmp_path, *place, f"shard.index={index}", "shard.count=2")
        parts.append(tmp_path / name)
    merged = merge_stores(parts, tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "f.h5").read_bytes()
    assert list(merged.image_ids) == list(whole.image_ids)
    batched = store_of(tmp_path, "batch_size=4", name="batched.h5")
    for index in range(len(whole)):
        one, other = whole.at(index), batched.at(index)
        assert one.image_id == other.image_id and one.classes.tolist() == other.classes.tolist()
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
        np.testing.assert_allclose(one.features.astype(float), other.features.astype(float), rtol=2e-3, atol=1e-3)


def test_broken_pictures_are_told_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "pictures")
    words = broken_pictures(tmp_path / "pictures" / "broken")
    store = store_of(tmp_path)
    printed = capsys.readouterr().out
    assert len(store) == 4 and f"{len(words)} pictures could not be used" in printed
    listed = dict(line.split("\t", 1) for line in (tmp_path / "f.h5.unusable.txt").read_text().splitlines())
    assert {Path(path).name for path in listed} == set(words)
    for path, reason in listed.items():
        assert words[Path(path).name] in reason and reason in printed


def test_the_same_command_again_does_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "pictures")
    (folder / "late.png").touch()
    store = store_of(tmp_path)
    before = {image_id: store[image_id].features.copy() for image_id in ("picture_0000", "picture_0003")}
    assert "5 of 5 pictures to do" in capsys.readouterr().out
    content = (tmp_path / "f.h5").read_bytes()
    store_of(tmp_path)
    assert "1 of 5 pictures to do" in capsys.readouterr().out and (tmp_path / "f.h5").read_bytes() == content
    save(folder / "late.png")
    (folder / "first" / "picture_0003.png").unlink()
    store = store_of(tmp_path)
    printed = capsys.readouterr().out
    assert "1 of 4 pictures to do" in printed and "1 of them new" in printed
    assert list(store.image_ids) == ["late", "picture_0001", "picture_0000", "picture_0002", "picture_0003"]
    for image_id, features in before.items():
        np.testing.assert_array_equal(store[image_id].features, features)
    assert sorted(os.listdir(tmp_path)) == ["f.h5", "labels.json", "pictures"]


def test_overwrite_makes_a_new_store(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    store_of(tmp_path)
    (folder / "first" / "picture_0003.png").unlink()
    store = store_of(tmp_path, "overwrite=true", "detector.max_boxes=6", "detector.min_boxes=6")
    assert len(store) == 3 and store.num_regions.max() == 6


@pytest.mark.parametrize("apply", [False, True])
def test_exif_orientation(tmp_path: Path, apply: bool) -> None:
    (tmp_path / "pictures").mkdir()
    with_orientation(tmp_path / "pictures" / "a.jpg", 6)
    given = [] if apply else ["reading.exif_orientation=ignore"]
    regions = store_of(tmp_path, *given)["a"]
    assert (regions.width, regions.height) == ((30, 40) if apply else (40, 30))
    other = "reading.exif_orientation=ignore" if apply else "reading.exif_orientation=apply"
    with pytest.raises(SystemExit, match=f"{other[:-6].split('=')[0]}=.* goes on as it was begun"):
        store_of(tmp_path, other)


def test_ids_by_pattern_and_path(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 2)
    assert sorted(store_of(tmp_path, "id.pattern='0*(\\d+)$'").image_ids) == ["0", "1"]
    by_path = store_of(tmp_path, "id.rule=path", name="p.h5")
    assert sorted(by_path.image_ids) == ["first/picture_0001", "second/deep/picture_0000"]


def test_without_names(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 2)
    store = store_of(tmp_path, "labels=none")
    assert store.label_map.classes == () and store.at(0).classes.min() > 0


def test_a_detector_without_attributes_and_a_flat_label_map(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 2)
    flat = tmp_path / "class2ind.json"
    flat.write_text(json.dumps(LABELS["label_to_idx"]))
    store = store_of(tmp_path, "detector.architecture.num_attributes=0", f"labels={flat}")
    assert store.num_attributes == 0 and store.at(0).attributes.shape == (len(store.at(0)), 0)
    assert store.label_map.classes[5] == "class 5" and store.label_map.attributes == () and store.verify() == []


def test_tiny_and_extreme_pictures(tmp_path: Path) -> None:
    save(tmp_path / "pictures" / "dot.png", gradient(1, 1))
    save(tmp_path / "pictures" / "line.png", gradient(2000, 2))
    store = store_of(tmp_path)
    assert len(store) == 2 and (store["line"].width, store["line"].height) == (2000, 2)


def test_mixed_sizes_put_like_shapes_together(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 6)
    store = store_of(tmp_path, "mixed_sizes=true", "batch_size=4")
    assert len(store) == 6 and store.provenance["batches"] == "mixed sizes"


def test_bfloat16_where_it_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "pictures" / "a.png", gradient(40, 30))
    small = ["detector.min_size=32", "detector.max_size=64", "trainer.precision=bf16-mixed"]
    store = store_of(tmp_path, *small)
    assert np.isfinite(store["a"].features).all() and store.provenance["precision"] == "bf16-mixed"


def test_the_faster_precision_is_said_recorded_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that was begun in one precision is gone on with in it, whatever is faster now."""
    save(tmp_path / "pictures" / "a.png", gradient(40, 30))
    asked: list[object] = []

    def faster(*given: object, **more: object) -> tuple[str, str]:
        asked.append((given, more))
        return "bf16-mixed", "it is faster"

    monkeypatch.setattr(module_module, "choose", faster)
    store = store_of(tmp_path, *QUICK, "trainer.precision=auto")
    assert "trainer.precision=bf16-mixed: it is faster\n" in capsys.readouterr().out
    assert store.provenance["precision"] == "bf16-mixed" and asked == [(("cpu",), {"processes": 1})]
    save(tmp_path / "pictures" / "b.png", gradient(40, 30))
    assert len(store_of(tmp_path, *QUICK, "trainer.precision=auto")) == 2 and len(asked) == 1
    assert "was begun with it" in capsys.readouterr().out
    monkeypatch.setattr(module_module, "choose", lambda *_, **__: ("32-true", "it is exact"))
    again = store_of(tmp_path, *QUICK, "trainer.precision=auto", "overwrite=true")
    assert again.provenance["precision"] == "32-true"


def test_what_does_not_fit_together_is_tried_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds one picture, and none of 100 pixels' width."""
    pictures(tmp_path / "pictures", 10)
    detect, calls = Detector.detect_pixels, []

    def small_device(
        self: Detector, pixels: list[torch.Tensor], sizes: list[tuple[int, int]], *rest: object, **more: object
    ):  # type: ignore[no-untyped-def]
        calls.append(len(pixels))
        if len(pixels) > 1 or sizes[0][0] == 100:
            raise torch.OutOfMemoryError("out of memory")
        return detect(self, pixels, sizes, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "detect_pixels", small_device)
    store = store_of(tmp_path, "batch_size=4")
    assert max(calls) > 1 and len(store) == 8
    listed = (tmp_path / "f.h5.unusable.txt").read_text()
    assert listed.count("does not fit into the memory of the device") == 2


def test_the_device_is_asked_for_the_next_pictures_before_the_last_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: decoded and asked for before; the store is the same, bit for bit."""
    pictures(tmp_path / "pictures", 5)
    store_of(tmp_path, *QUICK, name="waiting.h5")
    happened: list[str] = []

    def noting(name: str, owner: object, attribute: str) -> None:
        function = getattr(owner, attribute)

        def noted(*given: object) -> object:
            copied = getattr(given[0], "_tensor", None)
            happened.append(name if copied is None else "counted" if copied.dtype == torch.int64 else "had")
            return function(*given)

        monkeypatch.setattr(owner, attribute, noted)

    noting("decoded", feed_module, "read_picture")
    noting("asked", Detector, "_input")
    noting("", HostCopy, "read")
    monkeypatch.setattr(module_module.DetectionModule, "ahead", True)
    store_of(tmp_path, *QUICK)
    places = {name: [place for place, one in enumerate(happened) if one == name] for name in happened}
    assert {name: len(of_name) for name, of_name in places.items()} == dict.fromkeys(places, 5) and len(places) == 4
    for number in range(3):
        assert places["decoded"][number + 1] < places["asked"][number + 1] < places["counted"][number]
        assert places["asked"][number + 2] < places["counted"][number + 1] < places["had"][number]
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "waiting.h5").read_bytes()


@pytest.mark.parametrize("late", [False, True])
def test_what_does_not_fit_is_tried_alone_once_nothing_else_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """`late`: it is the attributes that do not fit, which are asked for when the next batch is under way."""
    pictures(tmp_path / "pictures", 5)
    method, sizes = ("describe", []) if late else ("propose", [])
    work = getattr(Detector, method)

    def small_device(self: Detector, *given: object, **more: bool) -> object:
        sizes.append(len(given[1]))  # type: ignore[arg-type]
        if len(given[1]) > 1:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("out of memory")
        return work(self, *given, **more)

    detect, left = module_module.DetectionModule._detect, []

    def noted(self: module_module.DetectionModule, batch: object, ahead: bool) -> object:
        if not ahead:
            left.append(len(self._under_way))
        return detect(self, batch, ahead)  # type: ignore[arg-type]

    monkeypatch.setattr(module_module.DetectionModule, "_detect", noted)
    monkeypatch.setattr(module_module.DetectionModule, "ahead", True)
    monkeypatch.setattr(Detector, method, small_device)
    store = store_of(tmp_path, *QUICK, "batch_size=2", "mixed_sizes=true")
    assert len(store) == 5 and max(sizes) == 2 and not (tmp_path / "f.h5.unusable.txt").exists()
    assert set(left) == {0}


def test_a_full_disk_is_told_by_the_thread_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pictures")
    add, added = module_module.ShardWriter.add, []

    def full(self: module_module.ShardWriter, image: object) -> None:
        added.append(threading.current_thread())
        if len(added) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, image)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module_module.ShardWriter, "add", full)
        with pytest.raises(SystemExit, match=r"No space left.*make room and give the same command again"):
            store_of(tmp_path, *QUICK)
    assert threading.main_thread() not in added
    assert len(store_of(tmp_path, *QUICK)) == 4


def test_a_picture_with_features_that_are_no_numbers_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "pictures")
    make = module_module.store_regions

    def damaged(image_id: str, *rest: object):  # type: ignore[no-untyped-def]
        regions = make(image_id, *rest)  # type: ignore[arg-type]
        if image_id == "picture_0002":
            regions.features[0, 0] = np.nan
        return regions

    monkeypatch.setattr(module_module, "store_regions", damaged)
    assert len(store_of(tmp_path)) == 3
    assert "picture_0002" in (listed := (tmp_path / "f.h5.unusable.txt").read_text()) and "NaN" in listed


def test_the_label_map_beside_the_weights_is_found(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 2)
    weights = tmp_path / "w" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(SMALL_WEIGHTS.read_bytes())
    (weights.parent / "VG-SGG-dicts-vgoi6-clipped.json").write_text(json.dumps(LABELS))
    assert store_of(tmp_path, f"weights={weights}", "labels=null").label_map.classes[80] == "class 80"
